"""Leading directions: every vector is the exact one, on spectra where an approximation alone would not be enough."""

import pytest
import torch

from rankprobe.errors import UsageError
from rankprobe.linalg import directions
from rankprobe.linalg.decompose import leading
from rankprobe.linalg.directions import leading_directions
from rankprobe.linalg.subspace import overlap


def matrix(m, n, power, seed=0):
    """Gaussian singular vectors; singular values of a Gaussian matrix (power 0), else i ** -power."""
    M = torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if power:
        U, S, Vh = torch.linalg.svd(M, full_matrices=False)
        M = U * torch.arange(1.0, len(S) + 1, dtype=torch.float64) ** -power @ Vh
    return M


@pytest.mark.parametrize("power", [0, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("shape", [(160, 160), (400, 96), (96, 400)])
@pytest.mark.parametrize("k", [1, 5, 16])
def test_every_vector_is_the_exact_one(shape, power, k):
    M = matrix(*shape, power)
    found = leading_directions(M, k)
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    assert found.U.shape == (shape[0], k) and found.Vh.shape == (k, shape[1])
    torch.testing.assert_close(found.S, S[:k], rtol=1e-7, atol=0)
    assert float((found.U * U[:, :k]).sum(0).abs().min()) > 1 - 1e-7
    assert float((found.Vh * Vh[:k]).sum(1).abs().min()) > 1 - 1e-7
    exact = torch.linalg.matrix_norm(M - U[:, :k] * S[:k] @ Vh[:k]) / torch.linalg.matrix_norm(M)
    assert found.residual == pytest.approx(float(exact), rel=1e-6)
    assert found.energy == pytest.approx(float(S.square().sum()))


def test_the_plain_way_would_not_do():
    """The control: on a flat spectrum its part is as good as the best, and its vectors are not the leading ones."""
    M = matrix(1200, 600, 0)
    plain, exact = leading(M, 10), torch.linalg.svd(M, full_matrices=False)[2][:10]
    assert plain.method == "krylov"
    assert float(overlap(plain.Vh.T, exact.T)[-1, -1]) < 0.99
    assert float(overlap(leading_directions(M, 10).Vh.T, exact.T)[-1, -1]) > 1 - 1e-8


def test_krylov_is_kept_where_it_converged():
    assert leading_directions(matrix(600, 600, 4.0), 4).method == "krylov"


def test_falls_back_to_a_direct_decomposition(monkeypatch):
    """Should the rules of ``leading`` ever give Krylov whatever is asked, the answer is still right."""
    monkeypatch.setattr(directions, "_converged", lambda *_: False)
    monkeypatch.setattr(directions, "leading", lambda M, k, name: leading(M, min(k, 5), name=name))
    M = matrix(600, 600, 1.0)
    found = leading_directions(M, 4)
    exact = torch.linalg.svd(M)[1][:4]
    assert found.method == "direct" and torch.allclose(found.S, exact)
    assert found.residual == pytest.approx(float((1 - exact.square().sum() / M.square().sum()).sqrt()), rel=1e-9)


@pytest.mark.parametrize("k", [3, 8, 50])
def test_low_rank_matrices_and_more_directions_than_they_have(k):
    generator = torch.Generator().manual_seed(1)
    B, A = (torch.randn(*s, dtype=torch.float64, generator=generator) for s in ((90, 3), (3, 80)))
    found = leading_directions(B @ A, k)
    _, S, Vh = torch.linalg.svd(B @ A)
    assert len(found.S) == min(k, 80)
    torch.testing.assert_close(found.S[:3], S[:3])
    assert float((found.Vh[:3] * Vh[:3]).sum(1).abs().min()) > 1 - 1e-12
    assert found.residual < 1e-7


def test_a_diagonal_zero_one_by_one_and_half_precision_matrix():
    assert leading_directions(torch.zeros(4, 5), 2).S.tolist() == [0.0, 0.0]
    one = leading_directions(torch.full((1, 1), -2.0), 3)
    assert one.S.tolist() == [2.0] and float(one.U * one.Vh) == -1.0
    assert leading_directions(torch.eye(3, dtype=torch.bfloat16) * 2, 3).S.tolist() == [2.0, 2.0, 2.0]


def test_what_is_no_matrix_is_refused():
    with pytest.raises(UsageError, match="W must be a matrix"):
        leading_directions(torch.ones(3), 1, name="W")
    with pytest.raises(UsageError, match="finite"):
        leading_directions(torch.full((3, 3), torch.nan), 1)
