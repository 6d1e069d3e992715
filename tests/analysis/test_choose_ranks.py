"""Four rules for r: against SciPy's SVD, and the budget's against every other way to spend it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from rankprobe.analysis.choose_ranks import Rule, all_values, leading_part, share_budget
from rankprobe.errors import UsageError
from rankprobe.weights.delta import Delta
from tests.analysis.tunings import gaussian


def dense(dW, W0=None, dtype="float32"):
    W0 = torch.zeros_like(dW) if W0 is None else W0
    return Delta("layers.0.w", 0, "q", tuple(dW.shape), dtype, dtype, float(W0.norm()), dW=dW.double(), W0=W0,
                 W1=(W0 + dW))


def factored(B, A, scaling=1.0):
    return Delta("layers.0.w", 0, "q", (B.shape[0], A.shape[1]), "", "float32", B=B, A=A, scaling=scaling)


def falling(m, n, seed=0):
    """A matrix whose singular values are 1, 1/2, 1/3, ..."""
    U = torch.linalg.qr(gaussian(m, min(m, n), seed=seed))[0]
    V = torch.linalg.qr(gaussian(n, min(m, n), seed=seed + 1))[0]
    return U / torch.arange(1, min(m, n) + 1, dtype=torch.float64) @ V.T


def spent(ranks, costs):
    return sum(ranks[name] * costs[name] for name in costs)


def held(ranks, values):
    return sum(float(values[name][:k].square().sum()) for name, k in ranks.items())


def best(values, costs, budget):
    """The most energy that a budget can hold, by trying every choice of ranks."""
    names = list(values)
    every = itertools.product(*(range(len(values[name]) + 1) for name in names))
    choices = (dict(zip(names, ks, strict=True)) for ks in every)
    return max(held(ranks, values) for ranks in choices if spent(ranks, costs) <= budget)


# --- the rule ---


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "one of --rank, --energy, --noise and --budget. Got none"),
        ({"rank": 3, "energy": 0.9}, "Got --rank and --energy"),
        ({"noise": True, "budget": 7}, "Got --budget and --noise"),
        ({"rank": 0}, "--rank must be a whole number of at least 1"),
        ({"rank": True}, "--rank must be a whole number"),
        ({"rank": 2.0}, "--rank must be a whole number"),
        ({"budget": -5}, "--budget must be a whole number"),
        ({"energy": 0.0}, "--energy must be above 0 and at most 1"),
        ({"energy": 1.1}, "--energy must be above 0 and at most 1"),
        ({"energy": math.nan}, "--energy must be above 0 and at most 1"),
    ],
)
def test_anything_but_one_rule_in_range_is_refused(rule, message):
    with pytest.raises(UsageError, match=message):
        Rule(**rule)


@pytest.mark.parametrize(
    ("rule", "words"),
    [({"rank": 8}, "--rank 8"), ({"energy": 0.9}, "--energy 0.9"), ({"noise": True}, "--noise"),
     ({"budget": 300000}, "--budget 300000")],
)
def test_a_rule_reads_as_it_is_typed(rule, words):
    assert str(Rule(**rule)) == words


# --- directions of one matrix ---


@pytest.mark.parametrize("shape", [(12, 30), (90, 70), (150, 80)])
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_the_part_of_a_rank_is_scipys_best(shape, rank):
    dW = falling(*shape)
    part = leading_part(dense(dW), Rule(rank=rank))
    U, S, Vh = scipy.linalg.svd(dW.numpy(), full_matrices=False)
    theirs = U[:, :rank] * S[:rank] @ Vh[:rank]
    left = np.linalg.norm(dW.numpy() - theirs)
    ours = float((dW - part.U * part.S @ part.Vh).norm())
    assert len(part.S) == rank
    assert ours <= 1.001 * left + 1e-12
    assert part.residual == pytest.approx(ours, rel=1e-6, abs=1e-12)
    assert part.energy == pytest.approx((S**2).sum(), rel=1e-12)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999, 1.0])
def test_a_share_of_the_energy_is_held_by_the_fewest(share):
    dW = falling(100, 80, seed=4)
    S = scipy.linalg.svdvals(dW.numpy()) ** 2
    fewest = int(np.searchsorted(np.cumsum(S) / S.sum(), share - 1e-12)) + 1
    assert len(leading_part(dense(dW), Rule(energy=share)).S) == fewest
    U, s, Vh = torch.linalg.svd(dW, full_matrices=False)
    part = leading_part(factored(U * s, Vh), Rule(energy=share))
    assert len(part.S) == fewest


def test_factors_are_cut_without_their_product():
    B, A = gaussian(40, 6, seed=1), gaussian(6, 25, seed=2)
    part = leading_part(factored(B, A, 1.5), Rule(rank=4))
    U, S, Vh = scipy.linalg.svd((1.5 * B @ A).numpy(), full_matrices=False)
    np.testing.assert_allclose((part.U * part.S @ part.Vh).numpy(), U[:, :4] * S[:4] @ Vh[:4], atol=1e-12 * S[0])
    assert part.residual == pytest.approx(np.linalg.norm(S[4:]))
    assert len(leading_part(factored(B, A), Rule(rank=25)).S) == 6


def test_no_direction_is_made_of_rounding():
    low = gaussian(50, 2, seed=3) @ gaussian(2, 40, seed=4)
    assert len(leading_part(dense(low), Rule(rank=30)).S) == 2
    assert len(all_values(dense(low))) == 2
    nothing = torch.zeros(50, 40, dtype=torch.float64)
    for rule in (Rule(rank=3), Rule(energy=0.9), Rule(noise=True)):
        part = leading_part(dense(nothing), rule)
        assert len(part.S) == 0 and part.residual == 0 and part.U.shape == (50, 0)
    assert len(all_values(dense(nothing))) == 0
    assert len(all_values(factored(torch.zeros(5, 2), torch.ones(2, 4)))) == 0


def test_noise_keeps_what_stands_above_the_rounding():
    W0 = gaussian(200, 120, seed=5).to(torch.bfloat16)
    planted = 0.3 * gaussian(200, 3, seed=6) @ gaussian(3, 120, seed=7)
    W1 = (W0.double() + planted).to(torch.bfloat16)
    delta = Delta("w", 0, "q", (200, 120), "bfloat16", "bfloat16", 1.0, dW=W1.double() - W0.double(), W0=W0, W1=W1)
    part = leading_part(delta, Rule(noise=True))
    assert len(part.S) == part.storage_rank == 3 and not part.swallowed


def test_an_update_that_its_dtype_swallowed_has_no_rank():
    W0 = gaussian(200, 120, seed=5).to(torch.bfloat16)
    W1 = (W0.double() + 1e-5 * gaussian(200, 1, seed=6) @ gaussian(1, 120, seed=7)).to(torch.bfloat16)
    delta = Delta("w", 0, "q", (200, 120), "bfloat16", "bfloat16", 1.0, dW=W1.double() - W0.double(), W0=W0, W1=W1)
    part = leading_part(delta, Rule(noise=True))
    assert part.swallowed and part.storage_rank is None and len(part.S) == 0


def test_noise_is_refused_of_factors_and_of_dtypes_that_tell_no_rounding():
    with pytest.raises(UsageError, match="--noise must be asked of whole models"):
        leading_part(factored(gaussian(5, 2), gaussian(2, 4)), Rule(noise=True))
    with pytest.raises(UsageError, match="weights whose rounding can be told. Got layers.0.w in float8_e4m3fn"):
        leading_part(dense(falling(9, 9), dtype="float8_e4m3fn"), Rule(noise=True))


# --- the budget ---


@pytest.mark.parametrize("seed", range(40))
def test_the_budget_holds_all_but_its_slack_of_the_best_choice(seed):
    rng = np.random.default_rng(seed)
    values = {f"w{i}": torch.from_numpy(np.sort(rng.exponential(size=rng.integers(1, 6)) ** 2)[::-1].copy())
              for i in range(4)}
    costs = {name: int(rng.integers(2, 12)) for name in values}
    total = sum(float(S.square().sum()) for S in values.values())
    budget = int(rng.integers(max(costs.values()), 40))
    ranks, slack = share_budget(values, costs, budget)
    ours, theirs = held(ranks, values), best(values, costs, budget)
    assert spent(ranks, costs) <= budget
    assert ours <= theirs * (1 + 1e-12)
    assert theirs <= ours + slack * total + 1e-9
    # What is spent down to the first direction that does not fit is the best that so much can buy.
    assert ours >= best(values, costs, spent(ranks, costs)) - slack * total - 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_where_all_directions_cost_the_same_the_choice_is_the_best(seed):
    rng = np.random.default_rng(seed)
    values = {f"w{i}": torch.from_numpy(np.sort(rng.exponential(size=4))[::-1].copy()) for i in range(4)}
    costs = dict.fromkeys(values, 7)
    for budget in (7, 20, 35, 200):
        ranks, _ = share_budget(values, costs, budget)
        assert held(ranks, values) == pytest.approx(best(values, costs, budget), rel=1e-12)


def test_every_step_of_the_greedy_path_is_the_best_for_what_it_spends():
    """The optimum that has no slack: budgets that directions bought by σ²/(m + n) use up exactly."""
    rng = np.random.default_rng(0)
    values = {f"w{i}": torch.from_numpy(np.sort(rng.exponential(size=4))[::-1].copy()) for i in range(4)}
    costs = {"w0": 3, "w1": 5, "w2": 8, "w3": 13}
    offers = sorted(((float(s) ** 2 / costs[name], name) for name, S in values.items() for s in S), reverse=True)
    budget = 0
    for _, name in offers:
        budget += costs[name]
        ranks, slack = share_budget(values, costs, budget)
        assert slack == pytest.approx(0, abs=1e-12) and spent(ranks, costs) == budget
        assert held(ranks, values) == pytest.approx(best(values, costs, budget), rel=1e-12)


def test_what_is_left_over_buys_cheaper_directions():
    values = {"dear": torch.tensor([10.0, 9.0]), "cheap": torch.tensor([1.0])}
    ranks, slack = share_budget(values, {"dear": 10, "cheap": 3}, 15)
    assert ranks == {"dear": 1, "cheap": 1}
    assert slack == pytest.approx((5 * 81 / 10 - 1) / 182)


def test_a_budget_below_one_direction_says_what_one_costs():
    with pytest.raises(UsageError, match="hold a direction, 30 parameters at least. Got 29. Pass --budget 30 or more"):
        share_budget({"a": torch.ones(2), "b": torch.ones(2)}, {"a": 40, "b": 30}, 29)


def test_matrices_without_values_buy_nothing():
    assert share_budget({"a": torch.zeros(0)}, {"a": 4}, 2) == ({"a": 0}, 0.0)
