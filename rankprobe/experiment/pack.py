"""Runs trained as one pack, each ending as a run folder of its own, like a run that was done alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence

from rankprobe.errors import RankprobeError
from rankprobe.experiment.models import count_parameters, set_threads
from rankprobe.experiment.observer import Observer, Silent
from rankprobe.experiment.pack_groups import check_pack
from rankprobe.experiment.pack_model import PackedRuns, fits, prepare_pack
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.record import attempt, header
from rankprobe.experiment.redo import place_for
from rankprobe.experiment.runs import complete, held_out_rows, work
from rankprobe.experiment.spec import training_settings
from rankprobe.experiment.store import finished, lock
from rankprobe.methods.lora import unload_lora
from rankprobe.methods.packed_lora import LoneState
from rankprobe.training.batches import encode
from rankprobe.training.packed import train_packed
from rankprobe.training.train import TrainResult


def execute_pack(
    runs: Sequence[PlannedRun],
    *,
    keep_weights: bool = True,
    need_weights: Collection[str] = (),
    observer: Observer | None = None,
) -> list[dict]:
    """Do runs as one pack, or return their records where they are finished already.

    Every member ends as :func:`rankprobe.experiment.runs.execute` has it: its files, and run.json written last.
    Finished members are left out. But where some of this very pack were recorded before it was cut short, all of it is
    trained again, for the members that are left: fewer would be summed in another order, and differ in the last bits.

    Parameters
    ----------
    runs : sequence of PlannedRun
        As :func:`rankprobe.experiment.pack_groups.check_pack` asks; one that is left alone is done alone.
    keep_weights : bool
        As for :func:`rankprobe.experiment.runs.execute`.
    need_weights : collection of str
        Run ids of those that are done again where they are finished but dropped what they trained.
    observer : Observer, optional

    Returns
    -------
    list of dict
        Records in the runs' order. Those of a pack have ``pack``: its ``size``, ``runs`` (run ids, in their order),
        ``train_time_s`` and ``peak_memory_bytes`` in all. In their ``timings``, ``train_time_s`` is the run's share of
        the pack's time and ``peak_memory_bytes`` None: what it would have taken alone was not seen.

    Raises
    ------
    UsageError
        If the runs cannot be a pack, or do not fit the model.
    WorkError
        If another process holds a folder, or the pack does not fit the device's memory.
    OSError
        If the disk is full or a folder cannot be written.
    """
    check_pack(runs)
    observer = observer or Silent()
    with contextlib.ExitStack() as locks:
        records: dict[str, dict] = {}
        for run in runs:
            need = run.run_id in need_weights
            done = finished(run.folder, need_weights=need)
            if not done:
                locks.enter_context(lock(run.folder))
                done = finished(run.folder, need_weights=need)  # another process may have ended it just now
            if done:
                records[run.run_id] = done
        left = [run for run in runs if run.run_id not in records]
        trained = _with_companions(runs, left, records)
        places = {run.run_id: locks.enter_context(place_for(run)) for run in left}
        trained, left = [places.get(run.run_id, run) for run in trained], list(places.values())
        if len(trained) == 1:
            run = trained[0]
            records[run.run_id] = attempt(run, header(run), lambda: work(run, keep_weights, observer))
        elif trained:
            records |= _execute(trained, left, keep_weights, observer)
        return [records[run.run_id] for run in runs]


def _execute(
    trained: Sequence[PlannedRun], left: Sequence[PlannedRun], keep_weights: bool, observer: Observer
) -> dict[str, dict]:
    """Train a pack and complete those of its runs that are left, each recorded as soon as it is."""
    headers = {run.run_id: header(run) for run in left}
    try:
        packed, results = _train(trained, len(left), observer)
    except (RankprobeError, OSError, MemoryError):
        raise
    except Exception as error:
        return {run.run_id: attempt(run, headers[run.run_id], _raising(error)) for run in left}
    states = {i: packed.pack.state(i) for i, result in enumerate(results) if result.status == "ok"}
    packed.pack.unpack()
    whole = {
        "size": len(trained),
        "runs": [run.run_id for run in trained],
        "train_time_s": sum(result.train_time_s for result in results),
        "peak_memory_bytes": results[0].peak_memory_bytes,
    }
    records = {}
    for i, run in enumerate(trained):
        if run in left:
            rest = _completing(run, packed, states.get(i), results[i], whole, keep_weights, observer)
            records[run.run_id] = attempt(run, headers[run.run_id], rest)
    return records


def _train(runs: Sequence[PlannedRun], left: int, observer: Observer) -> tuple[PackedRuns, list[TrainResult]]:
    """Train the runs; ``left`` of them, whose steps the observer was told of, are not finished yet."""
    spec, task = runs[0].spec, runs[0].task
    set_threads(spec.threads)
    with fits(runs):
        packed = prepare_pack(runs)
        rows = encode(packed.tokenizer, task.train, spec.max_length, problem=task.problem)
        results = train_packed(
            packed.pack,
            rows,
            [e.label for e in task.train],
            packed.tokenizer.pad_token_id,
            lrs=[run.spec.lr for run in runs],
            seeds=[run.spec.seed for run in runs],
            epochs=spec.epochs,
            problem=task.problem,
            held_out=held_out_rows(runs[0], packed.tokenizer, observer),
            progress=lambda done, total, loss: observer.stage(
                "train", done * left, total * left, f"mean loss {loss:.3f}, {len(packed.pack.members)} left"
            ),
            **training_settings(spec),
        )
    return packed, results


def _completing(
    run: PlannedRun,
    packed: PackedRuns,
    state: LoneState | None,
    result: TrainResult,
    whole: dict,
    keep_weights: bool,
    observer: Observer,
) -> Callable[[], dict]:
    """What ends a member: all that follows a lone run's training, on its own model."""

    def rest() -> dict:
        prepared = packed.member(run, state)
        try:
            record = complete(run, prepared, count_parameters(prepared), result, keep_weights, observer)
        finally:
            unload_lora(packed.base)
        record["timings"]["peak_memory_bytes"] = None
        return record | {"pack": whole}

    return rest


def _raising(error: Exception) -> Callable[[], dict]:
    def rest() -> dict:
        raise error

    return rest


def _with_companions(
    runs: Sequence[PlannedRun], left: Sequence[PlannedRun], records: dict[str, dict]
) -> list[PlannedRun]:
    """What to train: what is left, and with it all of a pack that had been cut short after some were recorded."""
    ids, missing = {run.run_id: run for run in runs}, {run.run_id for run in left}
    for record in records.values():
        before = (record.get("pack") or {}).get("runs") or []
        if missing and missing <= set(before) <= ids.keys():
            return [ids[name] for name in before]
    return list(left)
