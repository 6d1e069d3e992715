"""A piece done on another machine: in the run store where that sees it, else in a folder that is sent back."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from rankprobe.errors import RankprobeError, WorkError, must
from rankprobe.experiment.observer import Silent
from rankprobe.experiment.pieces import Piece, perform
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.provenance import versions
from rankprobe.experiment.record import clear_unfinished
from rankprobe.experiment.redo import INCOMING, take_over
from rankprobe.experiment.store import ERROR_FILE, LockedError, finished, hidden, lock, read_record, write_atomic
from rankprobe.experiment.truncation import CURVE_FILE, RANK_FILE, truncation_done
from rankprobe.experiment.unmeasured import Unmeasured
from rankprobe.experiment.worker import Order, portable
from rankprobe.tasks.task import Task
from rankprobe.weights.source import ModelSource, find_model

# A network file system may show a new file late.
_SEEN_S = 60.0
# A run folder's files by their names relative to it.
Files = dict[str, bytes]


@dataclass(frozen=True)
class Errand:
    """An order that leaves the machine.

    Attributes
    ----------
    order : Order
        Its folders are absolute.
    probe : str
        Name of a file in the run store; whoever reads ``token`` in it sees the same store.
    token : str
    companions : bool
        It needs the folders of finished runs: the one whose functional rank is to be measured, a pack's members.
    version : str
        Of rankprobe, which has to be the same.
    sent : dict of str to Files
        By run_id, those folders, where the store is not seen.
    """

    order: Order
    probe: str
    token: str
    companions: bool = False
    version: str = field(default_factory=lambda: versions()["rankprobe"])
    sent: dict[str, Files] = field(default_factory=dict)

    @classmethod
    def of(cls, piece: Piece, probe: str, token: str, sent: dict[str, Files] | None = None) -> Errand:
        """A piece as an errand: a functional rank needs its run, a pack its members that are finished."""
        companions = piece.truncation or len(piece.unfinished()) < len(piece.runs)
        return cls(Order.of(piece, 0), probe, token, companions, sent=sent or {})

    @property
    def sees_the_store(self) -> bool:
        """Whether this machine can write to the driver's run store."""
        store = self.order.folders[0].parent
        try:
            return (store / self.probe).read_text(encoding="ascii") == self.token and os.access(store, os.W_OK)
        except OSError:
            return False


@dataclass(frozen=True)
class Answer:
    """What became of an errand.

    Attributes
    ----------
    what : str
        ``end``; ``locked`` or ``error``, with the error; ``send``: finished runs' folders have to be sent along.
    records : list of dict
    made : dict of str to Files
        By run_id, what was made where the store is not seen; with an error, its error.txt.
    error : BaseException or None
    """

    what: str
    records: list[dict] = field(default_factory=list)
    made: dict[str, Files] = field(default_factory=dict)
    error: BaseException | None = None


def run_errand(errand: Errand, shared: tuple[ModelSource, Task]) -> Answer:
    """Do an errand on this machine. What goes wrong is an answer too.

    Parameters
    ----------
    errand : Errand
    shared : (ModelSource, Task)
        Of all its runs.
    """
    records: list[dict] = []
    try:
        if (here := versions()["rankprobe"]) != errand.version:
            got = f"{here} on {socket.gethostname()} and {errand.version} here"
            raise WorkError(must("rankprobe", "be the same on every node", got, "Install the same version there"))
        piece = errand.order.piece(on_this_machine(shared[0]), shared[1])
        if errand.sees_the_store:
            for record in perform(piece, Silent()):
                records.append(record)
            return Answer("end", records)
        if errand.companions and not errand.sent:
            return Answer("send")
        with tempfile.TemporaryDirectory(prefix="rankprobe-") as place:
            runs = tuple(replace(run, folder=Path(place) / run.run_id) for run in piece.runs)
            for run in runs:
                _write_files(run.folder, errand.sent.get(run.run_id, {}))
            try:
                for record in perform(replace(piece, runs=runs), Silent()):
                    records.append(record)
            except Unmeasured as error:
                # Its error.txt goes to the driver's store, which is where the user is sent.
                there = Unmeasured(str(error).replace(place, str(errand.order.folders[0].parent)))
                made = {run.run_id: read_files(run.folder, (ERROR_FILE,)) for run in runs}
                return Answer("error", records, made, portable(there))
            names = (CURVE_FILE, RANK_FILE) if piece.truncation else None
            return Answer("end", records, {run.run_id: read_files(run.folder, names) for run in runs})
    except LockedError as error:
        return Answer("locked", records, error=error)
    except BaseException as error:
        return Answer("error", records, error=portable(error))


