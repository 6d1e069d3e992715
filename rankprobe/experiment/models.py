"""A run's model: built as its spec says before training, and read back from its folder after."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rankprobe.experiment.study import RunSpec
from rankprobe.methods.full import unfreeze
from rankprobe.methods.head import freeze_all_but, head_parameters
from rankprobe.methods.lora import LoRALayer, apply_lora, load_lora, save_lora
from rankprobe.weights.adapter import load_adapter
from rankprobe.weights.architecture import model_shapes, target_sites
from rankprobe.weights.pretrained import load_classifier, quiet_transformers
from rankprobe.weights.source import DEFAULT_HUB_ID, DEFAULT_MODEL, ModelSource, find_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rankprobe.tasks.task import Task

MODEL_FOLDER, ADAPTER_FOLDER, HEAD_FILE = "model", "adapter", "head.safetensors"


@dataclass
class Prepared:
    """A model ready to train.

    Attributes
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    head : set of str
        Names of the head's parameters.
    layers : dict of str to LoRALayer
        Empty unless the method is lora.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    head: set[str]
    layers: dict[str, LoRALayer]


def load_base(spec: RunSpec, source: ModelSource, task: Task) -> tuple[nn.Module, PreTrainedTokenizerBase, set[str]]:
    """The pretrained model with the seed's fresh head: where every method starts. Also the head's parameter names."""
    problem = "regression" if task.is_regression else "classification"
    model, tokenizer, missing = load_classifier(source, max(1, len(task.labels)), seed=spec.seed, problem=problem)
    if task.labels:
        model.config.id2label = dict(enumerate(task.labels))
        model.config.label2id = {label: i for i, label in enumerate(task.labels)}
    pick_attention(model, spec.device)
    return model.to(spec.device), tokenizer, head_parameters(model, missing)


def pick_attention(model: nn.Module, device: str) -> None:
    """Plain attention on a CPU: torch's fused one has a slow backward there.

    Measured on MiniLM, batch 32, 40 tokens, bfloat16: a LoRA step takes 0.12 s instead of 0.27 s, a full one 0.19 s
    instead of 0.35 s. On a GPU the fused kernels are the fast ones.
    """
    if device == "cpu" and model.config._attn_implementation != "eager":
        model.set_attn_implementation("eager")


def prepare(spec: RunSpec, source: ModelSource, task: Task) -> Prepared:
    """Load the base and let the method's parameters, and the head's, require a gradient.

    Raises
    ------
    UsageError
        If targets match nothing or r is out of range.
    """
    model, tokenizer, head = load_base(spec, source, task)
    set_dropout(model, spec.model_dropout)
    layers: dict[str, LoRALayer] = {}
    if spec.method == "full":
        unfreeze(model)
    else:
        freeze_all_but(model, head)
        if spec.method == "lora":
            sites = target_sites(model_shapes(model), spec.targets)
            layers = apply_lora(
                model, sites, spec.r, spec.alpha, dropout=spec.dropout, rslora=spec.rslora, seed=spec.seed
            )
    return Prepared(model, tokenizer, head, layers)


def count_parameters(prepared: Prepared) -> dict[str, int]:
    """``total`` (of the base with its head), ``trainable`` = ``head`` + ``method``."""
    trainable = {n: p.numel() for n, p in prepared.model.named_parameters() if p.requires_grad}
    everything = sum(p.numel() for p in prepared.model.parameters())
    factors = sum(p.numel() for layer in prepared.layers.values() for p in (*layer.A, *layer.B))
    head = sum(count for name, count in trainable.items() if name in prepared.head)
    total = sum(trainable.values())
    return {"total": everything - factors, "trainable": total, "head": head, "method": total - head}


def save_trained(prepared: Prepared, spec: RunSpec, source: ModelSource, folder: Path) -> None:
    """Write what was trained: the whole model, a PEFT adapter with the head, or the head alone.

    Raises
    ------
    OSError
        If the disk is full or refuses for another reason.
    """
    try:
        _save_trained(prepared, spec, source, folder)
    except Exception as error:
        # safetensors and tokenizers are written in Rust: types of their own, with the system's number in the text.
        text = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(text[1]) if text else None
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(folder)) from error


def _save_trained(prepared: Prepared, spec: RunSpec, source: ModelSource, folder: Path) -> None:
    if spec.method == "full":
        with quiet_transformers():
            prepared.model.save_pretrained(folder / MODEL_FOLDER)
            prepared.tokenizer.save_pretrained(folder / MODEL_FOLDER)
    elif spec.method == "lora":
        save_lora(
            folder / ADAPTER_FOLDER,
            prepared.model,
            prepared.layers,
            prepared.head,
            rslora=spec.rslora,
            base_model=DEFAULT_HUB_ID if source.name == DEFAULT_MODEL else source.name,
        )
    else:
        parameters = dict(prepared.model.named_parameters())
        save_file({n: parameters[n].detach().cpu().contiguous() for n in sorted(prepared.head)}, folder / HEAD_FILE)


def load_trained(folder: Path, spec: RunSpec, source: ModelSource, task: Task) -> Prepared:
    """Read a finished run's model back, in evaluation mode."""
    if spec.method == "full":
        problem = "regression" if task.is_regression else "classification"
        model, tokenizer, _ = load_classifier(
            find_model(folder / MODEL_FOLDER), max(1, len(task.labels)), seed=spec.seed, problem=problem
        )
        pick_attention(model, spec.device)
        return Prepared(model.to(spec.device), tokenizer, head_parameters(model), {})
    model, tokenizer, head = load_base(spec, source, task)
    layers: dict[str, LoRALayer] = {}
    if spec.method == "lora":
        layers = load_lora(model, load_adapter(folder / ADAPTER_FOLDER))
    else:
        parameters = dict(model.named_parameters())
        for name, tensor in load_file(folder / HEAD_FILE).items():
            parameters[name].data.copy_(tensor)
    return Prepared(model, tokenizer, head, layers)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter, on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


def set_dropout(model: nn.Module, p: float) -> None:
    """Set every dropout inside a model to ``p``; architectures keep it in modules and in plain attributes."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        for name in ("attention_dropout", "attn_dropout", "dropout_prob", "pos_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, p)


def set_threads(threads: int) -> None:
    """CPU threads for products; a sum's rounding depends on them, so a run fixes them."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
