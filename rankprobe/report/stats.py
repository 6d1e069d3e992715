"""Intervals of a mean, a median or any score: Student's t and bootstraps. Arrays in, an :class:`Estimate` out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from rankprobe.analysis.bootstrap import percentile_interval
from rankprobe.errors import UsageError, must

LEVEL = 0.95
# Below this many seeds a t interval is wider than anything it could tell (t = 12.7 at two seeds).
MIN_SEEDS = 3
_MEAN_RESAMPLES = 20_000
_SCORE_RESAMPLES = 2_000
# Scores that are equal may differ in the last bits.
ALIKE = 1e-12
# The method of an interval that no resampling could give: the bounds of the score stand in its place.
NO_INTERVAL = "none: all resamples alike"


class Estimate(NamedTuple):
    """A number with its interval.

    Attributes
    ----------
    estimate, low, high : float
        ``low <= high``; the interval is two-sided at 95 % unless another level was asked for.
    method : str
        How the interval was made and over what: ``"t over 3 seeds"``.
    n : int
        How many things it was made over: seeds, evaluation rows, matrices.
    """

    estimate: float
    low: float
    high: float
    method: str
    n: int


def t_interval(
    values: ArrayLike, *, level: float = LEVEL, over: str = "seeds", bounds: tuple[float, float] | None = None
) -> Estimate:
    """Student's t interval of a mean.

    Parameters
    ----------
    values : array-like, shape (n,), n >= 2
        One value a seed, or one paired difference a seed.
    level : float
        Two-sided coverage.
    over : str
        What the values are, for the method's name.
    bounds : (float, float), optional
        What the mean can be at least and at most: the interval is cut there, and covers it as often as before.

    Raises
    ------
    UsageError
        If there are fewer than two values, or one is not finite.

    Examples
    --------
    >>> t_interval([0.76, 0.77, 0.78])
    Estimate(estimate=0.77, low=0.7451..., high=0.7948..., method='t over 3 seeds', n=3)
    """
    x = _finite(values, at_least=2)
    half = stats.t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    least, most = bounds or (-math.inf, math.inf)
    low, high = max(x.mean() - half, least), min(x.mean() + half, most)
    return Estimate(float(x.mean()), float(low), float(high), f"t over {len(x)} {over}", len(x))


def bootstrap_mean(
    values: ArrayLike,
    *,
    level: float = LEVEL,
    kind: str = "BCa",
    bounds: tuple[float, float] | None = None,
    resamples: int = _MEAN_RESAMPLES,
    seed: int = 0,
    over: str = "eval rows",
) -> Estimate:
    """Bootstrap interval of a mean of per-row values: an accuracy (0 or 1 a row), or a paired difference (-1, 0 or 1).

    Parameters
    ----------
    values : array-like, shape (n,)
        One value a row.
    level : float
        Two-sided coverage.
    kind : str
        ``"BCa"`` (Efron 1987) or ``"percentile"``.
    bounds : (float, float), optional
        The least and largest value that a row could have: (0, 1) for an accuracy, (-1, 1) for a difference of two. They
        are needed only where all rows are alike, when every resample is the same and the bootstrap would give an
        interval of width zero; the Clopper-Pearson bound on a share of which none was seen then takes its place.
    resamples, seed : int
    over : str
        What a row is, for the method's name.

    Notes
    -----
    Resampling n rows with replacement draws the counts of each distinct value from a multinomial law; drawing those
    counts directly gives the same distribution as drawing rows, in a hundredth of the time.

    References
    ----------
    Efron (1987), JASA 82(397), section 4 (BCa; acceleration of a mean by the jackknife).
    """
    x = _finite(values, at_least=1)
    n, mean = len(x), float(x.mean())
    distinct, counts = np.unique(x, return_counts=True)
    if len(distinct) == 1:
        return _all_alike(mean, n, level, bounds, over)
    rng = np.random.default_rng(seed)
    means = rng.multinomial(n, counts / n, size=resamples) @ distinct / n
    deviation = x - mean
    acceleration = (deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5)
    low, high = _quantiles(means, mean, acceleration, level, kind)
    return Estimate(mean, low, high, f"{kind} bootstrap over {n:,} {over}", n)


def bootstrap_score(
    score: Callable[[np.ndarray], float],
    n: int,
    *,
    level: float = LEVEL,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    resamples: int = _SCORE_RESAMPLES,
    seed: int = 0,
    over: str = "eval rows",
) -> Estimate:
    """Percentile bootstrap interval of any score of rows: Matthews, F1, Pearson, or a difference of two such.

    Parameters
    ----------
    score : callable, (int array of row positions, shape (n,)) -> float
        For a paired difference, the difference of two scores on the same rows.
    n : int
        Number of rows.
    level : float
    bounds : (float, float)
        The least and largest value that the score could have: the interval where all resamples are alike, as with
        constant predictions, of which resampling says nothing.
    resamples, seed : int
    over : str

    Notes
    -----
    Where constant predictions leave a metric undefined, :mod:`rankprobe.tasks.metrics` gives 0, and such a resample
    counts as 0. A resample on which ``score`` is not finite is left out, and the method's name says how many.
    Percentile, not BCa: the jackknife would cost one evaluation a row, 40,000 of them on QQP.
    """
    rng = np.random.default_rng(seed)
    estimate = float(score(np.arange(n)))
    drawn = np.array([score(rng.integers(0, n, n)) for _ in range(resamples)], dtype=np.float64)
    method = f"percentile bootstrap over {n:,} {over}"
    if undefined := int((~np.isfinite(drawn)).sum()):
        method += f" ({undefined} of {resamples} resamples undefined)"
    low, high = percentile_interval(drawn, level) if math.isfinite(estimate) else (math.nan, math.nan)
    if high - low <= ALIKE:
        return Estimate(estimate, *bounds, NO_INTERVAL, n)
    return Estimate(estimate, low, high, method, n)


def bootstrap_median(
    values: ArrayLike, *, level: float = LEVEL, resamples: int = 10_000, seed: int = 0, over: str = "matrices"
) -> Estimate:
    """Percentile bootstrap interval of a median.

    Parameters
    ----------
    values : array-like, shape (n,)
    level : float
    resamples, seed : int
    over : str
        What the values are, for the method's name.

    Notes
    -----
    Of fewer values than an interval of the median can be had of without assumptions (6 at 95 %: the extremes of five
    leave it out in 2 · 2⁻⁵ = 6 % of cases), the interval is infinite: resampling one value, or five that are alike,
    would give an interval of no width.
    """
    x = _finite(values, at_least=1)
    if 0.5 ** (len(x) - 1) > 1 - level:
        return Estimate(float(np.median(x)), -math.inf, math.inf, f"none: too few {over} ({len(x)})", len(x))
    draws = np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))
    low, high = np.quantile(np.median(x[draws], axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(np.median(x)), float(low), float(high), f"percentile bootstrap over {len(x)} {over}", len(x))


def _quantiles(drawn: np.ndarray, estimate: float, acceleration: float, level: float, kind: str) -> tuple[float, float]:
    """The interval's ends among the resampled statistics."""
    ends = np.array([(1 - level) / 2, (1 + level) / 2])
    if kind == "BCa":
        # Ties count half: an accuracy moves in steps of 1/n, and dropping them would bias z0.
        below = ((drawn < estimate).mean() + (drawn <= estimate).mean()) / 2
        z0 = stats.norm.ppf(below)
        shifted = z0 + stats.norm.ppf(ends)
        ends = stats.norm.cdf(z0 + shifted / (1 - acceleration * shifted))
    elif kind != "percentile":
        raise UsageError(must("kind", "be BCa or percentile", kind, "Pass one of those"))
    low, high = np.quantile(drawn, ends)
    return float(low), float(high)


def _all_alike(mean: float, n: int, level: float, bounds: tuple[float, float] | None, over: str) -> Estimate:
    """Where every row is alike: none of n deviated, so at most this share does (Clopper & Pearson 1934)."""
    if bounds is None:
        raise UsageError(
            must("bounds", "be given where all values are alike", f"{n} times {mean:g}", "Pass bounds=(0, 1)")
        )
    share = 1 - ((1 - level) / 2) ** (1 / n)
    low, high = mean - share * (mean - bounds[0]), mean + share * (bounds[1] - mean)
    return Estimate(mean, low, high, f"Clopper-Pearson, all {n:,} {over} alike", n)


def _finite(values: ArrayLike, *, at_least: int) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < at_least:
        raise UsageError(
            must("values", f"be a list of at least {at_least}", f"shape {x.shape}", "Pass more runs or rows")
        )
    if not np.isfinite(x).all():
        raise UsageError(must("values", "be finite", x[~np.isfinite(x)][0], "Leave failed runs out"))
    return x
