"""An update against the weights it is added to: amplification of W0, and directions that W0 did not have."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy import linalg
from torch import Tensor

from rankprobe.errors import UsageError, WorkError, must
from rankprobe.linalg.gram import gram

# Left singular vectors that the Gram matrix in float64 resolves: below that W0 has no direction of its own.
_RESOLVED = 1e-7


class Amplification(NamedTuple):
    """Frobenius norms of one update and of W0 on its directions, in the units of the weights.

    Attributes
    ----------
    update : float
        ``||[dW]_r||_F``.
    on_update : float
        ``||Uᵀ W0 Vhᵀ||_F`` on the r leading singular directions of dW.
    on_random : float
        The root mean square of the same over random directions, ``r ||W0||_F / sqrt(m n)``.
    factor : float
        ``update / on_update``; infinite where W0 has nothing there.
    """

    update: float
    on_update: float
    on_random: float
    factor: float


def amplification(W0: Tensor, U: Tensor, S: Tensor, Vh: Tensor) -> Amplification:
    """How much an update amplifies what W0 has on the update's own directions.

    Parameters
    ----------
    W0 : Tensor, shape (m, n), any floating dtype
        The base weights.
    U, S, Vh : Tensor, shapes (m, r), (r,) and (r, n)
        Leading singular triplets of dW, its scaling included.

    Returns
    -------
    Amplification

    Raises
    ------
    UsageError
        If the shapes do not fit together, or W0 is not finite.

    Notes
    -----
    On W0's own r leading directions the projection is ``sqrt(Σ_{i≤r} σ_i²)`` of W0, which needs no more than its
    singular values. For Haar U and V, ``E ||UᵀW0V||_F² = r² ||W0||_F² / (m n)`` exactly; the paper's table drew them.

    References
    ----------
    Hu et al. (2021), arXiv:2106.09685, section 7.3 and table 7.

    Examples
    --------
    >>> W0 = torch.diag(torch.tensor([4.0, 2.0]))
    >>> U = Vh = torch.tensor([[0.0, 1.0]])
    >>> amplification(W0, U.T, torch.tensor([3.0]), Vh)
    Amplification(update=3.0, on_update=2.0, on_random=2.23606797749979, factor=1.5)
    """
    if W0.shape != (U.shape[0], Vh.shape[1]) or not U.shape[1] == len(S) == Vh.shape[0]:
        got = f"W0 {tuple(W0.shape)}, U {tuple(U.shape)}, S {tuple(S.shape)}, Vh {tuple(Vh.shape)}"
        raise UsageError(must("W0 and dW's triplets", "fit together", got, "Pass those of one matrix"))
    W0 = W0.detach().double()
    norm = float(torch.linalg.matrix_norm(W0))
    if not math.isfinite(norm):
        raise UsageError(must("W0", "be finite", f"||W0||_F = {norm}", "Look for a damaged file"))
    update = float(torch.linalg.vector_norm(S.double()))
    on_update = float(torch.linalg.matrix_norm(U.double().T @ W0 @ Vh.double().T))
    on_random = len(S) * norm / math.sqrt(W0.numel())
    return Amplification(update, on_update, on_random, update / on_update if on_update else math.inf)


def base_cosines(U1: Tensor, W0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest |cosine| of each vector with any left singular vector of W0.

    Parameters
    ----------
    U1 : Tensor, shape (m, k)
        Unit vectors: left singular vectors of tuned weights.
    W0 : Tensor, shape (m, n), any floating dtype

    Returns
    -------
    cosines : Tensor, shape (k,), float64
        In [0, 1].
    index : Tensor, shape (k,), int64
        Which left singular vector of W0 that is, from 1.
    S : Tensor, shape (min(m, n),), float64
        Singular values of W0, non-increasing, to about 1e-8 of the first.

    Raises
    ------
    UsageError
        If the shapes do not fit together, or W0 is zero or not finite.
    WorkError
        If the eigenvectors do not converge.

    Notes
    -----
    From the eigenvectors of the smaller Gram matrix of W0 in float64, upcast before the product: faster than a full
    SVD, and W0's left vectors are never formed where it is tall. Directions of W0 below 1e-7 of its first singular
    value are arbitrary, and left out.

    Examples
    --------
    >>> W0 = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    >>> cosines, index, S = base_cosines(torch.tensor([[0.6], [0.8], [0.0]]), W0)
    >>> f"{float(cosines):.1f}", int(index)
    ('0.8', 2)
    """
    if W0.ndim != 2 or U1.ndim != 2 or U1.shape[0] != W0.shape[0]:
        got = f"vectors {tuple(U1.shape)} and W0 {tuple(W0.shape)}"
        raise UsageError(must("U1", "hold left singular vectors of W0's shape", got, "Pass those of W0 + dW"))
    U1 = U1.detach().double().to(W0.device)
    W0 = W0.detach().double()
    wide = W0.shape[0] <= W0.shape[1]
    projected = U1.T if wide else U1.T @ W0
    G = gram(W0.T if wide else W0)
    del W0  # of large matrices every copy counts
    if not bool(G.diagonal().isfinite().all()):
        raise UsageError(must("W0", "be finite", "NaN or infinite entries", "Look for a damaged file"))
    energies, vectors = _eigenvectors(G)
    S = energies.clamp(min=0).sqrt()
    if float(S[-1]) == 0:
        raise UsageError(must("W0", "have singular vectors", "a zero matrix", "Leave this matrix out"))
    products = (projected @ vectors).abs()
    if not wide:
        products /= S.clamp(min=_RESOLVED * float(S[-1]))
    products[:, S / S[-1] <= _RESOLVED] = 0.0
    cosines, index = products.clamp(max=1.0).max(dim=1)
    return cosines, len(S) - index, S.flip(0)


