"""An adapter that is resized: its factors, what it holds beside them, and its own settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rankprobe.analysis.extract_layout import Layout, Lost, Target, head_of
from rankprobe.analysis.extract_write import FLOATS, Contents, key_of
from rankprobe.weights.adapter import PREFIX
from rankprobe.weights.factors import AdapterSource
from rankprobe.weights.names import unwrapped
from rankprobe.weights.pair import NameFilter
from rankprobe.weights.pairing import Pairing
from rankprobe.weights.skeleton import by_names
from rankprobe.weights.write_adapter import Entry, adapter_config, added_by_peft, factor_entries, task_type


def layout_of_adapter(pairing: Pairing, *, keep: NameFilter) -> Layout:
    """Sort what an adapter holds: every module keeps its name, and what is saved whole stays as it is.

    Parameters
    ----------
    pairing : Pairing
        Of an adapter, with its base or without, with fused matrices whole and no name filtered out.
    keep : NameFilter
        Which modules to carry.
    """
    adapter: AdapterSource = pairing.tuned
    base = pairing.base.config if pairing.base is not None else {}
    guess = _task_of_head(adapter) if not adapter.config else None
    task = adapter.config.get("task_type") or guess or task_type(base.get("architectures"))
    shapes = {f"{path}.weight": of.shape for path, of in adapter.modules.items()} | dict(adapter.saved)
    layout = Layout(by_names(shapes, {}, base), task if isinstance(task, str) else None)
    factored = [matrix for matrix in pairing.matrices if matrix.source == "factored"]
    for matrix in factored:
        path = matrix.name.removesuffix(".weight")
        if not keep(matrix.name):
            layout.left_out.append(matrix.name)
            continue
        kind = "embedding" if adapter.modules[path].embedding else "conv1d" if matrix.transposed else "linear"
        layout.targets.append(Target(matrix, unwrapped(path), kind))
    if guess:
        layout.notes.append(f"The file does not say what its head is for: task_type is {guess} by the head's name")
    for name, why in pairing.skipped.items():
        if name in adapter.skipped:
            layout.lost.append(Lost(name, why, math.nan))
    return layout


def contents_of_adapter(
    pairing: Pairing, layout: Layout, ranks: Mapping[str, int], read: Callable[[str, str], Tensor],
    *, dtype: torch.dtype, base_model: str,
) -> Contents:
    """Config and tensors for an adapter that was resized; arguments as for :func:`contents_of_model`."""
    adapter: AdapterSource = pairing.tuned
    targets = {target.module: target for target in layout.targets if ranks.get(target.module)}
    entries, beside, lost = [], [], []
    sources = {unwrapped(path): path for path in adapter.modules}
    changes = {module: adapter.bias_change(sources[module]) for module in sources}
    changes = {module: change for module, change in changes.items() if change is not None}
    on_B = any(module in targets for module in changes)
    for module, target in targets.items():
        entries += factor_entries(module, target.matrix.shape, ranks[module], dtype,
                                  lambda name, module=module: read(module, name), embedding=target.kind == "embedding")
        if on_B:
            change = changes.get(module, torch.zeros(target.matrix.shape[0]))
            entries.append(Entry(f"{PREFIX}{module}.lora_B.bias", tuple(change.shape), dtype,
                                 lambda change=change: change))
    for module, change in changes.items():
        norm = float(change.double().norm())
        if module in targets:
            beside.append({"name": f"{module}.bias", "how": "bias of lora_B", "why": "bias",
                           "parameters": change.numel(), "change": norm})
        elif norm:
            lost.append(Lost(f"{module}.bias", "its matrix kept no directions", norm))
    modules, bias = _saved_modules(adapter, layout.task)
    for stored, shape in adapter.saved.items():
        name = unwrapped(stored)
        entries.append(Entry(key_of(name, ranks, any_leaf=True), tuple(shape),
                             FLOATS.get(adapter.saved_dtype(stored), torch.float32),
                             lambda stored=stored: adapter.read_saved(stored)))
        beside.append({"name": name, "how": "whole", "why": "saved so in the adapter", "parameters": math.prod(shape),
                       "change": float("nan")})
    conv1d = any(target.kind == "conv1d" for target in targets.values())
    config = adapter_config(
        {module: ranks[module] for module in targets}, layout.skeleton.parts, task=layout.task,
        modules_to_save=modules, bias=bias, lora_bias=on_B,
        fan_in_fan_out=bool(adapter.config.get("fan_in_fan_out", conv1d)), base_model=base_model,
    )  # fmt: skip
    return Contents(config, entries, beside, lost)


def _task_of_head(adapter: AdapterSource) -> str | None:
    """PEFT's task type for the head that a loralib file holds; a classifier is taken for one of whole texts."""
    heads = {head_of(name) for name in adapter.saved}
    tasks = {"classifier": "SEQ_CLS", "score": "SEQ_CLS", "qa_outputs": "QUESTION_ANS"}
    return next((task for head, task in tasks.items() if head in heads), None)


def _saved_modules(adapter: AdapterSource, task: str | None) -> tuple[list[str], str]:
    """``modules_to_save`` and ``bias`` of an adapter: as its config says, or of its tensors where it has none.

    Parameters
    ----------
    adapter : AdapterSource
    task : str or None
        PEFT's task type, for which it adds modules by itself.
    """
    config = adapter.config
    if config:
        modules = config.get("modules_to_save") or []
        modules = [m for m in modules if isinstance(m, str)] if isinstance(modules, list) else []
        bias = config.get("bias")
        return modules, bias if bias in ("all", "lora_only") else "none"
    modules, bias = [], "none"
    for name in adapter.saved:
        module, _, leaf = name.rpartition(".")
        head = head_of(name)
        if head is None and leaf == "bias" and f"{module}.weight" not in adapter.saved:
            bias = "all"
        elif (head or module) and not (head or module).endswith(added_by_peft(task) or ("\0",)):
            modules.append(unwrapped(head or module))
    return list(dict.fromkeys(modules)), bias
