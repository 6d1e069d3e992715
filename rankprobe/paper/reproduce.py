"""The paper's claims, tested: which runs and measurements each claim needs, and doing them in a useful order."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from rankprobe.errors import UsageError, must
from rankprobe.experiment.latency import LatencyPlan, execute_latency, plan_latency
from rankprobe.experiment.runs import Observer
from rankprobe.experiment.store import load_runs
from rankprobe.experiment.study import Configuration, Study, nearest, study_from
from rankprobe.experiment.sweep import Place, PlannedStudy, plan_study, run_study

SCALES = ("smoke", "small", "paper")


@dataclass(frozen=True)
class Scale:
    """Everything one scale does.

    Attributes
    ----------
    name : str
    studies : tuple of Study
    shapes : tuple of (int, int)
        (batch, length) at which latency is measured; empty for none.
    latency_budget_s : float
    """

    name: str
    studies: tuple[Study, ...]
    shapes: tuple[tuple[int, int], ...]
    latency_budget_s: float


# What each claim needs: of which configurations, whether functional rank, whether latency.
_ANY_LORA = "lora"
NEEDS: dict[str, tuple[tuple[str, ...], bool, bool]] = {}


def load_scale(name: str, *, seed: int = 0) -> Scale:
    """Read one of the scales that ship with the package.

    Parameters
    ----------
    name : str
        One of :data:`SCALES`.
    seed : int
        First seed of every configuration.
    """
    table = tomllib.loads((resources.files("rankprobe.paper") / f"{name}.toml").read_text(encoding="utf-8"))
    studies = tuple(study_from({**study, "seed": seed}, f"{name}.toml") for study in table["studies"])
    latency = table["latency"]
    return Scale(name, studies, tuple((b, n) for b, n in latency["shapes"]), float(latency["budget_s"]))
