"""The models that a latency measurement times side by side, as callables, and their inputs."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from rankprobe.experiment.fit import check_length
from rankprobe.experiment.models import pick_attention
from rankprobe.experiment.parameters import Counts, Setting, count
from rankprobe.methods.apply import apply_method
from rankprobe.methods.lora import unload_lora
from rankprobe.methods.lora_layer import LoRALayer
from rankprobe.methods.prefix import check_prefix
from rankprobe.training.precision import autocast
from rankprobe.weights.lacking import stored_names
from rankprobe.weights.pretrained import load_classifier, load_config
from rankprobe.weights.source import ModelSource

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from rankprobe.experiment.latency import LatencySpec

BASE, COPY, FULL, MERGED, UNMERGED = "base", "base_copy", "full", "lora_merged", "lora_unmerged"
ADAPTERS = ("adapter_l", "adapter_h")
# They make every text longer inside the model.
PREFIXES = ("prefix", "prompt")
# What differs from the base differs by about this much: large enough to be no zero, small enough to overflow nothing.
_NOISE = 1e-3


@dataclass(frozen=True)
class Architecture:
    """A causal language model that is timed with random weights: latency does not depend on them.

    Attributes
    ----------
    name : str
        As tables show it.
    config : PretrainedConfig
    """

    name: str
    config: PretrainedConfig

    @property
    def architecture(self) -> str:
        """``model_type`` of the configuration."""
        return self.config.model_type

    @property
    def sha256(self) -> str:
        """Of the configuration, as far as it departs from its class's defaults."""
        content = {k: v for k, v in self.config.to_diff_dict().items() if k != "transformers_version"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def variant_names(
    source: ModelSource | Architecture, bottlenecks: tuple[int, int] | None, prefix_length: int | None = None
) -> tuple[str, ...]:
    """Which variants are timed; the base comes first.

    A fully tuned model has the base's very modules. Beside a pretrained base it is timed all the same, with values of
    its own; beside random weights it would be a second copy of the base once more.
    """
    full = () if isinstance(source, Architecture) else (FULL,)
    added = (*(ADAPTERS if bottlenecks else ()), *(PREFIXES if prefix_length else ()))
    return (BASE, COPY, *full, MERGED, UNMERGED, *added)


def build_models(
    source: ModelSource | Architecture, spec: LatencySpec, bottlenecks: tuple[int, int] | None
) -> dict[str, nn.Module]:
    """The models, by variant, in evaluation mode on the spec's device.

    None is trained: what training would have changed is noise instead. All have weights of their own, as deployed
    models would; none has zeros where a trained one would not, which a GPU multiplies with less power and so faster.

    Parameters
    ----------
    source : ModelSource or Architecture
    spec : LatencySpec
    bottlenecks : (int, int) or None
        Of Adapter-L and of Adapter-H; None leaves both out.

    Raises
    ------
    UsageError
        If a shape is longer than the model has positions, or a method does not fit the model.
    """
    base = _random_base(source) if isinstance(source, Architecture) else _pretrained_base(source, spec)
    check_length(max(length for _, length in spec.shapes), base, "a shape's length")
    if spec.prefix_length:
        check_prefix(base, spec.prefix_length, max(length for _, length in spec.shapes))
    generator = torch.Generator().manual_seed(0)
    models = {BASE: base}
    for variant in variant_names(source, bottlenecks, spec.prefix_length)[1:]:
        models[variant] = model = copy.deepcopy(base)
        if variant == FULL:
            _disturb(model.parameters(), generator)
        elif variant in (MERGED, UNMERGED):
            layers = apply_method(model, set(), "lora", r=spec.r, alpha=2.0 * spec.r, targets=spec.targets).layers
            _disturb((B for layer in layers.values() for B in layer.B), generator)
            if variant == MERGED:
                _merge(model, layers)
        elif variant in ADAPTERS:
            apply_method(model, set(), variant, size=bottlenecks[ADAPTERS.index(variant)])
            _disturb((p for name, p in model.named_parameters() if ".adapter." in name), generator)
        elif variant in PREFIXES:
            apply_method(model, set(), variant, size=spec.prefix_length)
    dtype = _held_in(source, spec)
    # Frozen all alike: on a CPU a GPT-2 whose parameters ask for no gradient takes 1.1 times as long at (16, 256) as a
    # copy whose do, in inference mode too, and methods freeze what they do not train.
    return {name: model.eval().requires_grad_(False).to(spec.device, dtype) for name, model in models.items()}


def as_callers(
    models: dict[str, nn.Module], source: ModelSource | Architecture, spec: LatencySpec
) -> dict[str, Callable[[dict], object]]:
    """Each model as a callable that runs one forward pass on the inputs.

    A classifier's products run in the spec's dtype by autocast, as its training's do. A language model's weights are
    held in that dtype, and it is asked for the logits of the last position alone, as generation asks it after reading
    a prompt: all of them would be 3.3 GB at (32, 512) with GPT-2's vocabulary, the same for every variant.
    """
    if isinstance(source, Architecture):
        return {
            name: lambda inputs, model=model: model(**inputs, use_cache=False, logits_to_keep=1)
            for name, model in models.items()
        }

    def caller(model: nn.Module) -> Callable[[dict], object]:
        def call(inputs: dict) -> object:
            with autocast(spec.device, spec.dtype):
                return model(**inputs)

        return call

    return {name: caller(model) for name, model in models.items()}


def inputs_of(config: PretrainedConfig, spec: LatencySpec, *, mask: bool) -> Callable[[int, int], dict]:
    """What makes random tokens of a batch and a length, none of them padding, on the spec's device.

    Parameters
    ----------
    config : PretrainedConfig
        Of the built model, which knows what its batches are padded with; some classes' have no such token, nor an end.
    spec : LatencySpec
    mask : bool
        Whether to pass an attention mask. A causal model needs none where nothing is padding, and takes its fastest
        kernel without.
    """
    vocabulary, eos, pad = config.vocab_size, *(getattr(config, f"{name}_token_id", None) for name in ("eos", "pad"))
    eos = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    special = {*eos, *([] if pad is None else [pad])}
    first = min(5, vocabulary - 1)
    ordinary = next((i for i in range(first, vocabulary) if i not in special), first)

    def make(batch: int, length: int) -> dict:
        generator = torch.Generator().manual_seed(batch * 100_003 + length)
        ids = torch.randint(first, vocabulary, (batch, length), generator=generator)
        ids[torch.isin(ids, torch.tensor(sorted(special), dtype=ids.dtype))] = ordinary
        if config.is_encoder_decoder and eos:
            ids[:, -1] = eos[0]  # where T5's and BART's classifiers look
        inputs = {"input_ids": ids.to(spec.device)}
        return inputs | {"attention_mask": torch.ones_like(ids).to(spec.device)} if mask else inputs

    return make


def sizes_of(
    source: ModelSource | Architecture, spec: LatencySpec, bottlenecks: tuple[int, int]
) -> dict[str, tuple[int | None, int]]:
    """Of every variant, its bottleneck or prefix and the parameters that its method trains besides the head."""
    config = source.config if isinstance(source, Architecture) else load_config(str(source.path))
    problem = "language_modelling" if isinstance(source, Architecture) else "classification"
    stored = None if isinstance(source, Architecture) else stored_names(source.path)
    settings = dict.fromkeys((BASE, COPY, FULL), Setting("full"))
    settings |= dict.fromkeys((MERGED, UNMERGED), Setting("lora", spec.targets, spec.r))
    settings |= {name: Setting(name, size=size) for name, size in zip(ADAPTERS, bottlenecks, strict=True)}
    if spec.prefix_length:
        settings |= {name: Setting(name, size=spec.prefix_length) for name in PREFIXES}
    counts: dict[Setting, Counts] = {}
    for setting in settings.values():
        if setting not in counts:
            counts[setting] = count(config, setting, problem=problem, stored=stored)
    return {
        name: (settings[name].size, counts[settings[name]].method)
        for name in variant_names(source, bottlenecks, spec.prefix_length)
    }


def _pretrained_base(source: ModelSource, spec: LatencySpec) -> nn.Module:
    base, _, _ = load_classifier(source, 2, seed=0)
    pick_attention(base, spec.device)
    return base


def _random_base(source: Architecture) -> nn.Module:
    """With fused attention, on a CPU too: it is slow there backwards only."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(source.config, attn_implementation="sdpa", dtype=torch.float32)


def _held_in(source: ModelSource | Architecture, spec: LatencySpec) -> torch.dtype:
    return getattr(torch, spec.dtype) if isinstance(source, Architecture) else torch.float32


@torch.no_grad()
def _disturb(parameters, generator: torch.Generator) -> None:
    for p in parameters:
        p.add_(torch.randn(p.shape, generator=generator), alpha=_NOISE)


def _merge(model: nn.Module, layers: dict[str, LoRALayer]) -> None:
    for layer in layers.values():
        layer.merge()
    unload_lora(model)
