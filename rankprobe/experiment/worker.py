"""A worker process: does the pieces it is sent and tells its parent how they go, until the parent is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from rankprobe.experiment.pieces import Piece, perform
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.spec import RunSpec
from rankprobe.experiment.store import LockedError
from rankprobe.tasks.task import Task
from rankprobe.weights.source import ModelSource

# A step of a tiny model takes a millisecond; nobody reads faster than this.
_TELL_EVERY_S = 0.1


@dataclass(frozen=True)
class Order:
    """A piece without what its runs share, a model and a task's rows, which a worker is sent once.

    Attributes
    ----------
    shared : int
        Which model and task.
    specs, folders
        Of the runs.
    truncation, keep_weights, need_weights
        As :class:`rankprobe.experiment.pieces.Piece` has them.
    """

    shared: int
    specs: tuple[RunSpec, ...]
    folders: tuple[Path, ...]
    truncation: bool
    keep_weights: bool
    need_weights: frozenset[str]

    @classmethod
    def of(cls, piece: Piece, shared: int) -> Order:
        """The order of a piece whose model and task have this number."""
        specs, folders = tuple(run.spec for run in piece.runs), tuple(run.folder for run in piece.runs)
        return cls(shared, specs, folders, piece.truncation, piece.keep_weights, piece.need_weights)

    def piece(self, source: ModelSource, task: Task) -> Piece:
        """The piece, with what its runs share."""
        runs = tuple(
            PlannedRun(spec, source, task, folder) for spec, folder in zip(self.specs, self.folders, strict=True)
        )
        return Piece(runs, self.truncation, self.keep_weights, self.need_weights)


class Teller:
    """An observer that sends what it is told to the parent, some ten times a second at most."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._told = 0.0

    def lane(self, number: int) -> Teller:
        """A worker does one piece at a time."""
        return self

    def say(self, line: str) -> None:
        """Send a line."""
        self._connection.send(("say", (line,)))

    def begin(self, label: str, steps: int) -> None:
        """Send that a run begins."""
        self._connection.send(("begin", (label, steps)))

    def stage(self, name: str, done: int, total: int, note: str = "") -> None:
        """Send how far a stage is, unless that was done a moment ago."""
        now = time.monotonic()
        if done == total or now - self._told >= _TELL_EVERY_S:
            self._told = now
            self._connection.send(("stage", (name, done, total, note)))


def serve(connection: Connection, number: int) -> None:
    """Do the orders that come over a connection, one after the other; the process ends with its parent.

    The parent sends ``(number, (source, task))`` before the first order of that model and task, and orders. The worker
    answers ``(what, arguments)``: ``begin``, ``stage`` and ``say`` for the observer, ``record`` for a run's record; and
    at last ``end``, ``locked`` or ``error``.

    Parameters
    ----------
    connection : Connection
    number : int
        Of several GPUs each worker takes one in turn.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all at once; the parent decides
    orders: SimpleQueue = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, orders), daemon=True).start()
    shared: dict[int, tuple[ModelSource, Task]] = {}
    teller = Teller(connection)
    while True:
        order = orders.get()
        if not isinstance(order, Order):
            shared[order[0]] = order[1]
            continue
        try:
            piece = order.piece(*shared[order.shared])
            _pick_gpu(piece.runs[0].spec.device, number)
            for record in perform(piece, teller):
                connection.send(("record", (record,)))
            answer = ("end", ())
        except (BrokenPipeError, ConnectionResetError):
            os._exit(1)
        except LockedError as error:
            answer = ("locked", (error,))
        except BaseException as error:
            answer = ("error", (portable(error),))
        connection.send(answer)
        answer = None  # an error's frames hold models, and a GPU's memory, while the next piece is done


def _listen(connection: Connection, orders: SimpleQueue) -> None:
    """Take orders, also while one is being done: the end of the connection is how a worker learns of the parent's."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            orders.put(connection.recv())
    os._exit(1)


def _pick_gpu(device: str, number: int) -> None:
    if device == "cuda":
        import torch

        torch.cuda.set_device(number % torch.cuda.device_count())


def portable(error: BaseException) -> BaseException:
    """The error as it can be sent, with where it came from for those who look for a mistake of ours."""
    import pickle

    error.add_note(f"In a worker process:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note(error.__notes__[-1])
        return plain
