"""A method by its name: what is put on a model, and what then requires a gradient."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from rankprobe.errors import UsageError, must
from rankprobe.methods.bitfit import apply_bitfit
from rankprobe.methods.bottleneck import apply_bottleneck
from rankprobe.methods.full import unfreeze
from rankprobe.methods.head import freeze_all_but
from rankprobe.methods.lora import apply_lora
from rankprobe.methods.lora_layer import LoRALayer
from rankprobe.methods.prefix import apply_prefix, apply_prompt
from rankprobe.methods.random_subspace import RandomSubspace
from rankprobe.methods.top_layers import apply_top_layers
from rankprobe.weights.architecture import model_config, model_shapes
from rankprobe.weights.rank_pattern import RankPattern, ranks_by_site
from rankprobe.weights.targets import target_sites


@dataclass(frozen=True)
class Applied:
    """A model with a method on it.

    Attributes
    ----------
    trainee : nn.Module
        What is trained and asked for predictions: the model itself, or what wraps it (``did``, ``said``).
    layers : dict of str to LoRALayer
        By module path; empty unless the method is lora.
    """

    trainee: nn.Module
    layers: dict[str, LoRALayer] = field(default_factory=dict)


def apply_method(
    model: nn.Module,
    head: set[str],
    method: str,
    *,
    r: int | None = None,
    alpha: float | None = None,
    targets: str | None = None,
    dropout: float = 0.0,
    rslora: bool = False,
    size: int | None = None,
    seed: int = 0,
    rank_pattern: RankPattern | None = None,
) -> Applied:
    """Put a method on a model, in place: the method's parameters and the head's require a gradient, no others.

    Parameters
    ----------
    model : nn.Module
        A transformers model; on the meta device too, where only shapes matter.
    head : set of str
        Names of the head's parameters, from :func:`rankprobe.methods.head.head_parameters`.
    method : str
        ``full``, ``head``, ``lora``, ``bitfit``, ``top_layers``, ``adapter_h``, ``adapter_l``, ``prompt``, ``prefix``,
        ``did`` or ``said``.
    r, alpha, targets, dropout, rslora
        LoRA's.
    size : int, optional
        The others': blocks, bottleneck, prefix length or d.
    seed : int
        Of what the method draws.
    rank_pattern : RankPattern, optional
        LoRA's r by matrix, where they differ.

    Raises
    ------
    UsageError
        If the method does not fit the model, its size is out of range, or nothing is left to train.
    """
    if method == "full":
        unfreeze(model)
        return Applied(model)
    freeze_all_but(model, head)
    match method:
        case "head":
            if not head:
                rule = "be of a model that has a head of its own"
                next_step = "Choose another method; of a sweep pass --no-head"
                raise UsageError(must("The method head", rule, "a language model", next_step))
        case "lora":
            sites = target_sites(model_shapes(model), targets, config=model_config(model))
            ranks = None if rank_pattern is None else ranks_by_site(sites, r, rank_pattern)
            layers = apply_lora(model, sites, r, alpha, dropout=dropout, rslora=rslora, seed=seed, ranks=ranks)
            return Applied(model, layers)
        case "bitfit":
            apply_bitfit(model)
        case "top_layers":
            apply_top_layers(model, size)
        case "adapter_h" | "adapter_l":
            placement = "houlsby" if method == "adapter_h" else "lin"
            apply_bottleneck(model, size, placement, seed=seed)
        case "prompt":
            apply_prompt(model, size, seed=seed)
        case "prefix":
            apply_prefix(model, size, seed=seed)
        case "did" | "said":
            return Applied(RandomSubspace(model, head, size, layerwise=method == "said", seed=seed))
        case _:
            raise UsageError(must("method", "be one that rankprobe has", repr(method), "See rankprobe finetune --help"))
    return Applied(model)
