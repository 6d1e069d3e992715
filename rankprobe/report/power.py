"""How many seeds it takes to show equivalence, if differences and their spread stay as they are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special, stats

from rankprobe.errors import UsageError, must
from rankprobe.report.crossed import chi_nodes, critical_value
from rankprobe.report.equivalence import ALPHA

POWER = 0.8
MAX_SEEDS = 100
# Why no number of seeds is enough.
OUTSIDE, ROWS, TOO_MANY = "difference", "rows", "too many"


class SeedsNeeded(NamedTuple):
    """How many seeds in all would show equivalence.

    Attributes
    ----------
    total : int or None
        None where no number up to 100 would.
    why_not : str
        Empty, or what stands in the way: ``"difference"`` (it is not within the margin), ``"rows"`` (the evaluation
        rows alone leave more than the margin open, however many seeds there are), ``"too many"`` (more than 100).
    """

    total: int | None
    why_not: str = ""


def tost_power(
    n_seeds: int,
    *,
    difference: float,
    bound: float,
    seed_sd: float,
    row_se: float,
    alpha: float = ALPHA,
    one_sided: bool = False,
) -> float:
    """Probability that a sweep of ``n_seeds`` shows equivalence, on the same evaluation rows.

    Parameters
    ----------
    n_seeds : int
        At least 2.
    difference : float
        Mean difference of all possible seeds on these rows.
    bound : float
        The margin on the difference's scale, above 0.
    seed_sd : float
        Standard deviation of one seed's difference on these rows, at least 0.
    row_se : float
        Standard error that the rows add, at least 0: part of each test, but the same rows come again.
    alpha : float
    one_sided : bool
        Ask only that the difference be above ``-bound``.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    UsageError
        If there are fewer than 2 seeds, the bound is not above 0, or a standard deviation is negative.

    Notes
    -----
    Given the seeds' variance s² of such a sweep, of which (n - 1) s² / seed_sd² is chi-square, the interval's
    half-width is known, and the mean is normal and independent of it: the probability is integrated over s. Without a
    row part and with one side only, that is the noncentral t's power; with both sides, Owen's Q function.

    References
    ----------
    Owen (1965), "A special case of a bivariate non-central t-distribution", Biometrika 52(3/4).
    Phillips (1990), "Power of the two one-sided tests procedure in bioequivalence", Journal of Pharmacokinetics and
    Biopharmaceutics 18(2).

    Examples
    --------
    >>> round(tost_power(5, difference=0.0, bound=0.02, seed_sd=0.01, row_se=0.0), 3)
    0.95
    """
    if n_seeds < 2 or not bound > 0 or min(seed_sd, row_se) < 0:
        got = f"{n_seeds} seeds, bound {bound:g}, standard deviations {seed_sd:g} and {row_se:g}"
        raise UsageError(must("power", "be asked for 2 seeds or more, bound above 0, spreads not below", got, "Fix it"))
    root, weight = chi_nodes(n_seeds - 1)
    se = seed_sd / np.sqrt(n_seeds)
    half = critical_value(alpha, se * root / np.sqrt(n_seeds - 1), row_se, n_seeds)
    # The mean must lie between these two.
    low, high = -bound + half, np.full_like(half, np.inf) if one_sided else bound - half
    if se == 0:
        return float(((low <= difference) & (difference <= high)) @ weight)
    inside = special.ndtr((high - difference) / se) - special.ndtr((low - difference) / se)
    return float(np.clip(inside, 0.0, 1.0) @ weight)


def seeds_needed(
    *,
    difference: float,
    bound: float,
    seed_sd: float,
    row_se: float,
    alpha: float = ALPHA,
    power: float = POWER,
    one_sided: bool = False,
    at_least: int = 2,
) -> SeedsNeeded:
    """The least number of seeds, in all, that shows equivalence with the power asked for.

    Parameters
    ----------
    difference, bound, seed_sd, row_se, alpha, one_sided
        As for :func:`tost_power`; estimated from a few seeds they are guesses, and so is the number.
    power : float
    at_least : int
        Look from this many on.

    Returns
    -------
    SeedsNeeded

    Examples
    --------
    >>> seeds_needed(difference=-0.006, bound=0.02, seed_sd=0.01, row_se=0.003)
    SeedsNeeded(total=6, why_not='')
    >>> seeds_needed(difference=-0.006, bound=0.02, seed_sd=0.01, row_se=0.012)
    SeedsNeeded(total=None, why_not='rows')
    """
    room = bound + difference if one_sided else bound - abs(difference)
    if room <= 0:
        return SeedsNeeded(None, OUTSIDE)
    # With ever more seeds the interval's half-width comes down to this.
    if room <= stats.norm.isf(alpha) * row_se:
        return SeedsNeeded(None, ROWS)
    asked = {"difference": difference, "bound": bound, "seed_sd": seed_sd, "row_se": row_se, "alpha": alpha}
    asked["one_sided"] = one_sided
    low, high = max(2, at_least), max(2, at_least, MAX_SEEDS)
    if tost_power(high, **asked) < power:
        return SeedsNeeded(None, TOO_MANY)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if tost_power(middle, **asked) >= power else (middle + 1, high)
    return SeedsNeeded(low)
