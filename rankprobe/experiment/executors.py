"""How a study's pieces are done: here and one after the other. Elsewhere: :mod:`jobs`, :mod:`on_ray`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from rankprobe.experiment.observer import Observer
from rankprobe.experiment.pieces import Agenda, Piece, perform
from rankprobe.experiment.store import LockedError
from rankprobe.experiment.unmeasured import Unmeasured


class Executor(Protocol):
    """Does pieces of work; which one does them changes no result.

    Attributes
    ----------
    width : int
        How many pieces it does at once, as far as is known.
    """

    @property
    def width(self) -> int:
        """Pieces done at once."""

    def __call__(self, pieces: Sequence[Piece], observer: Observer, stop: Callable[[], bool]) -> Iterator[dict]:
        """Do what is left of the pieces, the first ones first; yields each run's record when it is there.

        Once ``stop()`` is true nothing new is begun; what is finished is still yielded. Closing the iterator drops
        whatever is under way; an unfinished run is never trusted.
        """


@dataclass(frozen=True)
class InTurn:
    """Does one piece after the other, in this process.

    Attributes
    ----------
    wait : bool
        Come back to a run that another process holds when the others are done; else that is an error.
    """

    wait: bool = True

    @property
    def width(self) -> int:
        """One at a time."""
        return 1

    def __call__(self, pieces: Sequence[Piece], observer: Observer, stop: Callable[[], bool]) -> Iterator[dict]:
        """See :class:`Executor`.

        Raises
        ------
        Unmeasured
            At the end, if a functional rank could not be measured.
        """
        agenda = Agenda(pieces, observer, stop)
        while agenda:
            piece, records = agenda.next()
            yield from records
            if piece is None:
                if not records:
                    agenda.pause()
                continue
            try:
                for record in perform(piece, observer):
                    yield from agenda.news(piece, [record])
            except LockedError as error:
                if not self.wait:
                    raise
                agenda.locked(piece, error)
            except Unmeasured as error:
                agenda.unmeasured(piece, error)
            else:
                agenda.end(piece)
        agenda.close()


IN_TURN = InTurn()
