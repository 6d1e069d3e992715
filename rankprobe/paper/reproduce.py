"""The scales of ``reproduce-paper`` and what each claim needs of them."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from importlib import resources

from rankprobe.errors import UsageError, must
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.study import Study
from rankprobe.experiment.study_file import study_from
from rankprobe.experiment.sweep import PlannedStudy
from rankprobe.paper.table1 import printed_sizes
from rankprobe.report.claims_methods import OTHERS
from rankprobe.report.verdicts import SMALL_R

SCALES = ("smoke", "small", "medium", "paper")


@dataclass(frozen=True)
class Intrinsic:
    """How the intrinsic dimension is looked for; see :mod:`rankprobe.experiment.intrinsic`."""

    methods: tuple[str, ...]
    d_min: int
    d_max: int
    points_per_decade: int
    tolerance: float
    seeds: int


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
    latency_bottlenecks : (int, int) or None
        Of the Adapter-L and Adapter-H that are timed beside it; None leaves both out.
    latency_prefix : int or None
        Tokens of the PreLayer and PreEmbed that are timed beside those; None leaves both out.
    table1_budget_s : float
        For the adapters' latency at the shapes of the paper's Table 1; 0 leaves it out.
    table1_shrink, table1_shapes : int, tuple of (int, int), or None
        Of a smaller model and fewer shapes, see :func:`rankprobe.paper.table1.plan_table1`.
    pairs : bool
        Whether Table 7, Figures 3 and 4 and intruder dimensions are measured.
    intrinsic : Intrinsic or None
    """

    name: str
    studies: tuple[Study, ...]
    shapes: tuple[tuple[int, int], ...]
    latency_r: int
    latency_budget_s: float
    latency_bottlenecks: tuple[int, int] | None = None
    latency_prefix: int | None = None
    table1_budget_s: float = 0.0
    table1_shrink: int | None = None
    table1_shapes: tuple[tuple[int, int], ...] | None = None
    pairs: bool = False
    intrinsic: Intrinsic | None = None


@dataclass(frozen=True)
class Needs:
    """What a claim needs.

    Attributes
    ----------
    runs : tuple of (method, r, targets)
        Trained; None for any. ``head`` beside the others where a verdict asks whether there was anything to lose.
    functional_rank, latency, table1, intrinsic : bool
    pairs : tuple of str
        Of what pairs of runs share.
    """

    runs: tuple[tuple[str, int | None, str | None], ...] = ()
    functional_rank: bool = False
    latency: bool = False
    table1: bool = False
    intrinsic: bool = False
    pairs: tuple[str, ...] = ()

    def trains(self, method: str, r: int | None, targets: str | None) -> bool:
        """Whether a run of this kind is among those needed."""
        return any(
            method == m and (r_ is None or r_ == r) and (t is None or t == targets) for m, r_, t in self.runs
        )  # fmt: skip


_FULL, _HEAD = ("full", None, None), ("head", None, None)


def _lora(r: int | None, targets: str = "q,v") -> tuple[str, int | None, str]:
    return "lora", r, targets


_BUDGET = {"q": ("q", 16), "v": ("v", 16), "qv": ("q,v", 8), "qkvo": ("q,k,v,o", 4)}


def _table5(one: str, other: str) -> Needs:
    return Needs(tuple(_lora(r, targets) for targets, r in (_BUDGET[one], _BUDGET[other])))


