"""Power of TOST against the noncentral t, the normal limit and simulation; the number of seeds at its edges."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rankprobe.errors import UsageError
from rankprobe.report.crossed import critical_value
from rankprobe.report.power import SeedsNeeded, seeds_needed, tost_power

REFERENCE = json.loads((Path(__file__).parents[1] / "references" / "statsmodels_paired.json").read_text("utf-8"))


@pytest.mark.parametrize(("n", "difference", "margin", "sd", "power"), REFERENCE["power"])
def test_one_sided_it_is_the_noncentral_ts_and_statsmodels(n, difference, margin, sd, power):
    found = tost_power(n, difference=difference, bound=margin, seed_sd=sd, row_se=0.0, one_sided=True)
    assert found == pytest.approx(power, abs=1e-6)
    shift = (difference + margin) / sd * np.sqrt(n)
    assert found == pytest.approx(stats.nct.sf(stats.t.isf(0.05, n - 1), n - 1, shift), abs=1e-6)


def test_with_both_sides_and_many_seeds_it_is_the_normal_formula():
    # 2 Φ(margin / se − 1.645) − 1 at no difference.
    found = tost_power(400, difference=0.0, bound=0.02, seed_sd=0.15, row_se=0.0)
    z = 0.02 / (0.15 / 20) - stats.norm.isf(0.05)
    assert found == pytest.approx(2 * stats.norm.cdf(z) - 1, abs=0.005)


def test_both_sides_by_simulation_with_and_without_a_row_part():
    rng = np.random.default_rng(0)
    for n, difference, sd, row in ((3, -0.004, 0.006, 0.0), (4, 0.0, 0.01, 0.004), (6, 0.007, 0.012, 0.005)):
        x = rng.normal(difference, sd, (20_000, n))
        se = x.std(axis=1, ddof=1) / np.sqrt(n)
        grid = np.linspace(0, se.max(), 400)
        half = np.interp(se, grid, critical_value(0.05, grid, row, n))
        simulated = ((x.mean(axis=1) - half > -0.02) & (x.mean(axis=1) + half < 0.02)).mean()
        asked = {"difference": difference, "bound": 0.02, "seed_sd": sd, "row_se": row}
        assert tost_power(n, **asked) == pytest.approx(simulated, abs=0.012)


def test_at_the_margin_it_is_the_tests_error():
    assert tost_power(3, difference=-0.02, bound=0.02, seed_sd=0.002, row_se=0.0) == pytest.approx(0.05, abs=1e-4)
    assert tost_power(3, difference=-0.02, bound=0.02, seed_sd=0.002, row_se=0.002) < 0.05


def test_sign_and_scale_do_not_matter():
    one = tost_power(5, difference=-0.006, bound=0.02, seed_sd=0.01, row_se=0.003)
    assert one == pytest.approx(tost_power(5, difference=0.006, bound=0.02, seed_sd=0.01, row_se=0.003))
    assert one == pytest.approx(tost_power(5, difference=-0.6, bound=2.0, seed_sd=1.0, row_se=0.3))


def test_without_any_spread_it_is_certain_either_way():
    for difference, power in ((0.0, 1.0), (-0.019, 1.0), (-0.021, 0.0)):
        assert tost_power(2, difference=difference, bound=0.02, seed_sd=0.0, row_se=0.0) == pytest.approx(power)
    # The rows' part is 1.645 * 0.01 wide.
    assert tost_power(2, difference=-0.003, bound=0.02, seed_sd=0.0, row_se=0.01) == pytest.approx(1.0)
    assert tost_power(2, difference=-0.004, bound=0.02, seed_sd=0.0, row_se=0.01) == pytest.approx(0.0)


@pytest.mark.parametrize("one_sided", [False, True])
def test_seeds_needed_is_the_least_number_with_that_power(one_sided):
    asked = {"difference": -0.006, "bound": 0.02, "seed_sd": 0.012, "row_se": 0.003, "one_sided": one_sided}
    total = seeds_needed(**asked).total
    assert tost_power(total, **asked) >= 0.8 > tost_power(total - 1, **asked)
    assert seeds_needed(**asked, at_least=30) == SeedsNeeded(30)
    assert seeds_needed(**asked, power=0.95).total > total


def test_no_number_of_seeds_is_said_with_its_reason():
    asked = {"bound": 0.02, "seed_sd": 0.01, "row_se": 0.004}
    assert seeds_needed(difference=-0.02, **asked) == (None, "difference")
    assert seeds_needed(difference=0.03, **asked) == (None, "difference")
    assert seeds_needed(difference=0.03, **asked, one_sided=True).total is not None
    # Room of 0.006 against 1.645 * 0.004 = 0.0066 that the rows leave open; of 0.007 it is enough, with many seeds.
    assert seeds_needed(difference=-0.014, **asked) == (None, "rows")
    assert seeds_needed(difference=-0.013, **asked) == (None, "too many")
    assert seeds_needed(difference=-0.010, **asked).total > 10


@pytest.mark.parametrize("wrong", [{"n_seeds": 1}, {"bound": 0.0}, {"seed_sd": -1.0}])
def test_refuses(wrong):
    asked = {"n_seeds": 3, "difference": 0.0, "bound": 0.02, "seed_sd": 0.01, "row_se": 0.0} | wrong
    with pytest.raises(UsageError, match="power must be asked for 2 seeds or more"):
        tost_power(asked.pop("n_seeds"), **asked)
