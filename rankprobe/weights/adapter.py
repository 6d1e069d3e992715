"""LoRA adapters in PEFT's on-disk format: ``adapter_config.json`` beside ``adapter_model.safetensors``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.weights.factors import AdapterModule, AdapterSource, Factors, scaling_of

__all__ = ["Adapter", "AdapterModule", "AdapterSource", "Factors", "load_adapter", "save_adapter", "scaling_of"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


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
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = f.A.detach().contiguous().cpu()
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = f.B.detach().contiguous().cpu()
    for name, tensor in saved.items():
        tensors[_PREFIX + name] = tensor.detach().contiguous().cpu()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_adapter(folder: Path) -> Adapter:
    """Read a LoRA adapter that PEFT or rankprobe wrote.

    Raises
    ------
    UsageError
        If a file is missing or damaged, the adapter is not LoRA, or it uses what has no plain ``B @ A`` (DoRA, a bias
        on B).
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            must("adapter", f"be a folder with {CONFIG_FILE}", folder, "Pass PEFT's output folder")
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(must(CONFIG_FILE, "be JSON", error, "Save the adapter again")) from None
    if config.get("peft_type") != "LORA":
        raise UsageError(must("adapter", "be of peft_type LORA", config.get("peft_type"), "Pass a LoRA adapter"))
    for option in ("use_dora", "lora_bias"):
        if config.get(option):
            raise UsageError(must("adapter", "be a plain B @ A", f"{option}: true", "Merge it with peft first"))
    tensors = _read_tensors(folder)
    names = {name.removeprefix(_PREFIX): t for name, t in tensors.items()}
    factors, saved = {}, {}
    for name, tensor in names.items():
        if name.endswith(".lora_A.weight"):
            path = name.removesuffix(".lora_A.weight")
            B = names.get(f"{path}.lora_B.weight")
            if B is None or B.shape[1] != tensor.shape[0]:
                raise UsageError(
                    must(
                        f"{path}.lora_B.weight",
                        f"have shape (out, {tensor.shape[0]})",
                        "nothing" if B is None else tuple(B.shape),
                        "Save the adapter again",
                    )
                )
            r = tensor.shape[0]
            alpha = float(_by_pattern(config.get("alpha_pattern") or {}, path, config["lora_alpha"]))
            factors[path] = Factors(B, tensor, alpha, scaling_of(alpha, r, bool(config.get("use_rslora"))))
        elif ".lora_" not in name:
            saved[name] = tensor
    if not factors:
        raise UsageError(must("adapter", "hold lora_A and lora_B", f"none in {WEIGHTS_FILE}", "Pass a LoRA adapter"))
    return Adapter(factors, saved, config)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    safe, pickled = folder / WEIGHTS_FILE, folder / "adapter_model.bin"
    try:
        if safe.exists():
            return load_file(safe)
        if pickled.exists():
            return torch.load(pickled, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        raise UsageError(must("adapter weights", "be readable", error, "Save the adapter again")) from None
    raise UsageError(must("adapter", f"be a folder with {WEIGHTS_FILE}", folder, "Pass PEFT's output folder"))


def _by_pattern(patterns: Mapping[str, object], path: str, default: object) -> object:
    """PEFT's rule: a key is a regular expression for the end of the path, the first that matches wins."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def _most_common(values) -> object:
    values = list(values)
    return max(sorted(set(values)), key=values.count)


def _as_int(alpha: float) -> float | int:
    return int(alpha) if float(alpha).is_integer() else float(alpha)