# By a regular expression for the whole claim_id, or for a table or figure as a whole; (a, b) in small-rA-vs-rB are r.
NEEDS: dict[str, Needs] = {
    r"vignette-parameters": Needs(),
    r"lora-equals-full": Needs((_FULL, _HEAD, _lora(8))),
    r"small-r(\d+)-vs-full": Needs((_FULL, _HEAD)),
    r"small-r(\d+)-vs-r(\d+)": Needs((_FULL, _HEAD)),
    r"trainable-parameters": Needs((_lora(8),)),
    r"(merged|unmerged)-latency(-b\d+-l\d+)?": Needs(latency=True),
    r"table1(-(merged|unmerged|adapter-l|adapter-h)(-b\d+-l\d+)?)?": Needs(table1=True),
    r"table2": Needs((_FULL, _HEAD, _lora(8), *((m, None, None) for m in OTHERS)), latency=True),
    **{
        f"lora-vs-{method.replace('_', '-')}": Needs((_FULL, _HEAD, _lora(8), (method, None, None)))
        for method in OTHERS
    },
    r"table5": Needs((_lora(8), *(_lora(r, t) for t, r in _BUDGET.values()), _lora(16, "k"), _lora(16, "o"),
                      _lora(8, "q,k"))),
    r"table5-qv-vs-q": _table5("qv", "q"),
    r"table5-qv-vs-v": _table5("qv", "v"),
    r"table5-qkvo-vs-q": _table5("qkvo", "q"),
    r"table6": Needs(tuple(_lora(None, t) for t in ("q", "q,v", "q,k,v,o"))),
    r"table6-r1-q": Needs((_FULL, _HEAD, _lora(1, "q"), _lora(64, "q"))),
    r"table6-r1-qkvo": Needs((_FULL, _HEAD, _lora(1, "q,k,v,o"), _lora(64, "q,k,v,o"))),
    r"dw-low-rank-by-energy": Needs((_FULL,)),
    r"dw-low-rank-by-function": Needs((_FULL,), functional_rank=True),
    r"full-rank-over-lora-r": Needs((_FULL, _lora(8))),
    r"energy-rank-over-functional-rank": Needs((_FULL,), functional_rank=True),
    r"figure3(-shared-direction)?": Needs((_lora(8), _lora(64)), pairs=("r8-r64",)),
    r"figure4(-seeds-share)?": Needs((_lora(64),), pairs=("r64-seeds",)),
    r"table7(-correlated|-not-emphasised|-amplified|-falls-with-r)?": Needs((_lora(4), _lora(64)), pairs=("r4-r64",)),
    r"intrinsic-dimension(-did|-said-below-did|-below-lora)?": Needs((_lora(8),), intrinsic=True),
    r"intruders(-lora|-full|-by-r)?": Needs((_FULL, _lora(1), _lora(64)), pairs=("r1-full", "r4-r64")),
}  # fmt: skip
# What the error for an unknown claim begins with.
_EXAMPLES = ("lora-equals-full", "small-r1-vs-r8", "merged-latency", "table1", "table5-qv-vs-q", "figure3", "table7",
             "intruders", "intrinsic-dimension")  # fmt: skip


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
    latency, intrinsic, table1 = table["latency"], table.get("intrinsic"), table.get("table1", {})
    if intrinsic:
        intrinsic = Intrinsic(**{**intrinsic, "methods": tuple(intrinsic["methods"])})
    return Scale(
        name,
        studies,
        tuple((b, n) for b, n in latency["shapes"]),
        latency["r"],
        float(latency["budget_s"]),
        tuple(latency["bottlenecks"]) if "bottlenecks" in latency else None,
        latency.get("prefix_length"),
        float(table1.get("budget_s", 0.0)),
        table1.get("shrink"),
        tuple((b, n) for b, n in table1["shapes"]) if "shapes" in table1 else None,
        bool(table.get("pairs", False)),
        intrinsic,
    )


def needs_of(claim: str) -> Needs:
    """What a claim of claims.csv needs, or a table or figure of the paper (``table7``).

    Raises
    ------
    UsageError
        If there is no such claim.
    """
    for pattern, needs in NEEDS.items():
        if found := re.fullmatch(pattern, claim):
            rs = tuple(_lora(int(group)) for group in found.groups() if group and group.isdigit())
            return replace(needs, runs=(*needs.runs, *rs))
    near = difflib.get_close_matches(claim, [name for pattern in NEEDS for name in _claims(pattern)], n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}?" if near else "Pass one of those"
    raise UsageError(must("--only", f"be a claim such as {', '.join(_EXAMPLES)}", repr(claim), hint))


