"""What ``reproduce-paper`` measures beside trainings: pairs of runs, adapters' latency, the intrinsic dimension."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rankprobe.cli.progress import TerminalObserver, say_record
from rankprobe.cli.work import Extra
from rankprobe.errors import RankprobeError, WorkError
from rankprobe.experiment.executors import Executor
from rankprobe.experiment.intrinsic import IntrinsicSweep, finished_intrinsic, plan_intrinsic, run_intrinsic
from rankprobe.experiment.latency import LatencyPlan, execute_latency, latency_done
from rankprobe.experiment.pairs import PairPlan, execute_pair, plan_pair
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.store import ERROR_FILE, LockedError, finished
from rankprobe.experiment.sweep import Place, PlannedStudy
from rankprobe.experiment.unmeasured import Unmeasured, bare, say_once, unmeasured
from rankprobe.paper.reproduce import Needs, Scale
from rankprobe.paper.table1 import plan_table1
from rankprobe.report.comparison import MAIN_TARGETS
from rankprobe.report.subspaces import PAIRS


def extras(scale: Scale, planned: Sequence[PlannedStudy], place: Place, needs: Needs | None) -> list[Extra]:
    """The measurements of a scale that a claim needs (all where ``needs`` is None), each after the studies it is of."""
    found = []
    if scale.pairs:
        plans = pair_plans(planned, place)
        wanted = [plan for plan in plans if needs is None or plan.name in needs.pairs]
        entry = {"pairs": {plan.name: plan.run_id for plan in plans}}
        lines = tuple(f"what {plan.x.run_id} and {plan.y.run_id} share ({plan.name})" for plan in wanted)
        to_do = [plan for plan in wanted if not finished(plan.folder)]
        weights_of = tuple(run.run_id for plan in to_do for run in (plan.x, plan.y))
        found.append(Extra(_last_of(planned, plans), entry, lambda *args: _pairs(wanted, *args), lines, weights_of))
    if scale.table1_budget_s:
        # float32, as the paper's GPU computed in.
        plan = plan_table1(
            place.runs, budget_s=scale.table1_budget_s, dtype="float32", device=place.device, threads=place.threads,
            shrink=scale.table1_shrink, shapes=scale.table1_shapes,
        )  # fmt: skip
        if needs is None or needs.table1:
            line = f"Table 1: latency of {plan.source.name} at {', '.join(map(str, plan.spec.shapes))}"
            found.append(Extra(1, {"table1": plan.run_id}, lambda *args: _table1(plan, *args), (line,)))
        else:
            found.append(Extra(1, {"table1": plan.run_id}, _nothing))
    if scale.intrinsic:
        sweep = intrinsic_sweep(scale, place)
        last = sum(study.runs[0].task.name == planned[0].runs[0].task.name for study in planned)
        # What an earlier call had finished stays in the plan, whatever this one comes to.
        known = [run.run_id for run in sweep.reference.runs] + [run["run_id"] for run in finished_intrinsic(sweep)]
        entry = {"intrinsic": list(dict.fromkeys(known))}
        if needs is None or needs.intrinsic:
            methods, ds = ", ".join(sweep.methods), ", ".join(map(str, sweep.ds))
            line = f"intrinsic dimension: {methods} at d = {ds}, then bisected"
            steps = sweep.steps_left - sweep.reference.steps_left()  # the reference is a study's too
            found.append(Extra(last, entry, lambda *args: _intrinsic(sweep, entry, *args), (line,), steps=steps))
        else:
            found.append(Extra(last, entry, _nothing))
    return found


def _nothing(observer: TerminalObserver, stop: Callable[[], bool], executor: Executor) -> Iterator[None]:
    return iter(())


def intrinsic_sweep(scale: Scale, place: Place) -> IntrinsicSweep:
    """The sweep of a scale, on its first study's model, task and settings."""
    wanted = scale.intrinsic
    return plan_intrinsic(
        scale.studies[0], place, methods=wanted.methods, d_min=wanted.d_min, d_max=wanted.d_max,
        points_per_decade=wanted.points_per_decade, tolerance=wanted.tolerance, seeds=wanted.seeds,
    )  # fmt: skip


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
    plans: Sequence[PairPlan], observer: TerminalObserver, stop: Callable[[], bool], executor: Executor
) -> Iterator[None]:
    given_up: list[WorkError] = []
    for plan in plans:
        there = finished(plan.folder)
        if not there and (stop() or not all(_ready(run) for run in (plan.x, plan.y))):
            continue
        if not there:
            observer.begin(f"comparing {plan.name}", 0)
        try:
            with unmeasured(f"what {plan.name} share", plan.folder / ERROR_FILE):
                execute_pair(plan, observer=observer)
        except (Unmeasured, LockedError) as error:
            given_up.append(bare(error))
            say_once(error, observer)
            continue
        except RankprobeError as error:
            observer.say(f"{plan.name}: {error}")
            continue
        yield
    if given_up:
        raise given_up[0]


def _table1(
    plan: LatencyPlan, observer: TerminalObserver, stop: Callable[[], bool], executor: Executor
) -> Iterator[None]:
    if not latency_done(plan) and not stop():
        observer.begin("Table 1: latency of adapters", 0)
        with unmeasured("Table 1", plan.folder / ERROR_FILE):
            execute_latency(plan, observer=observer, stop=stop)
    yield


def _intrinsic(
    sweep: IntrinsicSweep, entry: dict, observer: TerminalObserver, stop: Callable[[], bool], executor: Executor
) -> Iterator[None]:
    """Which d comes next depends on scores: the plan learns of each run as it ends."""
    for record in run_intrinsic(sweep, observer=observer, stop=stop, executor=executor):
        if record["run_id"] not in entry["intrinsic"]:
            entry["intrinsic"].append(record["run_id"])
        say_record(observer, record, again=False)
        yield


def _ready(run: PlannedRun) -> bool:
    record = finished(run.folder, need_weights=True)
    return record is not None and record["status"] == "ok"
