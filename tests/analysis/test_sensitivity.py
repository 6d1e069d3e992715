"""Sensitivity from losses that are known: paired differences, their noise, and zero where nothing is shown."""

import numpy as np
import pytest
import torch
from scipy import stats

from rankprobe.analysis.cut_updates import UpdateSVD
from rankprobe.analysis.sensitivity import COLUMNS, ladder, sensitivity_table
from rankprobe.errors import UsageError
from rankprobe.weights.architecture import WeightSite


def update(name="encoder.layer.3.attention.self.query.weight", p=4):
    site = WeightSite(name, 3, "q", (6, 5))
    U, S, Vh = torch.linalg.svd(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    return UpdateSVD(site, U[:, :p], S[:p], Vh[:p])


def test_differences_are_paired_and_the_standard_error_is_theirs():
    rng = np.random.default_rng(0)
    whole = rng.exponential(5, 400)  # rows differ a lot
    cut = whole + rng.normal(0.01, 0.02, (3, 400))  # and the cut changes each a little
    table = sensitivity_table([update()], {update().site.name: cut}, whole)
    assert list(table.columns) == list(COLUMNS) and table["k"].tolist() == [0, 1, 2, 4]
    for i, row in table[:3].iterrows():
        oracle = stats.ttest_rel(cut[i], whole)
        assert row["increase"] / row["se"] == pytest.approx(oracle.statistic)
        assert row["loss"] == pytest.approx(cut[i].mean()) and row["sensitivity"] == row["increase"] > 0
    last = table.iloc[3]
    assert last["increase"] == last["se"] == last["sensitivity"] == 0 and last["energy_kept"] == pytest.approx(1)


def test_what_is_under_its_noise_and_what_helps_is_zero():
    n = 1000
    rng = np.random.default_rng(1)
    whole = rng.exponential(1, n)
    noise = rng.normal(0, 0.1, n)
    noise -= noise.mean()  # the mean difference is then exactly the shift
    se = noise.std(ddof=1) / np.sqrt(n)
    cut = np.stack([whole + noise + shift * se for shift in (2.1, 1.9, -5.0)])
    found = sensitivity_table([update()], {update().site.name: cut}, whole)["sensitivity"]
    assert found.tolist() == pytest.approx([2.1 * se, 0, 0, 0])


def test_energy_kept_is_that_of_the_directions():
    S = update().S.double().numpy() ** 2
    found = sensitivity_table([update()], {update().site.name: np.zeros((3, 5))}, np.zeros(5))["energy_kept"]
    assert found.tolist() == pytest.approx([0, S[0] / S.sum(), S[:2].sum() / S.sum(), 1])


def test_false_alarms_are_few():
    """A matrix that does nothing: of many draws of rows few are above two standard errors, one-sided 2.3 %."""
    rng = np.random.default_rng(2)
    of = update(p=1)
    assert ladder(1) == (0,)
    alarms = sum(
        sensitivity_table([of], {of.site.name: rng.normal(0, 1, (1, 300))}, np.zeros(300))["sensitivity"].iloc[0] > 0
        for _ in range(500)
    )
    assert 2 <= alarms <= 25


def test_broken_losses_are_refused():
    name = update().site.name
    with pytest.raises(UsageError, match="losses must be finite. Got inf with encoder.* cut to k=0"):
        sensitivity_table([update()], {name: np.full((3, 4), np.inf)}, np.zeros(4))
    with pytest.raises(UsageError, match="rows of the sensitivity must be at least two. Got 1"):
        sensitivity_table([update()], {name: np.zeros((3, 1))}, np.zeros(1))
