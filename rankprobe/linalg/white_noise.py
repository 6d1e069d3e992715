"""Ranks above white noise of unknown strength: the Marchenko-Pastur edge and Gavish & Donoho's optimal threshold.

Both take the strength of the noise from the median singular value, so they hold where fewer than half of the singular
values carry signal and the noise has the same variance everywhere.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from rankprobe.errors import UsageError, must

_TRACY_WIDOM_999 = 3.2722  # 99.9 % point of the Tracy-Widom law of order 1, from its form by Painlevé II


def mp_edge(S: Tensor, shape: tuple[int, int]) -> float:
    """Singular value that white noise exceeds in at most about 1 of 100 matrices, its strength taken from S's median.

    Parameters
    ----------
    S : Tensor, shape (k,), float32 or float64
        Singular values of a dense matrix, non-increasing; k at least min(m, n).
    shape : (int, int)
        ``(m, n)``, without rows and columns that are exactly zero: they hold no noise. Their singular values, zeros
        at the end of S, are left out.

    Returns
    -------
    float
        In the units of S; 0 if more than half of the min(m, n) values are 0: there is no noise to stand above.

    Raises
    ------
    ValueError
        If S is not what an SVD gives, or has another length than shape says.

    Notes
    -----
    With β = min / max of m and n, μ_β the median of the Marchenko-Pastur law and s = median σ / √(max(m, n) μ_β), the
    edge of an infinite matrix is s (√m + √n). The largest noise value of a finite one lies above that in about 17 % of
    matrices. So this departs from the bare edge by Johnstone's correction, with the 99.9 % point q of the Tracy-Widom
    law: s √((√m + √n)² + q (√m + √n) (1/√m + 1/√n)^(1/3)). It is 6 % at 64 × 64 and 0.6 % at 2048 × 2048. The 99 %
    point would not give 99 of 100, for the median varies too: it was exceeded in 3.5 % of 4,000 matrices 64 × 64, this
    in 0.7 %.

    References
    ----------
    Marchenko & Pastur (1967), Mathematics of the USSR-Sbornik 1, 457-483.
    Johnstone (2001), Annals of Statistics 29, 295-327, theorem 1.1 (with n for his n - 1).

    Examples
    --------
    >>> noise = torch.randn(300, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> S = torch.linalg.svdvals(noise)
    >>> bool(S[0] < mp_edge(S, (300, 200)) < 1.1 * S[0])
    True
    """
    S, m, n = _checked(S, shape)
    scale = _median(S) / math.sqrt(max(m, n) * mp_median(min(m, n) / max(m, n)))
    return scale * (math.sqrt(m) + math.sqrt(n)) * math.sqrt(1 + _TRACY_WIDOM_999 * fluctuation(m, n))


def mp_rank(S: Tensor, shape: tuple[int, int]) -> int:
    """Number of singular values above :func:`mp_edge`.

    Parameters
    ----------
    S, shape
        As for :func:`mp_edge`.

    Returns
    -------
    int
        In [0, min(m, n)]. Always 0 for a single row or column, which has one value to take the noise from. Where more
        than half of the values are 0 there is no noise, and the values above rounding count (S[0] max(m, n) eps).

    Examples
    --------
    >>> mp_rank(torch.tensor([9.0, 1.0, 0.9, 0.8, 0.7]), (5, 5))
    1
    """
    return _count_above(mp_edge(S, shape), S, shape)


def gd_threshold(S: Tensor, shape: tuple[int, int]) -> float:
    """Gavish & Donoho's optimal hard threshold for singular values, noise unknown: τ = ω(β) median σ.

    Parameters
    ----------
    S, shape
        As for :func:`mp_edge`.

    Returns
    -------
    float
        In the units of S; 0 if more than half of the min(m, n) values are 0.

    Raises
    ------
    ValueError
        As :func:`mp_edge`.

    Notes
    -----
    ω(β) = λ*(β) / √μ_β with the exact μ_β, not the paper's cubic fit (0.02 off). It minimises the error of the
    truncated SVD asymptotically and lies above the edge (by 15 % for a square matrix): values between the two are
    there, but cost more noise than they bring signal.

    References
    ----------
    Gavish & Donoho (2014), IEEE Transactions on Information Theory 60, 5040-5053 (arXiv:1305.5870), equations 4, 11
    and 12 of the preprint.

    Examples
    --------
    >>> round(gd_threshold(torch.ones(100), (100, 100)), 3)
    2.858
    """
    S, m, n = _checked(S, shape)
    beta = min(m, n) / max(m, n)
    known = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1)))
    return known / math.sqrt(mp_median(beta)) * _median(S)


def gd_rank(S: Tensor, shape: tuple[int, int]) -> int:
    """Number of singular values above :func:`gd_threshold`.

    Parameters
    ----------
    S, shape
        As for :func:`mp_edge`.

    Returns
    -------
    int
        In [0, min(m, n)]; degenerate cases as for :func:`mp_rank`.

    Examples
    --------
    >>> gd_rank(torch.tensor([9.0, 1.0, 0.9, 0.8, 0.7]), (5, 5))
    1
    """
    return _count_above(gd_threshold(S, shape), S, shape)


@lru_cache(maxsize=4096)
def mp_median(beta: float) -> float:
    """Median μ_β of the Marchenko-Pastur law of ratio β in (0, 1] and variance 1.

    Examples
    --------
    >>> round(mp_median(1.0), 4), round(mp_median(0.5), 4)
    (0.6528, 0.8305)
    """
    low, high = 0.0, math.pi
    for _ in range(60):  # halved to the last digit of a float64
        middle = (low + high) / 2
        low, high = (middle, high) if _mp_mass(middle, beta) < 0.5 else (low, middle)
    return 1 + beta - 2 * math.sqrt(beta) * math.cos(low)


def _mp_mass(angle: float, beta: float) -> float:
    """Mass of the law below ``1 + β - 2 √β cos(angle)``.

    That substitution turns the density √((b - t)(t - a)) / (2 π β t) into (2 / π) sin² / (1 + β - 2 √β cos), whose
    integral is elementary.
    """
    a, b = 1 + beta, 2 * math.sqrt(beta)
    half = math.atan2((1 + math.sqrt(beta)) * math.sin(angle / 2), (1 - math.sqrt(beta)) * math.cos(angle / 2))
    return 2 / math.pi * ((a * angle - 2 * (1 - beta) * half) / b**2 + math.sin(angle) / b)


def fluctuation(m: int, n: int) -> float:
    """Scale of a noise matrix's largest σ² (Johnstone's σ_np), relative to the edge: it falls as (m n)^(-1/3)."""
    edge = math.sqrt(m) + math.sqrt(n)
    return (1 / math.sqrt(m) + 1 / math.sqrt(n)) ** (1 / 3) / edge


def _count_above(threshold: float, S: Tensor, shape: tuple[int, int]) -> int:
    if threshold == 0:
        threshold = float(S[0]) * max(shape) * torch.finfo(S.dtype).eps
    return int((threshold < S).sum())


def _median(S: Tensor) -> float:
    """The mean of the middle two where their number is even, as the median is defined (torch takes the lower)."""
    k = len(S)
    return float((S[(k - 1) // 2] + S[k // 2]) / 2)


def check_values(S: Tensor) -> None:
    """Raise unless S is one matrix's singular values as an SVD gives them."""
    if S.ndim != 1 or len(S) == 0 or S.dtype not in (torch.float32, torch.float64):
        got = f"shape {tuple(S.shape)}, {S.dtype}"
        raise UsageError(must("S", "be one row of float32 or float64", got, "Pass the singular values of one matrix"))
    for wrong, rule in (
        (~S.isfinite(), "be finite"),
        (S < 0, "be non-negative"),
        (torch.cat([S[:1] < 0, S[1:] > S[:-1]]), "be sorted non-increasing"),
    ):
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0, 0])
            got = ", ".join(f"S[{j}]={float(S[j]):g}" for j in range(max(0, i - 1), i + 1))
            raise UsageError(must("S", rule, got, "Pass the output of svdvals unchanged"))


def _checked(S: Tensor, shape: tuple[int, int]) -> tuple[Tensor, int, int]:
    """The min(m, n) values in float64, m and n."""
    check_values(S)
    if len(shape) != 2 or min(shape) < 1 or min(shape) > len(S):
        got = f"{tuple(shape)} for {len(S)} singular values"
        raise UsageError(must("shape", "be (m, n) with 1 to len(S) for min(m, n)", got, "Pass the dense matrix's"))
    p = min(shape)
    if p < len(S) and float(S[p]) > float(S[0]) * max(shape) * torch.finfo(S.dtype).eps:
        got = f"S[{p}]={float(S[p]):g} where {tuple(shape)} has {p} singular values"
        raise UsageError(must("S", "be zero beyond min(m, n)", got, "Pass the shape without rows that are all zero"))
    return S[:p].double(), *shape