def _eigenvectors(G: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix of which the lower triangle is given."""
    try:
        if G.device.type == "cpu":
            found = linalg.eigh(G.numpy(), lower=True, overwrite_a=True, check_finite=False, driver="evr")
            return tuple(map(torch.from_numpy, found))
        return torch.linalg.eigh(G, UPLO="L")
    except (linalg.LinAlgError, torch.linalg.LinAlgError) as error:
        raise WorkError(must("Eigenvectors of W0's Gram matrix", "converge", error, "Report it with W0")) from error


def intruder_dimensions(U1: Tensor, W0: Tensor, *, eps: float = 0.5) -> int:
    """How many of some left singular vectors of W1 are like none of W0's.

    Parameters
    ----------
    U1 : Tensor, shape (m, k)
        The k leading left singular vectors of W1 = W0 + dW; the source takes k = 10.
    W0 : Tensor, shape (m, n), any floating dtype
    eps : float
        A vector counts if its largest |cosine| with any left singular vector of W0 is below this.

    Returns
    -------
    int
        0 .. k.

    Raises
    ------
    UsageError
        As :func:`base_cosines`, or eps out of range.

    Notes
    -----
    Needs singular values that are apart: where W0 has (nearly) equal ones, its vectors are arbitrary within their
    span, and even W0 differs from itself. Comparing W0 with itself by two decompositions shows whether that is so.

    References
    ----------
    Shuttleworth et al. (2024), arXiv:2410.21228, definition and algorithm of section 3.

    Examples
    --------
    >>> W0 = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> intruder_dimensions(torch.eye(3)[:, :2], W0)
    0
    >>> intruder_dimensions(torch.ones(3, 1) / 3**0.5, W0, eps=0.6)
    1
    """
    if not 0 < eps <= 1:
        raise UsageError(must("eps", "be above 0 and at most 1", eps, "Pass 0.5, say"))
    return int((base_cosines(U1, W0)[0] < eps).sum())
