"""Marchenko-Pastur and Gavish-Donoho ranks: published figures, scipy's integrals, and noise that must not count."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import torch
from scipy.integrate import quad

from rankprobe.errors import UsageError
from rankprobe.linalg.noise import changed_block, gd_rank, gd_threshold, mp_edge, mp_rank
from rankprobe.linalg.white_noise import fluctuation, mp_median


def white(m, n, seed=0):
    return torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def planted(m, n, k, sigma, seed=0):
    U, V = (torch.linalg.qr(white(size, k, seed + i))[0] for i, size in ((1, m), (2, n)))
    return sigma * U @ V.T


@pytest.mark.parametrize("beta", [1e-4, 0.05, 0.25, 0.5, 0.9, 1.0])
def test_median_halves_the_marchenko_pastur_law(beta):
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    below = quad(
        lambda t: math.sqrt(max(0.0, (high - t) * (t - low))) / (2 * math.pi * beta * t),
        low,
        mp_median(beta),
        limit=500,
    )[0]
    assert below == pytest.approx(0.5, abs=1e-9)


def test_median_is_that_of_a_large_noise_matrix():
    for m, n in ((900, 300), (500, 500)):
        values = torch.linalg.svdvals(white(m, n)).square() / m
        assert float(values.quantile(0.5)) == pytest.approx(mp_median(n / m), rel=0.01)


def test_threshold_of_a_square_matrix_is_the_published_one():
    flat = torch.ones(500, dtype=torch.float64)  # the paper's abstract: 4/√3 (noise known), 2.858 medians (unknown)
    assert gd_threshold(flat, (500, 500)) == pytest.approx(2.858, abs=5e-4)
    assert gd_threshold(flat, (500, 500)) * math.sqrt(mp_median(1.0)) == pytest.approx(4 / math.sqrt(3), rel=1e-12)
    assert gd_threshold(flat, (500, 900)) == gd_threshold(flat, (900, 500))


def test_threshold_is_near_the_papers_cubic_fit():
    for beta in np.linspace(0.02, 1, 20):
        shape = (1000, round(1000 * beta))
        fit = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
        assert abs(gd_threshold(torch.ones(shape[1]), shape) - fit) < 0.025


def test_edge_in_closed_form():
    S, (m, n) = torch.full((50,), 3.0), (200, 50)
    bare = 3.0 / math.sqrt(200 * mp_median(0.25)) * (math.sqrt(200) + math.sqrt(50))
    assert mp_edge(S, (m, n)) == pytest.approx(bare * math.sqrt(1 + 3.2722 * fluctuation(m, n)))
    assert mp_edge(7 * S, (m, n)) == pytest.approx(7 * mp_edge(S, (m, n)))
    # Johnstone's scale over his centre, n for his n - 1
    scale = (math.sqrt(m) + math.sqrt(n)) * (1 / math.sqrt(m) + 1 / math.sqrt(n)) ** (1 / 3)
    assert fluctuation(m, n) == pytest.approx(scale / (math.sqrt(m) + math.sqrt(n)) ** 2)


def test_the_tracy_widom_point_by_painleve_ii():
    """F₁(s) = exp(-½ ∫ₛ [q + (x - s) q²] dx) with q" = x q + 2 q³, q ~ Ai at infinity (Tracy & Widom 1996)."""
    far = 8.0
    value, slope, *_ = scipy.special.airy(far)

    def along(x, y):  # q, q', ∫(x - s) q², ∫q², ∫q
        return [y[1], x * y[0] + 2 * y[0] ** 3, -y[3], -(y[0] ** 2), -y[0]]

    y = scipy.integrate.solve_ivp(along, (far, 3.2722), [value, slope, 0, 0, 0], rtol=1e-11, atol=1e-14).y[:, -1]
    assert math.exp(-(y[2] + y[4]) / 2) == pytest.approx(0.999, abs=1e-6)


