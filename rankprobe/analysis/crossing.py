"""Where scores that rise with d, but for noise, reach a threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

# Scores are counts over n as often as not: a threshold that is met exactly must not be missed by the last bit.
_ROUNDING = 1e-12


def reaches(score: ArrayLike, threshold: ArrayLike) -> np.ndarray:
    """Whether a score is at its threshold or above."""
    return np.asarray(score) >= np.asarray(threshold) - _ROUNDING


def bracket(
    ds: Sequence[int], scores: ArrayLike, threshold: float, weights: Sequence[int] | None = None
) -> tuple[float, float]:
    """The measured ds between which non-decreasing scores reach a threshold: 0 or infinity at the ends.

    Parameters
    ----------
    ds : sequence of int, increasing
    scores : array-like, shape (len(ds),)
        Means over seeds; they are made non-decreasing.
    threshold : float
    weights : sequence of int, optional
        Seeds of each d.

    Examples
    --------
    >>> bracket([10, 100, 1000], [0.5, 0.6, 0.8], 0.7), bracket([10, 100], [0.5, 0.6], 0.7)
    ((100, 1000), (100, inf))
    """
    fitted = non_decreasing(np.asarray(scores, dtype=np.float64)[None], weights)[0]
    at = int((~reaches(fitted, threshold)).sum())
    return ds[at - 1] if at else 0, ds[at] if at < len(ds) else math.inf


def non_decreasing(scores: np.ndarray, weights: Sequence[int] | None = None) -> np.ndarray:
    """Isotonic regression of every row: the non-decreasing one that is nearest in weighted least squares.

    Parameters
    ----------
    scores : ndarray, shape (n, k), float64
    weights : sequence of k ints, optional

    Returns
    -------
    ndarray, shape (n, k)

    Notes
    -----
    By the max-min formula, with which thousands of rows of a dozen values take one pass: value i is the largest, over
    all starts up to i, of the smallest mean from that start to an end at or after i.

    References
    ----------
    Robertson, Wright & Dykstra (1988), Order Restricted Statistical Inference, theorem 1.4.4.
    """
    k = scores.shape[1]
    w = np.ones(k) if weights is None else np.asarray(weights, dtype=np.float64)
    sums = np.pad(np.cumsum(w * scores, axis=1), ((0, 0), (1, 0)))
    total = np.pad(np.cumsum(w), (1, 0))
    start, end = np.triu_indices(k)
    means = np.full((len(scores), k, k), np.inf)
    means[:, start, end] = (sums[:, end + 1] - sums[:, start]) / (total[end + 1] - total[start])
    smallest = np.minimum.accumulate(means[:, :, ::-1], axis=2)[:, :, ::-1]
    smallest[:, *np.tril_indices(k, -1)] = -np.inf
    return smallest.max(axis=1)


def crossings(
    ds: Sequence[int], scores: np.ndarray, thresholds: np.ndarray, weights: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each row of scores, made non-decreasing, reaches its threshold, linear in log d.

    Parameters
    ----------
    ds : sequence of k ints, increasing
    scores : ndarray, shape (n, k), float64
    thresholds : ndarray, shape (n,), float64
    weights : sequence of k ints, optional
        Seeds of each d.

    Returns
    -------
    (d, low, high) : ndarrays, shape (n,)
        d is the smallest where that reaches it, infinite where none does, NaN where a number is not finite; it is known
        to lie in [low, high], which is d itself for a crossing between two ds, else open: from 0 to the smallest d, or
        from the largest to infinity.
    """
    known = np.isfinite(scores).all(axis=1) & np.isfinite(thresholds)
    fitted = non_decreasing(np.where(known[:, None], scores, 0.0), weights)
    grid = np.log(np.asarray(ds, dtype=np.float64))
    at = (~reaches(fitted, thresholds[:, None])).sum(axis=1)
    at[~known] = 0
    rows = np.arange(len(scores))
    above, below = np.minimum(at, len(ds) - 1), np.maximum(np.minimum(at, len(ds) - 1) - 1, 0)
    rise = fitted[rows, above] - fitted[rows, below]
    part = np.divide(thresholds - fitted[rows, below], rise, out=np.ones(len(rows)), where=rise > 0)
    d = np.exp(grid[below] + np.clip(part, 0.0, 1.0) * (grid[above] - grid[below]))
    d = np.where(at == 0, float(ds[0]), np.where(at == len(ds), math.inf, d))
    low = np.where(at == 0, 0.0, np.where(at == len(ds), float(ds[-1]), d))
    return np.where(known, d, np.nan), np.where(known, low, 0.0), np.where(known, d, np.inf)
