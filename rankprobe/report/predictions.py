"""What runs predicted for the evaluation rows, read from their predictions.csv."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from rankprobe.tasks.metrics import TOKEN_METRICS

_HEADER = b"row,label,prediction,score\n"


class Predictions(NamedTuple):
    """A run's predictions.csv as arrays of shape (n,).

    Attributes
    ----------
    row : ndarray of object
        Names of the evaluation rows. Runs on the same rows share one array.
    label, prediction : ndarray
    score : ndarray or None
        None where none of the task's metrics is made of scores: they are most of what there is to read.
    """

    row: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    score: np.ndarray | None

    def same_rows(self, others: np.ndarray) -> bool:
        """Whether these are the names of its rows, in their order; quick where they are the very array."""
        return others is self.row or np.array_equal(others, self.row)

    @property
    def scored(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """What scores are made of: label, prediction, score."""
        return self[1:]


def predictions(run: dict) -> Predictions | None:
    """A run's predictions.csv; None where the file is not there."""
    # A string, not a Path: tables ask for each run's again and again, and making a Path would be most of the answer.
    path = os.path.join(run["path"], "predictions.csv")
    try:
        asked = not TOKEN_METRICS.keys().isdisjoint(run["task"]["metrics"])
        return _read_predictions(path, os.stat(path).st_mtime_ns, run["task"]["eval_sha256"], asked)
    except FileNotFoundError:
        return None


@lru_cache(maxsize=4096)
def _read_predictions(path: str, mtime_ns: int, rows_sha256: str, scores: bool) -> Predictions:
    """Kept in memory: tables are made anew as runs of a sweep end, and a finished run does not change."""
    content = Path(path).read_bytes()
    known = _known_rows.get(rows_sha256)
    if known is not None and _ends(content) == known.ends:
        label, prediction, score = _numbers(content, scores)
        if np.array_equal(label, known.label):
            return Predictions(known.row, known.label, prediction, score)
    found = Predictions(_columns(content, ["row"])[0], *_numbers(content, scores))
    _known_rows[rows_sha256] = _Rows(found.row, found.label, _ends(content))
    return found


class _Rows(NamedTuple):
    """What a sha256 of evaluation rows is of, in their order: names, labels, and the names at both ends."""

    row: np.ndarray
    label: np.ndarray
    ends: tuple[bytes, bytes]


# By that sha256. Names are most of a predictions.csv, and half of reading it: they are read once, and a file that has
# others at its ends, or other labels, is not what its run says and is read whole. Two names inside that were swapped
# by hand, of one label, are not noticed; neither would a changed prediction be.
_known_rows: dict[str, _Rows] = {}


def _ends(content: bytes) -> tuple[bytes, bytes]:
    """The first and the last row's name as a predictions.csv spells them, before its three columns of numbers."""
    first, last = content.split(b"\n", 2)[1:2], content.rstrip().rsplit(b"\n", 1)[-1]
    return first[0].rsplit(b",", 3)[0] if first else b"", last.rsplit(b",", 3)[0]


def _numbers(content: bytes, scores: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Label, prediction and, where they are asked for, scores."""
    if not scores and (classes := _one_digit_classes(content)) is not None:
        return *classes, None
    label, prediction, *score = _columns(content, ["label", "prediction", *(["score"] if scores else [])])
    return label, prediction, score[0] if score else None


def _one_digit_classes(content: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Label and prediction where both are one digit in every line, as of up to ten classes; None where not.

    Three times as fast as a parser, which has to look at the names and the scores as well. What is not plainly so
    (another header, a last line without its end, a name in quotes, which may hold a line's end) is the parser's.
    """
    if not content.startswith(_HEADER) or not content.endswith(b"\n") or b'"' in content:
        return None
    text = np.frombuffer(content, dtype=np.uint8)[len(_HEADER) :]
    marks = np.flatnonzero((text == ord(",")) | (text == ord("\n")))
    ends = np.flatnonzero(text[marks] == ord("\n"))
    # A line ends with ``,LABEL,PREDICTION,SCORE``: it has three commas or more, and the last three are before these.
    if len(ends) == 0 or np.diff(ends, prepend=-1).min() < 4:
        return None
    first, second, third = (marks[ends - i] for i in (3, 2, 1))
    if not ((second - first == 2).all() and (third - second == 2).all()):
        return None
    label, prediction = (text[comma + 1].astype(np.int64) - ord("0") for comma in (first, second))
    both = np.stack([label, prediction])
    return (label, prediction) if ((both >= 0) & (both <= 9)).all() else None


def _columns(content: bytes, names: Sequence[str]) -> list[np.ndarray]:
    # In one piece (low_memory=False): pieces of a file this small cost more than they save.
    table = pd.read_csv(io.BytesIO(content), usecols=list(names), dtype={"row": object} if "row" in names else None,
                        keep_default_na=False, na_values=[""], low_memory=False)  # fmt: skip
    return [table[name].to_numpy() for name in names]
