"""Random subspace training (DID, SAID): the weights move in a random d-dimensional subspace through their start."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from rankprobe.errors import UsageError, must
from rankprobe.linalg.fastfood import Fastfood, check_dimensions
from rankprobe.methods.blocks import transformer_blocks


class RandomSubspace(nn.Module):
    """A model whose weights are theta0 + P theta_d, trained in theta_d.

    Parameters
    ----------
    model : PreTrainedModel
        Its weights now are theta0. On the meta device nothing is drawn: there is only something to count.
    head : iterable of str
        Names of the head's parameters, which are trained directly.
    d : int
        Parameters trained besides the head: 1 to D.
    layerwise : bool
        False for DID, theta = theta0 + P theta_d. True for SAID, where layer i of m has a scale of its own, taken out
        of d: theta_i = theta0_i + lambda_i (P theta_(d-m))_i.
    seed : int
        Of P, drawn on the CPU so that it does not depend on the device.

    Attributes
    ----------
    model : PreTrainedModel
        The wrapped one. Its frozen parameters hold theta0 while this module trains and the trained weights after
        ``eval()`` or :meth:`write`.
    d, D : int
        D is the number of weights outside the head; a tied weight counts once.
    theta_d : nn.Parameter, shape (d,), for SAID (d - m,)
        Zero at start. float32, as P, under autocast too; float64 where the model is.
    scales : nn.Parameter, shape (m,), or None
        SAID's lambda; one at start.

    Raises
    ------
    UsageError
        If d is out of range, or for SAID not above the number of layers.

    Notes
    -----
    A layer of SAID is a transformer block, and all that lies outside the blocks (embeddings, a pooler, a final norm) is
    one more, so m is the number of blocks plus one. The paper says "layers" only. Code that others wrote after it has a
    scale for each parameter tensor; the paper's d90 of 207 for RoBERTa-large, which has some 390, rules that out there.

    At the start theta_d has the gradient Pᵀ g, g the gradient with respect to the weights, for SAID too (the scales are
    one); the scales have none (their gradient is the product of g and P theta_d, which is zero) and move from the
    second step on.

    The weights that a forward pass runs at lie in memory that its backward pass fills with their gradients and gives
    back, so that steps allocate nothing of size D and no weight has a ``grad``. A graph can be gone through once.

    References
    ----------
    Aghajanyan, Zettlemoyer & Gupta (2020), arXiv:2012.13255, equations 1 (DID) and 3 (SAID).
    Li, Farkhoor, Liu & Yosinski (2018), arXiv:1804.08838, equation 2.
    """

    def __init__(self, model: nn.Module, head: Iterable[str], d: int, *, layerwise: bool, seed: int) -> None:
        super().__init__()
        layers = _by_layer(model, set(head)) if layerwise else [_base_weights(model, set(head))]
        self._names = [name for layer in layers for name in layer]
        self._weights = [weight for layer in layers for weight in layer.values()]
        self._sizes = [weight.numel() for weight in self._weights]
        self._layer_of = [i for i, layer in enumerate(layers) for _ in layer]
        self._layer_sizes = [sum(weight.numel() for weight in layer.values()) for layer in layers]
        self.d, self.D = d, sum(self._sizes)
        check_dimensions(d, self.D)
        m = len(layers) if layerwise else 0
        if d <= m:
            rule = f"be above the number of layers, {m}: SAID takes one for each"
            raise UsageError(must("d", rule, d, "Raise d, or use DID"))
        device, dtype = self._weights[0].device, torch.float32
        for weight in self._weights:
            weight.requires_grad_(False)
            dtype = torch.promote_types(dtype, weight.dtype)
        self.theta_d = nn.Parameter(torch.zeros(d - m, dtype=dtype, device=device))
        self.scales = nn.Parameter(torch.ones(m, dtype=dtype, device=device)) if layerwise else None
        self.model = model
        on_meta = device.type == "meta"
        self.P = None if on_meta else Fastfood(d - m, self.D, seed=seed, dtype=dtype, device=device)
        self._theta0: list[Tensor] | None = None  # only while the model holds other weights
        self._room: list[Tensor] = []  # memory of size D that no graph holds

    def forward(self, **batch: Tensor):
        """The model's output at the current weights; differentiable in theta_d, the scales and the head."""
        if self._theta0 is not None:
            return self.model(**batch)
        weights = _Weights.apply(self.theta_d, self.scales, self)
        return functional_call(self.model, dict(zip(self._names, weights, strict=True)), kwargs=batch)

    def train(self, mode: bool = True) -> RandomSubspace:
        """Switch to training, with theta0 back in the model bit for bit, or to evaluation, with :meth:`write`."""
        super().train(mode)
        if mode:
            self._restore()
        else:
            self.write()
        return self

    @torch.no_grad()
    def write(self) -> None:
        """Put the weights that theta_d stands for now into the model, for saving, predicting and spectra."""
        if self.P is None:
            return
        self._restore()
        # Predicting calls this in inference mode; what is kept of it must be fit for training later. Leaving that mode
        # turns gradients on.
        with torch.inference_mode(False), torch.no_grad():
            values, *rest = self._values()
            self._theta0 = [weight.detach().clone() for weight in self._weights]
            for weight, value in zip(self._weights, values, strict=True):
                weight.copy_(value)
            self._room += [flat for flat in rest if flat is not None]

    @torch.no_grad()
    def _restore(self) -> None:
        if self._theta0 is None:
            return
        for weight, theta0 in zip(self._weights, self._theta0, strict=True):
            weight.copy_(theta0)
        self._theta0 = None

    def _values(self) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """The weights now, the memory they lie in, and for SAID P theta_d."""
        projected = self.P.project(self.theta_d, out=self._flat())
        flat = projected if self.scales is None else self._flat()
        values = []
        pieces = zip(self._weights, self._layer_of, flat.split(self._sizes), projected.split(self._sizes), strict=True)
        for weight, layer, value, offset in pieces:
            value = value.view(weight.shape)
            if self.scales is None:
                value += weight
            else:
                torch.addcmul(weight, offset.view(weight.shape), self.scales[layer], out=value)
            values.append(value.to(weight.dtype))
        return values, flat, None if self.scales is None else projected

    def _flat(self) -> Tensor:
        if self._room:
            return self._room.pop()
        with torch.inference_mode(False):
            return torch.empty(self.D, dtype=self.theta_d.dtype, device=self.theta_d.device)


