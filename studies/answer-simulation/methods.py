"""Ways to test equivalence of a table of paired differences: the one that reports use, and three that they do not."""

from __future__ import annotations

import numpy as np
from scipy import stats

from rankprobe.report.crossed import crossed_mean, tail_probability
from rankprobe.report.equivalence import variance_at_margin

CROSSED, SATTERTHWAITE, SEEDS, ROWS = "seeds and rows", "the same, Satterthwaite", "t over seeds", "rows alone"
METHODS = (CROSSED, SATTERTHWAITE, SEEDS, ROWS)


def p_values(differences: np.ndarray, margin: float) -> dict[str, float]:
    """Of equivalence within the margin, by each of :data:`METHODS`.

    Parameters
    ----------
    differences : ndarray, shape (n_seeds, n_rows)
        -1, 0 or 1: whether the configuration, minus whether full fine-tuning, got the row right.
    margin : float

    Returns
    -------
    dict of str to float
        *seeds and rows* is what :func:`rankprobe.report.equivalence.equivalence` does; *Satterthwaite* has the same
        standard error and Student's t with approximate degrees of freedom; *t over seeds* takes the rows as fixed;
        *rows alone* takes these seeds as all there are.
    """
    n, n_rows = differences.shape
    only_a, only_b = float((differences > 0).mean()), float((differences < 0).mean())
    whole = crossed_mean(differences, least_row_variance=variance_at_margin(only_a, only_b, margin))
    distance = margin - abs(whole.estimate)  # to the nearer of the two bounds, whose p-value is the larger
    degrees = (n - 1) * (whole.se / whole.seed_se) ** 4
    return {
        CROSSED: float(tail_probability(distance, whole.seed_se, whole.row_se, n)),
        SATTERTHWAITE: float(stats.t.sf(distance / whole.se, degrees)),
        SEEDS: float(stats.t.sf(_ratio(distance, differences.mean(axis=1).std(ddof=1) / np.sqrt(n)), n - 1)),
        ROWS: float(stats.norm.sf(_ratio(distance, differences.mean(axis=0).std(ddof=1) / np.sqrt(n_rows)))),
    }


def _ratio(distance: float, se: float) -> float:
    return distance / se if se > 0 else np.copysign(np.inf, distance)
