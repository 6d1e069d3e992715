"""A mean over seeds and evaluation rows at once: every seed is scored on the same rows, and both are samples.

A difference between two configurations has three sources of chance. *Seeds*: training luck, the same for all rows.
*Rows*: some rows suit one configuration better, whatever the seed; more seeds do not average this away, because all
of them are scored on these very rows. *Both*: one seed's luck on one row. Student's t over seeds contains the first
and the third and takes the rows as fixed; a bootstrap over rows contains the second and the third and takes the seeds
as fixed. A claim about the task and the method, rather than about these rows or these weights, needs all three.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from rankprobe.errors import UsageError, must

_NODES = 128
_STEPS = 50


@dataclass(frozen=True)
class CrossedMean:
    """A mean over seeds and rows with the two parts of its standard error.

    Attributes
    ----------
    estimate : float
    seed_se : float
        From seeds, one seed's luck on single rows included; known from ``n_seeds - 1`` degrees of freedom only.
    row_se : float
        From what rows have in common over seeds; more seeds do not lessen it.
    n_seeds, n_rows : int
    """

    estimate: float
    seed_se: float
    row_se: float
    n_seeds: int
    n_rows: int

    @property
    def se(self) -> float:
        """Standard error over seeds and rows."""
        return math.hypot(self.seed_se, self.row_se)

    @property
    def seed_sd(self) -> float:
        """Standard deviation of one seed's value on these rows."""
        return self.seed_se * math.sqrt(self.n_seeds)


def crossed_mean(
    values: ArrayLike, *, seed_values: ArrayLike | None = None, least_row_variance: float = 0.0
) -> CrossedMean:
    """Mean and standard error over seeds and rows of a table of paired differences.

    Parameters
    ----------
    values : array-like, shape (n_seeds, n_rows), both at least 2
        One difference a seed and row, or a jackknife value of one.
    seed_values : array-like, shape (n_seeds,), optional
        Each seed's difference of scores where that is not the mean of its row: Matthews, F1.
    least_row_variance : float
        The least variance that one seed's differences can have over rows, known from elsewhere: see Notes.

    Returns
    -------
    CrossedMean

    Raises
    ------
    UsageError
        If there are fewer than two seeds or rows, or a value is not finite.

    Notes
    -----
    With ``y = mean + seed + row + rest`` of variances s², b², e², the mean's variance is s²/n + b²/N + e²/(nN). The
    variance of the seeds' means estimates s² + e²/N, that of the rows' means b² + e²/n, so that their sum counts the
    rest twice; it is taken off the row part, which is not let below 0. The seed part is not let below what the rest
    alone gives: two seeds whose accuracies agree to the last row do so by chance. No normality is needed for the
    variance itself: it holds for any seeds and rows drawn independently.

    Where nearly every row is the same for both configurations, the observed variance over rows says too little: 1 row
    of 200 may have been 5. Under a null hypothesis that knows the variance (as that of a difference at the margin does,
    :func:`rankprobe.report.equivalence.variance_at_margin`), pass it as ``least_row_variance``: a smaller observed
    variance is raised to it, rows' and rest in proportion.

    References
    ----------
    Clark (1973), "The language-as-fixed-effect fallacy", Journal of Verbal Learning and Verbal Behavior 12(4).
    Dorfman, Berbaum & Metz (1992), Investigative Radiology 27(9), and Hillis (2007), Statistics in Medicine 26(3):
    the same decomposition for readers (here seeds) and cases (here rows), with the same bounds at 0.
    """
    y = np.asarray(values, dtype=np.float64)
    if y.ndim != 2 or min(y.shape) < 2:
        raise UsageError(must("values", "have 2 seeds and 2 rows or more", f"shape {y.shape}", "Run another seed"))
    of_seeds = y.mean(axis=1) if seed_values is None else np.asarray(seed_values, dtype=np.float64)
    if not (np.isfinite(y).all() and np.isfinite(of_seeds).all()):
        raise UsageError(must("values", "be finite", "NaN or inf", "Leave diverged seeds out"))
    n, n_rows = y.shape
    of_rows = y.mean(axis=0)
    rest = y - of_rows - y.mean(axis=1, keepdims=True) + y.mean()
    rest_variance = float((rest**2).sum()) / ((n - 1) * (n_rows - 1))
    row_variance = float(of_rows.var(ddof=1))
    single = float(y.var(axis=1, ddof=1).mean())  # of one seed's differences over rows: b² + e²
    if single <= 0:
        row_variance = max(row_variance, least_row_variance)
    elif single < least_row_variance:
        row_variance *= least_row_variance / single
        rest_variance *= least_row_variance / single
    seed_variance = max(float(of_seeds.var(ddof=1)), rest_variance / n_rows)
    only_rows = max(0.0, row_variance - rest_variance / n)
    return CrossedMean(float(of_seeds.mean()), math.sqrt(seed_variance / n), math.sqrt(only_rows / n_rows), n, n_rows)


