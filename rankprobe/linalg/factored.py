"""Singular value decompositions of LoRA's products from their factors, which are never multiplied out."""

from __future__ import annotations

import torch
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.linalg.matrix import checked, not_converged


def svd_factored(B: Tensor, A: Tensor, scaling: float = 1.0, *, name: str = "dW") -> tuple[Tensor, Tensor, Tensor]:
    """Reduced SVD of ``scaling * B @ A`` from its factors, which are never multiplied out.

    Parameters
    ----------
    B, A : Tensor, shapes (m, r) and (r, n), any floating dtype
        Upcast to float64; decomposed on the device they are on.
    scaling : float
        ``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA. May be negative or zero.
    name : str
        What error messages call the update.

    Returns
    -------
    U, S, Vh : Tensor, shapes (m, k), (k,) and (k, n) with k = min(r, m, n), float64
        As the k leading triplets of ``torch.linalg.svd(scaling * B @ A)``; all the others have a singular value of 0.

    Raises
    ------
    UsageError
        If the factors are not matrices of finite floating-point numbers or do not fit together.
    WorkError
        If the SVD does not converge.

    Notes
    -----
    ``B = Q_B R_B`` and ``Aᵀ = Q_A R_A``, so ``scaling * B @ A = Q_B (scaling * R_B R_Aᵀ) Q_Aᵀ``: the SVD is that of an
    r x r core, rotated; time O((m + n) r²) instead of O(m n min(m, n)). Errors are of the order of
    ``eps * |scaling| ||B||₂ ||A||₂``: singular values below that, which only factors that cancel each other have, are
    not resolved.

    References
    ----------
    Chan (1982), ACM Transactions on Mathematical Software 8, 72-83 (QR first, then the SVD of R).

    Examples
    --------
    >>> B, A = torch.tensor([[1.0], [0.0], [0.0]]), torch.tensor([[0.0, 3.0]])
    >>> svd_factored(B, A, scaling=2.0)[1]
    tensor([6.], dtype=torch.float64)
    """
    B, A = _fitting(B, A, name)
    Q_B, R_B = torch.linalg.qr(B)
    Q_A, R_A = torch.linalg.qr(A.T)
    core = _core(R_B, R_A, scaling, B, A, name)
    try:
        U, S, Vh = torch.linalg.svd(core, full_matrices=False)
    except torch.linalg.LinAlgError as error:
        raise not_converged(name, error) from error
    return Q_B @ U, S, Vh @ Q_A.T


def svdvals_factored(B: Tensor, A: Tensor, scaling: float = 1.0, *, name: str = "dW") -> Tensor:
    """Singular values of ``scaling * B @ A`` from its factors; :func:`svd_factored` without the vectors.

    Parameters
    ----------
    B, A, scaling, name
        As for :func:`svd_factored`.

    Returns
    -------
    Tensor, shape (min(r, m, n),), float64
        Non-increasing; the other singular values of the product are exactly 0.

    Raises
    ------
    UsageError, WorkError
        As :func:`svd_factored`.

    Notes
    -----
    Only the R of each QR is formed. Errors are those of :func:`svd_factored`.

    References
    ----------
    Chan (1982), ACM Transactions on Mathematical Software 8, 72-83 (QR first, then the SVD of R).

    Examples
    --------
    >>> svdvals_factored(torch.tensor([[1.0], [0.0], [0.0]]), torch.tensor([[0.0, 3.0]]), scaling=2.0)
    tensor([6.], dtype=torch.float64)
    """
    B, A = _fitting(B, A, name)
    R_B, R_A = torch.linalg.qr(B, mode="r").R, torch.linalg.qr(A.T, mode="r").R
    try:
        return torch.linalg.svdvals(_core(R_B, R_A, scaling, B, A, name))
    except torch.linalg.LinAlgError as error:
        raise not_converged(name, error) from error


def _fitting(B: Tensor, A: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Both factors in float64."""
    B, A = checked(B, f"B of {name}"), checked(A, f"A of {name}")
    if B.shape[1] != A.shape[0]:
        got = f"B {tuple(B.shape)} and A {tuple(A.shape)}"
        raise UsageError(must(name, "have factors B (m, r) and A (r, n)", got, "Pass both factors of one update"))
    return B, A


def _core(R_B: Tensor, R_A: Tensor, scaling: float, B: Tensor, A: Tensor, name: str) -> Tensor:
    """The small matrix that has the product's singular values."""
    core = float(scaling) * (R_B @ R_A.T)
    if not bool(core.isfinite().all()):
        got = f"scaling {scaling:g} and factors up to {float(B.abs().max()):.3g} and {float(A.abs().max()):.3g}"
        raise UsageError(must(name, "have a finite product scaling * B @ A", got, "Look for a training that diverged"))
    return core
