"""SVDs against numpy's and scipy's, where they must agree and where a lazier method would fail."""

import numpy as np
import pytest
import scipy.linalg
import torch

from rankprobe.errors import UsageError
from rankprobe.linalg.decompose import svd_dense, svd_factored, svdvals_dense

SHAPES = [(1, 1), (1, 7), (7, 1), (12, 12), (30, 8), (8, 30)]


def matrix(m, n, seed=0):
    return torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonal(n, seed=0):
    return torch.linalg.qr(matrix(n, n, seed))[0]


def assert_svd_of(U, S, Vh, M):
    """Orthonormal sides, sorted values, and the product is M."""
    k = len(S)
    torch.testing.assert_close(U.T @ U, torch.eye(k, dtype=torch.float64))
    torch.testing.assert_close(Vh @ Vh.T, torch.eye(k, dtype=torch.float64))
    assert (S[:-1] >= S[1:]).all() and (S >= 0).all()
    torch.testing.assert_close((U * S) @ Vh, M.double(), atol=1e-12 * max(1.0, float(S[0])), rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_scipys(shape):
    M = matrix(*shape)
    oracle = scipy.linalg.svd(M.numpy(), compute_uv=False, lapack_driver="gesvd")
    np.testing.assert_allclose(svdvals_dense(M), oracle, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_dense_svd_is_numpys_up_to_signs(shape):
    M = matrix(*shape)
    U, S, Vh = svd_dense(M)
    assert_svd_of(U, S, Vh, M)
    expected = np.linalg.svd(M.numpy(), full_matrices=False)
    np.testing.assert_allclose(S, expected[1], rtol=1e-12)
    for i in range(len(S)):  # a random matrix has no ties: each direction's projector is its own
        ours, theirs = np.outer(U[:, i], Vh[i]), np.outer(expected[0][:, i], expected[2][i])
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


def test_closed_form():
    M = torch.tensor([[0.0, -5.0], [2.0, 0.0]])
    U, S, Vh = svd_dense(M)
    assert S.tolist() == [5.0, 2.0]
    torch.testing.assert_close(U[:, :1] * S[:1] @ Vh[:1], torch.tensor([[0.0, -5.0], [0.0, 0.0]], dtype=torch.float64))


def test_values_do_not_change_under_rotation_and_transposition_and_scale_with_the_matrix():
    M = matrix(20, 9)
    S = svdvals_dense(M)
    torch.testing.assert_close(svdvals_dense(orthogonal(20, 1) @ M @ orthogonal(9, 2)), S)
    torch.testing.assert_close(svdvals_dense(M.T), S)
    torch.testing.assert_close(svdvals_dense(-1e-30 * M), 1e-30 * S)


def test_small_values_survive_where_a_gram_matrix_would_lose_them():
    values = torch.tensor([1.0, 1e-6, 1e-13], dtype=torch.float64)
    M = orthogonal(40, 1)[:, :3] * values @ orthogonal(3, 2)
    S = svdvals_dense(M)
    assert float((S - values).abs().max()) < 1e-15
    gram = torch.linalg.eigvalsh(M.T @ M).clamp(min=0).sqrt()
    assert float((gram.flip(0) / values - 1).abs().max()) > 0.5  # the method that this test keeps out


def test_half_precision_is_upcast_before_anything_else():
    M = matrix(16, 10).to(torch.bfloat16)
    assert svdvals_dense(M).dtype == torch.float64
    np.testing.assert_allclose(svdvals_dense(M), np.linalg.svd(M.double().numpy(), compute_uv=False), rtol=1e-12)


@pytest.mark.parametrize("used", [0, 1, 3, 5, 40])
@pytest.mark.parametrize("wide", [False, True])
def test_zero_rows_are_left_out_without_a_trace(used, wide):
    M = torch.zeros(60, 5, dtype=torch.float64)
    M[torch.randperm(60, generator=torch.Generator().manual_seed(3))[:used]] = matrix(used, 5)
    M = M.T if wide else M
    expected = np.linalg.svd(M.numpy(), compute_uv=False)
    np.testing.assert_allclose(svdvals_dense(M), expected, atol=1e-13)
    assert_svd_of(*svd_dense(M), M)


def test_ties_give_the_right_subspace():
    Q = orthogonal(6)
    M = Q * torch.tensor([3.0, 3.0, 3.0, 1.0, 1.0, 0.0], dtype=torch.float64) @ Q.T
    U, S, _ = svd_dense(M)
    torch.testing.assert_close(S, torch.tensor([3.0, 3.0, 3.0, 1.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(U[:, :3] @ U[:, :3].T, Q[:, :3] @ Q[:, :3].T)


def test_leading_triplets():
    M = matrix(9, 6)
    U, S, Vh = svd_dense(M, k=2)
    assert (U.shape, S.shape, Vh.shape) == ((9, 2), (2,), (2, 6))
    # Eckart-Young: what is left over has exactly the energy of the values that were cut.
    assert float((M - U * S @ Vh).norm()) == pytest.approx(float(svdvals_dense(M)[2:].norm()), rel=1e-12)


@pytest.mark.parametrize(("m", "n", "r"), [(30, 20, 4), (20, 30, 4), (5, 30, 5), (4, 30, 9), (30, 4, 9), (3, 3, 1)])
@pytest.mark.parametrize("scaling", [2.0, -0.5, 0.0])
def test_factored_is_dense_of_the_product(m, n, r, scaling):
    B, A = matrix(m, r, 1), matrix(r, n, 2)
    U, S, Vh = svd_factored(B, A, scaling)
    assert len(S) == min(r, m, n)
    assert_svd_of(U, S, Vh, scaling * B @ A)
    oracle = np.linalg.svd((scaling * B @ A).numpy(), compute_uv=False)
    np.testing.assert_allclose(S, oracle[: len(S)], atol=1e-12)


def test_factored_never_multiplies_the_factors_out():
    # The product of these would take 320 GB.
    B, A = torch.zeros(200_000, 2), torch.zeros(2, 200_000)
    B[0, 0] = B[7, 1] = A[0, 5] = A[1, 9] = 1.0
    assert svd_factored(B, A, 3.0)[1].tolist() == [3.0, 3.0]


def test_factored_does_not_depend_on_how_the_update_splits():
    B, A, G = matrix(15, 3, 1), matrix(3, 11, 2), matrix(3, 3, 3)
    U, S, Vh = svd_factored(B, A)
    U2, S2, Vh2 = svd_factored(B @ G, torch.linalg.solve(G, A))
    torch.testing.assert_close(S, S2, rtol=1e-10, atol=0)
    torch.testing.assert_close(U @ U.T, U2 @ U2.T, atol=1e-9, rtol=0)
    torch.testing.assert_close(Vh.T @ Vh, Vh2.T @ Vh2, atol=1e-9, rtol=0)


def test_factors_that_were_never_trained_give_zeros():
    U, S, Vh = svd_factored(torch.zeros(8, 2), matrix(2, 6).float(), 4.0)
    assert S.tolist() == [0.0, 0.0]
    assert_svd_of(U, S, Vh, torch.zeros(8, 6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: svdvals_dense(torch.tensor([[1.0, torch.nan]]), name="dW of q.weight"),
         "dW of q.weight must be finite. Got 1 NaN and 0 infinite of 2 entries."),
        (lambda: svd_dense(torch.tensor([[torch.inf, 0.0]]), name="dW of k.weight"),
         "dW of k.weight must be finite. Got 0 NaN and 1 infinite of 2 entries."),
        (lambda: svd_factored(torch.ones(2, 1), torch.tensor([[torch.nan]]), name="dW of v.weight"),
         "A of dW of v.weight must be finite."),
        (lambda: svd_factored(torch.full((2, 1), 1e30), torch.full((1, 2), 1e30), 1e300, name="dW of o.weight"),
         "dW of o.weight must have a finite product scaling * B @ A. Got scaling 1e+300 and factors up to 1e+30 and"),
        (lambda: svd_factored(torch.ones(2, 1), torch.ones(1, 2), float("nan")), "Got scaling nan"),
        (lambda: svd_factored(torch.ones(4, 2), torch.ones(3, 4)), "Got B (4, 2) and A (3, 4)."),
        (lambda: svdvals_dense(torch.ones(3)), "M must be a matrix with at least one entry. Got shape (3,)."),
        (lambda: svdvals_dense(torch.ones(0, 3)), "Got shape (0, 3)."),
        (lambda: svdvals_dense(torch.ones(2, 2, dtype=torch.int64)), "must be real floating point. Got torch.int64."),
        (lambda: svd_dense(torch.ones(3, 2), k=3), "k must be from 1 to min(m, n) = 2 of M. Got 3."),
        (lambda: svd_dense(torch.ones(3, 2), k=0), "Got 0."),
    ],
)
def test_error_text(call, message):
    with pytest.raises(UsageError) as caught:
        call()
    assert message in str(caught.value)
