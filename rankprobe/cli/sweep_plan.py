"""What a sweep does now, and what it can only name once rates are chosen."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rankprobe.errors import WorkError
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.store import read_record
from rankprobe.experiment.study import Study
from rankprobe.experiment.sweep import Place, PlannedStudy, plan_study
from rankprobe.experiment.tuning import choose_rates, tuned_study, tuning_study
from rankprobe.tasks.load import needs_files
from rankprobe.tasks.sources import Progress


@dataclass(frozen=True)
class SweepPlan:
    """A sweep's studies.

    Attributes
    ----------
    now : list of PlannedStudy
        To do first: the studies themselves, or what chooses their rates.
    later : callable or None
        Names the studies at their chosen rates once those of ``now`` are done, and says of the others why they have
        none; None where nothing is tuned.
    follow : tuple of PlannedStudy
        What ``later`` will name, but for the rates: for a dry run.
    """

    now: list[PlannedStudy]
    later: Callable[[], tuple[list[PlannedStudy], list[WorkError]]] | None = None
    follow: tuple[PlannedStudy, ...] = ()

    @property
    def to_time(self) -> list[PlannedRun]:
        """Runs that show what a step of any run takes: those of ``now``, and of models and tasks that tune nothing."""
        tuned = {(planned.study.model, planned.study.task) for planned in self.now}
        others = [p for p in self.follow if (p.study.model, p.study.task) not in tuned]
        return [run for planned in (*self.now, *others) for run in planned.runs]

    def named(self) -> tuple[list[PlannedStudy], list[PlannedStudy], list[WorkError]]:
        """What a dry run tells of the studies themselves, by what is chosen already; nothing is done.

        Returns
        -------
        tuple
            The studies whose runs have names; those that still wait for rates, as ``follow`` has them; once none waits,
            why others have no rates.
        """
        if self.later is None:
            return self.now, [], []
        found, not_chosen = self.later()
        if not any(planned.left() for planned in self.now):
            return found, [], not_chosen
        known = {(planned.study.model, planned.study.task) for planned in found}
        return found, [p for p in self.follow if (p.study.model, p.study.task) not in known], []


def plan_sweep(studies: Sequence[Study], place: Place, *, progress: Progress | None = None) -> SweepPlan:
    """Plan the studies of a sweep; those that tune their rates in two parts.

    The second part is planned here too, at the middle rate of each grid, so that what does not fit a model is refused
    before anything is trained.

    Raises
    ------
    UsageError
        As :func:`rankprobe.experiment.sweep.plan_study`.
    """
    # A folder of files is for the tasks that read one; where none of them does, it is the user's mistake.
    some = any(needs_files(study.task) for study in studies)
    pairs = [
        (study, replace(place, data_dir=None) if some and not needs_files(study.task) else place) for study in studies
    ]
    if not any(study.tuned for study in studies):
        return SweepPlan([plan_study(study, where, progress=progress) for study, where in pairs])
    tuning = [
        (study, plan_study(tuning_study(study), where, progress=progress)) for study, where in pairs if study.tuned
    ]
    follow = [plan_study(_at_default_rates(study), where, progress=progress) for study, where in pairs]
    of = dict(tuning)

    def later() -> tuple[list[PlannedStudy], list[WorkError]]:
        done, not_chosen = [], []
        for study, where in pairs:
            try:
                if study.tuned:
                    records = [record for run in of[study].runs if (record := read_record(run.folder))]
                    study = choose_rates(study, records)
            except WorkError as error:  # no reason to leave the others undone
                not_chosen.append(error)
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # said when this was planned at default rates
                done.append(plan_study(study, where, progress=progress))
        return done, not_chosen

    return SweepPlan([planned for _, planned in tuning], later, tuple(follow))


def _at_default_rates(study: Study) -> Study:
    """The study as if it tuned nothing: each configuration at its own rate, or the middle one of its grid."""
    configurations = [
        replace(c, lr=sorted(c.lr_grid)[len(c.lr_grid) // 2] if c.lr_grid else c.rate, lr_grid=())
        for c in study.configurations
    ]
    return tuned_study(study, configurations)
