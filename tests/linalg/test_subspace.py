"""Subspaces: overlap against closed forms and projectors, chance against simulation, angles against scipy."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from rankprobe.errors import UsageError
from rankprobe.linalg.subspace import overlap, overlap_moments, principal_angles, random_angles, random_overlap


def random_basis(n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, k, dtype=torch.float64, generator=generator))[0]


def rotation(k, seed):
    return random_basis(k, k, seed)


# --- overlap ---


def test_overlap_is_one_where_one_span_holds_the_other():
    X = random_basis(20, 5, 0)
    phi = overlap(X, X)
    assert phi.shape == (5, 5) and phi.dtype == torch.float64
    torch.testing.assert_close(phi, torch.ones(5, 5, dtype=torch.float64))


def test_overlap_is_zero_for_orthogonal_spans():
    Q = random_basis(20, 9, 1)
    assert float(overlap(Q[:, :4], Q[:, 4:]).max()) < 1e-28


def test_overlap_agrees_with_projectors_entry_by_entry():
    X, Y = random_basis(15, 4, 2), random_basis(15, 7, 3)
    phi = overlap(X, Y)
    for i in range(1, 5):
        for j in range(1, 8):
            P, Q = X[:, :i] @ X[:, :i].T, Y[:, :j] @ Y[:, :j].T
            assert float(phi[i - 1, j - 1]) == pytest.approx(float((P * Q).sum()) / min(i, j), abs=1e-14)


def test_overlap_of_a_planted_angle():
    theta = 0.3
    X = torch.eye(6, dtype=torch.float64)[:, :2]
    Y = torch.zeros(6, 2, dtype=torch.float64)
    Y[0, 0], Y[2, 0], Y[3, 1] = math.cos(theta), math.sin(theta), 1.0
    expected = torch.tensor([[1.0, 1.0], [1.0, 0.5]], dtype=torch.float64) * math.cos(theta) ** 2
    torch.testing.assert_close(overlap(X, Y), expected)


def test_overlap_of_whole_spans_ignores_signs_and_rotations_and_order_of_arguments():
    X, Y = random_basis(30, 5, 4), random_basis(30, 8, 5)
    phi = overlap(X, Y)
    turned = overlap(X @ rotation(5, 6), Y @ rotation(8, 7))
    assert float(turned[-1, -1]) == pytest.approx(float(phi[-1, -1]), abs=1e-14)
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(overlap(X * signs, Y), phi)
    torch.testing.assert_close(overlap(Y, X), phi.T)
    # The same rotation of the whole space moves both spans alike.
    R = rotation(30, 8)
    torch.testing.assert_close(overlap(R @ X, R @ Y), phi)


@pytest.mark.parametrize(
    ("X", "Y", "words"),
    [
        (torch.eye(4)[:, :2] * 2, torch.eye(4)[:, :2], "X must have orthonormal columns"),
        (torch.eye(4)[:, :2], torch.eye(4)[:, [1, 1]], "Y must have orthonormal columns"),
        (torch.eye(4)[:, :2] * math.nan, torch.eye(4)[:, :2], "X must have orthonormal columns"),
        (torch.eye(4)[:, :2], torch.eye(5)[:, :2], "vectors of one length. Got 4 and 5"),
        (torch.eye(4)[:, :0], torch.eye(4)[:, :2], "X must be a floating-point matrix"),
        (torch.eye(4)[0], torch.eye(4)[:, :2], "X must be a floating-point matrix"),
        (torch.eye(4, dtype=torch.int64), torch.eye(4), "X must be a floating-point matrix"),
    ],
)
@pytest.mark.parametrize("function", [overlap, principal_angles])
def test_what_is_no_basis_is_refused(function, X, Y, words):
    with pytest.raises(UsageError, match=words):
        function(X, Y)


# --- chance ---


def simulated_overlap(n, i, j, draws, seed=0):
    """φ of the first i coordinates and Haar subspaces: the slow way, from the definition."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((draws, n, j)))[0]
    return (Q[:, :i] ** 2).sum(axis=(1, 2)) / min(i, j)


