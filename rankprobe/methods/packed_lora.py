"""LoRA models that share a frozen base, as one model: each frozen product once for all, ranks padded with zeros.

All that the members train lies in one matrix (members, parameters): the optimiser is then a few operations on it,
however many members and layers there are. Each layer sees its part as a view.

Notes
-----
Padding is exact. Row j of A and column j of B that a member lacks are zero; A's gradient there is B's column, zero,
times something, and B's is A's row, zero, times something. AdamW leaves a zero without a gradient at zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankprobe.errors import UsageError, must
from rankprobe.methods.lora_layer import LoRALayer
from rankprobe.methods.packed_layers import PackedLoRALayer, Slot, pack_head_module
from rankprobe.weights.architecture import WeightSite


@dataclass(frozen=True)
class LoneState:
    """What one LoRA model trains, apart from the model.

    Attributes
    ----------
    sites : dict of str to WeightSite
        By the site's name, in the model's order.
    A, B : dict of str to Tensor, shapes (r, n) and (m, r)
        By the site's name.
    scalings : dict of str to float
    head : dict of str to Tensor
        By parameter name.
    """

    sites: dict[str, WeightSite]
    A: dict[str, Tensor]
    B: dict[str, Tensor]
    scalings: dict[str, float]
    head: dict[str, Tensor]


def lone_state(model: nn.Module, layers: Mapping[str, LoRALayer], head: set[str]) -> LoneState:
    """A copy of what a model with LoRA on it trains.

    Parameters
    ----------
    model : nn.Module
    layers : mapping of str to LoRALayer
        From :func:`rankprobe.methods.lora.apply_lora`, without dropout.
    head : set of str
        Names of the head's parameters.

    Raises
    ------
    UsageError
        If a layer has dropout: which random numbers a member gets would depend on the others.
    """
    state = LoneState({}, {}, {}, {}, {})
    for layer in layers.values():
        if layer.dropout:
            raise UsageError(must("dropout of packed runs", "be 0", layer.dropout, "Pass --dropout 0, or --pack off"))
        for site, A, B in zip(layer.sites, layer.A, layer.B, strict=True):
            state.sites[site.name], state.scalings[site.name] = site, layer.scaling
            state.A[site.name], state.B[site.name] = A.detach().clone(), B.detach().clone()
    parameters = dict(model.named_parameters())
    state.head.update({name: parameters[name].detach().clone() for name in sorted(head)})
    return state


@torch.no_grad()
def load_state(model: nn.Module, layers: Mapping[str, LoRALayer], state: LoneState) -> None:
    """Write a state into a model with LoRA of the same settings on it, in place."""
    for layer in layers.values():
        for site, A, B in zip(layer.sites, layer.A, layer.B, strict=True):
            A.copy_(state.A[site.name])
            B.copy_(state.B[site.name])
    parameters = dict(model.named_parameters())
    for name, value in state.head.items():
        parameters[name].copy_(value)


class Pack:
    """A model with the LoRA layers and heads of several members on it, in place of its plain ones.

    Parameters
    ----------
    model : nn.Module
        The frozen base with a head, on its device; changed in place until :meth:`unpack`.
    states : sequence of LoneState
        One a member. Their ranks, scalings and sites may differ: a member that lacks a site adds zero there.

    Attributes
    ----------
    model : nn.Module
    members : list of int
        Numbers of those still in the pack, in the order of their rows.
    matrix : Tensor, shape (members, parameters)
        All that is trained. Columns of matrices come first, then those of vectors.
    slots : list of Slot
        In the order of their columns.

    Raises
    ------
    UsageError
        If there are no members, their heads or dtypes differ, or the head has a module that cannot be packed.
    """

    def __init__(self, model: nn.Module, states: Sequence[LoneState]) -> None:
        _check(states)
        self.model, self.members, self._states = model, list(range(len(states))), list(states)
        self._remembered: dict[int, LoneState] = {}
        values = _padded(states)
        # Stable: columns of one kind keep the model's order.
        order = sorted(values, key=lambda key: values[key][0].dim() == 1)
        self.matrix = torch.stack([torch.cat([values[key][i].flatten() for key in order]) for i in self.members])
        self._slots: dict[tuple[str, str], Slot] = {}
        first = 0
        for key in order:
            shape = tuple(values[key][0].shape)
            self._slots[key] = Slot(first, first + math.prod(shape), shape, self.matrix)
            first = self._slots[key].last
        self._bind()
        self._plain: dict[str, nn.Module] = {}
        self._layers: list[nn.Module] = []
        model.requires_grad_(False)
        self._place_head()  # first: it may refuse, and nothing has been changed then
        self._place_factors()

    @property
    def slots(self) -> list[Slot]:
        return list(self._slots.values())

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The model's logits for a batch with the members' rows one after the other, as many for each."""
        for layer in self._layers:
            layer.rows = len(batch["input_ids"])
        return self.model(**batch).logits

    def keep(self, places: Sequence[int]) -> None:
        """Take all other members out: their rows are no longer expected, and nothing else changes.

        Parameters
        ----------
        places : sequence of int
            Of those that stay, in :attr:`members`.
        """
        self.members = [self.members[i] for i in places]
        self.matrix = self.matrix[list(places)]
        for layer in self._layers:
            if isinstance(layer, PackedLoRALayer):
                layer.scalings = [scaling[list(places)] for scaling in layer.scalings]
        self._bind()

    def remember(self, member: int) -> None:
        """Make what a member has now its state for good, whatever it is trained to, or taken out, after."""
        self._remembered.pop(member, None)
        self._remembered[member] = self.state(member)

    def state(self, member: int) -> LoneState:
        """What a member has now, or had when it was remembered, without its padding: a copy, or what is remembered.

        Raises
        ------
        KeyError
            If the member was taken out and is not remembered.
        """
        if member in self._remembered:
            return self._remembered[member]
        if member not in self.members:
            raise KeyError(member)
        place, start = self.members.index(member), self._states[member]
        own = {key: slot.value.detach()[place] for key, slot in self._slots.items()}
        return LoneState(
            dict(start.sites),
            {name: own["A", name][: len(A)].clone() for name, A in start.A.items()},
            {name: own["B", name][:, : B.shape[1]].clone() for name, B in start.B.items()},
            dict(start.scalings),
            {name: own["head", name].clone() for name in start.head},
        )

    def unpack(self) -> None:
        """Put the model's plain layers and head back, with the values they had."""
        for path, module in self._plain.items():
            self.model.set_submodule(path, module)

    def _bind(self) -> None:
        """Make every slot a view of the matrix as it is now."""
        for slot in self.slots:
            view = self.matrix[:, slot.first : slot.last].unflatten(1, slot.shape)
            # A new leaf each time: autograd remembers the shape of an old one.
            slot.value = view.detach().requires_grad_()

    def _place_factors(self) -> None:
        sites = {name: site for state in self._states for name, site in state.sites.items()}
        by_module: dict[str, list[WeightSite]] = {}
        for site in sites.values():
            by_module.setdefault(site.module, []).append(site)
        for path, parts in by_module.items():
            scalings = [
                self.matrix.new_tensor([state.scalings.get(part.name, 0.0) for state in self._states])[:, None, None]
                for part in parts
            ]
            A, B = ([self._slots[factor, part.name] for part in parts] for factor in "AB")
            self._replace(path, PackedLoRALayer(self.model.get_submodule(path), parts, A, B, scalings))

    def _place_head(self) -> None:
        by_module: dict[str, dict[str, Slot]] = {}
        for kind, name in self._slots:
            if kind == "head":
                path, _, leaf = name.rpartition(".")
                by_module.setdefault(path, {})[leaf] = self._slots[kind, name]
        packed = {
            path: pack_head_module(path, self.model.get_submodule(path), slots) for path, slots in by_module.items()
        }
        for path, module in packed.items():
            self._replace(path, module)

    def _replace(self, path: str, layer: nn.Module) -> None:
        self._plain[path] = self.model.get_submodule(path)
        self.model.set_submodule(path, layer)
        self._layers.append(layer)


