"""LoRA (Hu et al. 2021, arXiv:2106.09685): W0 frozen, ``dW = scaling * B @ A`` trained.

A target inside a fused matrix (q and v of GPT-2's ``c_attn``) gets factors of its own, as the paper's code does. On
disk they are stacked into one adapter of the fused module, which PEFT reads as such.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankprobe.errors import UsageError, must
from rankprobe.methods.full import dtype_name
from rankprobe.methods.head import head_modules
from rankprobe.weights.adapter import Adapter, Factors, save_adapter, scaling_of
from rankprobe.weights.architecture import WeightSite, model_config, model_shapes, weight_sites
from rankprobe.weights.delta import Delta
from rankprobe.weights.fused import FUSED_KINDS
from rankprobe.weights.rank_pattern import factor_shapes
from rankprobe.weights.write_adapter import task_type


class LoRALayer(nn.Module):
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
        super().__init__()
        self.base, self.sites = base, sites
        self.r, self.alpha, self.rslora, self.dropout = r, alpha, rslora, dropout
        self.scaling = scaling_of(alpha, r, rslora)
        self.rs = list(rs) if rs is not None else [r] * len(sites)
        self.scalings = [self.scaling if k == r else scaling_of(alpha * k / r, k, rslora) for k in self.rs]
        base.requires_grad_(False)
        # The base may be held in half precision for speed; the factors are what is trained and stay float32.
        bound = 1 / math.sqrt(sites[0].shape[1])
        B_shapes, A_shapes = zip(*(factor_shapes(s.shape, k) for s, k in zip(sites, self.rs, strict=True)), strict=True)
        A = [torch.empty(shape).uniform_(-bound, bound, generator=generator) for shape in A_shapes]
        self.A = nn.ParameterList(a.to(base.weight.device) for a in A)
        self.B = nn.ParameterList(torch.zeros(shape, device=base.weight.device) for shape in B_shapes)
        self._W0: Tensor | None = None

    @property
    def weight(self) -> nn.Parameter:
        """The base's: some models (T5, BLOOM) ask the layer that was here for its dtype."""
        return self.base.weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The base's."""
        return self.base.bias

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


def check_rank(r: int, sites: list[WeightSite], ranks: Mapping[str, int] | None = None) -> None:
    """Refuse an r that is not in 1 .. min(m, n) of every target, or in 0 .. min(m, n) of each where they differ.

    Raises
    ------
    UsageError
    """
    if ranks is not None:
        for site in sites:
            if not 0 <= ranks[site.name] <= min(site.shape):
                rule = f"be from 0 to min(m, n) = {min(site.shape)}"
                raise UsageError(must(f"r of {site.name}", rule, ranks[site.name], "Correct rank_pattern"))
        return
    largest = min(min(s.shape) for s in sites)
    if not 1 <= r <= largest:
        tight = min(sites, key=lambda s: min(s.shape))
        raise UsageError(must("r", f"be from 1 to min(m, n) = {largest} (of {tight.name})", r, "Pass another --r"))


def apply_lora(
    model: nn.Module,
    sites: list[WeightSite],
    r: int,
    alpha: float,
    *,
    dropout: float = 0.0,
    rslora: bool = False,
    seed: int = 0,
    ranks: Mapping[str, int] | None = None,
) -> dict[str, LoRALayer]:
    """Replace every target's layer by a :class:`LoRALayer`, in place.

    Parameters
    ----------
    model : nn.Module
    sites : list of WeightSite
        From :func:`rankprobe.weights.targets.target_sites`.
    r, alpha : int, float
        ``scaling = alpha / r`` (``alpha / sqrt(r)`` with rsLoRA).
    seed : int
        For A's initial values, drawn on the CPU so that they do not depend on the device.
    ranks : mapping of str to int, optional
        r of each site by its name, where they differ, from :func:`rankprobe.weights.rank_pattern.ranks_by_site`; a site
        of r = 0 stays as it is. alpha goes with r: ``alpha * ranks[name] / r``, so that ``alpha / r`` is one for all.

    Returns
    -------
    dict of str to LoRALayer
        By module path.

    Raises
    ------
    UsageError
        If r is out of range for a target.
    """
    check_rank(r, sites, ranks)
    generator = torch.Generator().manual_seed(seed)
    by_module: dict[str, list[WeightSite]] = {}
    for site in sites:
        if ranks is None or ranks[site.name]:
            by_module.setdefault(site.module, []).append(site)
    layers = {}
    for path, parts in by_module.items():
        rs = [r if ranks is None else ranks[site.name] for site in parts]
        largest, base = max(rs), model.get_submodule(path)
        of_r = alpha if largest == r else alpha * largest / r
        layers[path] = LoRALayer(base, parts, largest, of_r, rslora, dropout, generator, rs)
        _replace(model, path, layers[path])
    return layers


