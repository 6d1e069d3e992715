"""The CSVs that ranks are written to while a model is trained: one a training, a row a matrix and measured step."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rankprobe.errors import UsageError, must

COLUMNS = ("step", "name", "stable_rank", "energy_rank_90", "sigma_max", "fro_norm")


class RankTables:
    """The files of one callback's trainings: ``ranks.csv``, and beside it ``ranks-2.csv``, ``ranks-3.csv``, ...

    Which training has which file is known to this object alone, and so in one process alone: there a training that is
    resumed goes on with its own. In another process files are given out anew, in the order in which trainings are begun
    or resumed. The first has ``ranks.csv``, whoever's it was, and drops its rows after the step that it goes on from.
    Where several trainings are to be resumed in another process, give each a callback with a path of its own.

    Parameters
    ----------
    path : Path
        The first training's.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._first = Path(path)
        self._begun = 0
        self._files: dict[str, Path] = {}

    def open(self, place: str, step: int, *, again: bool = False) -> RankTable:
        """The table of a training that begins.

        Parameters
        ----------
        place : str
            Where its checkpoints are: what a resumed training has in common with the one that it goes on with.
        step : int
            Steps done; above 0 it is a resumed one, and has the table of the last one of that place that this object
            has opened; the next free one, where there is none.
        again : bool
            The last one of that place was broken off and is begun again: its table is replaced.

        Raises
        ------
        UsageError
            As :class:`RankTable`.
        """
        if place not in self._files or not (step or again):
            self._begun += 1
            number = f"-{self._begun}" if self._begun > 1 else ""
            self._files[place] = self._first.with_name(f"{self._first.stem}{number}{self._first.suffix}")
        return RankTable(self._files[place], step)


class RankTable:
    """A CSV that grows as training goes on.

    Parameters
    ----------
    path : Path
        Its folder is made if need be.
    step : int
        Steps done when training begins: rows of an earlier file after that step are dropped, since the steps are done
        again; all of them where it is 0.

    Raises
    ------
    UsageError
        If there is a file of something else, or it cannot be written.
    """

    def __init__(self, path: str | os.PathLike, step: int) -> None:
        self.path = Path(path)
        rows = [row for row in self._rows() if int(row[0]) <= step]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = self.path.with_name(f".{self.path.name}.new")
            with open(new, "w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
            new.replace(self.path)
        except OSError as error:
            raise self._refused(error) from None

    def add(self, rows: Iterable[Sequence[object]]) -> None:
        """Append rows of :data:`COLUMNS`.

        Raises
        ------
        OSError
            If the disk is full or refuses.
        """
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    def _rows(self) -> list[list[str]]:
        """The rows of the file that is there; what a killed training wrote of its last row is no row."""
        try:
            with open(self.path, encoding="utf-8", newline="") as file:
                header, *rows = list(csv.reader(file)) or [()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, csv.Error) as error:
            raise self._refused(error) from None
        if tuple(header) not in ((), COLUMNS):
            got = f"{self.path} with other columns"
            raise UsageError(must("path", "be a new file or one of RankCallback's", got, "Pass another path"))
        return [row for row in rows if len(row) == len(COLUMNS) and row[0].isdigit() and row[-1]]

    def _refused(self, error: Exception) -> UsageError:
        reason = getattr(error, "strerror", None) or error
        return UsageError(must("path", "be a CSV file to write", f"{self.path} ({reason})", "Pass another path"))
