"""Singular values from the Gram matrix in float64, where that is exact enough.

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

MKL's eigenvalues gain on OpenBLAS's with the size; in ms of two cores (Intel Xeon with AVX-512):

==============================  ====  ====  ====  ====  ====  ====  ====
float64                          768  1024  1280  1536  2048  3072  4096
==============================  ====  ====  ====  ====  ====  ====  ====
Gram matrix, scipy dsyrk           4     9    18    29    70   219   523
eigenvalues, scipy dsyevd         23    49    91   163   424  1149  2835
eigenvalues, torch eigvalsh       25    51    90   136   273   736  1626
svdvals, torch                    53   124   249   441  1144  1541  3402
==============================  ====  ====  ====  ====  ====  ====  ====

Hence: on a CPU, the Gram matrix through SciPy, its eigenvalues through SciPy below 1,536 rows and through torch from
there on; on another device all through torch. What little there is to do between the two is NumPy's: torch's threads,
once woken, spin for a while on the cores that SciPy's need.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import linalg
from scipy.linalg import blas, lapack
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
# Gram matrices of this size and more are left to torch's LAPACK, smaller ones to SciPy's.
_MANY_ROWS = 1536
# A value is taken only from this many times its error on.
MARGIN = 10.0


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
    return torch.from_numpy(blas.dsyrk(1.0, np.ascontiguousarray(tall.numpy()).T, lower=1))


def by_gram(tall: Tensor, zeros: int = 0) -> Tensor | None:
    """Singular values of a tall matrix; None where its Gram matrix does not resolve them all.

    ``zeros``: so many are known to be 0 and are left out.
    """
    p = tall.shape[1]
    least = (MARGIN * gram_error(p)) ** 2
    # A quarter of the columns costs a sixteenth of the whole, and tells nearly all that would be in vain.
    if not zeros and _singular(gram(tall[:, : p // 4]), least):
        return None
    G = gram(tall)
    try:
        if G.device.type == "cpu" and p < _MANY_ROWS:
            work = {"overwrite_a": True, "check_finite": False}
            eigenvalues = torch.from_numpy(linalg.eigh(G.numpy(), lower=True, eigvals_only=True, driver="evd", **work))
        else:
            eigenvalues = torch.linalg.eigvalsh(G, UPLO="L")
    except (linalg.LinAlgError, torch.linalg.LinAlgError):
        return None
    if float(eigenvalues[zeros]) <= least * float(eigenvalues[-1]):
        return None
    return eigenvalues[zeros:].flip(0).sqrt()


def _singular(G: Tensor, least: float) -> bool:
    """Whether a Gram matrix is seen to have an eigenvalue of at most ``least`` of its largest, by its lower triangle.

    The largest is no less than Σλ² / Σλ, the sum of the squared entries by the trace.
    """
    if G.device.type != "cpu":
        lower = G.tril()
        diagonal = lower.diagonal()
        diagonal -= least * (2 * lower.square().sum() - diagonal.square().sum()) / diagonal.sum()
        return bool(torch.linalg.cholesky_ex(lower)[1] > 0)
    lower = np.tril(G.numpy())
    diagonal = np.diagonal(lower)
    largest = (2 * np.square(lower).sum() - np.square(diagonal).sum()) / diagonal.sum()
    lower[np.diag_indices_from(lower)] -= least * largest
    return lapack.dpotrf(lower, lower=1, clean=0)[1] > 0
