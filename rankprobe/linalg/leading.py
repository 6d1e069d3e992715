"""A few leading singular triplets of a dense matrix, with an exact residual.

Block Krylov iteration from a random start where few are wanted, the Gram matrix's eigenvectors where many are, a direct
decomposition where neither is exact enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import linalg
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.linalg import krylov
from rankprobe.linalg.direct import svd_dense
from rankprobe.linalg.gram import gram
from rankprobe.linalg.matrix import core_of, times_power
from rankprobe.linalg.rank import energy_rank

Triplets = tuple[Tensor, Tensor, Tensor]

# Smaller matrices are decomposed directly.
_LEAST_SIDE = 64
# Block Krylov up to this share of the smaller side; beyond the other, all eigenvectors of the Gram matrix are computed.
_FEW, _MANY = 1 / 10, 1 / 4
# Singular vectors are taken from the Gram matrix down to this share of σ₁: what it leaves off is then 1e-11 of σ₁.
_GRAM_REACH = 1e-5
# A share of the energy that is missed by this much counts as held: sums of squares are not better known.
_SLACK = 1e-12
# Shares this close to 1 depend on values that only a direct decomposition gives.
_NEARLY_ALL = 1e-9
# Below this share of the energy the residual is computed from the matrix: ‖M‖² − Σσ² cancels.
_CANCELS = 1e-8
# Entries of a block of rows, when it is.
_BLOCK = 2**22


@dataclass(frozen=True)
class Leading:
    """The leading part of a matrix, ``U * S @ Vh``.

    Attributes
    ----------
    U, S, Vh : Tensor, shapes (m, k), (k,) and (k, n), float64
        Orthonormal columns of U and rows of Vh, S non-increasing, on M's device.
    energy : float
        ``||M||_F²``, in the squared units of M; infinite or 0 where that leaves float64's range.
    residual : float
        ``||M - U * S @ Vh||_F / ||M||_F``; 0 for the zero matrix.
    method : str
        ``krylov``, ``gram`` or ``direct``.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    energy: float
    residual: float
    method: str


def leading(M: Tensor, k: int | None = None, *, energy: float | None = None, name: str = "M", seed: int = 0) -> Leading:
    """The k leading singular triplets of a dense matrix, or as many as hold a share of its energy.

    Parameters
    ----------
    M : Tensor, shape (m, n), any floating dtype
        Upcast to float64; decomposed on the device it is on.
    k : int, optional
        How many triplets, at least 1; above min(m, n) it means all. With ``energy``, the most to give.
    energy : float, optional
        Share of ``||M||_F²`` to hold, above 0 and at most 1: the fewest triplets that hold it are given, none for the
        zero matrix. 1 counts the singular values that are not zero.
    name : str
        What error messages call the matrix.
    seed : int
        Of the random start; torch's own generator is left alone.

    Returns
    -------
    Leading
        ``||M - U * S @ Vh||_F`` is at most 1.001 times that of the best approximation of rank k plus 1e-6 ``||M||_F``.

    Raises
    ------
    UsageError
        If M is not a matrix of finite floating-point numbers, if k or energy is out of range, or without either.
    WorkError
        If a decomposition does not converge.

    Notes
    -----
    Block Krylov: from an orthonormal ``V₁`` of ``Mᵀ`` times a random matrix of k + 8 columns, blocks ``V_j`` are added
    that span ``MᵀM V_{j-1}``, each orthogonalised against all before it; the best part of M within their span comes
    from ``(MV)ᵀ(MV)``. It stops when all further steps together will raise ``Σσ²`` by less than 8e-4 of the energy that
    is left out, judged by the last two, and turns to the Gram matrix when the basis would exceed a third of the smaller
    side. As ``U S = M V`` holds for what is given, the residual is exactly ``sqrt(||M||_F² - Σσ²)``; where it is below
    1e-4 of ``||M||_F`` that would cancel, and it is computed from the matrices themselves. The singular values are
    never above the exact ones by more than rounding; where values lie close together, single ones and their vectors may
    mix, which leaves the part as good.

    With ``energy`` the iteration goes on until a step cannot change the count any more, so that it is that of
    ``energy_rank`` of all singular values unless the share is met to within 1e-11.

    References
    ----------
    Musco & Musco (2015), arXiv:1504.05477, algorithm 2 (block Krylov); here with oversampling, full
    reorthogonalisation and a test for stopping. Halko, Martinsson & Tropp (2011), arXiv:0909.4061, section 4.

    Examples
    --------
    >>> part = leading(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2)
    >>> part.S, round(part.residual**2, 12)
    (tensor([3., 2.], dtype=torch.float64), 0.071428571429)
    >>> len(leading(torch.diag(torch.tensor([3.0, 2.0, 1.0])), energy=0.9).S)
    2
    """
    _check_wish(k, energy)
    core = core_of(M, name, least=k or 0)
    if core is None:
        size = min(*M.shape, k) if energy is None else 0
        U, V = (torch.eye(side, size, dtype=torch.float64, device=M.device) for side in M.shape)
        return Leading(U, U.new_zeros(size), V.T, 0.0, 0.0, "direct")
    tall = core.tall
    norm = torch.linalg.vector_norm(tall)
    total = float(norm) ** 2
    if k is not None:
        (U, S, Vh), method = _by_count(tall, min(k, tall.shape[1]), total, name, seed)
        if energy is not None:
            kept = min(_count(S.square(), energy, total), len(S))
            U, S, Vh = U[:, :kept], S[:kept], Vh[:kept]
    else:
        (U, S, Vh), method = _by_share(tall, energy, total, name, seed)
    residual = _residual(tall, U, S, Vh, total)
    m, n = reversed(core.shape) if core.transposed else core.shape
    U, Vh = _spread(U, core.rows, m), _spread(Vh.T, core.columns, n).T
    if core.transposed:
        U, Vh = Vh.T, U.T
    norm = float(times_power(norm, core.exponent))
    return Leading(U, times_power(S, core.exponent), Vh, norm * norm, residual, method)