@pytest.mark.parametrize("i, j", [(1, 1), (1, 5), (3, 3), (2, 9), (8, 8), (9, 12), (15, 15), (4, 19)])
def test_random_overlap_agrees_with_simulation(i, j):
    n, draws = 20, 6000
    found = simulated_overlap(n, i, j, draws, seed=i * 100 + j)
    mean, low, high = random_overlap(n, i, j)
    se = found.std() / math.sqrt(draws)
    assert abs(found.mean() - mean) < 4 * se
    below, above = (found < low).mean(), (found > high).mean()
    # Four binomial standard errors around 2.5 %, and what the Beta law is off by where it is no exact law.
    assert below == pytest.approx(0.025, abs=0.011) and above == pytest.approx(0.025, abs=0.011)


def test_random_overlap_agrees_with_simulation_in_a_large_space():
    found = simulated_overlap(768, 8, 8, 2000)
    mean, low, high = random_overlap(768, 8, 8)
    assert mean == pytest.approx(8 / 768)
    assert found.mean() == pytest.approx(mean, rel=0.01)
    assert ((found < low) | (found > high)).mean() == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("i, j", [(4, 5), (2, 2), (9, 7), (1, 3)])
def test_moments_of_random_overlap_agree_with_simulation(i, j):
    n = 12
    found = simulated_overlap(n, i, j, 40_000)
    mean, variance = overlap_moments(n, i, j)
    assert found.mean() == pytest.approx(mean, rel=0.02) and found.var() == pytest.approx(variance, rel=0.05)


def test_the_mean_overlap_of_several_random_subspaces_varies_as_if_its_pairs_were_independent():
    n, k, layers = 24, 3, 5
    means = []
    for seed in range(1500):
        bases = [random_basis(n, k, seed * layers + layer) for layer in range(layers)]
        pairs = [overlap(bases[a], bases[b])[-1, -1] for a in range(layers) for b in range(a)]
        means.append(float(sum(pairs)) / len(pairs))
    mean, variance = overlap_moments(n, k, k)
    assert np.mean(means) == pytest.approx(mean, rel=0.01)
    assert np.var(means) == pytest.approx(variance / 10, rel=0.15)


@pytest.mark.parametrize("n, j", [(10, 1), (10, 4), (50, 9)])
def test_random_overlap_is_the_exact_beta_law_for_one_direction(n, j):
    law = scipy.stats.beta(j / 2, (n - j) / 2)  # squared length of a random unit vector's first j coordinates
    mean, low, high = random_overlap(n, 1, j, level=0.9)
    assert (mean, low, high) == pytest.approx((law.mean(), law.ppf(0.05), law.ppf(0.95)), rel=1e-9)
    # The complement of a hyperplane is one direction too: tr(PQ) = i + j - n + tr(P⊥Q⊥).
    mean, low, high = random_overlap(n, n - 1, n - j, level=0.9)
    small = n - max(1, j)
    ends = [(n - 1 - j + x) / small for x in (law.mean(), law.ppf(0.05), law.ppf(0.95))]
    assert (mean, low, high) == pytest.approx(tuple(ends), rel=1e-9)


def test_random_overlap_with_the_whole_space_is_certain():
    assert random_overlap(6, 6, 2) == (1.0, 1.0, 1.0)
    assert random_overlap(1, 1, 1) == (1.0, 1.0, 1.0)


def test_random_overlap_of_arrays_is_that_of_their_entries():
    i, j = np.arange(1, 5)[:, None], np.arange(1, 7)[None, :]
    mean, low, high = random_overlap(9, i, j)
    assert mean.shape == low.shape == high.shape == (4, 6)
    for a in range(4):
        for b in range(6):
            alone = random_overlap(9, a + 1, b + 1)
            assert (mean[a, b], low[a, b], high[a, b]) == pytest.approx(alone)
    assert (low <= mean).all() and (mean <= high).all()


@pytest.mark.parametrize("arguments", [(5, 0, 1), (5, 1, 6), (0, 1, 1), (5, 1, 1, 1.0), (5, 1, 1, 0.0)])
def test_random_overlap_out_of_range_is_refused(arguments):
    with pytest.raises(UsageError, match="must be"):
        random_overlap(*arguments)


