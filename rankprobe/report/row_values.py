"""What each evaluation row adds to a score: the values whose spread over rows is the score's own uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rankprobe.errors import UsageError, must
from rankprobe.tasks.metrics import LOWER_IS_BETTER, score

# Each row left out costs one evaluation of the metric, which takes all rows: beyond this many, rows go in blocks.
MAX_BLOCKS = 1_000
# A row of these is known by its label and prediction alone, and there are only a few such pairs.
_OF_CLASSES = ("f1", "matthews")


def check_pairs(what: str, a: Sequence, b: Sequence, *, least: int = 1) -> None:
    """Refuse two configurations' tables that do not pair.

    Parameters
    ----------
    what : str
        What they are wanted for: ``"a paired difference"``.
    a, b : sequence of (labels, predictions, scores), one a seed
    least : int
        Seeds.

    Raises
    ------
    UsageError
        If seeds are too few or not as many on both sides, or tables have different numbers of rows.
    """
    if len(a) != len(b) or len(a) < least:
        rule, next_step = f"have the same seeds on both sides, {least} or more", "Pass runs of common seeds only"
        raise UsageError(must(what, rule, f"{len(a)} and {len(b)}", next_step))
    if len(rows := {len(t[0]) for t in (*a, *b)}) > 1:
        next_step = "Compare runs of one eval set only"
        raise UsageError(must(what, "have the same eval rows on both sides", sorted(rows), next_step))


def row_score(table, metric: str, rows: np.ndarray | None = None) -> float:
    """A metric of one (labels, predictions, scores), on all rows or at some positions; accuracy takes a short cut."""
    labels, predictions, scores = (None if c is None else np.asarray(c) for c in table)
    if rows is not None:
        labels, predictions = labels[rows], predictions[rows]
        scores = None if scores is None else scores[rows]
    if metric == "accuracy":
        return float((labels == predictions).mean())
    return float(score((metric,), labels, predictions, scores)[metric])


def comparable_score(table, metric: str, rows: np.ndarray | None = None) -> float:
    """A score on the scale on which two of them are subtracted, more being better.

    Parameters
    ----------
    table : (labels, predictions, scores)
        Arrays of shape (n,); ``scores`` may be None unless the metric is made of them.
    metric : str
        A name that :func:`rankprobe.tasks.metrics.score` knows.
    rows : int array, optional
        Positions of the rows to score; all of them by default.

    Returns
    -------
    float
        The metric itself; minus its logarithm where less is better: a difference of two is then the logarithm of a
        ratio, whose meaning does not depend on whether perplexities are near 3 or near 30.
    """
    value = row_score(table, metric, rows)
    return -math.log(value) if metric in LOWER_IS_BETTER else value


def row_values(table, metric: str) -> np.ndarray:
    """One value a row (or a block of rows) whose mean is the score, and whose spread says how certain it is.

    Parameters
    ----------
    table : (labels, predictions, scores)
        Arrays of shape (n,).
    metric : str

    Returns
    -------
    ndarray, shape (n,) or (1000,) where there are more rows and no short cut, float64
        For the accuracy 1 where the row is right and 0 where not. For any other metric the jackknife's pseudo-values
        ``n * score - (n - 1) * score without the row`` of :func:`comparable_score`.

    Notes
    -----
    The variance of their mean is the jackknife's estimate of the score's variance; kept row by row, two models' values
    can be subtracted, and seeds' averaged, before it is taken. For F1 and Matthews rows of one label and one prediction
    are alike, so that leaving out one of each such pair is enough. Blocks are of neighbouring rows, as equal as can be.

    References
    ----------
    Tukey (1958), "Bias and confidence in not quite large samples", Annals of Mathematical Statistics 29(2), p. 614.
    Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 11.

    Examples
    --------
    >>> row_values(([0, 1, 1], [0, 1, 0], None), "accuracy").tolist()
    [1.0, 1.0, 0.0]
    """
    labels, predictions = np.asarray(table[0]), np.asarray(table[1])
    n = len(labels)
    if metric == "accuracy":
        return (labels == predictions).astype(np.float64)
    everything = np.arange(n)
    whole = comparable_score(table, metric)
    if metric in _OF_CLASSES:
        pairs = np.stack([labels, predictions], axis=1)
        _, first, which = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
        without = np.array([comparable_score(table, metric, np.delete(everything, i)) for i in first])
        return n * whole - (n - 1) * without[which.reshape(-1)]
    blocks = np.array_split(everything, min(n, MAX_BLOCKS))
    without = np.array([comparable_score(table, metric, np.delete(everything, block)) for block in blocks])
    return len(blocks) * whole - (len(blocks) - 1) * without
