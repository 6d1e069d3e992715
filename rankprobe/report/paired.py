"""Paired tests of two models on the same evaluation rows, and Holm's correction where many are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from rankprobe.analysis.bootstrap import percentile_interval
from rankprobe.errors import UsageError, must
from rankprobe.report.row_values import check_pairs, row_score
from rankprobe.report.stats import LEVEL, Estimate

_RESAMPLES = 2_000


class McNemar(NamedTuple):
    """Whether two models are right equally often, from the rows on which exactly one of them is.

    Attributes
    ----------
    only_a, only_b : int
        Rows that only ``a``, and only ``b``, got right.
    p_exact : float
        Two-sided, exact binomial: never more false alarms than it says, often far fewer.
    p_mid : float
        Two-sided mid-p: nearer to what it says, seldom a little above.
    """

    only_a: int
    only_b: int
    p_exact: float
    p_mid: float


class PairedBootstrap(NamedTuple):
    """A difference of two scores on the same rows with its percentile interval, and the p-value of no difference."""

    difference: Estimate
    p: float


def mcnemar(right_a: ArrayLike, right_b: ArrayLike) -> McNemar:
    """McNemar's test, exact and mid-p, of two models on the same rows.

    Parameters
    ----------
    right_a, right_b : array-like of bool, shape (n,)
        Whether each model got a row right, in the same order of rows.

    Returns
    -------
    McNemar
        Both p-values are 1 where no row tells the models apart.

    Raises
    ------
    UsageError
        If the two are not one-dimensional and of one length, or hold other than true and false.

    Notes
    -----
    Given how many rows tell the models apart, those that only ``a`` got right are Binomial(that many, 1/2) if the
    models are equally good. The mid-p value counts half the probability of what was observed.

    References
    ----------
    McNemar (1947), Psychometrika 12(2). Fagerland, Lydersen & Laake (2013), "The McNemar test for binary matched-pairs
    data: mid-p and asymptotic are better than exact conditional", BMC Medical Research Methodology 13:91, eqs. 3 and 4.

    Examples
    --------
    >>> mcnemar([1, 0, 0, 0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1])
    McNemar(only_a=1, only_b=7, p_exact=0.0703..., p_mid=0.0390...)
    """
    a, b = np.asarray(right_a), np.asarray(right_b)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        got = f"shapes {a.shape} and {b.shape}"
        raise UsageError(must("right_a and right_b", "be lists of one length above 0", got, "Pass one value a row"))
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        odd = next(x for x in (*a, *b) if x not in (0, 1))
        raise UsageError(must("right_a and right_b", "be true or false a row", odd, "Pass labels == predictions"))
    a, b = a.astype(bool), b.astype(bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n, fewer = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return McNemar(0, 0, 1.0, 1.0)
    exact = min(1.0, 2 * float(stats.binom.cdf(fewer, n, 0.5)))
    # Of two equal counts the tails overlap in what was observed, so that only half of it is to be taken off.
    observed = float(stats.binom.pmf(fewer, n, 0.5))
    return McNemar(only_a, only_b, exact, exact - (observed / 2 if only_a == only_b else observed))


def paired_bootstrap(
    a: Sequence,
    b: Sequence,
    *,
    metric: str = "accuracy",
    level: float = LEVEL,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> PairedBootstrap:
    """Paired bootstrap over evaluation rows of how much better ``a`` scores than ``b``, by any metric.

    Parameters
    ----------
    a, b : sequence of tables, one a seed, in the same order of seeds
        Each ``(labels, predictions, scores)`` over the same rows, as
        :func:`rankprobe.report.score_intervals.paired_difference` has them.
    metric : str
        A name that :func:`rankprobe.tasks.metrics.score` knows.
    level : float
    resamples, seed : int

    Returns
    -------
    PairedBootstrap
        Of the difference of the mean scores over seeds. For these very models: another seed's luck is not in it.

    Raises
    ------
    UsageError
        If the numbers of seeds or of rows differ.

    Notes
    -----
    The p-value inverts the percentile interval: the smallest error at which the two-sided interval leaves 0 out, with
    one added above and below, so that B resamples never claim less than 2 / (B + 1). Resamples on which the score is
    undefined are left out.

    References
    ----------
    Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapters 13 and 15.
    Davison & Hinkley (1997), Bootstrap Methods and their Application, section 4.4.
    """
    check_pairs("a paired bootstrap", a, b)
    n = len(a[0][0])

    def score(rows: np.ndarray | None = None) -> float:
        return float(
            np.mean([row_score(x, metric, rows) - row_score(y, metric, rows) for x, y in zip(a, b, strict=True)])
        )

    rng = np.random.default_rng(seed)
    drawn = _accuracies(a, b, n, resamples, rng) if metric == "accuracy" else _scores(score, n, resamples, rng)
    low, high = percentile_interval(drawn, level)
    defined = drawn[np.isfinite(drawn)]
    side = min((defined <= 0).sum(), (defined >= 0).sum()) if len(defined) else np.nan
    method = f"paired percentile bootstrap over {n:,} eval rows"
    return PairedBootstrap(
        Estimate(score(), low, high, method, n), float(min(1.0, 2 * (side + 1) / (len(defined) + 1)))
    )


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's step-down adjusted p-values: at most alpha of families have a false one at or below alpha.

    Parameters
    ----------
    p_values : array-like, shape (m,)
        NaN for a test that was not made: it stays NaN and does not count.

    Returns
    -------
    ndarray, shape (m,), float64
        In the order given, each at least its own p-value and at most 1.

    Raises
    ------
    UsageError
        If a p-value is outside [0, 1].

    References
    ----------
    Holm (1979), "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2).

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if ((p < 0) | (p > 1)).any():
        raise UsageError(must("p_values", "be between 0 and 1", p[(p < 0) | (p > 1)][0], "Pass probabilities"))
    adjusted = np.full(p.shape, np.nan)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    steps = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps * p[order]))
    return adjusted


def _accuracies(a: Sequence, b: Sequence, n: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Rows that differ alike are alike: drawing how many of each sort is the same bootstrap, much faster."""
    difference = np.mean([np.equal(*x[:2]) for x in a], axis=0) - np.mean([np.equal(*y[:2]) for y in b], axis=0)
    distinct, counts = np.unique(difference.round(12), return_counts=True)
    return rng.multinomial(n, counts / n, size=resamples) @ distinct / n


def _scores(score: Callable[[np.ndarray], float], n: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    return np.array([score(rng.integers(0, n, n)) for _ in range(resamples)])
