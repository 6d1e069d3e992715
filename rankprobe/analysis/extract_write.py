"""From chosen factors to an adapter's config and tensors: where biases go, and what else PEFT's rules match."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rankprobe.analysis.extract_layout import Bias, Layout, Lost, Target, Whole, tensors_of
from rankprobe.weights.adapter import PREFIX
from rankprobe.weights.pairing import Pairing
from rankprobe.weights.write_adapter import Entry, adapter_config, added_by_peft, factor_entries

FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Contents:
    """An adapter to be written.

    Attributes
    ----------
    config : dict
    entries : list of Entry
    beside : list of dict
        What is carried beside factors: name, how, why, parameters, change.
    lost : list of Lost
        What the layout carried and the adapter cannot.
    """

    config: dict
    entries: list[Entry]
    beside: list[dict]
    lost: list[Lost]


def contents_of_model(
    pairing: Pairing, layout: Layout, ranks: Mapping[str, int], read: Callable[[str, str], Tensor],
    *, dtype: torch.dtype, base_model: str,
) -> Contents:
    """Config and tensors for a whole tuned model.

    Parameters
    ----------
    pairing : Pairing
    layout : Layout
    ranks : mapping of str to int
        r of each target's module; those without directions are left out.
    read : callable
        ``read(module, "B")`` and ``read(module, "A")`` give a target's factors.
    dtype : torch.dtype
        Of the factors. What is carried whole keeps TUNED's.
    base_model : str
        The base's name on the hub, or nothing.
    """
    targets = {target.module: target for target in layout.targets if ranks.get(target.module)}
    modules, lost = _saved_whole(layout, targets)
    held = [f"{module}." for module in modules]
    biases = [bias for bias in layout.biases if not bias.name.startswith(tuple(held) or ("\0",))]
    on_B = _fit_on_B(biases, targets, pairing, layout)
    entries, beside = [], []
    paths: dict[str, int] = {}
    for module, target in targets.items():
        for path, kind in ((module, target.kind), *target.copies):
            paths[path] = ranks[module]
            entries += factor_entries(path, target.matrix.shape, ranks[module], dtype,
                                      lambda name, module=module: read(module, name), embedding=kind == "embedding")
    for module, whole in modules.items():
        for name, stored in whole.tensors.items():
            entries.append(_whole_entry(PREFIX + name, stored, pairing))
        size = sum(math.prod(pairing.tuned.shapes[stored]) for stored in whole.tensors.values())
        beside.append({"name": module, "how": "whole", "why": whole.why, "parameters": size, "change": whole.change})
    for bias in biases:
        how = "bias of lora_B" if on_B else "whole"
        beside.append({"name": bias.name, "how": how, "why": "bias", "parameters": math.prod(bias.shape),
                       "change": bias.change})
        if not on_B:
            entries.append(_whole_entry(key_of(bias.name, paths), bias.stored, pairing))
    if on_B:
        entries += _biases_of_B(targets, biases, pairing, dtype)
    config = adapter_config(
        paths, layout.skeleton.parts, task=layout.task, modules_to_save=list(modules),
        bias="all" if biases and not on_B else "none", lora_bias=on_B,
        fan_in_fan_out=any(target.kind == "conv1d" for target in targets.values()), base_model=base_model,
    )  # fmt: skip
    return Contents(config, entries, beside, lost)


def _saved_whole(layout: Layout, targets: Mapping[str, Target]) -> tuple[dict[str, Whole], list[Lost]]:
    """Modules to save, with those that PEFT's rule adds to them: any whose path ends with such a name, dot or not.

    A module that would take a target with it cannot be carried.
    """
    modules, lost = dict(layout.whole), []
    paths = {path for target in targets.values() for path in (target.module, *(p for p, _ in target.copies))}
    for module in list(modules):
        covers = re.compile(rf"(^|.*\.){module}($|\..*)")  # PEFT's own expression, the dots not escaped
        if any(covers.match(path) or path.endswith(module) for path in paths):
            lost.append(Lost(module, "peft would take layers with factors for it", modules.pop(module).change))
    ends = (*modules, *added_by_peft(layout.task)) or ("\0",)
    for path in layout.skeleton.parts:
        if path not in modules and path.endswith(ends) and not _inside(path, modules):
            tensors = tensors_of(path, layout.skeleton, layout.stored, layout.tied)
            if tensors is not None:
                modules[path] = Whole(tensors, "unchanged, which peft asks for beside another", 0.0)
    return {module: whole for module, whole in modules.items() if not _inside(module, modules)}, lost


def _inside(path: str, modules: Mapping[str, object]) -> bool:
    return any(path.startswith(f"{other}.") for other in modules)


def _fit_on_B(biases: list[Bias], targets: Mapping[str, Target], pairing: Pairing, layout: Layout) -> bool:
    """Whether the changed biases can go with the factors, as a bias of every ``lora_B``.

    PEFT wants that for all targets or for none, has none for embeddings, and cannot merge it where the layer itself has
    no bias. Otherwise biases replace the base's (``bias: all``).
    """
    if not biases or any(bias.module not in targets for bias in biases):
        return False
    stored = {layout.skeleton.canonical(name) for name in pairing.tuned.shapes}
    return all(target.kind != "embedding" and f"{module}.bias" in stored for module, target in targets.items())


def _biases_of_B(
    targets: Mapping[str, Target], biases: list[Bias], pairing: Pairing, dtype: torch.dtype
) -> list[Entry]:
    changed = {bias.module: bias for bias in biases}

    def change(module: str, size: int) -> Tensor:
        bias = changed.get(module)
        if bias is None:
            return torch.zeros(size)
        return pairing.tuned.read(bias.stored).double() - pairing.base.read(bias.base).double()

    return [
        Entry(f"{PREFIX}{module}.lora_B.bias", (target.matrix.shape[0],), dtype,
              lambda module=module, size=target.matrix.shape[0]: change(module, size))
        for module, target in targets.items()
    ]


def _whole_entry(key: str, stored: str, pairing: Pairing) -> Entry:
    dtype = FLOATS.get(pairing.tuned.dtypes[stored], torch.float32)
    return Entry(key, tuple(pairing.tuned.shapes[stored]), dtype, lambda: pairing.tuned.read(stored))


def key_of(name: str, targets: Mapping[str, int], *, any_leaf: bool = False) -> str:
    """Key of a tensor that is carried whole: a bias stands in ``base_layer`` once its layer has factors."""
    module, _, leaf = name.rpartition(".")
    inside = targets.get(module) and (any_leaf or leaf == "bias")
    return f"{PREFIX}{module}.base_layer.{leaf}" if inside else PREFIX + name
