"""Singular values of a strong part of low rank above a faint bulk: each of the two on its own.

An update of low rank in a float32 checkpoint is the typical one: its own values lie a million times above those of what
rounding left, and one Gram matrix cannot hold both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rankprobe.linalg.gram import EPS, MARGIN, by_gram
from rankprobe.linalg.krylov import steps

# Least fall from the strong part's last value to the next.
_GAP = 2.0
# The strong part's values are above this share of the first: squares resolve no others.
_STRONG = 1e-6
# First block and largest basis, as shares of the smaller side: beyond a sixth a direct decomposition costs as little.
_BLOCK, _BASIS = 1 / 32, 1 / 6
# Columns of the basis beyond the strong part, without which the gap is not to be trusted.
_BEYOND = 8


def by_deflation(tall: Tensor) -> tuple[Tensor, float] | None:
    """All singular values of a tall matrix (m, p), and their error as a share of the first.

    None where there is no gap to cut at, where the strong part is too large, or where the faint one is not resolved.

    Notes
    -----
    From an orthonormal ``U`` of (nearly) the k leading left singular directions, and ``V`` of the rows of ``Uᵀ M``, the
    rest ``R = M - U Uᵀ M - F Vᵀ`` with ``F = (1 - U Uᵀ) M V`` has nothing of U on the left and of V on the right. In
    bases that begin with U and V, M is the block matrix ``[[Uᵀ M V, 0], [F, R]]``, and leaving F out moves no singular
    value by more than ``‖F‖² / (σ_k - σ_max(R))``, which is checked. R's values are taken from its Gram matrix. What
    forming R rounds, a few ``eps σ₁``, is of the size of what a direct decomposition errs by.

    References
    ----------
    Li & Li (2005), Linear Algebra and its Applications 395, 183-190 (off-diagonal blocks move singular values by their
    square over the gap). Mathias & Stewart (1993), Linear Algebra and its Applications 182, 91-100.
    """
    m, p = tall.shape
    # A direct decomposition errs by as much, see values.py.
    floor = math.sqrt(m) * EPS
    size = max(2 * _BEYOND, int(_BLOCK * p))
    for step in steps(tall, size, _BASIS, seed=0):
        k = _cut(step.energies.sqrt())
        if not k:
            continue
        U = torch.linalg.qr(step.W @ step.Y[:, :k]).Q
        onto = U.T @ tall
        V, L = torch.linalg.qr(onto.T)
        S = torch.linalg.svdvals(L)
        F = tall @ V - U @ L.T
        first, last = float(S[0]), float(S[-1])
        # The gap is at least half of the last value, whatever R's first turns out to be: else None is given below.
        if float(torch.linalg.matrix_norm(F)) ** 2 > 0.5 * last * floor * first:
            continue
        rest = by_gram(torch.addmm(tall, torch.cat([U, F], dim=1), torch.cat([onto, V.T]), alpha=-1), zeros=k)
        if rest is None or float(rest[0]) * _GAP > last:
            return None
        least, most = float(rest[-1]), float(rest[0])
        error = 2 * floor + math.sqrt(p) * EPS * most * most / (least * first)
        if least <= MARGIN * 2 * floor * first:
            return None
        return torch.cat([S, rest]), error
    return None


def _cut(S: Tensor) -> int:
    """Where the last gap of a basis's singular values is; 0 without one."""
    inner = S[: len(S) - _BEYOND + 1]
    falls = (inner[1:] * _GAP <= inner[:-1]) & (inner[:-1] > _STRONG * S[0])
    return int(falls.nonzero()[-1]) + 1 if bool(falls.any()) else 0
