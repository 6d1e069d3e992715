"""The standard error over seeds and rows against its planted variances, and its test's error by integration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from rankprobe.errors import UsageError
from rankprobe.report.crossed import CrossedMean, critical_value, crossed_mean, tail_probability


def draw(rng, n, rows, seed_sd, row_sd, rest_sd):
    return (
        rng.normal(0, seed_sd, (n, 1)) + rng.normal(0, row_sd, (1, rows)) + rng.normal(0, rest_sd, (n, rows))
    )  # fmt: skip


def test_by_hand():
    # Seeds' means 1, 3; rows' means 1, 2, 3; no rest: s² = 2 over 2 seeds, row variance 1 over 3 rows.
    found = crossed_mean([[0, 1, 2], [2, 3, 4]])
    assert found == CrossedMean(2.0, pytest.approx(1.0), pytest.approx(np.sqrt(1 / 3)), 2, 3)
    assert found.se == pytest.approx(np.sqrt(4 / 3)) and found.seed_sd == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize("sds", [(0.02, 0.3, 0.3), (0.0, 0.3, 0.3), (0.02, 0.0, 0.3), (0.02, 0.3, 0.0)])
def test_its_square_is_the_means_true_variance(sds):
    rng = np.random.default_rng(0)
    n, rows = 4, 250
    found = [crossed_mean(draw(rng, n, rows, *sds)) for _ in range(3000)]
    truth = sds[0] ** 2 / n + sds[1] ** 2 / rows + sds[2] ** 2 / (n * rows)
    assert np.var([f.estimate for f in found]) == pytest.approx(truth, rel=0.1)
    mean = np.mean([f.se**2 for f in found])
    # Bounds at 0 may only make it larger, and do where a part is 0.
    assert 0.95 * truth < mean < (1.05 if min(sds[:2]) > 0 else 1.6) * truth


def test_more_seeds_lessen_the_seed_part_only():
    rng = np.random.default_rng(1)
    few, many = (crossed_mean(draw(rng, n, 1000, 0.02, 0.4, 0.2)) for n in (5, 80))
    assert many.seed_se < 0.5 * few.seed_se
    assert many.row_se == pytest.approx(few.row_se, rel=0.15) == pytest.approx(0.4 / np.sqrt(1000), rel=0.15)


def test_seeds_that_agree_by_chance_still_have_a_spread():
    # Each seed is 1 on another row: three equal means, but nothing that seeds have in common.
    values = np.zeros((3, 100))
    values[range(3), range(3)] = 1
    found = crossed_mean(values)
    assert found.seed_se > 0 and found.se == pytest.approx(0.01 / np.sqrt(3), rel=0.05)


def test_rows_that_hardly_differ_are_raised_to_the_least_that_they_can():
    alike = crossed_mean(np.zeros((3, 200)), least_row_variance=0.0196)
    assert (alike.seed_se, alike.row_se) == (0.0, pytest.approx(np.sqrt(0.0196 / 200)))
    one = np.zeros((3, 200))
    one[:, 0] = 1  # the same single row for all seeds: nothing but row effects
    assert crossed_mean(one, least_row_variance=0.0196).row_se == pytest.approx(np.sqrt(0.0196 / 200))
    assert crossed_mean(one).row_se == pytest.approx(1 / 200)
    busy = np.random.default_rng(0).choice([-1, 0, 1], (3, 200))
    assert crossed_mean(busy, least_row_variance=0.0196) == crossed_mean(busy)


def test_scale_and_sign_carry_over():
    y = draw(np.random.default_rng(2), 3, 50, 0.1, 0.2, 0.3)
    one, other = crossed_mean(y), crossed_mean(-7 * y)
    assert (other.estimate, other.seed_se, other.row_se) == pytest.approx(
        (-7 * one.estimate, 7 * one.seed_se, 7 * one.row_se)
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((1, 9)), "2 seeds and 2 rows or more. Got shape (1, 9)"),
        (np.zeros(9), "2 seeds and 2 rows or more"),
        ([[0.0, np.nan], [1.0, 2.0]], "values must be finite"),
    ],
)
def test_refuses(values, message):
    with pytest.raises(UsageError) as caught:
        crossed_mean(values)
    assert message in str(caught.value)


@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_tail_without_a_row_part_is_students_and_without_a_seed_part_normal(n):
    x = np.array([-1.0, 0.0, 0.5, 2.0, 6.0])
    assert tail_probability(x, 2.0, 0.0, n) == pytest.approx(stats.t.sf(x / 2, n - 1), abs=1e-10)
    assert tail_probability(x, 0.0, 2.0, n) == pytest.approx(stats.norm.sf(x / 2), abs=1e-12)
    assert tail_probability([1.0, -1.0, 0.0], 0.0, 0.0, n) == pytest.approx([0.0, 1.0, 1.0])


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize(("a", "b"), [(1.0, 0.1), (1.0, 1.0), (0.1, 1.0)])
def test_tail_is_the_convolution(n, a, b):
    for x in (0.3, 2.0, 5.0):
        slow = integrate.quad(
            lambda z, x=x: stats.t.sf((x - b * z) / a, n - 1) * stats.norm.pdf(z), -9, 9, limit=400, points=[x / b]
        )[0]
        assert tail_probability(x, a, b, n) == pytest.approx(slow, abs=1e-7)


def test_critical_value_inverts_the_tail():
    a, b = np.array([1.0, 0.3, 0.0, 2.0, 1e-3, 1.0]), np.array([0.5, 1.0, 1.0, 0.0, 1.0, 1e-3])
    for n in (2, 3, 40):
        for alpha in (0.001, 0.05, 0.3, 0.49):
            assert tail_probability(critical_value(alpha, a, b, n), a, b, n) == pytest.approx(alpha, abs=1e-10)
    assert critical_value(0.05, 0.0, 0.0, 3) == 0
    assert critical_value(0.05, 1.0, 0.0, 3) == pytest.approx(stats.t.isf(0.05, 2))
    with pytest.raises(UsageError, match="alpha must be above 0 and at most 0.5. Got 0.7"):
        critical_value(0.7, 1.0, 1.0, 3)
    with pytest.raises(UsageError, match="n_seeds must be at least 2. Got 1"):
        tail_probability(1.0, 1.0, 1.0, 1)


def errors(n: int, shares: np.ndarray, half) -> np.ndarray:
    """True error of a one-sided test at 5 %, by the seeds' share of the variance: integrated over their estimate."""
    u, weight = np.polynomial.legendre.leggauss(400)
    estimate = stats.chi2.ppf((u + 1) / 2, n - 1) / (n - 1)
    return np.array([weight / 2 @ stats.norm.sf(half(s * estimate, 1 - s)) for s in shares])


SHARES = np.array([0.02, 0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.97])


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_it_errs_in_five_percent_at_most_whatever_the_seeds_share(n):
    def half(seed, row):
        return critical_value(0.05, np.sqrt(seed), np.sqrt(row), n)

    found = errors(n, SHARES, half)
    assert found.max() <= 0.0501 and found[-1] > 0.045


@pytest.mark.parametrize(("n", "worst"), [(2, 0.084), (3, 0.062)])
def test_satterthwaites_degrees_of_freedom_do_not_keep_that_promise(n, worst):
    def half(seed, row):
        return stats.t.isf(0.05, (n - 1) * ((seed + row) / seed) ** 2) * np.sqrt(seed + row)

    assert errors(n, SHARES, half).max() == pytest.approx(worst, abs=0.002)
