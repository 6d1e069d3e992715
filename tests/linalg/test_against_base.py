"""Updates against W0: amplification by closed forms and the paper's own figures, intruders planted and absent."""

import math

import numpy as np
import pytest
import torch

from rankprobe.errors import UsageError
from rankprobe.linalg.against_base import amplification, base_cosines, intruder_dimensions


def random_matrix(m, n, seed, decay=0.0):
    """Gaussian, or with singular values that fall like exp(-decay * index)."""
    generator = torch.Generator().manual_seed(seed)
    M = torch.randn(m, n, dtype=torch.float64, generator=generator)
    if decay:
        U, S, Vh = torch.linalg.svd(M, full_matrices=False)
        M = U * torch.exp(-decay * torch.arange(len(S))) @ Vh
    return M


def triplets(dW, r):
    U, S, Vh = torch.linalg.svd(dW, full_matrices=False)
    return U[:, :r], S[:r], Vh[:r]


# --- amplification ---


def test_amplification_of_what_w0_has_already():
    W0 = random_matrix(8, 6, 0)
    found = amplification(W0, *triplets(2.5 * W0, 3))
    own = float(torch.linalg.svdvals(W0)[:3].square().sum().sqrt())
    assert found.on_update == pytest.approx(own) and found.update == pytest.approx(2.5 * own)
    assert found.factor == pytest.approx(2.5)


def test_amplification_is_the_definition_written_out():
    W0, dW = random_matrix(7, 9, 1), random_matrix(7, 9, 2)
    u, s, vt = np.linalg.svd(dW.numpy())
    found = amplification(W0, *triplets(dW, 4))
    assert found.on_update == pytest.approx(np.linalg.norm(u[:, :4].T @ W0.numpy() @ vt[:4].T))
    assert found.update == pytest.approx(np.linalg.norm(s[:4]))
    assert found.factor == pytest.approx(found.update / found.on_update)


def test_amplification_scales_with_the_update_and_not_with_both():
    W0, dW = random_matrix(7, 9, 3), random_matrix(7, 9, 4)
    one = amplification(W0, *triplets(dW, 2)).factor
    assert amplification(W0, *triplets(3 * dW, 2)).factor == pytest.approx(3 * one)
    assert amplification(3 * W0, *triplets(3 * dW, 2)).factor == pytest.approx(one)


def test_random_level_agrees_with_drawn_directions():
    W0 = random_matrix(30, 20, 5)
    rng = np.random.default_rng(0)
    drawn = [
        np.linalg.norm(
            np.linalg.qr(rng.standard_normal((30, 3)))[0].T @ W0.numpy() @ np.linalg.qr(rng.standard_normal((20, 3)))[0]
        )
        for _ in range(2000)
    ]
    found = amplification(W0, *triplets(random_matrix(30, 20, 6), 3))
    assert found.on_random == pytest.approx(np.sqrt(np.mean(np.square(drawn))), rel=0.03)


@pytest.mark.parametrize(("r", "published"), [(4, 0.02), (64, 0.33)])
def test_random_level_of_the_papers_table(r, published):
    """Table 7: GPT-3's W_q of layer 48, 12288 x 12288, norm 61.95; here smaller, with entries of the same size."""
    W0 = random_matrix(192, 192, 16)
    W0 *= 61.95 * 192 / 12288 / torch.linalg.matrix_norm(W0)
    assert amplification(W0, *triplets(random_matrix(192, 192, 17), r)).on_random == pytest.approx(published, abs=0.01)


def test_nothing_to_amplify_is_infinite_not_a_crash():
    W0 = torch.diag(torch.tensor([1.0, 0.0]))
    found = amplification(W0, *triplets(torch.diag(torch.tensor([0.0, 2.0])), 1))
    assert found.on_update == 0.0 and found.factor == math.inf


def test_amplification_refuses_what_does_not_fit():
    U, S, Vh = triplets(random_matrix(5, 4, 7), 2)
    with pytest.raises(UsageError, match="fit together"):
        amplification(random_matrix(4, 5, 8), U, S, Vh)
    with pytest.raises(UsageError, match="W0 must be finite"):
        amplification(torch.full((5, 4), math.nan), U, S, Vh)


