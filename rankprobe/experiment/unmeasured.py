"""Measurements beside the trainings: what goes wrong in one of them is no reason to stop the others."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from rankprobe.errors import RankprobeError, WorkError, must
from rankprobe.experiment.observer import Observer
from rankprobe.experiment.store import LockedError
from rankprobe.weights.model_files import one_line

E = TypeVar("E", bound=BaseException)
T = TypeVar("T")


class Unmeasured(WorkError):
    """A measurement came to nothing: what was asked for is done but for that."""


def say_once(error: WorkError, observer: Observer) -> None:
    """Say why something was given up when that happens, hours before the command ends with it, and not again."""
    if not getattr(error, "said", False):
        observer.say(f"rankprobe: warning: {error}")
        error.said = True


@contextlib.contextmanager
def unmeasured(what: str, error_file: Path) -> Iterator[None]:
    """Turn what no check foresaw, want of memory too, into :class:`Unmeasured`.

    Parameters
    ----------
    what : str
        Is measured: ``functional rank of RUN``.
    error_file : Path
        Gets the traceback. A measurement takes away what an earlier one left there when it begins.

    Raises
    ------
    Unmeasured
    """
    try:
        yield
    except (RankprobeError, OSError):
        raise
    except Exception as error:
        error_file.parent.mkdir(parents=True, exist_ok=True)
        error_file.write_text(traceback.format_exc(), encoding="utf-8")
        next_step = f"See {error_file}; the same command tries again"
        raise Unmeasured(must(what, "be measured", one_line(error), next_step)) from error


def guarded(work: Iterator[T], what: str, error_file: Path) -> Iterator[T]:
    """What some work yields, under :func:`unmeasured`."""
    with unmeasured(what, error_file):
        yield from work


def unless_given_up(work: Iterator[T], given_up: list[WorkError]) -> Iterator[T]:
    """What some work yields; that it could not be measured, or is being measured elsewhere, is no reason to stop.

    Parameters
    ----------
    work : iterator
    given_up : list of WorkError
        Gets the reason.
    """
    try:
        yield from work
    except (Unmeasured, LockedError) as error:
        given_up.append(bare(error))


def bare(error: E) -> E:
    """The error without the frames that it came through: these hold models, and a GPU's memory, while it is kept."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error
