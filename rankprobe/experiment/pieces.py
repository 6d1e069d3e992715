"""The pieces of a study's work, in their order, and which of them may begin."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from rankprobe.errors import must
from rankprobe.experiment.observer import Observer
from rankprobe.experiment.pack import execute_pack
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.record import record_failure
from rankprobe.experiment.redo import drop_leftovers
from rankprobe.experiment.runs import execute
from rankprobe.experiment.store import ERROR_FILE, LockedError, finished, lock
from rankprobe.experiment.truncation import measure_truncation, truncation_done
from rankprobe.experiment.unmeasured import Unmeasured, bare, say_once, unmeasured

# How long what another process holds is left alone before it is looked at again.
_LATER_S = 2.0
_PAUSE_S = 0.2


@dataclass(frozen=True, eq=False)
class Piece:
    """Work that one process does in one go.

    Attributes
    ----------
    runs : tuple of PlannedRun
        Done together: one, or a pack of several. All of one model and one task.
    truncation : bool
        Measure the functional rank of the (one) finished run, rather than train it.
    keep_weights : bool
        Of the runs that are trained.
    need_weights : frozenset of str
        Run ids of those of its runs that are done again where they are finished but dropped what they trained.
    """

    runs: tuple[PlannedRun, ...]
    truncation: bool = False
    keep_weights: bool = True
    need_weights: frozenset[str] = frozenset()

    @property
    def packed(self) -> bool:
        """Whether it is trained as one: then its finished runs belong to it too, as :func:`execute_pack` has it."""
        return len(self.runs) > 1 and not self.truncation

    @property
    def label(self) -> str:
        """For lines about it."""
        names = ", ".join(run.run_id for run in self.runs)
        return f"functional rank of {names}" if self.truncation else names

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return 0 if self.truncation else sum(run.steps for run in self.runs)

    def unfinished(self) -> tuple[PlannedRun, ...]:
        """The runs that are still to be done; of a functional rank its run where it is ready and was not measured."""
        if not self.truncation:
            return tuple(run for run in self.runs if not self.record(run))
        ready = ((run, finished(run.folder, need_weights=True)) for run in self.runs)
        return tuple(run for run, found in ready if found and found["status"] == "ok" and not truncation_done(run))

    def records(self) -> list[dict]:
        """Records of the finished runs; none of a functional rank, whose run has been heard of."""
        if self.truncation:
            return []
        return [found for run in self.runs if (found := self.record(run))]

    def record(self, run: PlannedRun) -> dict | None:
        """The record of one of its runs, where that is finished, with its weights if they are needed."""
        return finished(run.folder, need_weights=run.run_id in self.need_weights)


def perform(piece: Piece, observer: Observer) -> Iterator[dict]:
    """Do a piece in this process; yields each run's record when it is there.

    Raises
    ------
    LockedError
        If another process holds a run's folder; nothing was begun of that run.
    Unmeasured
        If a functional rank cannot be measured, for a reason that no check foresaw.
    UsageError, OSError, MemoryError
        As :func:`rankprobe.experiment.runs.execute`.
    """
    if piece.packed:
        yield from _perform_pack(piece, observer)
        return
    # A run that another process has ended just now is heard of; a functional rank has no record of its own.
    for run in piece.unfinished() if piece.truncation else piece.runs:
        with lock(run.folder):  # asked before the observer is told of a run that does not begin
            pass
        if piece.truncation:
            observer.begin(f"functional rank, {run.spec.label}", 0)
            with unmeasured(piece.label, run.folder / ERROR_FILE):
                measure_truncation(run, observer)
            yield finished(run.folder, need_weights=True)
        else:
            observer.begin(run.spec.label, run.steps)
            need = run.run_id in piece.need_weights
            yield execute(run, keep_weights=piece.keep_weights, need_weights=need, observer=observer)


def _perform_pack(piece: Piece, observer: Observer) -> Iterator[dict]:
    """Train what is left of a pack, which knows of its finished members too: one that was cut short is redone whole."""
    left = piece.unfinished()
    for run in left:
        with lock(run.folder):  # as above
            pass
    steps = sum(run.steps for run in left)
    observer.begin(f"{len(piece.runs)} runs at once, {piece.runs[0].spec.what} and others", steps)
    yield from execute_pack(
        piece.runs, keep_weights=piece.keep_weights, need_weights=piece.need_weights, observer=observer
    )


class Agenda:
    """What is left of some pieces, in the order of their importance. Whoever does the work asks here what comes next.

    A functional rank waits for its run. What another process holds is put off and asked for again. A piece whose worker
    was lost is done again; a run that loses its worker too often is recorded as failed.

    Parameters
    ----------
    pieces : sequence of Piece
        The first that may begin is begun first.
    observer : Observer
        Told, in a line each, what is put off or done again.
    stop : callable
        Once it is true nothing new is begun; what is finished is still heard of.
    """

    def __init__(self, pieces: Sequence[Piece], observer: Observer, stop: Callable[[], bool]) -> None:
        self._left, self._begun = list(pieces), set[Piece]()
        self._observer, self._stop = observer, stop
        self._training = Counter(run.run_id for piece in pieces if not piece.truncation for run in piece.runs)
        self._not_before: dict[str, float] = {}
        self._losses: Counter[str] = Counter()
        self._given_up: list[Unmeasured] = []
        self._heard: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._left or self._begun)

    def next(self) -> tuple[Piece | None, list[dict]]:
        """The next piece to do, and the records of those of its runs that need not be done.

        None with records: the piece was finished before. None without: whatever is left has to wait.
        """
        for piece in tuple(self._left):
            if self._waits(piece):
                continue
            self._left.remove(piece)
            unfinished, records = piece.unfinished(), self.news(piece, piece.records())
            begins = bool(unfinished) and not self._stop()
            kept = (piece.runs if piece.packed else unfinished) if begins else ()
            if not piece.truncation:
                over = [run for run in piece.runs if run not in kept]
                self._training.subtract(run.run_id for run in over)
                for run in over:
                    drop_leftovers(run.folder)
                    if run.run_id in self._not_before and run not in unfinished:
                        self._observer.begin(run.spec.label, run.steps)  # the other process did these steps
            if begins:
                piece = replace(piece, runs=kept)
                self._begun.add(piece)
                return piece, records
            if records:
                return None, records
        return None, []

    def news(self, piece: Piece, records: Sequence[dict]) -> list[dict]:
        """Of a piece's records those that are new: a piece that is put back has its finished runs still.

        A run's record comes again with its functional rank.
        """
        new = [record for record in records if piece.truncation or record["run_id"] not in self._heard]
        self._heard |= {record["run_id"] for record in new}
        return new

    def end(self, piece: Piece) -> None:
        """A piece is done."""
        self._begun.remove(piece)
        if not piece.truncation:
            self._training.subtract(run.run_id for run in piece.runs)

    def locked(self, piece: Piece, error: LockedError) -> None:
        """A piece could not begin, or go on: another process holds one of its runs. It is asked for again."""
        if not any(run.run_id in self._not_before for run in piece.runs):
            self._observer.say(f"{piece.label}: {error.holder} is at it; it is looked at again after the others")
        for run in piece.runs:
            self._not_before[run.run_id] = time.monotonic() + _LATER_S
        self._put_back(piece)

    def lost(self, piece: Piece, how: str, *, losses: int = 2) -> list[dict]:
        """The worker that did a piece is lost. Where it is given up, its runs' records, which are written.

        Parameters
        ----------
        piece : Piece
        how : str
            What happened: ``its process was ended by signal 9``.
        losses : int
            A run is given up when it has lost so many workers.
        """
        unfinished = piece.unfinished()
        self._losses.update(run.run_id for run in unfinished)
        if all(self._losses[run.run_id] < losses for run in unfinished):
            self._observer.say(f"{piece.label}: {how}; it is done again")
            self._put_back(piece)
            return []
        self.end(piece)
        if piece.truncation:
            got = f"{how}, {losses} times"
            self._give_up(Unmeasured(must(piece.label, "be measured", got, "Run the same command with more memory")))
            return []
        got, next_step = f"{how}, {losses} times", "Lower the batch size, or do fewer runs at once"
        error = must("what does a run", "live until its end", got, next_step)
        failures = [record_failure(run, error, need_weights=run.run_id in piece.need_weights) for run in unfinished]
        return self.news(piece, [*piece.records(), *failures])

    def unmeasured(self, piece: Piece, error: Unmeasured) -> None:
        """A functional rank could not be measured; the others go on."""
        self._give_up(bare(error))
        self.end(piece)

    def pause(self) -> None:
        """Wait a moment for what others hold."""
        time.sleep(_PAUSE_S)

    def close(self) -> None:
        """The end.

        Raises
        ------
        Unmeasured
            If functional ranks could not be measured, which have no record of that: the first of what was said.
        """
        if self._given_up:
            raise self._given_up[0]

    def _give_up(self, error: Unmeasured) -> None:
        self._given_up.append(error)
        say_once(error, self._observer)

    def _waits(self, piece: Piece) -> bool:
        if piece.truncation and any(self._training[run.run_id] > 0 for run in piece.runs):
            return True
        soonest = max(self._not_before.get(run.run_id, -math.inf) for run in piece.runs)
        return soonest > time.monotonic() and not self._stop()

    def _put_back(self, piece: Piece) -> None:
        """What is left of a piece goes back to the front; a pack knows of its finished runs too."""
        self._begun.remove(piece)
        runs = piece.runs if piece.packed else piece.unfinished() or piece.runs
        if not piece.truncation:
            self._training.subtract(run.run_id for run in piece.runs if run not in runs)
        self._left.insert(0, replace(piece, runs=runs))
