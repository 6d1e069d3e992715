"""Layers that several models share: one frozen product for all, and to each its own factors or head, as one batch.

Rows of all members come one after the other along the first dimension, as many for each. A member's rows meet its own
parameters only, so that nothing of one member, NaN neither, reaches another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankprobe.errors import UsageError, must
from rankprobe.methods.lora_layer import AdaptedLinear
from rankprobe.weights.architecture import WeightSite


@dataclass
class Slot:
    """One parameter of all members, a part of the matrix that holds all that a pack trains.

    Attributes
    ----------
    first, last : int
        Its columns.
    shape : tuple of int
        Of one member's, padded.
    value : Tensor, shape (members, *shape)
        A view of the matrix, and a leaf that gets a gradient; another one once a member has left.
    """

    first: int
    last: int
    shape: tuple[int, ...]
    value: Tensor

    @property
    def decayed(self) -> bool:
        """Whether weight decay applies: to matrices."""
        return len(self.shape) > 1


class PackedLoRALayer(AdaptedLinear):
    """A frozen linear layer plus, for each member, low-rank updates of all or parts of its output.

    Parameters
    ----------
    base : nn.Linear or transformers Conv1D
        Frozen here; kept by reference.
    sites : list of WeightSite
        The parts to adapt, each with factors of its own; all belong to ``base``.
    A : list of Slot, shape (r, in_features) each
        r is the largest member's; the rows that a member does not have are zero, and stay it.
    B : list of Slot, shape (part's out_features, r) each
    scalings : list of Tensor, shape (members, 1, 1) each

    Attributes
    ----------
    rows : int
        Of all members together, as the model was given them; checked in every pass.
    """

    def __init__(
        self,
        base: nn.Module,
        sites: list[WeightSite],
        A: list[Slot],
        B: list[Slot],
        scalings: list[Tensor],
    ) -> None:
        super().__init__(base, sites)
        self.A, self.B, self.scalings = A, B, scalings
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        """The adapted layer's output, shape (rows, ..., out_features)."""
        out = self.base(x)
        h = _by_member(x, len(self.A[0].value), self.rows, self.sites[0].module)
        for site, A, B, scaling in zip(self.sites, self.A, self.B, self.scalings, strict=True):
            # Scaled while it is r wide. Where A has only zeros, or B has, so have the other's gradients: exactly.
            reduced = torch.bmm(h, A.value.transpose(1, 2)) * scaling
            if site.rows is None:
                flat = out.reshape(len(h), -1, out.shape[-1])
                out = torch.baddbmm(flat, reduced, B.value.transpose(1, 2)).view(out.shape)
            else:
                update = torch.bmm(reduced, B.value.transpose(1, 2)).view(*out.shape[:-1], -1)
                site.rows.view(out, -1).add_(site.rows.shaped(update, -1))
        return out


class PackedLinear(nn.Module):
    """A linear layer of the head, each member with its own.

    Parameters
    ----------
    name : str
        The module's path.
    weight : Slot, shape (out_features, in_features)
    bias : Slot, shape (out_features,), optional
    """

    def __init__(self, name: str, weight: Slot, bias: Slot | None) -> None:
        super().__init__()
        self.name, self.weight, self.bias = name, weight, bias
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, shape (rows, ..., out_features)."""
        W = self.weight.value.transpose(1, 2)
        h = _by_member(x, len(W), self.rows, self.name)
        out = torch.bmm(h, W) if self.bias is None else torch.baddbmm(self.bias.value[:, None], h, W)
        return out.view(*x.shape[:-1], -1)


class PackedLayerNorm(nn.Module):
    """A layer norm of the head, each member with its own scale and shift.

    Parameters
    ----------
    name : str
        The module's path.
    eps : float
    weight, bias : Slot, shape (features,); the bias is optional
    """

    def __init__(self, name: str, eps: float, weight: Slot, bias: Slot | None) -> None:
        super().__init__()
        self.name, self.eps, self.weight, self.bias = name, eps, weight, bias
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, of the input's shape."""
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        out = _by_member(normed, len(self.weight.value), self.rows, self.name) * self.weight.value[:, None]
        if self.bias is not None:
            out = out + self.bias.value[:, None]
        return out.view(x.shape)


def pack_head_module(name: str, module: nn.Module, slots: Mapping[str, Slot]) -> nn.Module:
    """A module of the head with the members' own parameters in its place.

    Parameters
    ----------
    name : str
        The module's path.
    module : nn.Linear or nn.LayerNorm
    slots : mapping of str to Slot
        By the module's own names for them.

    Raises
    ------
    UsageError
        If the module is of another kind, or shares some of its parameters with the frozen base.
    """
    own = {key for key, _ in module.named_parameters()}
    if type(module) is nn.Linear and own == slots.keys():
        return PackedLinear(name, slots["weight"], slots.get("bias"))
    if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1 and own == slots.keys():
        return PackedLayerNorm(name, module.eps, slots["weight"], slots.get("bias"))
    rule = "have a head of linear layers and layer norms, whole ones"
    got = f"{name}, a {type(module).__name__} with {', '.join(sorted(slots))} in the head"
    raise UsageError(must("A model whose runs are packed", rule, got, "Do its runs one by one: --pack off"))


def _by_member(x: Tensor, members: int, rows: int, name: str) -> Tensor:
    """An input as (members, rows of one with all their tokens, features).

    Raises
    ------
    UsageError
        If its first dimension is not the batch's: DeBERTa projects its relative positions, once for all rows, by the
        same layers; experts get some of the tokens in an order of their own.
    """
    if x.shape[0] != rows:
        rule = f"be a model whose layers get the batch's {rows} rows first"
        got = f"{name} with an input of shape {tuple(x.shape)}"
        raise UsageError(must("A model whose runs are packed", rule, got, "Do its runs one by one: --pack off"))
    return x.reshape(members, -1, x.shape[-1])
