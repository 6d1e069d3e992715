"""Paired tests against closed forms, scipy and statsmodels (tests/references), and how often they err."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rankprobe.errors import UsageError
from rankprobe.report.paired import holm, mcnemar, paired_bootstrap
from rankprobe.report.score_intervals import paired_difference

REFERENCE = json.loads((Path(__file__).parents[1] / "references" / "statsmodels_paired.json").read_text("utf-8"))


def right(only_a: int, only_b: int, both: int = 3, neither: int = 2) -> tuple[list[int], list[int]]:
    return [1] * only_a + [0] * only_b + [1] * both + [0] * neither, [0] * only_a + [1] * only_b + [1] * both + [
        0
    ] * neither


def models(n: int, p_a: float, p_b: float, seed: int):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    a, b = (np.where(rng.random(n) < p, labels, 1 - labels) for p in (p_a, p_b))
    return [(labels, a, None)], [(labels, b, None)]


@pytest.mark.parametrize(("only_a", "only_b", "p"), REFERENCE["mcnemar_exact"])
def test_mcnemar_is_statsmodels_and_scipys(only_a, only_b, p):
    found = mcnemar(*right(only_a, only_b))
    assert (found.only_a, found.only_b) == (only_a, only_b)
    assert found.p_exact == pytest.approx(p, abs=1e-12)
    assert found.p_exact == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue, abs=1e-12)


def test_mid_p_of_the_published_example_and_by_hand():
    # Fagerland et al. (2013), airway hyper-responsiveness: 1 and 7; 2 * (1 + 8) / 256 and that without 8 / 256.
    found = mcnemar(*right(1, 7))
    assert (found.p_exact, found.p_mid) == (pytest.approx(18 / 256), pytest.approx(10 / 256))
    # Two equal counts: 1 - pmf / 2.
    assert mcnemar(*right(2, 2)).p_mid == pytest.approx(1 - 6 / 16 / 2)


def test_mcnemar_of_two_models_that_no_row_tells_apart():
    assert mcnemar(*right(0, 0)) == (0, 0, 1.0, 1.0)


def test_mid_p_keeps_its_level_and_exact_wastes_it():
    rng = np.random.default_rng(0)
    n = rng.binomial(60, 0.4, 4000)
    b = rng.binomial(n, 0.5)
    found = [mcnemar(*right(int(x), int(m - x))) for x, m in zip(b, n, strict=True)]
    exact, mid = (np.mean([getattr(f, name) <= 0.05 for f in found]) for name in ("p_exact", "p_mid"))
    assert exact < mid <= 0.055
    assert exact < 0.035


def test_mcnemar_is_symmetric_and_takes_booleans():
    a, b = (np.array(x, dtype=bool) for x in right(4, 11))
    one, two = mcnemar(a, b), mcnemar(b, a)
    assert (one.p_exact, one.p_mid) == (two.p_exact, two.p_mid) and (one.only_a, one.only_b) == (4, 11)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 0], [1], "lists of one length above 0. Got shapes (2,) and (1,)"),
        ([], [], "lists of one length above 0"),
        ([1, 0], [1, 2], "true or false a row. Got 2"),
        ([[1]], [[1]], "lists of one length"),
    ],
)
def test_mcnemar_refuses(a, b, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(").replace(")", r"\)")):
        mcnemar(a, b)


@pytest.mark.parametrize(("p", "adjusted"), REFERENCE["holm"])
def test_holm_is_statsmodels(p, adjusted):
    assert holm(p) == pytest.approx(adjusted, abs=1e-12)


def test_holm_skips_tests_that_were_not_made():
    found = holm([0.03, np.nan, 0.02])
    assert found[0] == pytest.approx(0.04) and found[2] == pytest.approx(0.04) and np.isnan(found[1])
    assert holm([]).size == 0


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(UsageError, match="p_values must be between 0 and 1. Got 1.2"):
        holm([0.1, 1.2])


def test_bootstrap_agrees_with_mcnemar_and_with_its_own_interval():
    for seed in range(6):
        a, b = models(600, 0.80, 0.76, seed)
        found = paired_bootstrap(a, b)
        exact = mcnemar(a[0][0] == a[0][1], b[0][0] == b[0][1])
        assert found.p == pytest.approx(exact.p_exact, abs=0.015)  # resamples at exactly 0 count on both sides
        low, high = found.difference[1:3]
        if abs(found.p - 0.05) > 0.01:
            assert (found.p < 0.05) == (low > 0 or high < 0)
        other = paired_difference(a, b)
        assert found.difference.estimate == pytest.approx(other.estimate)
        assert (low, high) == pytest.approx((other.low, other.high), abs=0.006)


def test_bootstrap_of_any_metric_is_that_of_rows():
    # f1 and accuracy of the same rows; for accuracy the short cut over sorts of rows must give what rows give.
    a, b = models(300, 0.85, 0.70, 1)
    fast = paired_bootstrap(a, b, resamples=4000)
    from rankprobe.report import paired

    rng = np.random.default_rng(3)
    correct = [(t[0][0] == t[0][1]).astype(float) for t in (a, b)]
    slow = paired._scores(lambda rows: float((correct[0] - correct[1])[rows].mean()), 300, 4000, rng)
    assert fast.difference.low == pytest.approx(np.quantile(slow, 0.025), abs=0.01)
    assert fast.difference.high == pytest.approx(np.quantile(slow, 0.975), abs=0.01)
    f1 = paired_bootstrap(a, b, metric="f1", resamples=300)
    assert f1.p == pytest.approx(2 / 301) and f1.difference.low > 0


def test_bootstrap_of_a_model_with_itself_finds_nothing():
    a, _ = models(100, 0.8, 0.8, 0)
    assert paired_bootstrap(a, a) == ((0.0, 0.0, 0.0, "paired percentile bootstrap over 100 eval rows", 100), 1.0)


def test_bootstrap_refuses_what_does_not_pair():
    a, b = models(20, 0.8, 0.8, 0)
    with pytest.raises(UsageError, match="same seeds on both sides, 1 or more. Got 2 and 1"):
        paired_bootstrap(a * 2, b)
