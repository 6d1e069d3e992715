"""Several worker processes on this machine, each with its share of the threads."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from rankprobe.errors import UsageError, must
from rankprobe.experiment.observer import Observer
from rankprobe.experiment.pieces import Agenda, Piece
from rankprobe.experiment.unmeasured import Unmeasured
from rankprobe.experiment.worker import Order, serve
from rankprobe.tasks.task import Task
from rankprobe.weights.source import ModelSource

_LOOK_AGAIN_S = 0.5
_DEATH_S = 10.0


class Jobs:
    """Does up to ``jobs`` pieces at once, each in a process of its own; see :class:`executors.Executor`.

    Use it as a context manager: its workers live for the whole block, so that each imports torch once, and end with it.
    When this process is killed they end by themselves, and what they were at is unfinished work. A worker that is lost
    (out of memory, killed) is replaced and its run done again; the second time the run is recorded as failed.

    Workers are started afresh (``spawn``): a script that uses this needs ``if __name__ == "__main__":``.

    Parameters
    ----------
    jobs : int

    Raises
    ------
    UsageError
        If ``jobs`` is below 1.
    """

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise UsageError(must("jobs", "be at least 1", jobs, "Pass --jobs 2, say"))
        self.width = jobs
        self._workers: list[_Worker | None] = [None] * jobs
        self._shared: list[tuple[ModelSource, Task]] = []

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, *_: object) -> None:
        self._end(busy_only=False)

    def __call__(self, pieces: Sequence[Piece], observer: Observer, stop: Callable[[], bool]) -> Iterator[dict]:
        """See :class:`executors.Executor`.

        Raises
        ------
        UsageError, OSError, MemoryError
            What a worker's run raised; the others are ended then.
        Unmeasured
            At the end, if a functional rank could not be measured, or lost its worker twice.
        """
        agenda = Agenda(pieces, observer, stop)
        try:
            while agenda:
                records = self._hand_out(agenda)
                if not records and not self._busy:
                    agenda.pause()
                    continue
                # Those who have nothing to do are sent on before anyone looks at the records.
                records += self._hear(agenda, observer, _LOOK_AGAIN_S if not records else 0.0)
                records += self._hand_out(agenda)
                yield from records
            agenda.close()
        finally:
            self._end(busy_only=True)

    @property
    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker is not None and worker.piece is not None]

    def _hand_out(self, agenda: Agenda) -> list[dict]:
        """Give everyone who has nothing to do the next piece; records of what need not be done."""
        records = []
        for number, worker in enumerate(self._workers):
            if worker is not None and worker.piece is not None:
                continue
            piece, found = agenda.next()
            records += found
            while piece is None and found:
                piece, found = agenda.next()
                records += found
            if piece is None:
                break
            if worker is None:
                worker = self._workers[number] = _Worker(number)
            worker.give(piece, self._number_of(piece))
        return records

    def _hear(self, agenda: Agenda, observer: Observer, timeout: float) -> list[dict]:
        """Listen to those at work; the records they send."""
        records = []
        talking = {worker.connection: worker for worker in self._busy}
        for connection in multiprocessing.connection.wait(list(talking), timeout):
            worker = talking[connection]
            lane = observer.lane(worker.number)
            while worker.piece is not None and connection.poll():
                what, arguments = _receive(connection)
                if what in ("begin", "stage", "say"):
                    getattr(lane, what)(*arguments)
                elif what == "record":
                    records += agenda.news(worker.piece, arguments)
                elif what == "end":
                    agenda.end(worker.take())
                    lane.begin("", 0)
                elif what == "locked":
                    agenda.locked(worker.take(), *arguments)
                elif what == "error" and isinstance(arguments[0], Unmeasured):
                    agenda.unmeasured(worker.take(), *arguments)
                    lane.begin("", 0)
                elif what == "error":
                    worker.take()
                    raise arguments[0]
                else:
                    lane.drop()
                    self._workers[worker.number] = None
                    records += agenda.lost(worker.take(), worker.end())
        return records

    def _number_of(self, piece: Piece) -> tuple[int, tuple[ModelSource, Task]]:
        """The number of a piece's model and task, which are compared by identity: there may be many rows."""
        source, task = piece.runs[0].source, piece.runs[0].task
        for number, (known_source, known_task) in enumerate(self._shared):
            if known_source == source and known_task is task:
                return number, self._shared[number]
        self._shared.append((source, task))
        return len(self._shared) - 1, self._shared[-1]

    def _end(self, *, busy_only: bool) -> None:
        """End workers at once: nothing that they were at is trusted."""
        for number, worker in enumerate(self._workers):
            if worker is not None and (worker.piece is not None or not busy_only):
                worker.process.kill()
                worker.end()
                self._workers[number] = None


class _Worker:
    """One worker process and what it is at."""

    def __init__(self, number: int) -> None:
        self.number, self.piece = number, None
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=serve, args=(theirs, number), name=f"rankprobe worker {number}", daemon=True
        )
        with _interrupts_held():
            self.process.start()
        theirs.close()  # or the end of the worker would not be the end of the connection
        self._known: set[int] = set()

    connection: Connection
    piece: Piece | None

    def give(self, piece: Piece, shared: tuple[int, tuple[ModelSource, Task]]) -> None:
        """Send a piece, and its model and task where they are new to the worker."""
        self.piece = piece
        number, content = shared
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead: listening to it will tell
            if number not in self._known:
                self._known.add(number)
                self.connection.send((number, content))
            self.connection.send(Order.of(piece, number))

    def take(self) -> Piece:
        """The piece it was at; it has none now."""
        piece, self.piece = self.piece, None
        return piece

    def end(self) -> str:
        """Wait for the end of a process that is dying; how it ended, in words."""
        self.process.join(_DEATH_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code = self.process.exitcode
        self.connection.close()
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            return f"its process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return f"its process ended with exit code {code}"


def _receive(connection: Connection) -> tuple[str, tuple]:
    """What a worker says; ``lost`` where it is dead, perhaps in the middle of a message."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return "lost", ()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start a process that Ctrl-C does not reach, not even while it imports: a blocked signal stays blocked in it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it would unblock the signal on being started below
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
