"""Checkpoints in memory, of exactly what pairing asks for, and adapters made by hand."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass
class Memory:
    """Named tensors with a Checkpoint's fields; ``reads`` counts what was read."""

    tensors: dict[str, Tensor]
    label: str = "model"
    config: dict = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    path: Path | None = None
    reads: list[str] = field(default_factory=list)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(t.shape) for name, t in self.tensors.items()}

    @property
    def dtypes(self) -> dict[str, str]:
        return {name: str(t.dtype).removeprefix("torch.") for name, t in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        self.reads.append(name)
        return self.tensors[name]


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bert_like(prefix="", layers=2, d=8, tokens=10, seed=0, **more):
    """Names of a small BERT with random numbers."""
    shapes = {"embeddings.word_embeddings.weight": (tokens, d), "embeddings.LayerNorm.weight": (d,)}
    for i in range(layers):
        block = f"encoder.layer.{i}."
        shapes |= {f"{block}attention.self.{p}.weight": (d, d) for p in ("query", "key", "value")}
        shapes |= {f"{block}attention.self.query.bias": (d,), f"{block}intermediate.dense.weight": (2 * d, d)}
    tensors = {prefix + name: random(*shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}
    return tensors | more


def nudged(tensors, by=0.01, seed=100):
    """The same tensors with noise on each."""
    noise = (by * random(*t.shape, seed=seed + i, dtype=t.dtype) for i, t in enumerate(tensors.values()))
    return {name: t + of for (name, t), of in zip(tensors.items(), noise, strict=True)}


def by_name(pairing):
    return {m.name: m for m in pairing.matrices}


def adapter_of(tmp_path, modules, extra=None, r=2, seed=0, prefix="", **fields):
    """A hand-made PEFT adapter; modules: path to (m, n)."""
    tensors = {}
    for i, (path, (m, n)) in enumerate(modules.items()):
        tensors[f"base_model.model.{prefix}{path}.lora_A.weight"] = random(r, n, seed=seed + i)
        tensors[f"base_model.model.{prefix}{path}.lora_B.weight"] = random(m, r, seed=seed + i + 50)
    folder = tmp_path / "a"
    folder.mkdir(exist_ok=True)
    save_file(tensors | {f"base_model.model.{k}": t for k, t in (extra or {}).items()},
              folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4, **fields}))
    return folder
