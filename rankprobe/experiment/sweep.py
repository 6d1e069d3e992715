"""Many runs: finished ones are taken from the store, the rest are done in the planned order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankprobe.experiment.data_notes import data_notes
from rankprobe.experiment.executors import IN_TURN, Executor
from rankprobe.experiment.fit import check_fit
from rankprobe.experiment.learning_rates import TUNED_ON
from rankprobe.experiment.observer import Observer, Silent
from rankprobe.experiment.pack_groups import pack_groups
from rankprobe.experiment.pieces import Piece
from rankprobe.experiment.planned_run import PlannedRun, plan_run
from rankprobe.experiment.store import finished
from rankprobe.experiment.study import Study, parse_configuration
from rankprobe.experiment.truncation import truncation_done
from rankprobe.tasks.load import load_task
from rankprobe.weights.source import find_model

if TYPE_CHECKING:
    from rankprobe.tasks.files import FileSpec
    from rankprobe.tasks.sources import Progress


@dataclass(frozen=True)
class Place:
    """Where this machine keeps things and what it computes with: all that a study leaves open.

    Attributes
    ----------
    runs : Path
        The run store.
    dtype, device : str
        Resolved, not ``auto``.
    threads : int
    data_dir : Path or None
        Folder of GLUE files.
    files : FileSpec or None
        For the task ``files``.
    """

    runs: Path
    dtype: str
    device: str
    threads: int
    data_dir: Path | None = None
    files: FileSpec | None = None


@dataclass(frozen=True)
class PlannedStudy:
    """A study's runs on this machine.

    Attributes
    ----------
    study : Study
    runs : tuple of PlannedRun
        In the order to do them.
    truncate : tuple of PlannedRun
        Those whose functional rank is measured: the first seed of every configuration that the study names.
    """

    study: Study
    runs: tuple[PlannedRun, ...]
    truncate: tuple[PlannedRun, ...]

    def needs_weights(self, run: PlannedRun, weights_of: Collection[str] = ()) -> bool:
        """Whether what a run trained has to be there: its functional rank is still to be measured, or it is asked for.

        A finished run that dropped its weights is done again then, and only then.
        """
        return run.run_id in weights_of or (run in self.truncate and not truncation_done(run))

    def left(self, weights_of: Collection[str] = ()) -> list[PlannedRun]:
        """The runs that are still to be done."""
        return [
            run for run in self.runs if not finished(run.folder, need_weights=self.needs_weights(run, weights_of))
        ]

    def steps_left(self, weights_of: Collection[str] = ()) -> int:
        """Optimiser steps of the runs that are still to be done."""
        return sum(run.steps for run in self.left(weights_of))

    @property
    def untuned(self) -> str:
        """As :func:`untuned_note` has it."""
        return untuned_note([self])

    def rounds(self) -> list[PlannedStudy]:
        """The study cut by seed: every configuration once (and its functional rank), then the next seed of each."""
        seeds = list(dict.fromkeys(run.spec.seed for run in self.runs))
        return [replace(self, runs=tuple(run for run in self.runs if run.spec.seed == seed),
                        truncate=self.truncate if seed == seeds[0] else ()) for seed in seeds]

    def pieces(
        self, *, keep_weights: bool = True, weights_of: Collection[str] = (), pack: int = 1
    ) -> list[Piece]:
        """All the work, the most useful first: a round of runs, their functional ranks, the next round.

        With ``pack`` above 1 up to so many runs, of any seeds, are one piece, in the place of the first of them.
        """
        packs = {run.run_id: group for group in pack_groups(self.runs, pack) for run in group}
        found: list[Piece] = []
        for round_ in self.rounds():
            for run in round_.runs:
                group = packs.get(run.run_id, (run,))
                if run is group[0]:
                    need = frozenset(run.run_id for run in group if self.needs_weights(run, weights_of))
                    found.append(Piece(group, keep_weights=keep_weights, need_weights=need))
            found += [Piece((run,), truncation=True) for run in round_.truncate]
        return found


def untuned_note(studies: Sequence[PlannedStudy]) -> str:
    """A sentence, where default learning rates are used on another model or task than theirs; else empty."""
    where: dict[str, list[str]] = {}
    for study in studies:
        if not study.runs:  # a claim needs nothing of it
            continue
        name, task = study.runs[0].source.name, study.runs[0].task.name
        default = any(c.lr is None and not c.lr_grid for c in study.study.configurations) and not study.study.tune
        if default and not (name == TUNED_ON[0] and task.partition("@")[0].startswith(TUNED_ON[1])):
            where.setdefault(name, []).append(task)
    if not where:
        return ""
    elsewhere = " and ".join(f"{name} on {', '.join(dict.fromkeys(tasks))}" for name, tasks in where.items())
    return (f"learning rates were tuned for {TUNED_ON[0]} on {TUNED_ON[1]}, not for {elsewhere}: what a method reaches "
            "there may be the rate's doing. Pass --lr, or let a sweep choose them: --tune 0.5,1,2")


def plan_study(study: Study, place: Place, *, progress: Progress | None = None) -> PlannedStudy:
    """Find the model, load the data and name every run; nothing is trained or written.

    ``progress`` is told of a data set that has to be made first, as (what, files done, files in all).

    Raises
    ------
    UsageError
        If the model, the task or a setting is wrong, or a setting does not fit the model.

    Warns
    -----
    UserWarning
        Of training rows, as :func:`rankprobe.experiment.data_notes.data_notes` says.
    """
    source = find_model(study.model)
    task = load_task(study.task, data_dir=place.data_dir, files=place.files, split=study.split,
                     train_size=study.train_size or None, eval_size=study.eval_size or None, progress=progress,
                     held_out=study.tuning_size if study.patience else None)  # fmt: skip
    specs = study.specs(dtype=place.dtype, device=place.device, threads=place.threads)
    check_fit(specs, source, problem=task.problem, num_labels=max(1, len(task.labels)))
    # Of the evaluation split alone: a sweep that tunes its rates plans each study for both.
    for note in data_notes(source, task, study.max_length) if study.split == "eval" else ():
        warnings.warn(note, stacklevel=1)
    runs = tuple(plan_run(spec, source, task, place.runs) for spec in specs)
    wanted = [parse_configuration(text) for text in study.truncate]
    truncate = tuple(run for run in runs if run.spec.seed == study.seed and (run.spec.method, run.spec.r) in wanted)
    return PlannedStudy(study, runs, truncate)


def run_study(
    planned: PlannedStudy,
    *,
    keep_weights: bool = True,
    weights_of: Collection[str] = (),
    observer: Observer | None = None,
    stop: Callable[[], bool] = lambda: False,
    executor: Executor = IN_TURN,
    pack: int = 1,
) -> Iterator[dict]:
    """Do what is left of a study; yields each run's record when it is there, finished earlier or now.

    A run that diverged or failed does not stop the others. Functional rank is measured at the end of a round of seeds,
    and the run's record yielded again. Once ``stop()`` is true nothing new is begun; what is finished is still yielded.
    ``weights_of`` has the run ids of those whose weights are needed. Up to ``pack`` LoRA runs are trained as one, as
    :mod:`rankprobe.experiment.pack` has it. With an executor that does several at once the order is that of their ends;
    what begins first is the same.
    """
    pieces = planned.pieces(keep_weights=keep_weights, weights_of=weights_of, pack=pack)
    yield from executor(pieces, observer or Silent(), stop)
