"""Allocation against brute force, closed forms and a budget that is never exceeded."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from rankprobe.analysis.allocate import (
    additive_increase,
    allocate,
    allocation_table,
    gains_of,
    marginal_gains,
)
from rankprobe.analysis.choose_ranks import share_budget
from rankprobe.errors import UsageError


def best_by_brute_force(values, costs, budget):
    """The most that any ranks within the budget are worth: every choice is tried. ``values[name][r]`` is r's worth."""
    names = list(values)
    worth = 0.0
    for ranks in itertools.product(*(range(len(values[name])) for name in names)):
        if sum(r * costs[name] for r, name in zip(ranks, names, strict=True)) <= budget:
            worth = max(worth, sum(values[name][r] for r, name in zip(ranks, names, strict=True)))
    return worth


def random_gains(rng, count=3, p=5):
    """Concave: gains sorted down; some worth nothing."""
    return {f"w{i}": np.sort(np.maximum(0, rng.normal(0.5, 1, p)))[::-1] for i in range(count)}


def total(gains):
    return {name: np.concatenate([[0.0], np.cumsum(of)]) for name, of in gains.items()}


@pytest.mark.parametrize("seed", range(20))
def test_with_equal_costs_greedy_is_the_best_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    gains = random_gains(rng)
    for budget in (7, 14, 35, 41, 70, 105, 1000):
        found = allocate(gains, dict.fromkeys(gains, 7), budget)
        assert found.gain == pytest.approx(best_by_brute_force(total(gains), dict.fromkeys(gains, 7), budget))
        assert found.gain == pytest.approx(sum(gains[name][:r].sum() for name, r in found.ranks.items()))
        assert found.parameters == 7 * sum(found.ranks.values()) <= budget


@pytest.mark.parametrize("seed", range(20))
def test_with_unequal_costs_the_best_of_all_choices_is_within_the_slack(seed):
    rng = np.random.default_rng(100 + seed)
    gains = random_gains(rng)
    costs = {name: int(rng.integers(3, 12)) for name in gains}
    for budget in (12, 20, 33, 57, 200):
        found = allocate(gains, costs, budget)
        best = best_by_brute_force(total(gains), costs, budget)
        assert best - 1e-9 <= found.gain + found.slack and found.gain <= best + 1e-9
        assert found.parameters == sum(costs[name] * r for name, r in found.ranks.items()) <= budget
        left = budget - found.parameters
        assert all(costs[name] > left or r == 5 for name, r in found.ranks.items()), "no rank more would fit"


@pytest.mark.parametrize("seed", range(10))
def test_on_a_ladder_greedy_is_the_best_of_what_lies_on_the_concave_curve(seed):
    rng = np.random.default_rng(200 + seed)
    ks = [0, 1, 2, 4]
    gains = {f"w{i}": marginal_gains(ks, [*rng.uniform(0, 1, 3).tolist(), 0.0]) for i in range(4)}
    for budget in (5, 10, 25, 40, 80):
        best = best_by_brute_force(total(gains), dict.fromkeys(gains, 5), budget)
        assert allocate(gains, dict.fromkeys(gains, 5), budget).gain == pytest.approx(best)


def test_greedy_on_what_is_not_concave_would_miss_a_pair_that_pays_and_is_refused():
    gains = {"pair": np.array([0.0, 10.0]), "plain": np.array([1.0, 1.0])}
    with pytest.raises(UsageError, match="gains of pair must not grow with rank"):
        allocate(gains, dict.fromkeys(gains, 1), 2)
    enveloped = {"pair": marginal_gains([0, 1, 2], [10.0, 10.0, 0.0]), "plain": gains["plain"]}
    assert allocate(enveloped, dict.fromkeys(gains, 1), 2).ranks == {"pair": 2, "plain": 0}


def test_the_concave_curve_is_the_least_one_above_the_points():
    rng = np.random.default_rng(0)
    ks = np.array([0, 1, 2, 4, 8, 16])
    for _ in range(50):
        losses = np.append(rng.uniform(0, 1, 5), 0.0)
        curve = np.concatenate([[0.0], np.cumsum(marginal_gains(ks, losses))])
        gains = losses[0] - losses
        assert (curve[ks] >= gains - 1e-12).all() and (np.diff(curve, 2) <= 1e-12).all()
        # Least: the largest chord over any point is a concave curve's lower bound (the definition, point by point).
        for x in range(17):
            chords = [
                gains[i] + (gains[j] - gains[i]) * (x - ks[i]) / (ks[j] - ks[i])
                for i in range(6) for j in range(i + 1, 6) if ks[i] <= x <= ks[j]
            ]  # fmt: skip
            assert curve[x] == pytest.approx(max(chords), abs=1e-12)


