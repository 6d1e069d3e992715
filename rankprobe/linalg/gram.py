"""Singular values from the Gram matrix in float64 where that is exact enough, else by a direct decomposition.

The Gram matrix of the smaller side costs one product, and its eigenvalues half the work of a bidiagonalisation; but it
squares the singular values, so that those below about 1e-8 of the largest drown in its rounding. What was measured, in
ms of one core (AMD EPYC with AVX-512; MKL 2024.2 through torch 2.13, OpenBLAS 0.3.31 through SciPy 1.17):

======================================  =======  ==========  ===========
float64 unless it says otherwise        768x768  3072x768    1536x1536
======================================  =======  ==========  ===========
Gram matrix, scipy dsyrk                      9          36           72
Gram matrix, torch product                   17          69          143
eigenvalues, scipy dsyevd                    28          29          208
eigenvalues, torch.linalg.eigvalsh           45          48          253
**dsyrk and dsyevd**                         37          65          280
svdvals, torch                               91         206          931
svdvals, scipy                               79         221          782
svd with vectors, torch                     202         493         1777
svd with vectors, torch, float32            111         275          922
======================================  =======  ==========  ===========

Hence the rules: on a CPU, the Gram matrix and its eigenvalues through SciPy; on another device through torch; below 64
rows and columns directly (both take under 0.3 ms); and directly where the Gram matrix does not resolve the smallest
value, see :func:`singular_values`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import linalg
from scipy.linalg import blas, lapack
from torch import Tensor

from rankprobe.linalg.direct import svdvals_dense
from rankprobe.linalg.matrix import core_of, times_power

EPS = torch.finfo(torch.float64).eps
# Smaller matrices are decomposed directly.
_LEAST_SIDE = 64
# A value is taken from the Gram matrix only from this many times its error on.
_MARGIN = 10.0


@dataclass(frozen=True)
class Values:
    """Singular values and how far they can be trusted.

    Attributes
    ----------
    S : Tensor, shape (min(m, n),), float64
        Non-increasing, in the units of M, on M's device.
    method : str
        ``gram`` or ``direct``.
    error : float
        Absolute error of any of them, as a share of ``S[0]``; 0 where they are exact (the zero matrix).
    """

    S: Tensor
    method: str
    error: float


def singular_values(M: Tensor, *, name: str = "M") -> Values:
    """All singular values of a dense matrix, by the fastest way that gives every one of them in full.

    Parameters
    ----------
    M : Tensor, shape (m, n), any floating dtype
        Upcast to float64; decomposed on the device it is on.
    name : str
        What error messages call the matrix.

    Returns
    -------
    Values
        The values, the method that gave them and their error.

    Raises
    ------
    UsageError
        If M is not a matrix of finite floating-point numbers.
    WorkError
        If a decomposition does not converge.

    Notes
    -----
    With p the smaller side, the eigenvalues of the Gram matrix were seen to err by less than ``sqrt(p) eps σ₁²`` over
    random, graded, low-rank, heavy-tailed and constant matrices of 64² to 1200² and 30000 x 128, the most for values
    of 0: 5.9e-8 σ₁ for a constant 1200 x 1200 matrix against the 8.8e-8 that this allows. A value σ then errs by at
    most ``sqrt(p) eps σ₁² / σ``. If any value is at most 10 times ``p**0.25 sqrt(eps) σ₁``, the error of a value of 0,
    the whole matrix is decomposed directly: whatever is counted from the values (numerical_rank of a low-rank update
    among it) is then what a direct decomposition gives. Of 267 updates of MiniLM by full fine-tuning, 4 took that way.

    A matrix of low rank is told before the eigenvalues are paid for: no singular value of M is above the smallest of
    a part of its columns, so a Cholesky decomposition of a corner of the Gram matrix that fails settles it. What is
    lost is then the Gram matrix, 12 % of the direct decomposition at 768 x 768.

    Rows and columns of zeros are left out first, and M is scaled by a power of two where squares would leave float64's
    range. Beside M, at most twice M in float64 is in use at once (three times where zero rows or columns left out make
    a copy). SciPy's threads are those of OMP_NUM_THREADS, whatever torch is told.

    References
    ----------
    Golub & Van Loan (2013), Matrix Computations, 4th ed., section 8.6.3 (why AᵀA loses small singular values) and
    theorem 8.1.7 (interlacing).

    Examples
    --------
    >>> values = singular_values(torch.tensor([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]]))
    >>> values.S, values.method
    (tensor([4., 3.], dtype=torch.float64), 'direct')
    """
    core = core_of(M, name)
    if core is None:
        return Values(M.new_zeros(min(M.shape), dtype=torch.float64), "direct", 0.0)
    S, method = _by_gram(core.tall), "gram"
    if S is None:
        S, method = svdvals_dense(core.tall, name=name), "direct"
    p = core.tall.shape[1]
    # LAPACK's direct decomposition is backward stable, with a constant that grows about as the root of the size.
    ratio = float(S[0] / S[-1]) if method == "gram" else math.sqrt(core.tall.shape[0] / p)
    error = math.sqrt(p) * EPS * max(ratio, 1.0)
    S = times_power(S, core.exponent)
    return Values(torch.cat([S, S.new_zeros(min(core.shape) - p)]), method, error)


def gram_error(p: int) -> float:
    """Error of a singular value of 0 that comes from a Gram matrix of size p, as a share of the largest."""
    return p**0.25 * math.sqrt(EPS)


def gram(tall: Tensor) -> Tensor:
    """Lower triangle of ``tallᵀ tall``; on a CPU in column-major order, ready for LAPACK to overwrite.

    The other triangle is undefined.
    """
    if tall.device.type != "cpu":
        return tall.T @ tall
    if tall.T.is_contiguous():
        return torch.from_numpy(blas.dsyrk(1.0, tall.numpy(), trans=1, lower=1))
    return torch.from_numpy(blas.dsyrk(1.0, tall.contiguous().numpy().T, lower=1))


def _by_gram(tall: Tensor) -> Tensor | None:
    """Singular values of a tall matrix; None where its Gram matrix does not resolve them all."""
    p = tall.shape[1]
    if p < _LEAST_SIDE:
        return None
    G = gram(tall)
    least = (_MARGIN * gram_error(p)) ** 2
    if _singular(G[: p // 4, : p // 4].tril(), least):
        return None
    try:
        if G.device.type == "cpu":
            work = {"overwrite_a": True, "check_finite": False}
            eigenvalues = torch.from_numpy(linalg.eigh(G.numpy(), lower=True, eigvals_only=True, driver="evd", **work))
        else:
            eigenvalues = torch.linalg.eigvalsh(G, UPLO="L")
    except (linalg.LinAlgError, torch.linalg.LinAlgError):
        return None
    if float(eigenvalues[0]) <= least * float(eigenvalues[-1]):
        return None
    return eigenvalues.flip(0).sqrt()


def _singular(lower: Tensor, least: float) -> bool:
    """Whether a Gram matrix is seen to have an eigenvalue of at most ``least`` of its largest, by its lower triangle.

    The largest is no less than Σλ² / Σλ, the sum of the squared entries by the trace.
    """
    diagonal = lower.diagonal()
    largest = (2 * lower.square().sum() - diagonal.square().sum()) / diagonal.sum()
    diagonal -= least * largest
    if lower.device.type == "cpu":
        return lapack.dpotrf(lower.numpy(), lower=1, clean=0)[1] > 0
    return bool(torch.linalg.cholesky_ex(lower)[1] > 0)
