"""The sweep that finds an intrinsic dimension: a log grid of d from below, then bisection around the threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from rankprobe.errors import UsageError, must
from rankprobe.experiment.runs import Observer, PlannedRun, Silent, execute, plan_run
from rankprobe.experiment.store import finished
from rankprobe.experiment.study import Configuration, Study
from rankprobe.experiment.sweep import Place, PlannedStudy, plan_study
from rankprobe.tasks.metrics import LOWER_IS_BETTER
from rankprobe.tasks.sources import Progress

METHODS = ("did", "said")
# The grid ends when so many ds in a row have reached the threshold: what lies above is known to.
_ENOUGH = 2


@dataclass(frozen=True)
class IntrinsicSweep:
    """What is to be found, on one model and task.

    Attributes
    ----------
    reference : PlannedStudy
        Full fine-tuning and the head alone, by seed.
    methods : tuple of str
        Of :data:`METHODS`.
    ds : tuple of int
        The log grid, increasing.
    tolerance : float
        The bracket around the threshold is bisected until its ends differ by no more than this factor.
    share : float
        Of full fine-tuning's score.
    lrs : dict of str to float
        By method; the tuned ones where there is none.
    """

    reference: PlannedStudy
    methods: tuple[str, ...]
    ds: tuple[int, ...]
    tolerance: float
    share: float
    lrs: dict[str, float]
    place: Place

    @property
    def seeds(self) -> list[int]:
        """Of every d."""
        return list(dict.fromkeys(run.spec.seed for run in self.reference.runs))

    def runs(self, method: str, d: int) -> list[PlannedRun]:
        """The runs at one d, a seed each."""
        like = {run.spec.seed: run for run in self.reference.runs if run.spec.method == "full"}
        study = replace(
            self.reference.study,
            configurations=(Configuration(method, d=d, lr=self.lrs.get(method), seeds=len(like)),),
        )
        specs = study.specs(dtype=self.place.dtype, device=self.place.device, threads=self.place.threads)
        return [plan_run(spec, like[spec.seed].source, like[spec.seed].task, self.place.runs) for spec in specs]


def plan_intrinsic(
    study: Study,
    place: Place,
    *,
    methods: tuple[str, ...] = METHODS,
    d_min: int = 100,
    d_max: int = 100_000,
    points_per_decade: int = 3,
    tolerance: float = 1.25,
    share: float = 0.9,
    seeds: int = 2,
    lrs: dict[str, float] | None = None,
    progress: Progress | None = None,
) -> IntrinsicSweep:
    """Check everything and name the reference runs; nothing is trained.

    Parameters
    ----------
    study : Study
        Model, task and training settings; its configurations are not read.
    place : Place
    methods, d_min, d_max, points_per_decade, tolerance, share, seeds, lrs
        As :class:`IntrinsicSweep` has them.

    Raises
    ------
    UsageError
        If a setting is out of range or does not fit the model or the task.
    """
    lrs = lrs or {}
    if unknown := [m for m in methods if m not in METHODS]:
        raise UsageError(must("method", f"be {' or '.join(METHODS)}", unknown[0], "Pass --method did,said"))
    if not 1 <= d_min <= d_max:
        raise UsageError(must("d_min and d_max", "be at least 1 and in order", f"{d_min} and {d_max}", "Swap them"))
    if seeds < 2:
        raise UsageError(must("seeds", "be at least 2", seeds, "One seed's luck moves d by a factor"))
    if points_per_decade < 1:
        raise UsageError(must("points_per_decade", "be at least 1", points_per_decade, "Pass 3, say"))
    if not tolerance > 1:
        raise UsageError(must("tolerance", "be a factor above 1", tolerance, "Pass 1.25, say"))
    if not 0 < share <= 1:
        raise UsageError(must("share", "be above 0 and at most 1", share, "Pass 0.9, as the source does"))
    ds = log_grid(d_min, d_max, points_per_decade)
    ends = [Configuration(m, d=d, lr=lrs.get(m), seeds=1) for m in methods for d in (ds[0], ds[-1])]
    reference = (Configuration("full", lr=lrs.get("full"), seeds=seeds),
                 Configuration("head", lr=lrs.get("head"), seeds=seeds))  # fmt: skip
    # With the ends of the grid among the configurations, a d that does not fit the model is refused here.
    planned = plan_study(replace(study, configurations=(*reference, *ends), truncate=()), place, progress=progress)
    task = planned.runs[0].task
    if task.metrics[0] in LOWER_IS_BETTER:
        rule, got = "be scored by what more of is better", f"{task.name}, scored by {task.metrics[0]}"
        raise UsageError(must("The task", rule, got, "Pass a classification task"))
    runs = tuple(run for run in planned.runs if run.spec.method in ("full", "head"))
    kept = PlannedStudy(replace(study, configurations=reference, truncate=()), runs, ())
    return IntrinsicSweep(kept, tuple(dict.fromkeys(methods)), ds, tolerance, share, lrs, place)


def log_grid(d_min: int, d_max: int, points_per_decade: int) -> tuple[int, ...]:
    """Whole numbers evenly spaced in log d, both ends among them.

    >>> log_grid(100, 10_000, 2)
    (100, 316, 1000, 3162, 10000)
    """
    steps = max(1, math.ceil(points_per_decade * math.log10(d_max / d_min) - 1e-9)) if d_max > d_min else 0
    grid = np.geomspace(d_min, d_max, steps + 1)
    return tuple(dict.fromkeys(round(float(d)) for d in grid))


def walk(sweep: IntrinsicSweep, do: Callable[[PlannedRun], dict | None]) -> Iterator[dict]:
    """Every run of the sweep in its order, as far as ``do`` goes: it trains a run, or looks up what is finished.

    Which d comes next depends on scores alone, so that a sweep taken up again walks the same way.

    Parameters
    ----------
    sweep : IntrinsicSweep
    do : callable
        A run's record, or None where it is not to be had: the walk of that method ends there.

    Yields
    ------
    dict
        Records.
    """
    full = []
    for run in sweep.reference.runs:
        record = do(run)
        if record is None:
            return
        yield record
        if run.spec.method == "full" and record["status"] == "ok":
            full.append(_score(record))
    if not full:
        return
    threshold = sweep.share * float(np.mean(full))
    for method in sweep.methods:
        yield from _walk_method(sweep, method, threshold, do)


def _walk_method(
    sweep: IntrinsicSweep, method: str, threshold: float, do: Callable[[PlannedRun], dict | None]
) -> Iterator[dict]:
    reached: dict[int, bool] = {}
    in_a_row = 0
    for d in sweep.ds:
        records = [do(run) for run in sweep.runs(method, d)]
        yield from (record for record in records if record)
        if not all(records):
            return
        reached[d] = _mean(records) >= threshold
        in_a_row = in_a_row + 1 if reached[d] else 0
        if in_a_row == _ENOUGH:
            break
    while (bracket := _bracket(reached)) and bracket[1] > sweep.tolerance * bracket[0]:
        d = round(math.sqrt(bracket[0] * bracket[1]))
        if d in reached:
            return
        records = [do(run) for run in sweep.runs(method, d)]
        yield from (record for record in records if record)
        if not all(records):
            return
        reached[d] = _mean(records) >= threshold


def _bracket(reached: dict[int, bool]) -> tuple[int, int] | None:
    """The smallest d that reaches the threshold and the one below it; None where all or none do."""
    ds = sorted(reached)
    first = next((i for i, d in enumerate(ds) if reached[d]), None)
    return None if not first else (ds[first - 1], ds[first])


def run_intrinsic(
    sweep: IntrinsicSweep, *, observer: Observer | None = None, stop: Callable[[], bool] = lambda: False
) -> Iterator[dict]:
    """Do what is left; yields each run's record, finished earlier or now.

    Full fine-tuning keeps its weights; in random subspaces they are dropped, a whole model for each d otherwise.
    """
    observer = observer or Silent()

    def do(run: PlannedRun) -> dict | None:
        keep = run.spec.method == "full"
        if not finished(run.folder, need_weights=keep):
            if stop():
                return None
            observer.begin(run.spec.label, run.steps)
        return execute(run, keep_weights=keep, observer=observer)

    yield from walk(sweep, do)


def finished_intrinsic(sweep: IntrinsicSweep) -> list[dict]:
    """Records of the finished runs of a sweep, in its order."""
    return list(walk(sweep, lambda run: finished(run.folder)))


def _score(record: dict) -> float:
    return float(record["metrics"][record["task"]["metrics"][0]])


def _mean(records: list[dict]) -> float:
    """Mean score; a run that diverged has reached nothing."""
    return float(np.mean([_score(record) if record["status"] == "ok" else -math.inf for record in records]))

