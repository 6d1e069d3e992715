"""The sweep that finds an intrinsic dimension: a log grid of d from below, then bisection around the threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from rankprobe.analysis.crossing import bracket
from rankprobe.errors import UsageError, must
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.executors import IN_TURN, Executor
from rankprobe.experiment.observer import Observer, Silent
from rankprobe.experiment.pieces import Piece
from rankprobe.experiment.planned_run import PlannedRun, plan_run
from rankprobe.experiment.store import finished
from rankprobe.experiment.study import Study
from rankprobe.experiment.sweep import Place, PlannedStudy, plan_study
from rankprobe.experiment.truncation import truncation_done
from rankprobe.tasks.load import LANGUAGE_TASKS
from rankprobe.tasks.sources import Progress

METHODS = ("did", "said")
# The grid ends when so many ds in a row have reached every threshold: what lies above is known to.
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
        Of full fine-tuning's score, and of its gain over the head.
    lrs : dict of str to float
        By method; the tuned ones where there is none.
    place : Place
    """

    reference: PlannedStudy
    methods: tuple[str, ...]
    ds: tuple[int, ...]
    tolerance: float
    share: float
    lrs: dict[str, float]
    place: Place

    @property
    def steps_left(self) -> int:
        """Optimiser steps of the reference and of the grid that are not finished; the grid may end early."""
        grid = (run for method in self.methods for d in self.ds for run in self.runs(method, d))
        return self.reference.steps_left() + sum(run.steps for run in grid if not finished(run.folder))

    @property
    def untuned(self) -> str:
        """As :attr:`rankprobe.experiment.sweep.PlannedStudy.untuned`, of the subspaces' rates too."""
        study = self.reference.study
        subspaces = (Configuration(method, d=self.ds[0], lr=self.lrs.get(method)) for method in self.methods)
        return replace(self.reference, study=replace(study, configurations=(*study.configurations, *subspaces))).untuned

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
    if not methods:
        raise UsageError(must("method", f"be {' or '.join(METHODS)}", "none", "Pass --method did,said"))
    if not 1 <= d_min <= d_max:
        next_step = "Swap them" if d_max >= 1 and d_min > d_max else "Pass 100 and 100000, say"
        raise UsageError(must("d_min and d_max", "be at least 1 and in order", f"{d_min} and {d_max}", next_step))
    if seeds < 2:
        raise UsageError(must("seeds", "be at least 2", seeds, "One seed's luck moves d by a factor"))
    if points_per_decade < 1:
        raise UsageError(must("points_per_decade", "be at least 1", points_per_decade, "Pass 3, say"))
    if not 1 < tolerance < math.inf:
        raise UsageError(must("tolerance", "be a factor above 1", tolerance, "Pass 1.25, say"))
    if not 0 < share <= 1:
        raise UsageError(must("share", "be above 0 and at most 1", share, "Pass 0.9, as the source does"))
    if study.task in LANGUAGE_TASKS:
        rule, next_step = "be scored by what more of is better", "Pass a classification task"
        raise UsageError(must("The task", rule, f"{study.task}, scored by perplexity", next_step))
    ds = log_grid(d_min, d_max, points_per_decade)
    ends = [Configuration(m, d=d, lr=lrs.get(m), seeds=1) for m in methods for d in (ds[0], ds[-1])]
    reference = (Configuration("full", lr=lrs.get("full"), seeds=seeds),
                 Configuration("head", lr=lrs.get("head"), seeds=seeds))  # fmt: skip
    # With the ends of the grid among the configurations, a d that does not fit the model is refused here.
    planned = plan_study(replace(study, configurations=(*reference, *ends), truncate=()), place, progress=progress)
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

    First full fine-tuning and the head; then by method the grid from below, and bisection around the share of the
    score; at last bisection around the share of the gain. Which d comes next depends on scores alone, so that a sweep
    taken up again walks the same way. A run that diverged says nothing of its d: the other seeds count.

    Parameters
    ----------
    sweep : IntrinsicSweep
    do : callable
        A run's record, or None where it is not to be had: the walk ends there.

    Yields
    ------
    dict
        Records.
    """
    reference: dict[str, list[float]] = {"full": [], "head": []}
    for run in sweep.reference.runs:
        record = do(run)
        if record is None:
            return
        yield record
        if record["status"] == "ok":
            reference[run.spec.method].append(_score(record))
    if not reference["full"]:
        return
    full = float(np.mean(reference["full"]))
    head = float(np.mean(reference["head"])) if reference["head"] else full
    # A head as good as full fine-tuning leaves no gain to take a share of.
    bars = [sweep.share * full] + ([head + sweep.share * (full - head)] if full > head else [])
    curves = {method: _Curve(sweep, method, do) for method in sweep.methods}
    for curve in curves.values():
        yield from curve.grid(bars)
        yield from curve.bisect(bars[0])
    for bar in bars[1:]:
        for curve in curves.values():
            yield from curve.bisect(bar)


class _Curve:
    """What is known of one method: mean scores by d. No d is asked for after a run was not to be had."""

    def __init__(self, sweep: IntrinsicSweep, method: str, do: Callable[[PlannedRun], dict | None]) -> None:
        self.sweep, self.method, self.do = sweep, method, do
        self.scores: dict[int, list[float]] = {}
        self.stopped = False

    def grid(self, bars: list[float]) -> Iterator[dict]:
        """From below, until enough ds in a row are above every bar."""
        in_a_row = 0
        for d in self.sweep.ds:
            yield from self._measure(d)
            if self.stopped:
                return
            found = self.scores[d]
            in_a_row = in_a_row + 1 if found and np.mean(found) >= max(bars) else 0
            if in_a_row == _ENOUGH:
                return

    def bisect(self, bar: float) -> Iterator[dict]:
        """In log d, between the ds around the bar, until these are near enough to each other."""
        while not self.stopped:
            known = {d: found for d, found in sorted(self.scores.items()) if found}
            if not known:
                return
            means, seeds = [float(np.mean(found)) for found in known.values()], [len(f) for f in known.values()]
            below, above = bracket(list(known), means, bar, seeds)
            if not below or math.isinf(above) or above <= self.sweep.tolerance * below:
                return
            d = round(math.sqrt(below * above))
            if d in self.scores:  # no whole number between them, or one where every run diverged
                return
            yield from self._measure(d)

    def _measure(self, d: int) -> Iterator[dict]:
        found = []
        for run in self.sweep.runs(self.method, d):
            record = self.do(run)
            if record is None:
                self.stopped = True
                return
            yield record
            if record["status"] == "ok":
                found.append(_score(record))
        self.scores[d] = found


def run_intrinsic(
    sweep: IntrinsicSweep,
    *,
    functional_rank: bool = False,
    observer: Observer | None = None,
    stop: Callable[[], bool] = lambda: False,
    executor: Executor = IN_TURN,
) -> Iterator[dict]:
    """Do what is left; yields each run's record, finished earlier or now.

    In random subspaces weights are dropped, which would be a whole model for each d; full fine-tuning's are kept.

    Parameters
    ----------
    sweep : IntrinsicSweep
    functional_rank : bool
        Measure it on the first seed of full fine-tuning when all else is done; its record then comes again. Where a run
        of an earlier sweep dropped its weights, it is trained again.
    observer : Observer, optional
    stop : callable
        Once it is true nothing new is begun.
    executor : Executor
        One that does several at once does the reference together, and the seeds of each d.
    """
    observer = observer or Silent()
    first = next(run for run in sweep.reference.runs if run.spec.method == "full")
    records: dict[str, dict] = {}
    in_vain: list[dict] = []

    def piece(run: PlannedRun) -> Piece:
        need = functional_rank and run.run_id == first.run_id and not truncation_done(run)
        needed = frozenset({run.run_id} if need else ())
        return Piece((run,), keep_weights=run.spec.method == "full", need_weights=needed)

    def do(run: PlannedRun) -> dict | None:
        if run.run_id not in records:
            together = [run] if executor.width == 1 else _together(sweep, run)
            for record in executor([piece(other) for other in together], observer, stop):
                again = record["status"] == "failed" and record["run_id"] == first.run_id
                if again and (there := finished(first.folder)):
                    # Done again for its weights in vain: the walk goes by what there is, as it did and will.
                    in_vain.append(record)
                    record = there
                records[record["run_id"]] = record
        return records.get(run.run_id)

    yield from walk(sweep, do)
    yield from in_vain
    if functional_rank:
        yield from executor([Piece((first,), truncation=True)], observer, stop)


def _together(sweep: IntrinsicSweep, run: PlannedRun) -> list[PlannedRun]:
    """Runs none of which has to be known before another: all of the reference, or the seeds at one d."""
    return list(sweep.reference.runs) if run.spec.d is None else sweep.runs(run.spec.method, run.spec.d)


def finished_intrinsic(sweep: IntrinsicSweep) -> list[dict]:
    """Records of the finished runs of a sweep, in its order."""
    return list(walk(sweep, lambda run: finished(run.folder)))


def _score(record: dict) -> float:
    return float(record["metrics"][record["task"]["metrics"][0]])
