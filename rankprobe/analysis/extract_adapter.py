"""An adapter that is resized: its factors, what it holds beside them, and its own settings."""

from __future__ import annotations

import math

from rankprobe.analysis.extract_layout import Keep, Layout, Lost, Target, head_of
from rankprobe.weights.factors import AdapterSource
from rankprobe.weights.pairing import Pairing
from rankprobe.weights.skeleton import by_names
from rankprobe.weights.write_adapter import added_by_peft, task_type

_WRAPPER = ("module.", "_orig_mod.")


def layout_of_adapter(pairing: Pairing, *, keep: Keep) -> Layout:
    """Sort what an adapter holds: every module keeps its name, and what is saved whole stays as it is.

    Parameters
    ----------
    pairing : Pairing
        Of an adapter, with its base or without, with fused matrices whole and no name filtered out.
    keep : Keep
        Which modules to carry.

    Raises
    ------
    UsageError
        If keep's expressions match nothing.
    """
    adapter: AdapterSource = pairing.tuned
    base = pairing.base.config if pairing.base is not None else {}
    task = adapter.config.get("task_type") or task_type(base.get("architectures"))
    shapes = {f"{path}.weight": of.shape for path, of in adapter.modules.items()} | dict(adapter.saved)
    layout = Layout(by_names(shapes, {}, base), task if isinstance(task, str) else None)
    factored = [matrix for matrix in pairing.matrices if matrix.source == "factored"]
    keep.check([matrix.name for matrix in factored])
    for matrix in factored:
        path = matrix.name.removesuffix(".weight")
        if not keep(matrix.name):
            layout.left_out.append(matrix.name)
            continue
        kind = "embedding" if adapter.modules[path].embedding else "conv1d" if matrix.transposed else "linear"
        layout.targets.append(Target(matrix, unwrapped(path), kind))
    for name, why in pairing.skipped.items():
        if name in adapter.skipped:
            layout.lost.append(Lost(name, why, math.nan))
    return layout


def saved_modules(adapter: AdapterSource, task: str | None) -> tuple[list[str], str]:
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


def unwrapped(path: str) -> str:
    """A path without what a training loop put before it."""
    while path.startswith(_WRAPPER):
        path = path.partition(".")[2]
    return path
