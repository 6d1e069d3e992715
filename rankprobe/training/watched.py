"""The matrices of a model in training whose updates are measured: dense ones with a kept W0, or LoRA's factors.

LoRA may be peft's or rankprobe's own. peft is not imported: its layers are told by what they hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankprobe.errors import UsageError, must
from rankprobe.linalg.decompose import singular_values, svdvals_factored
from rankprobe.methods.lora_layer import LoRALayer
from rankprobe.weights.architecture import WeightSite, model_config, model_shapes
from rankprobe.weights.checkpoint import Checkpoint
from rankprobe.weights.fused import Rows
from rankprobe.weights.inputs import open_input
from rankprobe.weights.matching import match
from rankprobe.weights.peft_files import moves_base
from rankprobe.weights.targets import target_sites

_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class DenseUpdate:
    """``dW = W - W0`` of a matrix that is trained itself.

    Attributes
    ----------
    site : WeightSite
    parameter : nn.Parameter
        The stored parameter that the site is, or is a part of.
    W0 : Tensor, shape (m, n)
        In its storage dtype, on the CPU.
    """

    site: WeightSite
    parameter: nn.Parameter
    W0: Tensor

    def singular_values(self, device: str | None = None) -> Tensor:
        """Those of dW, shape (min(m, n),), float64, non-increasing; computed on W's device, or on another."""
        W = self.site.get(self.parameter.detach())
        device = device or W.device
        dW = W.to(device, torch.float64) - self.W0.to(device).double()  # upcast there: half the transfer, or less
        return singular_values(dW, name=f"dW of {self.site.name}").S


@dataclass(frozen=True)
class FactoredUpdate:
    """``dW = scaling * B @ A``, never multiplied out.

    Attributes
    ----------
    site : WeightSite
    layer : nn.Module
        peft's LoRA layer or a :class:`~rankprobe.methods.lora_layer.LoRALayer`; read at every measurement.
    """

    site: WeightSite
    layer: nn.Module

    def singular_values(self, device: str | None = None) -> Tensor:
        """Those of dW that factors have, shape (min(r, m, n),), float64, non-increasing; the others are zero."""
        parts = list(_factors(self.layer, self.site))
        # Adapters that are active together add up: [B1 B2] [A1; A2].
        B = torch.cat([scaling * _of_part(B, rows).double() for B, _, scaling, rows in parts], dim=1)
        A = torch.cat([A.detach().double() for _, A, _, _ in parts])
        device = device or B.device
        return svdvals_factored(B.to(device), A.to(device), name=f"dW of {self.site.name}")


Update = DenseUpdate | FactoredUpdate


def watched_sites(model: nn.Module, targets: str, layers: Iterable[int] | None = None) -> list[WeightSite]:
    """The matrices that are to be watched.

    Parameters
    ----------
    model : nn.Module
        One with LoRA layers (peft's or rankprobe's own) offers the matrices these adapt, any other all of its blocks'.
    targets : str
        As for :func:`rankprobe.weights.targets.target_sites`.
    layers : iterable of int, optional
        Blocks to keep; all of them without.

    Returns
    -------
    list of WeightSite

    Raises
    ------
    UsageError
        If a target or a layer matches nothing, an adapter is more than ``B @ A``, or the model is sharded.
    """
    _refuse_sharded(model)
    adapted = lora_modules(model)
    shapes = _adapted_shapes(adapted) if adapted else model_shapes(model)
    sites = target_sites(shapes, targets, config=model_config(model))
    if adapted:
        sites = [part for site in sites for part in _parts(adapted[site.module], site)]
    if layers is None:
        return sites
    there, wanted = {s.layer for s in sites}, set(layers)
    if not wanted or not wanted <= there:
        got = ", ".join(map(str, sorted(wanted - there))) or "none"
        rule = f"be blocks that have {targets} ({', '.join(map(str, sorted(there)))})"
        raise UsageError(must("layers", rule, got, "Pass some of those"))
    return [s for s in sites if s.layer in wanted]


