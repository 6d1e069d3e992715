"""The run store on disk: a run folder is finished when its run.json, written last, says so."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import TextIO

import pandas as pd

from rankprobe.errors import UsageError, WorkError, must
from rankprobe.experiment.spec import SIZES, RunSpec

RUN_FILE = "run.json"
# Where what went wrong is told in full, beside a record that has one line of it.
ERROR_FILE = "error.txt"
# Part of every run_id. Raised whenever the same spec would train differently than before.
SEMANTICS = 2
# Models for which nothing has changed since 1. For the others 2 is: no dropout is left in attributes and configs, "all"
# has fused q, k and v, prompts start from scaled embeddings where a model scales them.
_AS_IN_1 = ("bert", "roberta", "xlm-roberta", "distilbert", "deberta-v2", "electra", "mpnet", "gpt2", "llama")


def run_id(
    spec: RunSpec, *, model_sha256: str, tokenizer_sha256: str, task_sha256: str, architecture: str = "bert"
) -> str:
    """A readable name and a hash of all that decides the result; names of model and task are for people and not hashed.

    Parameters
    ----------
    spec : RunSpec
    model_sha256, tokenizer_sha256, task_sha256 : str
    architecture : str
        The model's; see :data:`SEMANTICS`.
    """
    content = asdict(spec)
    for label in ("model", "task"):
        content.pop(label)
    # Methods and settings came one after the other: a run that has none of them keeps the id that it had before.
    later = (*SIZES, "rank_pattern", "patience", "tuning_size")
    content = {key: value for key, value in content.items() if key not in later or value is not None}
    content |= {"model_sha256": model_sha256, "tokenizer_sha256": tokenizer_sha256, "task_sha256": task_sha256,
                "semantics": 1 if architecture in _AS_IN_1 else SEMANTICS}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    kinds = (spec.targets or "").replace(",", "")
    by_matrix = "-by-matrix" if spec.rank_pattern else ""
    size = f"-r{spec.r}{by_matrix}-{kinds if kinds.isalpha() else 'custom'}" if spec.method == "lora" else ""
    if spec.size is not None:
        size = f"-{spec.size}"
    return f"{spec.method}{size}-{spec.split}-s{spec.seed}-{digest}"


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that at any moment the old or the new content is there, whole, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would lock out the rest of a team
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, temporary):
            error.filename = str(path)  # fsync and write do not say which disk is full
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a DataFrame as CSV, atomically."""
    write_atomic(path, table.to_csv(index=False, lineterminator="\n"))


def read_record(folder: Path) -> dict | None:
    """A run folder's run.json; None where there is none.

    Raises
    ------
    UsageError
        If the file is not a record that rankprobe wrote.
    """
    path = folder / RUN_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if bad := _missing(record):
            raise ValueError(f"no valid {bad}")
        return record
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, IsADirectoryError) as error:
        raise UsageError(must(f"{path}", "be a record that rankprobe wrote", error,
                              f"Delete {folder} and run the same command to redo it")) from None


def _missing(record: object) -> str:
    """The first field that every reader counts on and a record lacks; empty where all are there."""
    if not isinstance(record, dict):
        return "JSON object"
    if record.get("schema") != 1:
        return "schema"
    fields = [("run_id", str), ("kind", str), ("status", str)]
    if record.get("status") in ("ok", "diverged"):
        fields += [("files", dict), ("weights_kept", bool), ("spec", dict), ("model", dict), ("timings", dict)]
        if record.get("kind") == "train":
            fields += [("task", dict), ("params", dict), ("metrics", dict)]
    return next((name for name, kind in fields if not isinstance(record.get(name), kind)), "")


def check_store(runs: Path) -> None:
    """Refuse a run store that cannot be one, before anything is trained; nothing is made.

    Raises
    ------
    UsageError
        If it is a file, or below one.
    WorkError
        If it cannot be written.
    """
    absolute = Path(os.path.abspath(runs))
    there = next(p for p in (absolute, *absolute.parents) if os.path.lexists(p))
    if not there.is_dir():
        raise UsageError(must("run store", "be a folder", f"the file {there}", "Pass another --runs"))
    if not os.access(there, os.W_OK | os.X_OK):
        raise WorkError(must("run store", "be writable", runs, "Pass another --runs"))


def finished(folder: Path, *, need_weights: bool = False) -> dict | None:
    """The record of a run that need not be redone: ok or diverged, and its files are here.

    A clone of a repository holds records without the files beside them; such a run is not finished here.

    Parameters
    ----------
    folder : Path
    need_weights : bool
        Ask for the trained weights too, which a sweep may have left out.
    """
    record = read_record(folder)
    if record is None or record["status"] not in ("ok", "diverged"):
        return None
    for name, size in record["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return None
    if need_weights and record["status"] == "ok" and record["kind"] == "train" and not record["weights_kept"]:
        return None
    return record


def hidden(path: PurePath) -> bool:
    """Whether a relative path is, or lies in, something hidden: a lock, or work that was cut short."""
    return any(part.startswith(".") for part in path.parts)


def files_of(folder: Path) -> dict[str, int]:
    """Relative names and sizes in bytes of a run's files, run.json and hidden ones left out."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RUN_FILE and not hidden(path.relative_to(folder))
    }


def load_runs(folders) -> list[dict]:
    """Records of finished and of failed runs with their ``path``; ``analysis`` is filled from functional_rank.csv."""
    runs = []
    for folder in folders:
        record = read_record(Path(folder))
        if record is None or (record["status"] != "failed" and not finished(Path(folder))):
            continue
        record["path"] = str(folder)
        table = Path(folder) / "functional_rank.csv"
        if table.exists():
            rows = pd.read_csv(table)
            record["analysis"] = {"functional_rank": json.loads(rows.to_json(orient="records"))}
        runs.append(record)
    return runs


def read_latency(folder: Path) -> pd.DataFrame | None:
    """A finished latency measurement's table; None where there is none."""
    return pd.read_csv(Path(folder) / "latency.csv") if finished(Path(folder)) else None


class LockedError(WorkError):
    """Another process holds a folder; ``holder`` says which, for people."""

    def __init__(self, message: str, holder: str = "another process") -> None:
        super().__init__(message)
        self.holder = holder


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process alone; the system lets go of it when the process ends, however it ends.

    Raises
    ------
    LockedError
        If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks; two sweeps on one store are the user's to avoid
        yield
        return
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(file)
            raise LockedError(must(f"{folder}", "be used by one process at a time", f"{holder}, which holds it",
                                   "Wait for the other to end, or pass another --runs"), holder) from None
        except OSError:  # a file system without locks: as on Windows
            pass
        if not os.fstat(file.fileno()).st_nlink:  # deleted by its holder on leaving; a third may have a new one
            raise LockedError(must(f"{folder}", "be used by one process at a time", "one that leaves it just now",
                                   "Run the same command again"))  # fmt: skip
        _sign(file)
        yield


def _sign(file: TextIO) -> None:
    """Write into a lock file who holds it, for the messages of others; the lock does not hang on it."""
    with contextlib.suppress(OSError):  # a full disk
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}\n")
        file.flush()


def _holder(file: TextIO) -> str:
    """Who holds a lock file, in words: ``process 1234 on thishost``."""
    file.seek(0)
    pid, _, host = file.readline().strip().partition(" ")
    return f"process {pid} on {host}" if pid.isdigit() and host else "another process"