def tail_probability(x: ArrayLike, seed_se: ArrayLike, row_se: ArrayLike, n_seeds: int) -> np.ndarray:
    """P(seed_se * T + row_se * Z > x), T Student's t with n_seeds - 1 degrees of freedom and Z standard normal.

    Parameters
    ----------
    x, seed_se, row_se : array-like, broadcast together
        Standard errors at least 0.
    n_seeds : int
        At least 2.

    Returns
    -------
    ndarray, float64
        Where both standard errors are 0: 0 for x > 0, else 1.

    Notes
    -----
    This is the Behrens-Fisher distribution with one side's variance known: the rows are many, the seeds few. Student's
    t with Satterthwaite's degrees of freedom, the usual approximation, is wrong in the dangerous direction just here:
    at a nominal 5 % and 3 seeds it errs in up to 6.2 % of cases, at 2 seeds in up to 8.4 %, for when the few seeds
    happen to agree it also takes their small variance to be well known. This one errs in at most 5 % whatever the two
    parts' shares are (tests/report/test_crossed.py integrates both).

    Integrated over the seeds' variance, given which the sum is normal: Gauss-Legendre in the root of a chi-square.

    References
    ----------
    Fisher (1935), "The fiducial argument in statistical inference", Annals of Eugenics 6(4).
    Robinson (1976), "Properties of Student's t and of the Behrens-Fisher solution to the two means problem", Annals of
    Statistics 4(5): it is conservative.

    Examples
    --------
    >>> tail_probability(2.919986, 1.0, 0.0, 3).round(6), tail_probability(1.644854, 0.0, 1.0, 3).round(6)
    (np.float64(0.05), np.float64(0.05))
    """
    x = np.asarray(x, dtype=np.float64)[..., None]
    steepness, weight = _normals(seed_se, row_se, n_seeds)
    with np.errstate(invalid="ignore"):
        z = np.where(np.isfinite(steepness), x * steepness, np.where(x > 0, np.inf, -np.inf))
    return np.minimum(1.0, special.ndtr(-z) @ weight)


def critical_value(alpha: float, seed_se: ArrayLike, row_se: ArrayLike, n_seeds: int) -> np.ndarray:
    """The x that :func:`tail_probability` gives ``alpha`` for.

    Parameters
    ----------
    alpha : float
        Above 0 and at most 0.5: one tail.
    seed_se, row_se : array-like
    n_seeds : int

    Examples
    --------
    >>> critical_value(0.05, 1.0, 1.0, 3).round(3)
    np.float64(3.351)
    """
    if not 0 < alpha <= 0.5:
        raise UsageError(must("alpha", "be above 0 and at most 0.5", alpha, "Pass 0.05"))
    a, b = np.broadcast_arrays(np.asarray(seed_se, dtype=np.float64), np.asarray(row_se, dtype=np.float64))
    steepness, weight = _normals(a, b, n_seeds)
    # Newton's method; the tail is convex above 0, so that from wherever it starts it ends up rising to the solution.
    x = np.hypot(a * stats.t.isf(alpha, n_seeds - 1), b * stats.norm.isf(alpha))
    for _ in range(_STEPS):
        with np.errstate(invalid="ignore"):
            z = x[..., None] * steepness
            density = (np.exp(-(z**2) / 2) * steepness) @ weight / math.sqrt(2 * math.pi)
            step = np.where(x > 0, (special.ndtr(-z) @ weight - alpha) / density, 0.0)
        x = np.maximum(x + step, 0.0)
        if (np.abs(step) <= 1e-12 * x).all():
            break
    return x


def _normals(seed_se: ArrayLike, row_se: ArrayLike, n_seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """The sum as a mixture of normals: one over their standard deviations, and their weights; along a last axis."""
    root, weight = chi_nodes(n_seeds - 1)
    a, b = (np.asarray(v, dtype=np.float64)[..., None] for v in (seed_se, row_se))
    with np.errstate(divide="ignore"):
        return root / np.sqrt(a**2 * (n_seeds - 1) + b**2 * root**2), weight


@lru_cache(maxsize=256)
def chi_nodes(degrees: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights, which sum to 1, for a mean over the root of a chi-square of so many degrees of freedom."""
    if degrees < 1:
        raise UsageError(must("n_seeds", "be at least 2", degrees + 1, "Run another seed"))
    law = stats.chi(degrees)
    low, high = float(law.ppf(1e-16)), float(law.isf(1e-16))
    node, weight = np.polynomial.legendre.leggauss(_NODES)
    node = low + (node + 1) * (high - low) / 2
    weight = weight * law.pdf(node)
    return node, weight / weight.sum()
