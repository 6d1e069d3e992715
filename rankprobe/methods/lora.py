"""LoRA (Hu et al. 2021, arXiv:2106.09685): W0 frozen, ``dW = scaling * B @ A`` trained.

A target inside a fused matrix (q and v of GPT-2's ``c_attn``) gets factors of its own, as the paper's code does. On
disk they are stacked into one adapter of the fused module, which PEFT reads as such.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from rankprobe.errors import UsageError, must
from rankprobe.methods.full import dtype_name
from rankprobe.methods.head import head_modules
from rankprobe.methods.lora_layer import LoRALayer
from rankprobe.weights.adapter import Adapter, save_adapter
from rankprobe.weights.architecture import WeightSite, model_config, model_shapes, weight_sites
from rankprobe.weights.delta import Delta
from rankprobe.weights.fused import FUSED_KINDS
from rankprobe.weights.write_adapter import task_type


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