def lora_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The LoRA layers of a model, peft's and rankprobe's own, by the path that their base has in the base model."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, LoRALayer):
            found[module.sites[0].module] = module
        elif _adapts(module) and hasattr(module.get_base_layer(), "weight"):
            found[path.removeprefix(_PEFT_PREFIX)] = module
    return found


def _adapts(module: nn.Module) -> bool:
    """Whether a module is a LoRA layer of peft's; of experts in one 3-d parameter the base has no ``weight``."""
    return isinstance(getattr(module, "lora_A", None), nn.ModuleDict) and len(module.lora_A) > 0


def snapshot_W0(model: nn.Module, sites: Sequence[WeightSite]) -> list[Tensor]:
    """Copies of the sites' matrices as they are now, on the CPU, in their storage dtypes; nothing else is kept."""
    parameters = dict(model.named_parameters())
    return [site.get(parameters[site.parameter].detach()).to("cpu", copy=True) for site in sites]


def read_W0(where: object, model: nn.Module, sites: Sequence[WeightSite]) -> list[Tensor]:
    """The sites' matrices of another model: a path, a hub name, a model or a state dict.

    Raises
    ------
    UsageError
        If it cannot be read, is an adapter, or lacks one of the matrices.
    """
    opened = open_input(where, role="W0")
    if not isinstance(opened, Checkpoint):
        raise UsageError(must("W0", "be a whole model", f"the adapter {opened.label}", "Pass the adapter's base"))
    names = {tuned: base for base, tuned in match(opened.shapes, model_shapes(model), base_tied=opened.tied).pairs}
    found = []
    parameters = dict(model.named_parameters())
    for site in sites:
        stored, base = parameters[site.parameter], names.get(site.parameter)
        if base is None or tuple(opened.shapes[base]) != tuple(stored.shape):
            got = f"{base} of shape {tuple(opened.shapes[base])}" if base else f"none in {opened.label}"
            rule = f"have {site.parameter} of shape {tuple(stored.shape)}"
            raise UsageError(must("W0", rule, got, "Pass the model that this training began from"))
        found.append(site.get(opened.read(base)).clone())
    return found


def dense_updates(
    model: nn.Module, sites: Sequence[WeightSite], W0: Sequence[Tensor]
) -> tuple[list[DenseUpdate], list[str]]:
    """The updates of matrices that are trained themselves.

    Returns
    -------
    updates : list of DenseUpdate
    notes : list of str
        A line each about what is not measured (frozen) or measured once (tied).

    Raises
    ------
    UsageError
        If all of them are frozen.
    """
    parameters = dict(model.named_parameters())
    pairs = list(zip(sites, W0, strict=True))
    updates = [DenseUpdate(s, parameters[s.parameter], w) for s, w in pairs if parameters[s.parameter].requires_grad]
    frozen = [site.name for site in sites if not parameters[site.parameter].requires_grad]
    if not updates:
        got = f"{frozen[0]} and {len(frozen) - 1} others that are frozen" if len(frozen) > 1 else f"{frozen[0]}, frozen"
        raise UsageError(must("targets", "name matrices that are trained", got, "Pass other targets or unfreeze them"))
    notes = [_line(frozen, "frozen and not measured")] if frozen else []
    kept = {id(parameters[s.parameter]): s.parameter for s in sites}
    tied = [name for name, p in model.named_parameters(remove_duplicate=False)
            if id(p) in kept and name != kept[id(p)]]  # fmt: skip
    return updates, [*notes, *([_line(tied, "tied to a matrix that is measured")] if tied else [])]


def factored_updates(model: nn.Module, sites: Sequence[WeightSite]) -> tuple[list[FactoredUpdate], list[str]]:
    """The updates of matrices that LoRA adapts; parameters and returns as for :func:`dense_updates`."""
    modules = lora_modules(model)
    updates, without = [], []
    for site in sites:
        held = list(_factors(modules[site.module], site))
        if any(B.requires_grad or A.requires_grad for B, A, _, _ in held):
            updates.append(FactoredUpdate(site, modules[site.module]))
        else:
            without.append(site.name)
    if not updates:
        got = f"{len(without)} matrices without factors in training"
        raise UsageError(must("targets", "name matrices that are trained", got, "Pass other targets"))
    notes = [_line(without, "without factors in training and not measured")] if without else []
    experts = [path for path, m in model.named_modules() if _adapts(m) and not hasattr(m.get_base_layer(), "weight")]
    if experts:
        notes.append(_line(experts, "adapted as 3-d parameters and not measured"))
    starts = [getattr(c, "init_lora_weights", None) for c in (getattr(model, "peft_config", None) or {}).values()]
    if split := sorted(filter(moves_base, starts)):
        notes.append(f"init_lora_weights={split[0]} put a part of W0 into B A: ranks are those of B A, not of dW")
    return updates, notes


