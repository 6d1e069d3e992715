"""LoRA adapters in PEFT's on-disk format, written and read whole; opened without reading them, and loralib's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.weights.factors import AdapterModule, AdapterSource, Factors, scaling_of
from rankprobe.weights.loralib import open_loralib
from rankprobe.weights.peft_files import (
    CONFIG_FILE,
    PREFIX,
    WEIGHTS_FILE,
    open_peft,
    parse,
    read_config,
    weights_file,
)
from rankprobe.weights.tensors import open_tensors

__all__ = [
    "Adapter",
    "AdapterModule",
    "AdapterSource",
    "Factors",
    "load_adapter",
    "open_loralib",
    "open_peft",
    "save_adapter",
    "scaling_of",
]


@dataclass(frozen=True)
class Adapter:
    """One adapter: factors by module path, and the tensors saved whole (``modules_to_save``: the head).

    Attributes
    ----------
    factors : dict of str to Factors
        By module path, ``bert.encoder.layer.0.attention.self.query``.
    saved : dict of str to Tensor
        Whole tensors by parameter name, ``classifier.weight``.
    config : dict
        ``adapter_config.json``.
    """

    factors: dict[str, Factors]
    saved: dict[str, Tensor] = field(default_factory=dict)
    config: dict = field(default_factory=dict)


def save_adapter(
    folder: Path,
    factors: Mapping[str, Factors],
    saved: Mapping[str, Tensor],
    *,
    rslora: bool,
    dropout: float,
    fan_in_fan_out: bool,
    modules_to_save: list[str],
    task_type: str | None = "SEQ_CLS",
    base_model: str = "",
) -> None:
    """Write an adapter that ``peft.PeftModel.from_pretrained`` loads.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    factors : mapping of str to Factors
        By module path. The most common r and alpha become the config's, others go to ``rank_pattern`` and
        ``alpha_pattern``.
    saved : mapping of str to Tensor
        Whole tensors by parameter name (the head).
    fan_in_fan_out : bool
        True where the targets are transformers' Conv1D (GPT-2).
    modules_to_save : list of str
        The modules that ``saved`` belongs to.
    base_model : str
        Name of the base, for the reader's information; a local path is never written.
    """
    ranks = {path: f.A.shape[0] for path, f in factors.items()}
    alphas = {path: f.alpha for path, f in factors.items()}
    r, alpha = _most_common(ranks.values()), _most_common(alphas.values())
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "r": r,
        "lora_alpha": _as_int(alpha),
        "lora_dropout": dropout,
        "use_rslora": rslora,
        "fan_in_fan_out": fan_in_fan_out,
        "bias": "none",
        "target_modules": sorted(factors),
        # Keys are regular expressions to PEFT: a path's dots are escaped so that they match only themselves.
        "rank_pattern": {re.escape(path): k for path, k in ranks.items() if k != r},
        "alpha_pattern": {re.escape(path): _as_int(a) for path, a in alphas.items() if a != alpha},
        "modules_to_save": modules_to_save or None,
        "inference_mode": True,
    }
    tensors = {}
    for path, f in factors.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = f.A.detach().contiguous().cpu()
        tensors[f"{PREFIX}{path}.lora_B.weight"] = f.B.detach().contiguous().cpu()
    for name, tensor in saved.items():
        tensors[PREFIX + name] = tensor.detach().contiguous().cpu()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_adapter(folder: Path) -> Adapter:
    """Read a LoRA adapter that PEFT or rankprobe wrote, all of it, to put on a model.

    Raises
    ------
    UsageError
        If a file is missing or damaged, the adapter is not LoRA, or it uses what has no plain ``B @ A`` of a linear
        layer (DoRA, a bias on B, an embedding, a convolution).
    """
    folder = Path(folder)
    config, file = read_config(folder), weights_file(folder)
    source = parse(folder, config, open_tensors([file]), file)
    more = next((path for path, of in source.modules.items() if of.embedding), None) or next(iter(source.skipped), None)
    if source.config.get("lora_bias") or any(of.bias for of in source.modules.values()):
        more = "lora_bias: true"
    if more is not None:
        raise UsageError(must("adapter", "adapt linear layers by a plain B @ A", more, "Merge it with peft first"))
    factors = {path: source.factors(path) for path in source.modules}
    return Adapter(factors, {name: source.read_saved(name) for name in source.saved}, source.config)


def _most_common(values) -> object:
    values = list(values)
    return max(sorted(set(values)), key=values.count)


def _as_int(alpha: float) -> float | int:
    return int(alpha) if float(alpha).is_integer() else float(alpha)
