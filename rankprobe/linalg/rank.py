"""Definitions of rank, each from singular values alone.

All of them take S of shape (..., k), so that many matrices of one size go at once, compute in float64 and do not change
when S is scaled. The zero matrix has rank 0 under each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankprobe.errors import UsageError, must


def stable_rank(S: Tensor) -> Tensor:
    """Stable rank ||M||_F² / ||M||_2², from the singular values of M.

    Parameters
    ----------
    S : Tensor, shape (..., k), float32 or float64
        Singular values, non-increasing.

    Returns
    -------
    Tensor, shape (...)
        Dimensionless, in [1, k]; 0 if M is zero.

    Raises
    ------
    ValueError
        If S is half precision, negative, non-finite or not sorted.

    References
    ----------
    Rudelson & Vershynin (2007), arXiv:math/0503442, abstract.

    Examples
    --------
    >>> stable_rank(torch.tensor([2.0, 1.0, 1.0]))
    tensor(1.5000)
    """
    return _relative(S).square().sum(-1).to(S.dtype)


def effective_rank(S: Tensor) -> Tensor:
    """Effective rank exp(H(p)) with p = S / ΣS, the exponential of the spectrum's Shannon entropy.

    Parameters
    ----------
    S : Tensor, shape (..., k), float32 or float64
        Singular values, non-increasing.

    Returns
    -------
    Tensor, shape (...)
        Dimensionless, in [1, k]; 0 if M is zero.

    Raises
    ------
    ValueError
        If S is half precision, negative, non-finite or not sorted.

    References
    ----------
    Roy & Vetterli (2007), "The effective rank: a measure of effective dimensionality", EUSIPCO, definition 1.

    Examples
    --------
    >>> effective_rank(torch.tensor([3.0, 3.0, 0.0]))
    tensor(2.)
    """
    t = _relative(S)
    total = t.sum(-1, keepdim=True)
    # A zero matrix has no distribution: 0 / 1 gives entropy 0, and its rank is set below.
    p = t / total.where(total > 0, 1.0)
    rank = torch.special.entr(p).sum(-1).exp().clamp(1.0, S.shape[-1])
    return rank.where(total[..., 0] > 0, 0.0).to(S.dtype)


def participation_ratio(S: Tensor) -> Tensor:
    """Participation ratio (ΣS²)² / ΣS⁴, the number of directions that share the energy.

    Parameters
    ----------
    S : Tensor, shape (..., k), float32 or float64
        Singular values, non-increasing.

    Returns
    -------
    Tensor, shape (...)
        Dimensionless, in [1, k]; 0 if M is zero.

    Raises
    ------
    ValueError
        If S is half precision, negative, non-finite or not sorted.

    References
    ----------
    Bell & Dean (1970), Discussions of the Faraday Society 50, 55-61 (of the eigenvalues S² of M Mᵀ).

    Examples
    --------
    >>> participation_ratio(torch.tensor([2.0, 1.0, 1.0]))
    tensor(2.)
    """
    energy = _relative(S).square()
    fourth = energy.square().sum(-1)
    rank = (energy.sum(-1).square() / fourth.where(fourth > 0, 1.0)).clamp(1.0, S.shape[-1])
    return rank.where(fourth > 0, 0.0).to(S.dtype)


def energy_rank(S: Tensor, q: float) -> Tensor:
    """Smallest k whose best rank-k part holds the share q of the energy ΣS².

    Parameters
    ----------
    S : Tensor, shape (..., k), float32 or float64
        Singular values, non-increasing.
    q : float
        Share of the energy, above 0 and at most 1; 1 counts the singular values that are not zero.

    Returns
    -------
    Tensor, shape (...), int64
        In [1, k]; 0 if M is zero.

    Raises
    ------
    ValueError
        If q is out of range, or S is half precision, negative, non-finite or not sorted.

    Notes
    -----
    Decided by the energy that is left over, summed from the smallest term up, because a running sum from the largest
    loses the tail that high shares depend on. A share missed by rounding alone (4 eps of S's dtype, and k eps of
    float64 in what is left over) counts as reached: nine of ten equal values hold 0.9.

    Energy is ΣS² here. A share q of kohya's ``sv_fro`` is the share q² of it; ``sv_cumulative`` is of ΣS.

    References
    ----------
    Jolliffe (2002), Principal Component Analysis, 2nd ed., section 6.1.1 (cumulative percentage of total variation).

    Examples
    --------
    >>> energy_rank(torch.tensor([3.0, 1.0, 0.0]), 0.9), energy_rank(torch.tensor([3.0, 1.0, 0.0]), 1.0)
    (tensor(1), tensor(2))
    """
    if not 0 < q <= 1:
        raise UsageError(must("q", "be above 0 and at most 1", q, "Pass a share of the energy, 0.9 for 90 %"))
    energy = _relative(S).square()
    if q == 1:
        return (S > 0).sum(-1)  # of S itself: the square of a small value may be zero
    left = energy.flip(-1).cumsum(-1).flip(-1)  # left[..., i]: the energy of index i and after
    of_values, of_sum = 4 * torch.finfo(S.dtype).eps, S.shape[-1] * torch.finfo(torch.float64).eps
    # Leaving out everything from index i on keeps i values; the ones that cannot be left out are those to count.
    return (left * (1 - of_sum) > left[..., :1] * (1 - q + of_values)).sum(-1)


def numerical_rank(S: Tensor, shape: tuple[int, int], eps: float) -> Tensor:
    """Number of singular values above the rounding of the arithmetic, S > S[0] · max(m, n) · eps.

    Parameters
    ----------
    S : Tensor, shape (..., k), float32 or float64
        Singular values, non-increasing.
    shape : (int, int)
        ``(m, n)`` of the matrix, which factors and S alone do not tell.
    eps : float
        Machine epsilon of the arithmetic that made and decomposed M, ``torch.finfo(dtype).eps``.

    Returns
    -------
    Tensor, shape (...), int64
        In [1, k]; 0 if M is zero.

    Raises
    ------
    ValueError
        If eps or shape is out of range, or S is half precision, negative, non-finite or not sorted.

    References
    ----------
    The default threshold of numpy.linalg.matrix_rank and of MATLAB's rank; NumPy's Notes discuss others.

    Examples
    --------
    >>> numerical_rank(torch.tensor([1.0, 1e-3, 1e-9]), (3, 3), torch.finfo(torch.float32).eps)
    tensor(2)
    """
    if not 0 < eps < 1:
        raise UsageError(must("eps", "be between 0 and 1", eps, "Pass torch.finfo(dtype).eps"))
    if len(shape) != 2 or min(shape) < S.shape[-1]:
        got = f"{tuple(shape)} for {S.shape[-1]} singular values"
        raise UsageError(must("shape", "be (m, n) with min(m, n) no less than S has", got, "Pass the matrix's shape"))
    return (_relative(S) > max(shape) * eps).sum(-1)


def _relative(S: Tensor) -> Tensor:
    """S / S[0] in float64 (zeros for a zero matrix), after a check that S is what an SVD gives.

    Dividing first keeps squares and fourth powers in range whatever the scale of M.
    """
    if S.dtype not in (torch.float32, torch.float64):
        raise UsageError(must("S", "be float32 or float64", S.dtype, "Decompose in float64 (svdvals_dense)"))
    if S.ndim == 0 or S.shape[-1] == 0:
        raise UsageError(must("S", "hold at least one singular value", f"shape {tuple(S.shape)}", "Pass (..., k)"))
    if not bool(S.isfinite().all()):
        raise _bad(S, ~S.isfinite(), "be finite", "Look for NaN or infinite entries in the matrix")
    if bool((S < 0).any()):
        raise _bad(S, S < 0, "be non-negative", "Pass singular values, not eigenvalues")
    rises = S[..., 1:] > S[..., :-1]
    if bool(rises.any()):
        *batch, i = rises.nonzero()[0].tolist()
        low, high = (f"S[{', '.join(map(str, (*batch, j)))}]" for j in (i, i + 1))
        a, b = float(S[(*batch, i)]), float(S[(*batch, i + 1)])
        got = f"{low}={a:.6g} < {high}={b:.6g}" if f"{a:.6g}" != f"{b:.6g}" else f"{low}={a!r} < {high}={b!r}"
        raise UsageError(must("S", "be sorted non-increasing", got, "Pass the output of svdvals unchanged"))
    wide = S.double()
    top = wide[..., :1]
    return wide / top.where(top > 0, 1.0)


def _bad(S: Tensor, where: Tensor, rule: str, next_step: str) -> UsageError:
    index = where.nonzero()[0].tolist()
    got = f"S[{', '.join(map(str, index))}]={float(S[tuple(index)]):.6g}"
    return UsageError(must("S", rule, got, next_step))
