"""What ``reproduce-paper`` measures beside trainings: pairs of runs, adapters' latency, the intrinsic dimension."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rankprobe.cli.progress import TerminalObserver
from rankprobe.cli.work import Extra
from rankprobe.errors import RankprobeError
from rankprobe.experiment.pairs import PairPlan, execute_pair, plan_pair
from rankprobe.experiment.runs import PlannedRun
from rankprobe.experiment.store import finished
from rankprobe.experiment.sweep import Place, PlannedStudy
from rankprobe.paper.reproduce import Needs, Scale
from rankprobe.report.comparison import MAIN_TARGETS
from rankprobe.report.subspaces import PAIRS


def extras(scale: Scale, planned: Sequence[PlannedStudy], place: Place, needs: Needs | None) -> list[Extra]:
    """The measurements of a scale that a claim needs (all where ``needs`` is None), each after the studies it is of."""
    found = []
    if scale.pairs:
        plans = pair_plans(planned, place)
        wanted = [plan for plan in plans if needs is None or plan.name in needs.pairs]
        entry = {"pairs": {plan.name: plan.run_id for plan in plans}}
        found.append(Extra(_last_of(planned, plans), entry, lambda *args: _pairs(wanted, *args)))
    return found


def pair_plans(planned: Sequence[PlannedStudy], place: Place) -> list[PairPlan]:
    """Those pairs of :data:`rankprobe.report.subspaces.PAIRS` whose runs are among the planned ones."""
    task = planned[0].runs[0].task.name
    runs = {
        (run.spec.method, run.spec.r, run.spec.seed - study.study.seed): run
        for study in planned
        for run in study.runs
        if run.task.name == task and run.spec.targets in (None, MAIN_TARGETS)
    }
    plans = []
    for name, (*sides, of) in PAIRS.items():
        x, y = (runs.get(("full" if r is None else "lora", r, seed)) for r, seed in sides)
        if x and y:
            plans.append(plan_pair(name, x, y, place.runs, of=of))
    return plans


def _last_of(planned: Sequence[PlannedStudy], plans: Sequence[PairPlan]) -> int:
    """How many studies have to be done before all of these runs are."""
    ids = {run.run_id for plan in plans for run in (plan.x, plan.y)}

    def has(study: PlannedStudy) -> bool:
        return any(run.run_id in ids for run in study.runs)

    return max((i + 1 for i, study in enumerate(planned) if has(study)), default=1)


def _pairs(
    plans: Sequence[PairPlan], observer: TerminalObserver, stop: Callable[[], bool]
) -> Iterator[None]:
    for plan in plans:
        if stop() or not all(_ready(run) for run in (plan.x, plan.y)):
            continue
        if not finished(plan.folder):
            observer.begin(f"comparing {plan.name}", 0)
        try:
            execute_pair(plan, observer=observer)
        except RankprobeError as error:
            observer.say(f"{plan.name}: {error}")
            continue
        yield


def _ready(run: PlannedRun) -> bool:
    record = finished(run.folder, need_weights=True)
    return record is not None and record["status"] == "ok"