# --- angles ---


@pytest.mark.parametrize("i, j", [(1, 1), (3, 3), (3, 8), (8, 3), (12, 12)])
def test_principal_angles_are_scipys(i, j):
    X, Y = random_basis(20, i, i), random_basis(20, j, 100 + j)
    expected = torch.from_numpy(scipy.linalg.subspace_angles(X.numpy(), Y.numpy())).flip(0)
    expected[: max(0, i + j - 20)] = 0.0  # subspaces of so many dimensions meet; scipy's zeros are off by up to 3e-8
    torch.testing.assert_close(principal_angles(X, Y), expected, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("angle", [1e-15, 1e-12, 1e-9, 1e-5, 0.1, 1.5, math.pi / 2 - 1e-9, math.pi / 2 - 1e-13])
def test_a_planted_angle_is_found_to_full_precision(angle):
    Q = random_basis(50, 6, 9)
    X = Q[:, :3] @ rotation(3, 10)
    # Only two directions differ: one by the angle, one by 0.7; the third is shared.
    Y = torch.stack(
        [
            Q[:, 0],
            math.cos(0.7) * Q[:, 1] + math.sin(0.7) * Q[:, 3],
            math.cos(angle) * Q[:, 2] + math.sin(angle) * Q[:, 4],
        ],
        dim=1,
    ) @ rotation(3, 11)
    expected = torch.tensor(sorted([0.0, 0.7, angle]), dtype=torch.float64)
    torch.testing.assert_close(principal_angles(X, Y), expected, atol=3e-15, rtol=1e-12)


def test_cosines_alone_would_miss_what_the_angles_show():
    """The control for the test above: arccos of the singular values loses a small angle."""
    X = torch.eye(3, dtype=torch.float64)[:, :1]
    Y = torch.tensor([[1.0], [1e-9], [0.0]], dtype=torch.float64)
    assert float(torch.arccos(torch.linalg.svdvals(X.T @ Y).clamp(max=1))) == 0.0
    assert float(principal_angles(X, Y)) == pytest.approx(1e-9, rel=1e-6)


def test_angles_and_overlap_are_of_one_kind():
    X, Y = random_basis(40, 4, 12), random_basis(40, 9, 13)
    angles = principal_angles(X, Y)
    assert bool((angles.diff() >= 0).all())
    assert float(angles.cos().square().sum()) / 4 == pytest.approx(float(overlap(X, Y)[-1, -1]), rel=1e-12)


def test_angles_of_a_span_with_itself_turned_are_zero():
    X = random_basis(30, 5, 14)
    assert float(principal_angles(X, X @ rotation(5, 15)).max()) < 3e-15


@pytest.mark.parametrize("n, i, j", [(12, 2, 3), (12, 5, 2), (12, 8, 7), (12, 9, 12), (40, 1, 1)])
def test_random_angles_follow_the_law_of_drawn_subspaces(n, i, j):
    draws = 2000
    fast = random_angles(n, i, j, draws=draws).numpy()
    slow = np.stack(
        [principal_angles(random_basis(n, i, 7 * s), random_basis(n, j, 7 * s + 3)).numpy() for s in range(draws)]
    )
    assert fast.shape == slow.shape
    for column in range(fast.shape[1]):
        if slow[:, column].max() < 1e-7:  # i + j > n: the spans share a direction for sure
            assert fast[:, column].max() < 1e-7
        else:
            assert scipy.stats.ks_2samp(fast[:, column], slow[:, column]).pvalue > 1e-4


def test_random_angles_repeat_and_give_the_overlaps_mean():
    first = random_angles(30, 4, 6, draws=4000)
    random_angles.cache_clear()
    assert torch.equal(first, random_angles(30, 4, 6, draws=4000))
    phi = first.cos().square().mean(dim=1)
    assert float(phi.mean()) == pytest.approx(random_overlap(30, 4, 6)[0], rel=0.02)


def test_random_angles_out_of_range_are_refused():
    with pytest.raises(UsageError, match="dimensions from 1 to n = 3"):
        random_angles(3, 4, 1)
