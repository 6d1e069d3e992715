"""The scales of ``reproduce-paper`` and what each claim needs of them."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from importlib import resources

from rankprobe.errors import UsageError, must
from rankprobe.experiment.runs import PlannedRun
from rankprobe.experiment.study import Study, nearest
from rankprobe.experiment.study_file import study_from
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
    """What a claim needs.

    Attributes
    ----------
    methods : tuple of str
        Trained; ``head`` beside the others where a verdict asks whether there was anything to lose.
    rs : tuple of int or None
        LoRA's r; None for all.
    functional_rank, latency : bool
    """

    methods: tuple[str, ...] = ()
    rs: tuple[int, ...] | None = None
    functional_rank: bool = False
    latency: bool = False


# By a regular expression for the whole claim_id; (a, b) in small-rA-vs-rB are the r it needs.
NEEDS: dict[str, Needs] = {
    r"vignette-parameters": Needs(),
    r"lora-equals-full": Needs(("full", "lora", "head"), (8,)),
    r"small-r(\d+)-vs-full": Needs(("full", "lora", "head")),
    r"small-r(\d+)-vs-r(\d+)": Needs(("full", "lora", "head")),
    r"trainable-parameters": Needs(("lora",), (8,)),
    r"(merged|unmerged)-latency(-b\d+-l\d+)?": Needs(latency=True),
    r"dw-low-rank-by-energy": Needs(("full",)),
    r"dw-low-rank-by-function": Needs(("full",), functional_rank=True),
}
_EXAMPLES = (
    "vignette-parameters",
    "lora-equals-full",
    "small-r1-vs-full",
    "small-r1-vs-r8",
    "trainable-parameters",
    "merged-latency",
    "unmerged-latency",
    "dw-low-rank-by-energy",
    "dw-low-rank-by-function",
)


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
    for pattern, needs in NEEDS.items():
        if found := re.fullmatch(pattern, claim):
            rs = tuple(int(group) for group in found.groups() if group and group.isdigit())
            return replace(needs, rs=rs) if rs else needs
    raise UsageError(
        must("--only", f"be a claim such as {', '.join(_EXAMPLES)}", repr(claim), nearest(claim, _EXAMPLES))
    )


def only_what_is_needed(planned: PlannedStudy, needs: Needs) -> PlannedStudy:
    """A study's runs that a claim needs."""

    def needed(run: PlannedRun) -> bool:
        r = run.spec.r
        return run.spec.method in needs.methods and (r is None or needs.rs is None or r in needs.rs)

    truncate = tuple(run for run in planned.truncate if needs.functional_rank and needed(run))
    return replace(planned, runs=tuple(run for run in planned.runs if needed(run)), truncate=truncate)
