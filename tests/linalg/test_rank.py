"""Every definition of rank: closed forms, invariances, slow oracles, degenerate spectra, error text."""

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import torch

from rankprobe.linalg.decompose import svdvals_dense
from rankprobe.linalg.rank import effective_rank, energy_rank, numerical_rank, participation_ratio, stable_rank

EPS64 = torch.finfo(torch.float64).eps
RANKS = {
    "stable": stable_rank,
    "effective": effective_rank,
    "participation": participation_ratio,
    "energy_50": lambda S: energy_rank(S, 0.5),
    "energy_90": lambda S: energy_rank(S, 0.9),
    "energy_100": lambda S: energy_rank(S, 1.0),
    "numerical": lambda S: numerical_rank(S, (S.shape[-1], S.shape[-1]), EPS64),
}
all_ranks = pytest.mark.parametrize("rank", RANKS.values(), ids=RANKS.keys())


def values(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def random_values(k, seed=0, decay=3.0):
    x = torch.rand(k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).mul(-decay).exp()
    return x.sort(descending=True).values


def test_closed_forms():
    S = values(2, 1, 1)
    assert float(stable_rank(S)) == 6 / 4
    assert float(effective_rank(S)) == pytest.approx(math.exp(0.5 * math.log(2) + 2 * 0.25 * math.log(4)), rel=1e-15)
    assert float(participation_ratio(S)) == pytest.approx(36 / 18, rel=1e-15)
    assert [int(energy_rank(S, q)) for q in (0.5, 0.66, 0.67, 0.83, 0.84, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert int(numerical_rank(values(1, 1e-10, 1e-20), (3, 3), EPS64)) == 2


@pytest.mark.parametrize("seed", range(5))
def test_against_slow_oracles(seed):
    S = random_values(37, seed)
    s = S.numpy()
    assert float(stable_rank(S)) == pytest.approx(math.fsum(s**2) / s[0] ** 2, rel=1e-14)
    assert float(effective_rank(S)) == pytest.approx(math.exp(scipy.stats.entropy(s)), rel=1e-13)
    assert float(participation_ratio(S)) == pytest.approx(math.fsum(s**2) ** 2 / math.fsum(s**4), rel=1e-14)
    exact = [Fraction(float(x)) ** 2 for x in s]
    for q in (0.05, 0.3, 0.5, 0.9, 0.95, 0.99, 0.9999):
        kept = next(k for k in range(38) if sum(exact[:k]) >= Fraction(q) * sum(exact))
        assert int(energy_rank(S, q)) == kept
    M = torch.diag(S)
    assert int(numerical_rank(S, (37, 37), EPS64)) == np.linalg.matrix_rank(M.numpy())


@all_ranks
def test_scale_rotation_and_transposition_change_nothing(rank):
    generator = torch.Generator().manual_seed(0)
    M = torch.randn(12, 7, dtype=torch.float64, generator=generator)
    Q = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=generator))[0]
    expected = rank(svdvals_dense(M))
    for other in (1e-170 * M, 1e150 * M, Q @ M, M.T):  # the squares of the first two leave float64's range
        torch.testing.assert_close(rank(svdvals_dense(other)), expected)


@all_ranks
def test_zero_matrix_has_rank_zero(rank):
    assert float(rank(torch.zeros(5))) == 0
    assert float(rank(torch.zeros(1))) == 0


@all_ranks
def test_one_direction_has_rank_one(rank):
    assert float(rank(values(0.3, 0, 0, 0))) == 1
    assert float(rank(values(5e-324, 0))) == 1


@pytest.mark.parametrize("k", [1, 2, 7, 10, 384])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_count_in_full(k, dtype):
    S = torch.full((k,), 0.1, dtype=dtype)
    for rank in (stable_rank, participation_ratio, effective_rank):
        assert float(rank(S)) == pytest.approx(k, rel=1e-6)
        assert float(rank(S)) <= k
    assert int(energy_rank(S, 1.0)) == k
    assert int(numerical_rank(S, (k, k), EPS64)) == k


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_share_that_is_met_exactly_is_met(dtype):
    for k in (10, 20, 100):
        for percent in (50, 90, 95):
            if k * percent % 100 == 0:
                S = torch.full((k,), 0.1, dtype=dtype)
                assert int(energy_rank(S, percent / 100)) == k * percent // 100
    # Nine tenths, of values that binary cannot hold
    for small in (0.07, 0.1, 0.14, 0.3):
        assert int(energy_rank(torch.tensor([3 * small, small], dtype=dtype), 0.9)) == 1
        assert int(energy_rank(torch.tensor([3 * small, small], dtype=dtype), 0.901)) == 2


def test_a_long_faint_tail_is_not_lost_to_rounding():
    # 4000 values of energy 1e-17 beside 1: a running float64 sum from the top stays at 1 and never sees them.
    tail = 4000
    S = torch.cat([values(1.0), torch.full((tail,), 10**-8.5, dtype=torch.float64)])
    assert float(S.square().cumsum(0)[-1]) == 1.0
    assert int(energy_rank(S, 1.0)) == tail + 1
    # Energies of 1e-15, 4.5 units in the last place of 1: the running sum would take each for 5 and be 10 % off.
    S = torch.cat([values(1.0), torch.full((tail,), 10**-7.5, dtype=torch.float64)])
    assert abs(int(energy_rank(S, 1 - 2e-12)) - (1 + tail // 2)) <= 2


def test_all_of_the_energy_counts_what_squares_to_nothing():
    assert int(energy_rank(values(1.0, 1e-200, 0.0), 1.0)) == 2


def test_energy_rank_grows_with_the_share():
    S = random_values(50, decay=12.0)
    ranks = [int(energy_rank(S, q)) for q in (1e-9, 0.1, 0.5, 0.9, 0.99, 0.999999, 1 - 1e-12, 1.0)]
    assert ranks == sorted(ranks) and ranks[0] == 1 and ranks[-1] == 50


def test_order_of_the_definitions():
    # Renyi entropies of orders infinity and 2 of the energies, then of order 1 of the flatter values themselves.
    for seed in range(20):
        S = random_values(30, seed, decay=8.0)
        assert 1 < float(stable_rank(S)) < float(participation_ratio(S)) < float(effective_rank(S)) < 30


@all_ranks
def test_batches_are_one_matrix_at_a_time(rank):
    S = torch.stack([random_values(9, seed) for seed in range(6)]).reshape(2, 3, 9)
    S[0, 1] = 0
    assert rank(S).shape == (2, 3)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(rank(S)[i, j], rank(S[i, j]))


def test_dtypes():
    S = random_values(8)
    for rank in (stable_rank, effective_rank, participation_ratio):
        assert rank(S).dtype == torch.float64 and rank(S.float()).dtype == torch.float32
        assert float(rank(S.float())) == pytest.approx(float(rank(S)), rel=1e-6)
    assert energy_rank(S, 0.9).dtype == torch.int64


def test_numerical_rank_takes_the_larger_side_of_the_shape():
    S = values(1.0, 1e-13)
    assert int(numerical_rank(S, (2, 2), EPS64)) == 2
    assert int(numerical_rank(S, (2, 1000), EPS64)) == 1
    assert int(numerical_rank(S, (1000, 2), EPS64)) == 1


def test_planted_rank_is_found_and_noise_hides_it():
    generator = torch.Generator().manual_seed(1)
    B, A, E = (torch.randn(s, dtype=torch.float64, generator=generator) for s in ((40, 3), (3, 30), (40, 30)))
    assert int(numerical_rank(svdvals_dense(B @ A), (40, 30), EPS64)) == 3
    assert int(numerical_rank(svdvals_dense(B @ A + 1e-6 * E), (40, 30), EPS64)) == 30
    assert int(energy_rank(svdvals_dense(B @ A + 1e-6 * E), 0.999)) == 3


@all_ranks
@pytest.mark.parametrize(
    ("S", "message"),
    [
        (torch.tensor([3.0, 2.0, 0.5, 0.2, 0.9]),
         "S must be sorted non-increasing. Got S[3]=0.2 < S[4]=0.9. Pass the output of svdvals unchanged."),
        (torch.tensor([[2.0, 1.0], [1.0, 2.0]]), "Got S[1, 0]=1 < S[1, 1]=2."),
        (torch.tensor([1.0, -0.5]), "S must be non-negative. Got S[1]=-0.5."),
        (torch.tensor([torch.nan, 0.0]), "S must be finite. Got S[0]=nan."),
        (torch.tensor([torch.inf, 1.0]), "S must be finite. Got S[0]=inf."),
        (torch.tensor([2.0, 1.0], dtype=torch.bfloat16), "S must be float32 or float64. Got torch.bfloat16."),
        (torch.tensor([2.0, 1.0], dtype=torch.float16), "S must be float32 or float64. Got torch.float16."),
        (torch.tensor([2, 1]), "S must be float32 or float64. Got torch.int64."),
        (torch.ones(3, 0), "S must hold at least one singular value. Got shape (3, 0)."),
    ],
)
def test_error_text(rank, S, message):
    with pytest.raises(ValueError) as caught:
        rank(S)
    assert message in str(caught.value)


def test_error_text_of_nearly_sorted_values_shows_the_difference():
    with pytest.raises(ValueError, match=r"S\[0\]=1.0 < S\[1\]=1.0000000000000002"):
        stable_rank(values(1.0, 1.0 + 2e-16))


@pytest.mark.parametrize("q", [0.0, -0.1, 1.0001, float("nan")])
def test_error_text_of_shares(q):
    with pytest.raises(ValueError, match="q must be above 0 and at most 1. Got"):
        energy_rank(values(1.0), q)


def test_error_text_of_numerical_rank():
    with pytest.raises(ValueError, match="eps must be between 0 and 1. Got 0.0. Pass torch.finfo"):
        numerical_rank(values(1.0), (1, 1), 0.0)
    with pytest.raises(ValueError, match=r"Got \(2, 5\) for 3 singular values."):
        numerical_rank(values(3.0, 2.0, 1.0), (2, 5), EPS64)