# --- intruders ---


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (15, 15)])
def test_base_cosines_are_those_of_the_svd(shape):
    W0, W1 = random_matrix(*shape, 9), random_matrix(*shape, 10)
    U0 = np.linalg.svd(W0.numpy(), full_matrices=False)[0]
    U1 = torch.linalg.svd(W1, full_matrices=False)[0][:, :6]
    cosines, index, S = base_cosines(U1, W0)
    expected = np.abs(U1.numpy().T @ U0)
    np.testing.assert_allclose(cosines.numpy(), expected.max(axis=1), atol=1e-10)
    np.testing.assert_array_equal(index.numpy(), expected.argmax(axis=1) + 1)
    np.testing.assert_allclose(S.numpy(), np.linalg.svd(W0.numpy(), compute_uv=False), rtol=1e-8)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_w0_has_no_intruder_against_itself(shape):
    W0 = random_matrix(*shape, 11)
    U1 = torch.linalg.svd(W0, full_matrices=False)[0][:, :10]
    assert intruder_dimensions(U1, W0) == 0
    np.testing.assert_allclose(base_cosines(U1, W0)[0].numpy(), 1.0, atol=1e-10)


@pytest.mark.parametrize("shape", [(60, 80), (80, 60)])
@pytest.mark.parametrize("planted", [1, 3])
def test_planted_intruders_are_counted(shape, planted):
    """A random direction, far above W0's spectrum, has a share of a 60-dimensional basis in each of W0's vectors."""
    W0 = random_matrix(*shape, 12, decay=0.05)
    m, n = shape
    B = torch.nn.functional.normalize(random_matrix(m, planted, 20), dim=0)
    A = torch.nn.functional.normalize(random_matrix(planted, n, 21), dim=1)
    dW = B * torch.arange(5.0, 5.0 + planted) @ A
    U1 = torch.linalg.svd(W0 + dW, full_matrices=False)[0][:, :10]
    assert intruder_dimensions(U1[:, :planted], W0) == planted
    assert intruder_dimensions(U1, W0) >= planted


def test_scaling_w0_brings_no_intruder():
    W0 = random_matrix(30, 50, 13)
    U1 = torch.linalg.svd(1.7 * W0, full_matrices=False)[0][:, :10]
    assert intruder_dimensions(U1, W0) == 0


def test_directions_that_w0_lacks_are_intruders_though_the_null_space_has_some_basis():
    W0 = torch.zeros(6, 8, dtype=torch.float64)
    W0[0, 0], W0[1, 1] = 2.0, 1.0
    U1 = torch.eye(6, dtype=torch.float64)[:, [5, 0]]
    cosines, index, _ = base_cosines(U1, W0)
    assert cosines.tolist() == pytest.approx([0.0, 1.0]) and int(index[1]) == 1
    assert intruder_dimensions(U1, W0) == 1


def test_half_precision_weights_are_upcast_before_the_gram_matrix():
    W0 = random_matrix(20, 30, 14).to(torch.bfloat16)
    U1 = torch.linalg.svd(W0.double(), full_matrices=False)[0][:, :5]
    np.testing.assert_allclose(base_cosines(U1, W0)[0].numpy(), 1.0, atol=1e-10)


def test_intruders_refuse_what_has_no_answer():
    U1 = torch.eye(4)[:, :2]
    with pytest.raises(UsageError, match="eps must be above 0"):
        intruder_dimensions(U1, torch.eye(4), eps=0)
    with pytest.raises(UsageError, match="have singular vectors. Got a zero matrix"):
        intruder_dimensions(U1, torch.zeros(4, 4))
    with pytest.raises(UsageError, match="W0's shape"):
        intruder_dimensions(U1, torch.eye(5))
    with pytest.raises(UsageError, match="W0 must be finite"):
        intruder_dimensions(U1, torch.full((4, 4), math.inf))
