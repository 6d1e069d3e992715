"""The layer that stands in for a target's: its frozen weight and trained factors, ``W0 x + scaling * B A x``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankprobe.weights.adapter import Factors, scaling_of
from rankprobe.weights.architecture import WeightSite
from rankprobe.weights.rank_pattern import factor_shapes


class AdaptedLinear(nn.Module):
    """A frozen linear layer with something added to its output; it answers for the layer that was in its place.

    Parameters
    ----------
    base : nn.Linear or transformers Conv1D
        Kept by reference.
    sites : list of WeightSite
        The parts of its output that are adapted; all belong to ``base``.
    """

    def __init__(self, base: nn.Module, sites: list[WeightSite]) -> None:
        super().__init__()
        self.base, self.sites = base, sites

    @property
    def weight(self) -> nn.Parameter:
        """The base's: some models (T5, BLOOM) ask the layer that was here for its dtype."""
        return self.base.weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The base's."""
        return self.base.bias


class LoRALayer(AdaptedLinear):
    """A frozen linear layer plus low-rank updates of all or parts of its output.

    Parameters
    ----------
    base : nn.Linear or transformers Conv1D
        Frozen here; kept by reference.
    sites : list of WeightSite
        The parts to adapt, each with factors of its own; all belong to ``base``.
    r, alpha : int, float
    rslora : bool
        Whether the scaling is ``alpha / sqrt(r)`` instead of ``alpha / r``.
    dropout : float
        On the adapter's input, as in the paper.
    generator : torch.Generator
        For the initial A.
    rs : sequence of int, optional
        r of each site, where they differ; alpha goes with it, ``alpha * rs[i] / r``.

    Attributes
    ----------
    A : ParameterList of shape (r, in_features) each
        Kaiming-uniform with a = sqrt(5) at start, as loralib and PEFT do; the paper's text says Gaussian.
    B : ParameterList of shape (part's out_features, r) each
        Zero at start, so that dW = 0.
    scalings : list of float
        Of each site; all of them ``scaling`` but for rsLoRA with several r.
    """

    def __init__(
        self,
        base: nn.Module,
        sites: list[WeightSite],
        r: int,
        alpha: float,
        rslora: bool,
        dropout: float,
        generator: torch.Generator,
        rs: Sequence[int] | None = None,
    ) -> None:
        super().__init__(base, sites)
        self.r, self.alpha, self.rslora, self.dropout = r, alpha, rslora, dropout
        self.scaling = scaling_of(alpha, r, rslora)
        self.rs = list(rs) if rs is not None else [r] * len(sites)
        self.scalings = [self.scaling if k == r else scaling_of(alpha * k / r, k, rslora) for k in self.rs]
        base.requires_grad_(False)
        # The base may be held in half precision for speed; the factors are what is trained and stay float32.
        bound, device = 1 / math.sqrt(sites[0].shape[1]), base.weight.device
        B_shapes, A_shapes = zip(*(factor_shapes(s.shape, k) for s, k in zip(sites, self.rs, strict=True)), strict=True)
        A = [torch.empty(shape, device="meta" if device.type == "meta" else "cpu") for shape in A_shapes]
        if device.type != "meta":  # there, drawing would take r x n numbers and keep none
            A = [a.uniform_(-bound, bound, generator=generator).to(device) for a in A]
        self.A = nn.ParameterList(A)
        self.B = nn.ParameterList(torch.zeros(shape, device=device) for shape in B_shapes)
        self._W0: Tensor | None = None

    @property
    def merged(self) -> bool:
        """Whether dW is in the base's weight now."""
        return self._W0 is not None

    def forward(self, x: Tensor) -> Tensor:
        """The adapted layer's output, shape (..., out_features)."""
        out = self.base(x)
        if self.merged:
            return out
        h = F.dropout(x, self.dropout, self.training) if self.dropout else x
        for site, A, B, scaling in zip(self.sites, self.A, self.B, self.scalings, strict=True):
            update = F.linear(F.linear(h, A), B)
            if site.rows is None:
                out = torch.add(out, update, alpha=scaling)
            else:
                site.rows.view(out, -1).add_(site.rows.shaped(update, -1), alpha=scaling)
        return out

    @torch.no_grad()
    def merge(self) -> None:
        """Add dW to the base's weight; computed in float64, rounded once to the weight's dtype. W0 is kept aside."""
        if self.merged:
            return
        W0 = self.base.weight.detach().clone()
        for site, A, B, scaling in zip(self.sites, self.A, self.B, self.scalings, strict=True):
            dW = scaling * (B.double() @ A.double())
            site.set_(self.base.weight, site.get(W0).double() + dW)
        self._W0 = W0

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put W0 back, bit for bit."""
        if self.merged:
            self.base.weight.copy_(self._W0)
            self._W0 = None

    def factors(self) -> Factors:
        """The update of the whole base matrix as one pair of factors (stacked where parts have their own).

        The pair's r' is the sum of the parts' (P r for P parts), its alpha keeps the scaling under PEFT's rule for that
        r'. Where parts have scalings of their own, B takes up how they differ.
        """
        if self.sites[0].rows is None:
            return Factors(self.B[0].data, self.A[0].data, self.alpha, self.scaling)
        out_features = self.base.weight.shape[1 if self.sites[0].transposed else 0]
        B = torch.zeros(out_features, sum(self.rs))
        first = 0
        for site, part, k, scaling in zip(self.sites, self.B, self.rs, self.scalings, strict=True):
            place = site.rows.view(B[:, first : first + k])
            place.copy_(site.rows.shaped(part.data if scaling == self.scaling else part.data * scaling / self.scaling))
            first += k
        times = first / self.r
        alpha = self.alpha * (math.sqrt(times) if self.rslora else times)
        return Factors(B, torch.cat([a.data for a in self.A]), alpha, self.scaling)
