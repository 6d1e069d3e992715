"""Leading parts against the best approximation there is, on spectra of every steepness, and the counts they stop at."""

import numpy as np
import pytest
import torch

from rankprobe.errors import UsageError
from rankprobe.linalg.decompose import leading
from rankprobe.linalg.rank import energy_rank

GUARANTEE = 1.001

SPECTRA = {
    "flat": lambda i, p: 1 + 1e-3 * i / p,
    "linear": lambda i, p: 1 - 0.9 * i / p,
    "power 1/4": lambda i, p: i**-0.25,
    "power 1": lambda i, p: i**-1.0,
    "power 2": lambda i, p: i**-2.0,
    "exponential": lambda i, p: np.exp(-i / 20),
    "a step": lambda i, p: np.where(i <= 12, 1.2, 1.0),
    "planted above a tail": lambda i, p: np.where(i <= 32, 10.0, i**-0.5),
    "one far above": lambda i, p: np.where(i <= 1, 1e6, i**-0.3),
}


def orthonormal(n, k, seed):
    return torch.linalg.qr(torch.randn(n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]


def with_spectrum(kind, m, n):
    p = min(m, n)
    S = np.sort(SPECTRA[kind](np.arange(1.0, p + 1), p))[::-1].copy()
    return orthonormal(m, p, 1) * torch.from_numpy(S) @ orthonormal(n, p, 2).T, torch.from_numpy(S)


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("shape", [(200, 200), (500, 160), (160, 500)])
def test_what_is_left_out_is_hardly_more_than_the_best_part_leaves(kind, shape):
    M, S = with_spectrum(kind, *shape)
    methods = set()
    for k in (1, 4, 16, 50):
        part = leading(M, k)
        methods.add(part.method)
        left = torch.linalg.matrix_norm(M - part.U * part.S @ part.Vh) / torch.linalg.matrix_norm(M)
        best = (S[k:].square().sum() / S.square().sum()).sqrt()
        assert part.residual == pytest.approx(float(left), rel=1e-6, abs=1e-9)
        assert float(left) <= GUARANTEE * float(best) + 1e-6
        assert float((part.S / S[:k]).max()) <= 1 + 1e-10
        for Q in (part.U, part.Vh.T):
            torch.testing.assert_close(Q.T @ Q, torch.eye(k, dtype=torch.float64), atol=1e-9, rtol=0)
    assert methods & {"krylov", "gram"}


def test_few_of_many_gaussian_values():
    """No gap anywhere and few wanted: where an iteration that stops too early shows most."""
    M = torch.randn(1000, 800, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    S = torch.linalg.svdvals(M)
    for k in (1, 8):
        part = leading(M, k)
        assert part.method == "krylov"
        best = float((S[k:].square().sum() / S.square().sum()).sqrt())
        assert best <= part.residual <= GUARANTEE * best


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_share_of_the_energy_takes_as_many_as_energy_rank_says(kind, share):
    M, S = with_spectrum(kind, 300, 200)
    part = leading(M, energy=share)
    k = int(energy_rank(S, share))
    assert len(part.S) == k
    assert part.residual <= GUARANTEE * float((S[k:].square().sum() / S.square().sum()).sqrt()) + 1e-6
    assert 1 - part.residual**2 >= share - 1e-11
    assert part.energy == pytest.approx(float(S.square().sum()))


def test_a_share_is_cut_at_the_count_where_both_are_asked():
    M, S = with_spectrum("power 1", 300, 200)
    assert len(leading(M, 3, energy=0.9).S) == 3
    assert len(leading(M, 100, energy=0.9).S) == int(energy_rank(S, 0.9))


def test_all_energy_counts_the_values_that_are_not_zero():
    M = torch.diag(torch.cat([torch.arange(7.0, 0, -1), torch.zeros(83)]))
    assert len(leading(M, energy=1.0).S) == 7
    assert leading(orthonormal(120, 7, 1) @ orthonormal(90, 7, 2).T, 20).residual < 1e-12
    assert len(leading(torch.zeros(80, 90), energy=1.0).S) == 0


@pytest.mark.parametrize("change", [lambda M: M.T, lambda M: 2.0**600 * M, lambda M: 2.0**-600 * M, lambda M: -M])
def test_transposed_and_rescaled_it_is_the_same_part(change):
    M, _ = with_spectrum("power 1", 200, 150)
    part, changed = leading(M, 5), leading(change(M), 5)
    scale = torch.linalg.matrix_norm(change(M), 2)
    torch.testing.assert_close(changed.S / changed.S[0], part.S / part.S[0], rtol=1e-6, atol=0)
    assert float(changed.S[0]) == pytest.approx(float(scale), rel=1e-6)
    assert changed.residual == pytest.approx(part.residual, rel=1e-6)


def test_rows_of_zeros_come_back():
    M = torch.zeros(400, 100, dtype=torch.float64)
    M[::3] = with_spectrum("power 1", 134, 100)[0]
    part = leading(M, 4)
    assert part.U.shape == (400, 4) and float(part.U[1::3].abs().max()) == 0
    left = torch.linalg.matrix_norm(M - part.U * part.S @ part.Vh) / torch.linalg.matrix_norm(M)
    assert part.residual == pytest.approx(float(left), rel=1e-9)


def test_the_start_is_drawn_from_its_own_seed():
    M, _ = with_spectrum("flat", 300, 200)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    part = leading(M, 4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(leading(M, 4).U, part.U) and not torch.equal(leading(M, 4, seed=1).U, part.U)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "k or energy must be given. Got neither."),
        ({"k": 0}, "k must be at least 1. Got 0."),
        ({"energy": 0.0}, "energy must be above 0 and at most 1. Got 0.0."),
        ({"energy": 90}, "Got 90. Pass a share of the energy, 0.9 for 90 %"),
    ],
)
def test_error_text(options, message):
    with pytest.raises(UsageError) as caught:
        leading(torch.eye(3), **options)
    assert message in str(caught.value)
