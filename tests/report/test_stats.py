"""Intervals against closed forms, scipy, and their own promise: how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rankprobe.errors import UsageError
from rankprobe.report.crossed import tail_probability
from rankprobe.report.score_intervals import crossed_difference, paired_difference, score_interval
from rankprobe.report.stats import (
    bootstrap_mean,
    bootstrap_median,
    bootstrap_score,
    t_interval,
)


def table(labels, predictions, scores=None):
    return np.asarray(labels), np.asarray(predictions), scores


def test_t_interval_is_scipys():
    x = [0.761, 0.774, 0.768, 0.779]
    found = t_interval(x)
    low, high = scipy_stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert found.estimate == pytest.approx(np.mean(x)) and found.n == 4
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    assert found.method == "t over 4 seeds"


def test_t_interval_of_three_by_hand():
    # mean 2, s = 1, t(0.975, 2) = 4.302653: 2 ± 4.302653 / sqrt(3)
    found = t_interval([1.0, 2.0, 3.0])
    assert (found.low, found.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)


@pytest.mark.parametrize("values", [[0.7], [], [0.7, math.nan], [[0.1, 0.2]]])
def test_t_interval_refuses_what_has_no_spread(values):
    with pytest.raises(UsageError, match="values must be"):
        t_interval(values)


@pytest.mark.parametrize("kind", ["BCa", "percentile"])
@pytest.mark.parametrize("share", [0.77, 0.96])
def test_bootstrap_of_an_accuracy_is_scipys(kind, share):
    x = (np.arange(400) < share * 400).astype(float)
    ours = bootstrap_mean(x, kind=kind)
    theirs = scipy_stats.bootstrap(
        (x,), np.mean, method=kind, n_resamples=20_000, batch=500, rng=np.random.default_rng(1)
    ).confidence_interval
    # Both move in steps of 1/400; Monte Carlo may shift an end by one.
    assert ours.low == pytest.approx(theirs.low, abs=1.01 / 400)
    assert ours.high == pytest.approx(theirs.high, abs=1.01 / 400)
    assert f"{kind} bootstrap over 400" in ours.method


def test_bca_of_skewed_values_leans_as_scipys_does():
    x = np.random.default_rng(3).exponential(1.0, 60)
    ours = bootstrap_mean(x)
    theirs = scipy_stats.bootstrap(
        (x,), np.mean, method="BCa", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.012)
    plain = bootstrap_mean(x, kind="percentile")
    assert ours.high > plain.high + 0.01  # the skew of an exponential pushes both ends up


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for i in range(400):
        found = bootstrap_mean(rng.random(300) < 0.75, resamples=2000, seed=i)
        held += found.low <= 0.75 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_all_rows_right_gives_clopper_pearson_not_a_width_of_zero():
    found = bootstrap_mean(np.ones(50), bounds=(0.0, 1.0))
    exact = scipy_stats.binomtest(50, 50).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    assert found.estimate == 1.0 and "Clopper-Pearson" in found.method
    with pytest.raises(UsageError, match="bounds must be given"):
        bootstrap_mean(np.ones(50))


def test_equal_predictions_differ_by_zero_with_an_interval_that_shrinks_with_n():
    labels = np.arange(40) % 2
    same = [table(labels, labels)]
    found = paired_difference(same, same)
    assert found.estimate == 0 and found.low == -found.high
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 40))


def test_pairing_uses_the_rows_and_not_only_the_two_accuracies():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 1000)
    hard, other = np.arange(250), np.arange(750, 1000)
    a = labels.copy()
    a[hard] = 1 - a[hard]
    near = labels.copy()
    near[hard[5:]] = 1 - near[hard[5:]]  # right on five rows more, wrong on the same others
    far = labels.copy()
    far[other[5:]] = 1 - far[other[5:]]  # the same accuracy with other rows wrong
    tight, wide = (
        paired_difference([table(labels, near)], [table(labels, a)]),
        paired_difference([table(labels, far)], [table(labels, a)]),
    )
    assert tight.estimate == wide.estimate == pytest.approx(0.005)
    assert tight.high - tight.low < 0.25 * (wide.high - wide.low)
    assert tight.low > 0 > wide.low


def test_paired_difference_from_three_seeds_on_covers_seeds_and_rows():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 500)
    a, b = (
        [table(labels, np.where(rng.random(500) < p, labels, 1 - labels)) for p in ps]
        for ps in ((0.80, 0.78, 0.82), (0.75, 0.76, 0.74))
    )
    found = paired_difference(a, b)
    accuracies = [[(t[1] == t[0]).mean() for t in side] for side in (a, b)]
    exact = scipy_stats.ttest_rel(*accuracies).confidence_interval(0.95)
    assert found.estimate == pytest.approx((exact.low + exact.high) / 2)
    assert found.low < exact.low and found.high > exact.high, "t over seeds takes the rows as fixed"
    parts = crossed_difference(a, b)
    beyond = tail_probability(found.high - found.estimate, parts.seed_se, parts.row_se, 3)
    assert beyond == pytest.approx(0.025)
    assert found.method == "t over 3 paired seeds, normal over 500 eval rows" and found.n == 3
    two = paired_difference(a[:2], b[:2])
    assert "bootstrap over 500" in two.method and "paired, 2 seeds" in two.method and two.n == 500


def test_the_rows_of_a_difference_are_counted_and_not_the_jackknifes_blocks():
    rng = np.random.default_rng(3)
    labels = rng.normal(size=1500)
    a, b = ([table(labels, labels + rng.normal(size=1500)) for _ in range(3)] for _ in range(2))
    found = paired_difference(a, b, metric="pearson")
    assert found.method == "t over 3 paired seeds, normal over 1,500 eval rows"


def test_three_seeds_that_happen_to_agree_fall_back_to_rows():
    labels = np.arange(100) % 2
    wrong = labels.copy()
    wrong[:20] = 1 - wrong[:20]
    found = score_interval([table(labels, wrong)] * 3)
    assert found.estimate == pytest.approx(0.8)
    assert found.low < 0.75 and found.high > 0.85 and "bootstrap" in found.method


def test_seeds_that_differ_by_as_many_rows_each_leave_the_rows_to_judge_chance_by():
    # 0.9 - 0.8 and 0.8 - 0.7 differ in the last bit, of which no interval is to be made.
    labels = np.arange(100) % 2

    def side(*wrong):
        return [table(labels, np.where(np.arange(100) < n, 1 - labels, labels)) for n in wrong]

    found = paired_difference(side(10, 20, 30), side(20, 30, 40))
    assert found.estimate == pytest.approx(0.1) and found.high - found.low > 0.05


def test_an_accuracys_interval_ends_where_accuracies_do():
    labels = np.arange(50) % 2
    seeds = [table(labels, np.where(np.arange(50) < n, 1 - labels, labels)) for n in (0, 1, 9)]
    found = score_interval(seeds)
    assert found.high == 1.0 and found.low < 0.8 and found.method == "t over 3 seeds"


def test_paired_difference_refuses_unequal_sides():
    labels = np.arange(10) % 2
    with pytest.raises(UsageError, match="same seeds on both sides"):
        paired_difference([table(labels, labels)] * 2, [table(labels, labels)])
    with pytest.raises(UsageError, match="same eval rows"):
        paired_difference([table(labels, labels)], [table(labels[:5], labels[:5])])


def test_bootstrap_of_matthews_holds_scipys_interval():
    from sklearn.metrics import matthews_corrcoef

    rng = np.random.default_rng(8)
    labels = rng.integers(0, 2, 250)
    predictions = np.where(rng.random(250) < 0.8, labels, 1 - labels)
    found = score_interval([table(labels, predictions, predictions.astype(float))], metric="matthews")
    assert found.estimate == pytest.approx(matthews_corrcoef(labels, predictions))
    theirs = scipy_stats.bootstrap(
        (labels, predictions),
        matthews_corrcoef,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=1500,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_undefined_resamples_are_counted_and_left_out():
    values = np.array([0.0, 1.0, 2.0])

    def score(rows: np.ndarray) -> float:
        return math.nan if len(set(rows.tolist())) == 1 else float(values[rows].mean())

    found = bootstrap_score(score, 3, resamples=900)
    # All three draws alike: 3 of 27 resamples.
    count = int(found.method.split("(")[1].split()[0])
    assert 60 <= count <= 140 and math.isfinite(found.low)
    never = bootstrap_score(lambda rows: math.nan, 3, resamples=50)
    assert math.isnan(never.low) and math.isnan(never.high)


@pytest.mark.parametrize(
    ("metric", "whole", "apart"),
    [("matthews", (-1, 1), (-2, 2)), ("pearson", (-1, 1), (-2, 2)), ("f1", (0, 1), (-1, 1))],
)
def test_constant_predictions_have_an_interval_that_says_nothing(metric, whole, apart):
    same = [table(np.arange(40) % 2, np.zeros(40), np.zeros(40))]
    found = score_interval(same, metric=metric)
    assert (found.estimate, found.low, found.high) == (0, *whole) and found.method == "none: all resamples alike"
    found = paired_difference(same, same, metric=metric)
    assert (found.estimate, found.low, found.high) == (0, *apart) and found.method.startswith("none: all resamples")


def test_bootstrap_of_a_median_is_scipys():
    x = np.random.default_rng(4).lognormal(3, 1, 36)
    ours = bootstrap_median(x)
    theirs = scipy_stats.bootstrap(
        (x,), np.median, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours.estimate == np.median(x)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.06)


def test_intervals_repeat():
    x = np.random.default_rng(0).integers(0, 2, 200)
    assert bootstrap_mean(x) == bootstrap_mean(x)
    assert bootstrap_median(x + 0.5) == bootstrap_median(x + 0.5)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_median_of_few_values_has_no_interval(n):
    found = bootstrap_median([20.0] * n)
    assert (found.estimate, found.low, found.high) == (20.0, -math.inf, math.inf)
    assert found.method == f"none: too few matrices ({n})"


def test_a_median_of_six_values_has_one():
    found = bootstrap_median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert 1 <= found.low < 3.5 < found.high <= 6