@pytest.mark.parametrize(("m", "n", "count"), [(64, 64, 600), (96, 64, 300)])
def test_noise_alone_has_rank_zero_in_99_of_100_matrices_but_not_at_the_bare_edge(m, n, count):
    S = torch.linalg.svdvals(torch.stack([white(m, n, seed) for seed in range(count)]))
    above = sum(mp_rank(values, (m, n)) > 0 for values in S)
    assert above <= 0.015 * count
    assert sum(gd_rank(values, (m, n)) > 0 for values in S) == 0
    bare = math.sqrt(m) + math.sqrt(n)
    assert 0.1 * count < int((S[:, 0] > bare).sum()) < 0.25 * count


def test_planted_ranks_in_added_noise():
    right = {mp_rank: 0, gd_rank: 0}
    cases = 0
    for seed in range(40):
        for k in (1, 4, 16):
            m, n = ((64, 64), (128, 64), (64, 200))[seed % 3]
            E = white(m, n, seed)
            sigma = (2, 3, 10)[seed % 3] * float(torch.linalg.matrix_norm(E, 2))
            S = torch.linalg.svdvals(E + planted(m, n, k, sigma, seed))
            cases += 1
            for rank in right:
                right[rank] += rank(S, (m, n)) == k
                assert rank(1e-9 * S, (m, n)) == rank(S, (m, n))
    assert all(count >= 0.98 * cases for count in right.values())


def test_what_lies_below_the_noise_is_not_seen():
    M = white(128, 64) + planted(128, 64, 4, 5.0)
    assert mp_rank(torch.linalg.svdvals(M), (128, 64)) == 0


def test_degenerate_spectra():
    for rank, threshold in ((mp_rank, mp_edge), (gd_rank, gd_threshold)):
        assert (rank(torch.zeros(5), (5, 5)), threshold(torch.zeros(5), (5, 5))) == (0, 0.0)
        # No noise at all: what is not rounding counts
        few = torch.tensor([3.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
        assert (rank(few, (5, 5)), threshold(few, (5, 5))) == (2, 0.0)
        few[2] = 1e-17
        assert rank(few, (5, 5)) == 2
        # One value is its own median: it cannot stand above itself
        assert rank(torch.tensor([4.0]), (1, 9)) == rank(torch.tensor([4.0]), (1, 1)) == 0


def test_rows_that_did_not_change_are_left_out_by_shape():
    M = torch.zeros(500, 80, dtype=torch.float64)
    M[::10] = white(50, 80) + planted(50, 80, 3, 60.0)
    rows, columns = changed_block(M)
    shape = (len(rows), len(columns))
    S = torch.linalg.svdvals(M)
    assert shape == (50, 80)
    assert mp_rank(S, shape) == gd_rank(S, shape) == 3


@pytest.mark.parametrize(
    ("S", "shape", "message"),
    [
        (torch.ones(2, 2), (2, 2), "S must be one row of float32 or float64. Got shape (2, 2), torch.float32."),
        (torch.ones(0), (2, 2), "S must be one row of float32 or float64. Got shape (0,), torch.float32."),
        (torch.ones(2), (3, 3), "shape must be (m, n) with 1 to len(S) for min(m, n). Got (3, 3) for 2"),
        (torch.ones(3), (2, 3), "S must be zero beyond min(m, n). Got S[2]=1 where (2, 3) has 2 singular values."),
        (torch.tensor([1.0, 2.0]), (2, 2), "S must be sorted non-increasing. Got S[0]=1, S[1]=2."),
        (torch.tensor([1.0, -2.0]), (2, 2), "S must be non-negative. Got S[0]=1, S[1]=-2."),
    ],
)
def test_error_text(S, shape, message):
    for function in (mp_edge, mp_rank, gd_threshold, gd_rank):
        with pytest.raises(UsageError) as caught:
            function(S, shape)
        assert message in str(caught.value)