def _check_wish(k: int | None, energy: float | None) -> None:
    if k is None and energy is None:
        raise UsageError(must("k or energy", "be given", "neither", "Pass a number of triplets or a share of energy"))
    if k is not None and k < 1:
        raise UsageError(must("k", "be at least 1", k, "Pass a number of triplets"))
    if energy is not None and not 0 < energy <= 1:
        next_step = "Pass a share of the energy, 0.9 for 90 %"
        raise UsageError(must("energy", "be above 0 and at most 1", energy, next_step))


def _by_count(tall: Tensor, k: int, total: float, name: str, seed: int) -> tuple[Triplets, str]:
    p = tall.shape[1]
    if p >= _LEAST_SIDE:
        if k <= _FEW * p and (found := krylov.by_count(tall, k, total, seed)):
            return found, "krylov"
        if found := _by_gram(tall, lambda _: k, k):
            return found, "gram"
    return svd_dense(tall, k, name=name), "direct"


def _by_share(tall: Tensor, share: float, total: float, name: str, seed: int) -> tuple[Triplets, str]:
    if tall.shape[1] >= _LEAST_SIDE and share <= 1 - _NEARLY_ALL:
        if found := krylov.by_share(tall, share, _SLACK, total, seed):
            return found, "krylov"
        if found := _by_gram(tall, lambda energies: _count(energies, share, total)):
            return found, "gram"
    U, S, Vh = svd_dense(tall, name=name)
    k = int(energy_rank(S, share))
    return (U[:, :k], S[:k], Vh[:k]), "direct"


def _count(energies: Tensor, share: float, total: float) -> int:
    """How many of the leading energies hold a share of all; one more than there are where they do not."""
    return int((energies.cumsum(0) < (share - _SLACK) * total).sum()) + 1


def _by_gram(tall: Tensor, count, most: int | None = None) -> Triplets | None:
    """Leading triplets from eigenvectors of the Gram matrix, ``count(energies)`` of them; None where it is too coarse.

    ``U`` and S are the QR decomposition of M V, whose R is diagonal up to eps σ₁² / σ.
    """
    G, p = gram(tall), tall.shape[1]
    try:
        if G.device.type == "cpu":
            # Eigenvectors of 768 x 768: the leading 16 in 27 ms, 96 in 51, 192 in 82; all of them in 78 by the other.
            some = most is not None and most <= _MANY * p
            how = {"driver": "evr", "subset_by_index": [p - most, p - 1]} if some else {"driver": "evd"}
            found = linalg.eigh(G.numpy(), lower=True, overwrite_a=True, check_finite=False, **how)
            energies, V = map(torch.from_numpy, found)
        else:
            energies, V = torch.linalg.eigh(G, UPLO="L")
    except (linalg.LinAlgError, torch.linalg.LinAlgError):
        return None
    energies, V = energies.flip(0), V.flip(1)
    k = count(energies)
    if k > p or float(energies[k - 1]) <= _GRAM_REACH**2 * float(energies[0]):
        return None
    U, R = torch.linalg.qr(tall @ V[:, :k])
    S, order = R.diagonal().abs().sort(descending=True)  # rounding may swap what is nearly equal
    return (U * R.diagonal().sign())[:, order], S, V[:, :k].T[order]


def _residual(tall: Tensor, U: Tensor, S: Tensor, Vh: Tensor, total: float) -> float:
    """Share of the norm that the triplets leave out."""
    left = total - float(S.square().sum())
    if left <= _CANCELS * total:
        rows = max(1, _BLOCK // tall.shape[1])
        blocks = zip(tall.split(rows), U.split(rows), strict=True)
        left = sum(float((part - Us * S @ Vh).square().sum()) for part, Us in blocks)
    return math.sqrt(left / total)


def _spread(X: Tensor, rows: Tensor | slice, size: int) -> Tensor:
    """X with the rows of zeros back that were left out."""
    if isinstance(rows, slice):
        return X
    full = X.new_zeros(size, X.shape[1])
    full[rows] = X
    return full
