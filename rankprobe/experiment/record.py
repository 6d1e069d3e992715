"""run.json: what a run's record says before the run, how it is written last, and what becomes of one that failed."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rankprobe.errors import RankprobeError
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.provenance import device_record, git_state, versions
from rankprobe.experiment.store import ERROR_FILE, RUN_FILE, LockedError, finished, lock, write_atomic

# An absolute path in a message; what stays is its last part.
_PATH = re.compile(r"(?:/[^\s/:'\"]+)+/([^\s/:'\"]+)")


def header(run: PlannedRun) -> dict:
    """What a record says of a run before it is done."""
    task = run.task
    labels = [e.label for e in task.eval]
    classes = task.problem == "classification"
    majority = max(labels.count(k) for k in set(labels)) / len(labels) if classes else None
    return {
        "schema": 1,
        "run_id": run.run_id,
        "kind": "train",
        "spec": asdict(run.spec),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git": git_state(),
        "model": {
            "name": run.source.name,
            "sha256": run.source.sha256,
            "tokenizer_sha256": run.source.tokenizer_sha256,
            "architecture": run.source.architecture,
        },
        "task": {
            "name": task.name,
            "sha256": task.sha256,
            "eval_sha256": task.eval_sha256,
            "n_train": len(task.train),
            "n_eval": len(task.eval),
            "split": task.split,
            "labels": list(task.labels),
            "metrics": list(task.metrics),
            "majority": majority,
        },
        "versions": versions(),
        "device": device_record(run.spec.device, run.spec.threads),
        "seed": run.spec.seed,
        "analysis": {},
    }


def attempt(run: PlannedRun, record: dict, rest: Callable[[], dict]) -> dict:
    """Write a run's record: a header and what ``rest`` adds to it, or that it failed and why.

    Raises
    ------
    RankprobeError, OSError, MemoryError
        As ``rest`` raises them; nothing is recorded.
    """
    try:
        record |= rest()
    except (RankprobeError, OSError, MemoryError):
        raise
    except Exception as error:
        # The traceback is for this machine's user; the record, which may be published, gets the one line.
        (run.folder / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
        record |= _failed(f"{type(error).__name__}: {error}")
    _write_record(run, record)
    return record


def record_failure(run: PlannedRun, error: str, *, need_weights: bool = False) -> dict:
    """Record that a run came to nothing, where what did it left no record; the next :func:`execute` redoes it.

    A finished run that was being done again for its weights keeps its own record, with error.txt beside it. Nothing is
    written where another process has the run's folder by now: that one will record what becomes of the run.

    Parameters
    ----------
    run : PlannedRun
    error : str
        One line.
    need_weights : bool
        It was to be done again if it is finished without what it trained.

    Returns
    -------
    dict
        The record of the failure; or the run's own, where it is finished by now with what was needed.
    """
    record = header(run) | _failed(error)
    with contextlib.suppress(LockedError), lock(run.folder):
        if done := finished(run.folder, need_weights=need_weights):
            return done
        redo = finished(run.folder) is not None
        if not redo:
            clear_unfinished(run.folder)
        (run.folder / ERROR_FILE).write_text(error + "\n", encoding="utf-8")
        if not redo:
            _write_record(run, record)
    return record


def _failed(error: str) -> dict:
    return {"status": "failed", "error": _PATH.sub(r"\1", error), "weights_kept": False, "files": {}}


def _write_record(run: PlannedRun, record: dict) -> None:
    write_atomic(run.folder / RUN_FILE, json.dumps(_finite(record), indent=1) + "\n")


def clear_unfinished(folder: Path) -> None:
    """Remove what an unfinished run left in its folder; the lock file stays, it is held."""
    for path in folder.iterdir():
        if path.name != ".lock":
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _finite(value):
    """JSON has no NaN: None instead."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
