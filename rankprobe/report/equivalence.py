"""Equivalence with full fine-tuning at a stated margin: two one-sided tests, in fixed order from the largest r down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankprobe.errors import UsageError, must
from rankprobe.report.crossed import CrossedMean, critical_value, tail_probability
from rankprobe.report.row_values import check_pairs
from rankprobe.report.score_intervals import crossed_difference
from rankprobe.tasks.metrics import LOWER_IS_BETTER

ALPHA = 0.05
MARGIN = 0.02  # two points of accuracy; of a perplexity, two percent
YES, NO, NOT_TESTED = "yes", "no", "not tested"


@dataclass(frozen=True)
class Equivalence:
    """What two one-sided tests say about a difference, more being better for the first of the two.

    Attributes
    ----------
    difference : CrossedMean
        On the scale of :func:`rankprobe.report.row_values.comparable_score`, with its standard error's two parts.
    low, high : float
        The two-sided interval at level 1 - 2 alpha, which decides: equivalent where it lies within the bounds.
    bound : float
        The margin on the scale of the difference: the margin itself, or log(1 + margin) of a perplexity.
    p_not_worse, p_not_better : float
        One-sided p-values against a difference of ``-bound`` or less, and of ``bound`` or more.
    """

    difference: CrossedMean
    low: float
    high: float
    bound: float
    p_not_worse: float
    p_not_better: float

    @property
    def p(self) -> float:
        """Of equivalence: the larger of the two."""
        return max(self.p_not_worse, self.p_not_better)


def equivalence(
    a: Sequence, b: Sequence, *, metric: str = "accuracy", margin: float = MARGIN, alpha: float = ALPHA
) -> Equivalence:
    """Two one-sided tests that ``a`` scores within a margin of ``b``, for other seeds and other rows alike.

    Parameters
    ----------
    a, b : sequence of (labels, predictions, scores), one a seed, in the same order of seeds
        At least two seeds, all on the same rows in the same order; arrays of shape (n,), ``scores`` may be None.
    metric : str
        A name that :func:`rankprobe.tasks.metrics.score` knows.
    margin : float
        Of scores in (0, 1); where less is better, of their ratio: 0.02 asks for a ratio between 1 / 1.02 and 1.02.
    alpha : float
        Of each one-sided test, and so of the claim of equivalence.

    Returns
    -------
    Equivalence

    Raises
    ------
    UsageError
        If there is one seed only, seeds or rows do not pair, or the margin is not between 0 and 1.

    Notes
    -----
    The standard error covers seeds and rows (:mod:`rankprobe.report.crossed`). For the accuracy its rows' part is the
    one at the margin (:func:`variance_at_margin`) where that is larger, which matters where the two hardly differ; rows
    of which none differs give at least the exact binomial ``(1 - margin) ** rows``, since at the margin that share of
    all rows differs.

    References
    ----------
    Schuirmann (1987), Journal of Pharmacokinetics and Biopharmaceutics 15(6). The margin must have been stated before
    looking: Lakens (2017), Social Psychological and Personality Science 8(4).
    """
    check_pairs("equivalence", a, b, least=2)
    if not 0 < margin < 1:
        raise UsageError(must("margin", "be between 0 and 1", margin, "Pass 0.02 for two points"))
    bound = math.log1p(margin) if metric in LOWER_IS_BETTER else margin
    binary = metric == "accuracy"
    least = 0.0
    if binary:
        only_a, only_b = np.mean([_only_one_right(x, y) for x, y in zip(a, b, strict=True)], axis=0)
        least = variance_at_margin(only_a, only_b, margin)
    difference = crossed_difference(a, b, metric=metric, least_row_variance=least)
    parts = (difference.seed_se, difference.row_se, difference.n_seeds)
    half = float(critical_value(alpha, *parts))
    p_not_worse, p_not_better = tail_probability([difference.estimate + bound, bound - difference.estimate], *parts)
    if difference.se == 0:  # no seed and no row differs from another: nothing to judge chance by
        half = p_not_worse = p_not_better = math.nan
    elif binary and only_a == only_b == 0:  # both right or both wrong on every row, if not with one wrong class
        p_not_worse = p_not_better = max(p_not_worse, (1 - margin) ** difference.n_rows)
    return Equivalence(
        difference,
        difference.estimate - half,
        difference.estimate + half,
        bound,
        float(p_not_worse),
        float(p_not_better),
    )


def variance_at_margin(only_a: float, only_b: float, margin: float) -> float:
    """Variance over rows that the difference of two models would have if it were exactly at the margin.

    Parameters
    ----------
    only_a, only_b : float
        Shares of the rows that just ``a``, and just ``b``, gets right.
    margin : float
        The nearer of ``-margin`` and ``margin`` is meant.

    Returns
    -------
    float
        Of one row's difference, -1, 0 or 1: what is most likely of all that have their mean at the margin.

    Notes
    -----
    A sample in which the two happen to differ on few rows has a small difference and a small variance at once, so that
    a test with the observed variance claims equivalence too often: 6.2 % instead of 5 with ten seeds, 872 rows and
    accuracies of 0.95 (studies/answer-simulation). The score test takes the variance at the margin instead.

    References
    ----------
    Nam (1997), Biometrics 53(4). Tango (1998), "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design", Statistics in Medicine 17(8), eq. 7.

    Examples
    --------
    Nothing differs; at a margin of 0.02 two rows in a hundred would.

    >>> round(variance_at_margin(0.0, 0.0, 0.02), 6)
    0.0196
    """
    fewer, more = min(only_a, only_b), max(only_a, only_b)
    b = (2 - more + fewer) * margin - more - fewer
    # The share of the rarer of the two: positive root of 2 q² + b q - fewer * margin * (1 - margin) = 0.
    share = (math.sqrt(b * b + 8 * fewer * margin * (1 - margin)) - b) / 4
    return 2 * share + margin * (1 - margin)


def fixed_sequence(p_values: Sequence[float], alpha: float = ALPHA) -> list[str]:
    """Test after test in an order fixed beforehand, each at the full alpha, up to the first that fails.

    Parameters
    ----------
    p_values : sequence of float
        In the order of testing; NaN fails.
    alpha : float

    Returns
    -------
    list of str
        ``"yes"`` for each test that passed with all before it, ``"no"`` for the first that did not, ``"not tested"``
        after it. At most alpha of sweeps have a false ``"yes"``: the first hypothesis that is in truth false to claim
        must itself be passed, and that happens with alpha at most.

    References
    ----------
    Maurer, Hothorn & Lehmacher (1995), in Vollmar (ed.), Biometrie in der chemisch-pharmazeutischen Industrie 6.
    Westfall & Krishen (2001), Journal of Statistical Planning and Inference 99(1).

    Examples
    --------
    >>> fixed_sequence([0.001, 0.04, 0.2, 0.01])
    ['yes', 'yes', 'no', 'not tested']
    """
    passed = next((i for i, p in enumerate(p_values) if not p <= alpha), len(p_values))
    return [YES] * passed + [NO] * (passed < len(p_values)) + [NOT_TESTED] * (len(p_values) - passed - 1)


def _only_one_right(x: tuple, y: tuple) -> tuple[float, float]:
    """Shares of the rows that just the first, and just the second, gets right."""
    first, second = np.equal(*x[:2]), np.equal(*y[:2])
    return float((first & ~second).mean()), float((second & ~first).mean())
