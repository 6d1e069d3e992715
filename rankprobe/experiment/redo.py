"""A finished run done again, for weights that it dropped: what it left stays until the new files are whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.record import clear_unfinished
from rankprobe.experiment.store import ERROR_FILE, RUN_FILE, LockedError, finished, lock

_AGAIN = ".again"
INCOMING = ".incoming-"  # of what was made on another machine, while it is put into a run's folder
_PREDICTIONS_FILE = "predictions.csv"


@contextlib.contextmanager
def place_for(run: PlannedRun) -> Iterator[PlannedRun]:
    """Where to do a run whose folder's lock is held.

    Its folder, cleared of unfinished work. Of a run that is finished already a hidden folder in there, and at the end,
    also of work that was cut short after it, what was done takes the place of what there was; of a run that did not end
    well this time there is its error.txt beside what there was.

    Parameters
    ----------
    run : PlannedRun

    Yields
    ------
    PlannedRun
        The same with that folder.
    """
    if finished(run.folder) is None:
        clear_unfinished(run.folder)
        yield run
        return
    hidden = run.folder / _AGAIN
    shutil.rmtree(hidden, ignore_errors=True)
    place = hidden / run.run_id  # the name of its folder is a run's id
    place.mkdir(parents=True)
    try:
        yield replace(run, folder=place)
    finally:
        take_over(place, run.folder)
        shutil.rmtree(hidden, ignore_errors=True)


def take_over(place: Path, folder: Path) -> None:
    """Move a run's files from a folder within ``folder`` up into it, run.json last.

    A finished run gives way only to one that ended well. What was measured of it later, its functional rank, stays
    where both predict the same; another machine's training may differ in the last digits.
    """
    made, there = finished(place), finished(folder)
    names = sorted(os.listdir(place), key=lambda name: name == RUN_FILE)
    if there is not None:
        if made is None or made["status"] != "ok":
            names = [ERROR_FILE] if ERROR_FILE in names else []
        elif _content(place / _PREDICTIONS_FILE) != _content(folder / _PREDICTIONS_FILE):
            _drop_others(folder, {*names, place.relative_to(folder).parts[0]})
        else:
            (folder / ERROR_FILE).unlink(missing_ok=True)  # of an attempt before this one
    # Each is moved at once; an interrupt leaves a folder that is finished, or unfinished work as ever.
    for name in names:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        os.replace(place / name, folder / name)


def drop_leftovers(folder: Path) -> None:
    """Remove what a redo that was killed left in a finished run's folder, unless someone is at it."""
    left = [*folder.glob(_AGAIN), *folder.glob(f"{INCOMING}*")]
    if left:
        with contextlib.suppress(LockedError, OSError), lock(folder):
            for path in left:
                shutil.rmtree(path)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _drop_others(folder: Path, kept: set[str]) -> None:
    """Remove files and folders but those named and the lock, which is held."""
    for path in folder.iterdir():
        if path.name not in kept | {".lock"}:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
