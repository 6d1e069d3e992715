"""Block Krylov iteration for the leading right singular space of a dense matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rankprobe.linalg.gram import EPS

# More columns a block than triplets wanted.
_OVERSAMPLING = 8
# Largest basis, as a share of the smaller side: for a number of triplets, for a share of the energy. Beyond it the Gram
# matrix's eigenvectors cost less than going on, and what was spent is at most half as much again.
_BASIS_OF_COUNT, _BASIS_OF_SHARE = 1 / 3, 1 / 4
# Done when the steps to come will add less than this share of the energy that is left out: four tenths of what 1.001 of
# the optimum allows.
_TO_GAIN = 8e-4
# Done in any case when no more than this share of all energy is left out: the square of 5e-7.
_NOTHING = 2.5e-13
# A step that adds less than this share of all energy has come to rounding.
_ROUNDING = 1e-11


@dataclass(frozen=True)
class Step:
    """What a basis has found.

    Attributes
    ----------
    V, W : Tensor, shapes (n, c) and (m, c)
        Orthonormal basis, and M times it.
    energies : Tensor, shape (c,)
        Squared singular values of M within the span, non-increasing.
    Y : Tensor, shape (c, c)
        Their vectors in terms of V.
    """

    V: Tensor
    W: Tensor
    energies: Tensor
    Y: Tensor

    def triplets(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k leading singular triplets of M within the span: orthonormal to rounding, with ``U * S = M @ V``."""
        Y = self.Y[:, :k]
        U, S, Gh = torch.linalg.svd(self.W @ Y, full_matrices=False)
        return U, S, Gh @ (self.V @ Y).T


def by_count(M: Tensor, k: int, total: float, seed: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """k leading triplets of M (m, n), m >= n, of energy ``total``; None if the basis would grow too large."""
    before = gain = None
    for step in steps(M, k + _OVERSAMPLING, _BASIS_OF_COUNT, seed):
        found = step.energies[:k]
        gain, last_gain = None if before is None else (found - before).clamp(min=0), gain
        left = total - float(found.sum())
        if left <= _NOTHING * total or (gain is not None and _to_come(gain, last_gain) <= _TO_GAIN * left):
            return step.triplets(k)
        before = found
    return None


def by_share(M: Tensor, share: float, slack: float, total: float, seed: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """As many leading triplets as hold a share of the energy, which may be missed by ``slack``; None as in by_count."""
    size = max(2 * _OVERSAMPLING, M.shape[1] // 32)
    need = (share - slack) * total
    before = torch.zeros(0)
    for step in steps(M, size, _BASIS_OF_SHARE, seed):
        running = step.energies.cumsum(0)
        c = len(running)
        count = int((running < need).sum()) + 1
        if count <= c:
            kept = float(running[count - 1])
            gain = kept - float(before[count - 1]) if count <= len(before) else math.inf
            short = need - float(running[count - 2]) if count > 1 else math.inf
            # One fewer might do once the values have grown: not if they would have to grow ten steps' worth.
            certain = gain <= _ROUNDING * total or short > 10 * gain
            left = total - kept
            if certain and (left <= _NOTHING * total or gain <= _TO_GAIN * left):
                return step.triplets(count)
        elif len(before):
            # Blocks find less and less: hopeless where as much as the last one's, from each to come, is not enough.
            found = float(step.W[:, -size:].square().sum())
            if float(running[-1]) + found * (_BASIS_OF_SHARE * M.shape[1] - c) / size < need:
                return None
        before = running
    return None


def _to_come(gain: Tensor, last_gain: Tensor | None) -> float:
    """What all further steps will add to the energies, if each adds the same share of the one before: it adds less.

    Value by value, for large ones converge long before those at the edge of a bulk. Before there are two steps to tell,
    each is taken to add three quarters of the one before.
    """
    ratio = torch.full_like(gain, 0.75) if last_gain is None else (gain / last_gain).nan_to_num(0.75).clamp(max=0.9)
    return float((gain * ratio / (1 - ratio)).sum())


def steps(M: Tensor, size: int, share: float, seed: int) -> Iterator[Step]:
    """Bases of one block after the other, each of ``size`` columns, up to a share of M's."""
    m, n = M.shape
    generator = torch.Generator().manual_seed(seed)

    def random(rows: int) -> Tensor:
        # Drawn on the CPU, so that every device starts from the same; in float32, which takes a tenth of the time.
        return torch.randn(rows, size, generator=generator).to(M.device, M.dtype)

    if size > share * n:
        return
    V = torch.linalg.qr(M.T @ random(m)).Q
    W = M @ V
    while True:
        energies, Y = torch.linalg.eigh(W.T @ W)
        yield Step(V, W, energies.flip(0).clamp(min=0), Y.flip(1))
        if V.shape[1] + size > share * n:
            return
        new = M.T @ W[:, -size:]
        # Where M's range is used up this leaves nothing, and noise of the size of rounding gives other directions.
        new += EPS * torch.linalg.vector_norm(new) / math.sqrt(n) * random(n)
        for _ in range(3):  # what is left after a first time may be mostly rounding
            new = torch.linalg.qr(new - V @ (V.T @ new)).Q
        V, W = torch.cat([V, new], dim=1), torch.cat([W, M @ new], dim=1)