def load_lora(model: nn.Module, adapter: Adapter) -> dict[str, LoRALayer]:
    """Put an adapter read from disk on a model, head included, in place.

    Raises
    ------
    UsageError
        If the model lacks one of the adapter's modules or shapes differ.
    """
    shapes = model_shapes(model)
    sites = {s.module: s for s in weight_sites(shapes, fused=True, config=model_config(model))}
    layers = {}
    for path, f in adapter.factors.items():
        site = sites.get(path)
        expected = (f.B.shape[0], f.A.shape[1])
        if site is None or site.shape != expected:
            raise UsageError(
                must(path, f"be a {expected} weight of the model", site and site.shape, "Pass the adapter's own base")
            )
        layer = LoRALayer(
            model.get_submodule(path),
            [site],
            f.A.shape[0],
            f.alpha,
            bool(adapter.config.get("use_rslora")),
            0.0,
            torch.Generator(),
        )
        layer.A[0].data.copy_(f.A)
        layer.B[0].data.copy_(f.B)
        _replace(model, path, layer)
        layers[path] = layer
    parameters = dict(model.named_parameters())
    for name, tensor in adapter.saved.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise UsageError(
                must(
                    name,
                    "be a parameter of the model with the adapter's shape",
                    tuple(tensor.shape),
                    "Pass the adapter's own base and number of labels",
                )
            )
        parameters[name].data.copy_(tensor)
    return layers


def unload_lora(model: nn.Module) -> None:
    """Put the plain layers back in place of every :class:`LoRALayer`, each with the weight it has now."""
    for path, layer in lora_layers(model).items():
        _replace(model, path, layer.base)


def lora_layers(model: nn.Module) -> dict[str, LoRALayer]:
    """The model's LoRA layers by module path."""
    return {path: m for path, m in model.named_modules() if isinstance(m, LoRALayer)}


def lora_deltas(layers: Mapping[str, LoRALayer], *, config: Mapping | None = None) -> Iterator[Delta]:
    """The updates as factors, one Delta a site; a fused matrix adapted whole yields q, k and v.

    ``config`` is config.json, for those fused matrices that only it tells apart.
    """
    for layer in layers.values():
        W0 = layer._W0 if layer.merged else layer.base.weight.detach()
        for site, A, B, scaling in zip(layer.sites, layer.A, layer.B, layer.scalings, strict=True):
            whole = {site.parameter: tuple(W0.shape)}
            parts = weight_sites(whole, config=config) if site.kind in FUSED_KINDS else [site]
            for part in parts:
                own = site.rows is not None or part.rows is None
                yield Delta(
                    part.name,
                    part.layer,
                    part.kind,
                    part.shape,
                    dtype_name(W0),
                    dtype_name(B),
                    float(part.get(W0).double().norm()),
                    B=B.detach() if own else part.rows.get(B.detach()),
                    A=A.detach(),
                    scaling=scaling,
                )


def save_lora(
    folder, model: nn.Module, layers: Mapping[str, LoRALayer], head: set[str], *, rslora: bool, base_model: str
) -> None:
    """Write the model's LoRA factors and head as a PEFT adapter."""
    parameters = dict(model.named_parameters())
    layer = next(iter(layers.values()))
    save_adapter(
        folder,
        {path: layer.factors() for path, layer in layers.items()},
        {n: parameters[n].data for n in sorted(head)},
        rslora=rslora,
        dropout=layer.dropout,
        fan_in_fan_out=layer.sites[0].transposed,
        modules_to_save=head_modules(model, head),
        task_type=task_type([type(model).__name__]),
        base_model=base_model,
    )


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