def test_what_never_mattered_is_worth_nothing_and_gets_what_is_left_by_energy():
    gains = {"a": np.array([2.0, 0.0, 0.0]), "b": np.zeros(3), "c": np.zeros(3)}
    ties = {"a": np.array([1.0, 0.1, 0.0]), "b": np.array([9.0, 8.0, 0.05]), "c": np.array([0.2, 0.15, 0.01])}
    assert allocate(gains, dict.fromkeys(gains, 4), 20, ties=ties).ranks == {"a": 1, "b": 2, "c": 2}
    assert allocate(gains, dict.fromkeys(gains, 4), 4, ties=ties).ranks == {"a": 1, "b": 0, "c": 0}


def test_with_energy_for_gain_it_is_share_budget():
    rng = np.random.default_rng(3)
    S = {f"w{i}": torch.tensor(np.sort(rng.exponential(1, 6))[::-1].copy()) for i in range(5)}
    costs = {name: int(c) for name, c in zip(S, rng.integers(5, 30, 5), strict=True)}
    for budget in (31, 100, 250):
        found = allocate({name: s.square().numpy() for name, s in S.items()}, costs, budget)
        ranks, slack = share_budget(S, costs, budget)
        assert found.ranks == ranks
        assert found.slack / sum(float(s.square().sum()) for s in S.values()) == pytest.approx(slack, abs=1e-12)


def test_a_budget_under_one_rank_is_refused_and_a_huge_one_buys_everything():
    gains = {"a": np.ones(2), "b": np.ones(3)}
    with pytest.raises(UsageError, match="budget must hold a rank of a matrix, 10 parameters at least. Got 9. Pass 10"):
        allocate(gains, {"a": 10, "b": 20}, 9)
    everything = allocate(gains, {"a": 10, "b": 20}, 10**9)
    assert everything.ranks == {"a": 2, "b": 3} and everything.slack == 0 and everything.parameters == 80


@pytest.mark.parametrize(("ks", "losses"), [([0, 1], [1.0]), ([1, 2], [1.0, 0.0]), ([0, 2, 2], [1.0, 0.5, 0.0]),
                                            ([0], [0.0]), ([0, 1], [np.nan, 0.0])])  # fmt: skip
def test_a_broken_ladder_is_refused(ks, losses):
    with pytest.raises(UsageError, match="ks must rise from 0 to p with a finite loss each"):
        marginal_gains(ks, losses)


def table():
    rows = [("q", 0, 0.4), ("q", 1, 0.1), ("q", 2, 0.0), ("v", 0, 0.02), ("v", 1, 0.01), ("v", 2, 0.0)]
    found = pd.DataFrame(rows, columns=["name", "k", "increase"])
    found["sensitivity"] = found["increase"].where(found["name"] == "q", 0.0)
    return found.assign(layer=0, kind=found["name"], m=6, n=4, p=2, se=0.01)


def test_the_table_of_an_allocation():
    gains = gains_of(table())
    np.testing.assert_allclose(gains["q"], [0.3, 0.1])
    np.testing.assert_allclose(gains["v"], [0.0, 0.0])
    found = allocation_table(table(), allocate(gains, {"q": 10, "v": 10}, 20), {"q": 1, "v": 1}, 1).set_index("name")
    assert found["r"].tolist() == [2, 0] and found["parameters"].tolist() == [20, 0]
    assert found["gain"].tolist() == pytest.approx([0.4, 0.0]) and found["r_uniform"].tolist() == [1, 1]
    assert found["loss_without"].tolist() == [0.4, 0.02] and found["sensitivity"].tolist() == [0.4, 0.0]


def test_the_additive_model_adds_measured_growth():
    assert additive_increase(table(), {"q": 1, "v": 1}) == pytest.approx(0.11)
    assert additive_increase(table(), {"q": 9, "v": 0}) == pytest.approx(0.02)
