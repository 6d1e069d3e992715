"""Where noisy curves reach a threshold: against scipy's isotonic regression, and closed forms."""

import math

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from rankprobe.analysis.crossing import bracket, crossings, non_decreasing, reaches


@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_non_decreasing_is_isotonic_regression(k):
    rng = np.random.default_rng(k)
    scores, weights = rng.normal(size=(200, k)), rng.integers(1, 4, k)
    ours = non_decreasing(scores, weights)
    for row, fitted in zip(scores, ours, strict=True):
        assert fitted == pytest.approx(isotonic_regression(row, weights=weights).x, abs=1e-12)
    assert non_decreasing(np.sort(scores, axis=1)) == pytest.approx(np.sort(scores, axis=1), abs=1e-12)


def test_a_threshold_that_is_met_but_for_rounding_is_met():
    assert reaches(0.1 + 0.2, 0.3) and reaches(0.3, 0.1 + 0.2) and not reaches(0.2999, 0.3)


@pytest.mark.parametrize(
    "threshold, between",
    [(0.4, (0, 10)), (0.5, (0, 10)), (0.55, (10, 100)), (0.8, (100, 1000)), (0.81, (1000, math.inf))],
)
def test_brackets(threshold, between):
    assert bracket([10, 100, 1000], [0.5, 0.6, 0.8], threshold) == between


def test_crossings_by_row():
    scores = np.array([[0.5, 0.6, 0.8], [0.7, 0.7, 0.7], [0.1, 0.2, 0.3], [0.5, math.nan, 0.8], [0.6, 0.5, 0.8]])
    d, low, high = crossings([10, 100, 1000], scores, np.full(5, 0.7))
    assert d[:3] == pytest.approx([100 * 10**0.5, 10, math.inf]) and math.isnan(d[3])
    assert (low[1], high[1]) == (0, 10) and (low[2], high[2]) == (1000, math.inf) and (low[3], high[3]) == (0, math.inf)
    assert low[0] == d[0] == high[0]
    # The dip is levelled at 0.55: from there to 0.8 the bar lies 0.6 of the way.
    assert d[4] == pytest.approx(100 * 10**0.6)