def labels(sites: Sequence[WeightSite]) -> list[str]:
    """Short names, ``layer3.q``; the module's path where several would share one (decoders, experts).

    >>> labels([WeightSite("a.0.query.weight", 0, "q", (2, 2)), WeightSite("a.1.query.weight", 1, "q", (2, 2))])
    ['layer0.q', 'layer1.q']
    """
    short = [f"layer{site.layer}.{site.kind}" for site in sites]
    counts = Counter(short)
    return [s if counts[s] == 1 else site.name.replace(".weight", "") for s, site in zip(short, sites, strict=True)]


def _adapted_shapes(modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Stored shapes of the adapted matrices, by the parameter names that the base model has."""
    shapes = {}
    for path, module in modules.items():
        if isinstance(module, LoRALayer):
            shapes[module.sites[0].parameter] = tuple(module.base.weight.shape)
            continue
        variants = getattr(module, "lora_variant", {})
        if odd := next((name for name in module.active_adapters if name in variants), None):
            got = f"{type(variants[odd]).__name__} at {path}"
            raise UsageError(must("adapter", "be plain LoRA, scaling * B @ A", got, "Leave RankCallback out"))
        stored = tuple(module.get_base_layer().weight.shape)
        m_n = (module.out_features, module.in_features)
        # A quantised base is packed into another shape.
        shapes[f"{path}.weight"] = stored if stored in (m_n, m_n[::-1]) else m_n
    return shapes


def _factors(layer: nn.Module, site: WeightSite) -> Iterator[tuple[Tensor, Tensor, float, Rows | None]]:
    """(B, A, scaling, rows of B) of a site, for each adapter that is active; none where LoRA leaves the site alone."""
    if isinstance(layer, LoRALayer):
        for own, A, B, scaling in zip(layer.sites, layer.A, layer.B, layer.scalings, strict=True):
            if own.rows is None or own.rows == site.rows:
                yield B, A, scaling, site.rows if own.rows is None else None
        return
    for name in layer.active_adapters:
        if name in layer.lora_A:
            yield layer.lora_B[name].weight, layer.lora_A[name].weight, layer.scaling[name], site.rows


def _of_part(B: Tensor, rows: Rows | None) -> Tensor:
    return B.detach() if rows is None else rows.get(B.detach())


def _parts(layer: nn.Module, site: WeightSite) -> list[WeightSite]:
    """A fused matrix taken whole is what its layer adapts of it, each part with factors of its own."""
    own = isinstance(layer, LoRALayer) and site.rows is None and layer.sites[0].rows is not None
    return layer.sites if own else [site]


def _line(names: Sequence[str], what: str) -> str:
    return f"{names[0]} {f'and {len(names) - 1} others are' if len(names) > 1 else 'is'} {what}"


def _refuse_sharded(model: nn.Module) -> None:
    """Only whole matrices have a rank: FSDP and ZeRO-3 leave each process a piece."""
    sharded = next((type(m).__name__ for m in model.modules() if type(m).__name__ == "FullyShardedDataParallel"), None)
    for p in model.parameters():
        if sharded is None and hasattr(p, "full_tensor"):
            sharded = "DTensor parameters"
        elif sharded is None and hasattr(p, "ds_id") and p.numel() == 0:
            sharded = "ZeRO-3 parameters"
    if sharded is not None:
        next_step = "Train with DDP, or pass the checkpoints to rankprobe.spectrum"
        raise UsageError(must("model", "hold its matrices whole on the main process", sharded, next_step))