def _check(states: Sequence[LoneState]) -> None:
    if not states:
        raise UsageError(must("a pack", "have at least one member", 0, "Pass runs to pack"))
    shapes = [{name: tuple(t.shape) for name, t in state.head.items()} for state in states]
    if different := next((s for s in shapes if s != shapes[0]), None):
        raise UsageError(must("heads in a pack", f"all be {shapes[0]}", different, "Pack runs of one task"))
    dtypes = {t.dtype for state in states for part in (state.A, state.B, state.head) for t in part.values()}
    if len(dtypes) > 1:
        names = ", ".join(sorted(str(d) for d in dtypes))
        raise UsageError(must("parameters in a pack", "be of one dtype", names, "Load the base in float32"))


def _padded(states: Sequence[LoneState]) -> dict[tuple[str, str], list[Tensor]]:
    """Every trained parameter's values, a tensor a member, of one shape: by what it is and the site's or its name."""
    values: dict[tuple[str, str], list[Tensor]] = {}
    for name in dict.fromkeys(name for state in states for name in state.sites):
        there = [state.A[name].shape[0] for state in states if name in state.sites]
        m, n = next(state.sites[name].shape for state in states if name in state.sites)
        like = next(state.A[name] for state in states if name in state.sites)
        A, B = ([like.new_zeros(shape) for _ in states] for shape in ((max(there), n), (m, max(there))))
        for i, state in enumerate(states):
            if name in state.sites:
                A[i][: len(state.A[name])] = state.A[name]
                B[i][:, : state.B[name].shape[1]] = state.B[name]
        values["A", name], values["B", name] = A, B
    for name in states[0].head:
        values["head", name] = [state.head[name] for state in states]
    return values