def on_this_machine(source: ModelSource) -> ModelSource:
    """The same model where it lies on this machine: at the same path, or, if it has a name on the hub, by that name.

    Raises
    ------
    WorkError
        If it is not here, or other weights are in its place.
    """
    try:
        found = find_model(source.path if source.path.is_dir() or source.origin == "path" else source.name)
    except RankprobeError:
        found = None
    if found is not None and (found.sha256, found.tokenizer_sha256) == (source.sha256, source.tokenizer_sha256):
        return replace(source, path=found.path)
    got = f"{socket.gethostname()} {'without it' if found is None else 'with other weights'} at {source.path}"
    next_step = "Put it into a folder that all nodes share, at one path"
    raise WorkError(must(f"the model {source.name}", "be on every node", got, next_step))


def install(piece: Piece, made: dict[str, Files]) -> None:
    """Put what came back into the run store, whole: run.json, or the functional rank itself, comes last.

    Raises
    ------
    LockedError
        If another process holds a run's folder by now; what came back is dropped.
    """
    for run in piece.runs:
        files = made[run.run_id]
        with lock(run.folder):
            if piece.truncation:
                if not truncation_done(run):
                    (run.folder / ERROR_FILE).unlink(missing_ok=True)  # of an attempt before this one
                    for name in (CURVE_FILE, RANK_FILE):
                        write_atomic(run.folder / name, files[name].decode())
            elif not piece.record(run):
                _install_run(run, files)


def install_error(piece: Piece, made: dict[str, Files]) -> None:
    """Put the error.txt of a measurement that came to nothing elsewhere into the run store, unless it is held."""
    for run in piece.runs:
        for name, content in made.get(run.run_id, {}).items():
            with contextlib.suppress(LockedError), lock(run.folder):
                write_atomic(run.folder / name, content.decode())


def _install_run(run: PlannedRun, files: Files) -> None:
    if not finished(run.folder):
        clear_unfinished(run.folder)
    with tempfile.TemporaryDirectory(prefix=INCOMING, dir=run.folder) as place:
        _write_files(Path(place), files)
        take_over(Path(place), run.folder)


def wait_until_seen(piece: Piece, records: Sequence[dict]) -> None:
    """Wait for what another machine wrote into the store.

    Parameters
    ----------
    piece : Piece
    records : sequence of dict
        What it sent. Of a run that failed or diverged there is a record of that, or still its own where it was done
        again in vain.

    Raises
    ------
    WorkError
        If it does not come.
    """
    end = time.monotonic() + _SEEN_S
    in_vain = {record["run_id"] for record in records if record["status"] != "ok"}

    def seen(run: PlannedRun) -> bool:
        if piece.truncation:
            return truncation_done(run)
        found = read_record(run.folder) if run.run_id in in_vain else piece.record(run)
        return found is not None

    while not all(seen(run) for run in piece.runs):
        if time.monotonic() > end:
            got = f"nothing of {piece.label} after {_SEEN_S:g} s"
            next_step = "Pass --runs with a folder that is the same on all nodes, or on this machine alone"
            raise WorkError(must("the run store", "show what a node wrote into it", got, next_step))
        time.sleep(0.2)
        for run in piece.runs:
            with contextlib.suppress(OSError):
                os.listdir(run.folder)  # asks the server anew


def read_files(folder: Path, names: tuple[str, ...] | None = None) -> Files:
    """A run folder's files, or some of them; hidden ones are left out."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {name.as_posix(): path for name, path in paths.items() if not hidden(name)}
    return {name: path.read_bytes() for name, path in files.items() if names is None or name in names}


def _write_files(folder: Path, files: Files) -> None:
    """Write files that are on the disk when this returns."""
    for name, content in files.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise WorkError(must("a run's file", "lie in its folder", name, "Run the same command again"))
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