def _claims(pattern: str) -> list[str]:
    """What a key of :data:`NEEDS` matches, with no shape and with one choice of r.

    >>> _claims(r"figure3(-shared-direction)?"), _claims(r"(merged|unmerged)-latency(-b\\d+-l\\d+)?")
    (['figure3-shared-direction', 'figure3'], ['merged-latency', 'unmerged-latency'])
    """
    for variable, one in ((r"(-b\d+-l\d+)?", ""), (r"-vs-r(\d+)", "-vs-r8"), (r"r(\d+)", "r1")):
        pattern = pattern.replace(variable, one)
    group = re.search(r"\(([^()]*)\)(\??)", pattern)  # an innermost one
    if group is None:
        return [pattern]
    choices = [*group[1].split("|"), *([""] if group[2] else [])]
    return [name for one in choices for name in _claims(pattern[: group.start()] + one + pattern[group.end() :])]


def check_measured(
    claim: str, needs: Needs, planned: Sequence[PlannedStudy], scale: Scale, pairs: Collection[str]
) -> None:
    """Refuse a claim about what a scale does not train or measure.

    Parameters
    ----------
    claim : str
    needs : Needs
        Of the claim.
    planned : sequence of PlannedStudy
        Of the scale.
    scale : Scale
    pairs : collection of str
        Names of the pairs of runs that the scale compares.

    Raises
    ------
    UsageError
    """
    _check_trained(claim, needs, planned, scale.name)
    lacking = [name for name in needs.pairs if name not in pairs]
    if lacking or (needs.table1 and not scale.table1_budget_s) or (needs.intrinsic and scale.intrinsic is None):
        what = f"{claim!r}, which needs " + (f"the pair {lacking[0]}" if lacking else "a measurement of its own")
        raise UsageError(must("--only", f"ask for what the scale {scale.name} measures", what, "Pass --scale medium"))
    if found := re.search(r"-b(\d+)-l(\d+)$", claim):
        shapes = (scale.table1_shapes or tuple(printed_sizes())) if needs.table1 else scale.shapes
        if (int(found[1]), int(found[2])) not in shapes:
            known = ", ".join(f"-b{batch}-l{length}" for batch, length in shapes)
            rule = f"end with a shape that the scale {scale.name} times ({known})"
            raise UsageError(must("--only", rule, repr(claim), "Choose of those"))
    if (found := re.match(r"small-r(\d+)-vs-", claim)) and int(found[1]) not in SMALL_R:
        rule = f"be of r that the paper calls small ({', '.join(map(str, SMALL_R))})"
        raise UsageError(must("--only", rule, repr(claim), "Choose of those"))


def _check_trained(claim: str, needs: Needs, planned: Sequence[PlannedStudy], scale: str) -> None:
    kinds = {(run.spec.method, run.spec.r, run.spec.targets) for study in planned for run in study.runs}
    for method, r, targets in needs.runs:
        if method == "head":  # looked at where there is one; no claim falls without it
            continue
        one = replace(needs, runs=((method, r, targets),))
        if any(one.trains(*kind) for kind in kinds):
            continue
        if method == "lora" and (rs := sorted(kind[1] for kind in kinds if kind[0] == "lora" and kind[2] == targets)):
            rule = f"ask for r that the scale {scale} trains ({', '.join(map(str, rs))})"
            raise UsageError(must("--only", rule, repr(claim), "Choose of those"))
        what = f"{claim!r}, which needs {method}" + (f" on {targets}" if targets else "")
        raise UsageError(must("--only", f"ask for what the scale {scale} trains", what, "Pass --scale medium"))


def only_what_is_needed(planned: PlannedStudy, needs: Needs, task: str | None = None) -> PlannedStudy:
    """A study's runs that a claim needs; with ``task`` none of another task."""

    def needed(run: PlannedRun) -> bool:
        return task in (None, run.task.name) and needs.trains(run.spec.method, run.spec.r, run.spec.targets)

    truncate = tuple(run for run in planned.truncate if needs.functional_rank and needed(run))
    return replace(planned, runs=tuple(run for run in planned.runs if needed(run)), truncate=truncate)