class _Weights(torch.autograd.Function):
    """theta0 + P theta_d as the model's tensors; the backward pass is the exact transpose."""

    @staticmethod
    def forward(ctx, theta_d: Tensor, scales: Tensor | None, subspace: RandomSubspace) -> tuple[Tensor, ...]:
        ctx.subspace = subspace
        values, ctx.flat, ctx.projected = subspace._values()
        ctx.save_for_backward(scales)
        ctx.set_materialize_grads(False)
        return tuple(values)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor | None) -> tuple[Tensor, Tensor | None, None]:
        subspace, flat, projected = ctx.subspace, ctx.flat, ctx.projected
        (scales,) = ctx.saved_tensors
        # Given back below: a second pass must fail, not use what is another graph's by then.
        del ctx.flat, ctx.projected
        # Every product with these weights is behind us: their memory takes the gradients.
        for part, gradient in zip(flat.split(subspace._sizes), gradients, strict=True):
            if gradient is None:  # a weight that the model did not use
                part.zero_()
            else:
                part.view(gradient.shape).copy_(gradient)
        of_scales = None
        if scales is not None:
            parts = flat.split(subspace._layer_sizes)
            of_scales = torch.stack(
                [torch.dot(g, u) for g, u in zip(parts, projected.split(subspace._layer_sizes), strict=True)]
            )
            for part, scale in zip(parts, scales, strict=True):
                part *= scale
        of_theta = subspace.P.adjoint(flat)
        subspace._room += [room for room in (flat, projected) if room is not None]
        return of_theta, of_scales, None


def _base_weights(model: nn.Module, head: set[str]) -> dict[str, nn.Parameter]:
    """What is not the head's, by name; a tied weight once."""
    return {name: p for name, p in model.named_parameters() if name not in head}


def _by_layer(model: nn.Module, head: set[str]) -> list[dict[str, nn.Parameter]]:
    """The base's weights outside the blocks, then those of every block."""
    paths = [f"{path}." for path, _ in transformer_blocks(model)]
    layers: list[dict[str, nn.Parameter]] = [{} for _ in range(1 + len(paths))]
    for name, weight in _base_weights(model, head).items():
        layer = next((i for i, path in enumerate(paths, 1) if name.startswith(path)), 0)
        layers[layer][name] = weight
    return layers
