"""AdamW and clipping for the members of a pack: what a lone run's optimiser does, on one matrix with a member a row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rankprobe.methods.packed_lora import Pack

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


class PackedAdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2) with a rate and a gradient norm a member.

    Parameters
    ----------
    pack : Pack
        Its matrix is updated in place.
    lrs : sequence of float
        Peak rates, in the order of the pack's members.
    weight_decay : float
        Of matrices; vectors are not decayed.
    clip_norm : float
        0 clips nothing.

    Notes
    -----
    Members take every step together, so one count of steps serves all. A parameter that the model does not use has no
    gradient and is left alone, as torch's AdamW does.
    """

    def __init__(self, pack: Pack, lrs: Sequence[float], *, weight_decay: float, clip_norm: float) -> None:
        self.pack, self.weight_decay, self.clip_norm = pack, weight_decay, clip_norm or math.inf
        self.lrs = pack.matrix.new_tensor(list(lrs))[:, None]
        self.steps = 0
        self._m, self._v = torch.zeros_like(pack.matrix), torch.zeros_like(pack.matrix)
        self._gradient, self._norms = torch.zeros_like(pack.matrix), pack.matrix.new_zeros(len(lrs))
        self._decayed: list[tuple[int, int]] = []

    def gather(self) -> Tensor:
        """Take the gradients that backward left; each member's norm before clipping, shape (members,)."""
        slots = self.pack.slots
        columns = []
        for slot in slots:
            gradient = slot.value.grad
            columns.append(
                self._gradient.new_zeros(len(self._gradient), slot.last - slot.first)
                if gradient is None
                else gradient.flatten(1)
            )
        if not self.steps:
            self._decayed = _runs([(s.first, s.last) for s in slots if s.decayed and s.value.grad is not None])
        torch.cat(columns, dim=1, out=self._gradient)
        for slot in slots:
            slot.value.grad = None
        self._norms = torch.linalg.vector_norm(self._gradient, dim=1)
        return self._norms

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One step of every member with the gradients last gathered.

        Parameters
        ----------
        factor : float
            Share of the peak rates.
        """
        self.steps += 1
        p, g, m, v = self.pack.matrix, self._gradient, self._m, self._v
        # As torch's clip_grad_norm_ has it.
        g.mul_((self.clip_norm / (self._norms + 1e-6)).clamp(max=1.0)[:, None])
        lrs = self.lrs * factor
        for first, last in self._decayed:
            # Not p * (1 - rate): in float32 that factor's rounding would be percents of the rate, always the same way.
            part = p[:, first:last]
            part.addcmul_(part, lrs * self.weight_decay, value=-1.0)
        m.lerp_(g, 1 - _BETA1)
        v.mul_(_BETA2).addcmul_(g, g, value=1 - _BETA2)
        # The gradients have been used: their memory serves for the update.
        torch.sqrt(v, out=g).div_(math.sqrt(1 - _BETA2**self.steps)).add_(_EPS)
        torch.div(m, g, out=g)
        p.addcmul_(g, lrs / (1 - _BETA1**self.steps), value=-1.0)

    def keep(self, places: Sequence[int]) -> None:
        """Forget the members that :meth:`Pack.keep` takes out, given the same places."""
        places = list(places)
        self.lrs, self._m, self._v = self.lrs[places], self._m[places], self._v[places]
        self._gradient, self._norms = self._gradient[places], self._norms[places]


def _runs(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of columns with neighbours joined.

    >>> _runs([(0, 2), (2, 5), (7, 8)])
    [(0, 5), (7, 8)]
    """
    joined: list[tuple[int, int]] = []
    for first, last in ranges:
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined
