"""The scales of ``reproduce-paper`` and what each claim needs of them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from importlib import resources

from rankprobe.errors import UsageError, must
from rankprobe.experiment.study import Study, nearest, study_from
from rankprobe.experiment.sweep import PlannedStudy

SCALES = ("smoke", "small", "paper")


@dataclass(frozen=True)
class Scale:
    """Everything that one scale does.

    Attributes
    ----------
    name : str
    studies : tuple of Study
    shapes : tuple of (int, int)
        (batch, length) at which latency is measured.
    latency_r : int
        r of the LoRA that is timed, on q and v.
    latency_budget_s : float
        For all shapes together.
    """

    name: str
    studies: tuple[Study, ...]
    shapes: tuple[tuple[int, int], ...]
    latency_r: int
    latency_budget_s: float


@dataclass(frozen=True)
class Needs:
    """What a claim needs: methods trained, whether functional rank, whether latency."""

    methods: tuple[str, ...] = ()
    functional_rank: bool = False
    latency: bool = False


# By claim_id, or by the beginning that several share (small-r1-vs-full, small-r2-vs-full, ...).
NEEDS: dict[str, Needs] = {
    "vignette-parameters": Needs(),
    "lora-equals-full": Needs(("full", "lora")),
    "small-r": Needs(("full", "lora")),
    "trainable-parameters": Needs(("lora",)),
    "merged-latency": Needs(latency=True),
    "unmerged-latency": Needs(latency=True),
    "dw-low-rank-by-energy": Needs(("full",)),
    "dw-low-rank-by-function": Needs(("full",), functional_rank=True),
}


def load_scale(name: str, *, seed: int = 0) -> Scale:
    """Read one of the scales that ship with the package.

    Parameters
    ----------
    name : str
        One of :data:`SCALES`.
    seed : int
        First seed of every configuration.
    """
    where = f"rankprobe/paper/{name}.toml"
    table = tomllib.loads((resources.files("rankprobe.paper") / f"{name}.toml").read_text(encoding="utf-8"))
    studies = tuple(study_from({**study, "seed": seed}, where) for study in table["studies"])
    latency = table["latency"]
    return Scale(name, studies, tuple((b, n) for b, n in latency["shapes"]), latency["r"], float(latency["budget_s"]))


def needs_of(claim: str) -> Needs:
    """What a claim of claims.csv needs.

    Raises
    ------
    UsageError
        If there is no such claim.
    """
    for name, needs in NEEDS.items():
        if claim.startswith(name):
            return needs
    raise UsageError(must("--only", f"begin one of the claims {', '.join(NEEDS)}", repr(claim), nearest(claim, NEEDS)))


def only_what_is_needed(planned: PlannedStudy, needs: Needs) -> PlannedStudy:
    """A study's runs that a claim needs."""
    runs = tuple(run for run in planned.runs if run.spec.method in needs.methods)
    truncate = tuple(run for run in planned.truncate if needs.functional_rank and run.spec.method in needs.methods)
    return replace(planned, runs=runs, truncate=truncate)
