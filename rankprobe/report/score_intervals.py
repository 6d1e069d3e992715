"""Intervals of configurations' scores and of their paired differences, from predictions seed by seed.

What is to be covered decides the interval. *Would another seed come out the same?* is answered by Student's t over
seeds, on the same evaluation rows: that is a configuration's own score. *Would other rows come out the same?* is
answered by a bootstrap over evaluation rows, for the models at hand: all there is with fewer than three seeds. A
difference of two configurations is a claim about both: t over the seeds and the normal law over the rows at once. Each
estimate says which one it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from rankprobe.report.crossed import CrossedMean, critical_value, crossed_mean
from rankprobe.report.row_values import check_pairs, comparable_score, row_score, row_values
from rankprobe.report.stats import ALIKE, LEVEL, MIN_SEEDS, Estimate, bootstrap_mean, bootstrap_score, t_interval
from rankprobe.tasks.metrics import LOWER_IS_BETTER

# What a metric can be at least and at most.
RANGES = {
    "accuracy": (0.0, 1.0),
    "f1": (0.0, 1.0),
    "token_accuracy": (0.0, 1.0),
    "matthews": (-1.0, 1.0),
    "pearson": (-1.0, 1.0),
    "spearman": (-1.0, 1.0),
    "perplexity": (1.0, math.inf),
}


def paired_difference(
    a: Sequence[ArrayLike],
    b: Sequence[ArrayLike],
    *,
    metric: str = "accuracy",
    level: float = LEVEL,
) -> Estimate:
    """How much better ``a`` scores than ``b``, paired: the same seeds, or the same rows.

    Parameters
    ----------
    a, b : sequence of tables, one a seed, in the same order of seeds
        Each a tuple ``(labels, predictions, scores)`` of arrays of shape (n,) over the same rows in the same order;
        ``scores`` may be None.
    metric : str
        A name that :func:`rankprobe.tasks.metrics.score` knows.
    level : float

    Returns
    -------
    Estimate
        Of ``a - b``. From three seeds on for other seeds and other rows alike, :func:`crossed_difference`; where less
        is better, a t interval over the seeds' differences. Else a bootstrap over rows of the difference of the mean
        scores, in which another seed's luck is not contained.

    Raises
    ------
    UsageError
        If the numbers of seeds or of rows differ.

    Notes
    -----
    Student's t over seeds takes the evaluation rows as fixed. As a claim about the task it errs too often, the more so
    the more seeds there are, which average their own luck away and not the rows': at a nominal 5 % in 15, 21 and 31 %
    of cases with 3, 5 and 10 seeds in the worst simulated worlds (studies/answer-simulation).
    """
    check_pairs("a paired difference", a, b)
    if metric in LOWER_IS_BETTER:
        differences = [row_score(x, metric) - row_score(y, metric) for x, y in zip(a, b, strict=True)]
        if seeds_tell(differences):
            return t_interval(differences, level=level, over="paired seeds")
    elif len(a) >= MIN_SEEDS:
        crossed = crossed_difference(a, b, metric=metric)
        if crossed.se > ALIKE:
            parts = (crossed.seed_se, crossed.row_se, crossed.n_seeds)
            half = float(critical_value((1 - level) / 2, *parts))
            method = f"t over {len(a)} paired seeds, normal over {len(a[0][0]):,} eval rows"
            return Estimate(crossed.estimate, crossed.estimate - half, crossed.estimate + half, method, len(a))
    note = f"paired, {len(a)} seed{'s' if len(a) > 1 else ''}"
    if metric == "accuracy":
        estimate = bootstrap_mean(_correct(a) - _correct(b), level=level, bounds=(-1.0, 1.0))
    else:
        estimate = bootstrap_score(
            lambda rows: _mean_score(a, metric, rows) - _mean_score(b, metric, rows),
            len(a[0][0]),
            level=level,
            bounds=difference_bounds(metric),
        )
    return estimate._replace(method=f"{estimate.method}, {note}")


def crossed_difference(
    a: Sequence, b: Sequence, *, metric: str = "accuracy", least_row_variance: float = 0.0
) -> CrossedMean:
    """How much better ``a`` scores than ``b``, with a standard error over seeds and rows.

    Parameters
    ----------
    a, b : sequence of (labels, predictions, scores)
        As for :func:`paired_difference`, at least two seeds.
    metric : str
    least_row_variance : float
        As for :func:`rankprobe.report.crossed.crossed_mean`.
    """
    scores = [comparable_score(x, metric) - comparable_score(y, metric) for x, y in zip(a, b, strict=True)]
    values = [row_values(x, metric) - row_values(y, metric) for x, y in zip(a, b, strict=True)]
    return crossed_mean(np.stack(values), seed_values=scores, least_row_variance=least_row_variance)


def score_interval(tables: Sequence[ArrayLike], *, metric: str = "accuracy", level: float = LEVEL) -> Estimate:
    """The mean score of some seeds: t over seeds from three on, else a bootstrap over the evaluation rows.

    Parameters
    ----------
    tables : sequence of (labels, predictions, scores)
        As for :func:`paired_difference`.
    metric : str
    level : float
    """
    values = [row_score(t, metric) for t in tables]
    if seeds_tell(values):
        return t_interval(values, level=level, bounds=RANGES[metric])
    if metric == "accuracy":
        return bootstrap_mean(_correct(tables), level=level, bounds=(0.0, 1.0))
    return bootstrap_score(
        lambda rows: _mean_score(tables, metric, rows), len(tables[0][0]), level=level, bounds=RANGES[metric]
    )


def difference_bounds(metric: str) -> tuple[float, float]:
    """What a difference of two scores can be at least and at most.

    >>> difference_bounds("matthews"), difference_bounds("perplexity")
    ((-2.0, 2.0), (-inf, inf))
    """
    least, most = RANGES[metric]
    return least - most, most - least


def seeds_tell(values: Sequence[float]) -> bool:
    """Enough seeds for t, and not all alike by chance: an interval of width zero would claim what nobody knows."""
    return len(values) >= MIN_SEEDS and np.ptp(values) > ALIKE


def _mean_score(tables, metric: str, rows: np.ndarray) -> float:
    return float(np.mean([row_score(t, metric, rows) for t in tables]))


def _correct(tables) -> np.ndarray:
    """Share of the seeds that are right, row by row, shape (n,)."""
    return np.mean([np.asarray(t[0]) == np.asarray(t[1]) for t in tables], axis=0)
