"""A run's model: built as its spec says before training, and read back from its folder after."""

from __future__ import annotations

import copy
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from rankprobe.experiment.spec import RunSpec
from rankprobe.methods.apply import apply_method
from rankprobe.methods.head import head_parameters
from rankprobe.methods.lora import load_lora, save_lora
from rankprobe.methods.lora_layer import LoRALayer
from rankprobe.weights.adapter import load_adapter
from rankprobe.weights.pretrained import load_causal_lm, load_classifier, quiet_transformers
from rankprobe.weights.run_folder import WHOLE_MODEL
from rankprobe.weights.source import DEFAULT_HUB_ID, DEFAULT_MODEL, ModelSource, find_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rankprobe.tasks.task import Task

MODEL_FOLDER, ADAPTER_FOLDER = "model", "adapter"
# What a method added to a frozen base, or the head alone, by parameter name.
HEAD_FILE, ADDED_FILE = "head.safetensors", "added.safetensors"


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
    trainee : nn.Module
        What is trained and asked for predictions: the model, or what wraps it.
    total : int
        Parameters of the base with its head, without what the method added.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    head: set[str]
    layers: dict[str, LoRALayer]
    trainee: nn.Module
    total: int


def load_base(spec: RunSpec, source: ModelSource, task: Task) -> tuple[nn.Module, PreTrainedTokenizerBase, set[str]]:
    """The pretrained model with the seed's fresh head: where every method starts. Also the head's parameter names."""
    model, tokenizer, missing = _load(spec, source, task)
    return model, tokenizer, head_parameters(model, missing)


def _load(spec: RunSpec, source: ModelSource, task: Task) -> tuple[nn.Module, PreTrainedTokenizerBase, list[str]]:
    """A model with the head that the task asks for, on the spec's device."""
    if task.problem == "language_modelling":
        model, tokenizer, missing = load_causal_lm(source, seed=spec.seed)
    else:
        labels = max(1, len(task.labels))
        model, tokenizer, missing = load_classifier(source, labels, seed=spec.seed, problem=task.problem)
    if task.labels:
        model.config.id2label = dict(enumerate(task.labels))
        model.config.label2id = {label: i for i, label in enumerate(task.labels)}
    pick_attention(model, spec.device)
    return model.to(spec.device), tokenizer, missing


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
        If the method or its size does not fit the model.
    """
    model, tokenizer, head = load_base(spec, source, task)
    set_dropout(model, spec.model_dropout)
    total = sum(p.numel() for p in model.parameters())
    applied = apply_method(
        model, head, spec.method, r=spec.r, alpha=spec.alpha, targets=spec.targets, dropout=spec.dropout,
        rslora=spec.rslora, size=spec.size, seed=spec.seed, rank_pattern=spec.rank_pattern,
    )  # fmt: skip
    return Prepared(model, tokenizer, head, applied.layers, applied.trainee, total)


def count_parameters(prepared: Prepared) -> dict[str, int]:
    """``total`` (of the base with its head), ``trainable`` = ``head`` + ``method``."""
    trainable = sum(p.numel() for p in prepared.trainee.parameters() if p.requires_grad)
    head = sum(p.numel() for n, p in prepared.model.named_parameters() if p.requires_grad and n in prepared.head)
    return {"total": prepared.total, "trainable": trainable, "head": head, "method": trainable - head}


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
    if spec.method in WHOLE_MODEL:
        prepared.trainee.eval()  # a random subspace has its weights in the model then
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
        trained = {n: p.detach().cpu().contiguous() for n, p in prepared.model.named_parameters() if p.requires_grad}
        save_file(dict(sorted(trained.items())), folder / _added_file(spec))


def load_trained(folder: Path, spec: RunSpec, source: ModelSource, task: Task) -> Prepared:
    """Read a finished run's model back, in evaluation mode."""
    if spec.method in WHOLE_MODEL:
        model, tokenizer, _ = _load(spec, find_model(folder / MODEL_FOLDER), task)
        return _whole(model, tokenizer, head_parameters(model), {})
    if spec.method == "lora":
        model, tokenizer, head = load_base(spec, source, task)
        return _whole(model, tokenizer, head, load_lora(model, load_adapter(folder / ADAPTER_FOLDER)))
    prepared = prepare(spec, source, task)
    parameters = dict(prepared.model.named_parameters())
    for name, tensor in load_file(folder / _added_file(spec)).items():
        parameters[name].data.copy_(tensor)
    prepared.trainee.eval()
    return prepared


def _whole(model: nn.Module, tokenizer, head: set[str], layers: dict[str, LoRALayer]) -> Prepared:
    factors = sum(p.numel() for layer in layers.values() for p in (*layer.A, *layer.B))
    return Prepared(model, tokenizer, head, layers, model, sum(p.numel() for p in model.parameters()) - factors)


def _added_file(spec: RunSpec) -> str:
    return HEAD_FILE if spec.method == "head" else ADDED_FILE


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter, on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


def set_dropout(model: nn.Module, p: float) -> None:
    """Set every dropout inside a model to ``p``; architectures keep it in modules, in plain attributes and in configs.

    Layers that are left out at random (OPT's layerdrop) are kept all where ``p`` is 0. The model's own config, which
    goes to disk with it, says afterwards what it said before.
    """
    kept, configs = copy.deepcopy(getattr(model, "config", None)), {}
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = p
        _set_rates(vars(module), p)
        if hasattr(config := vars(module).get("config"), "to_dict"):
            configs[id(config)] = config
    for config in configs.values():  # Falcon's blocks read theirs at every pass
        _set_rates(vars(config), p)
    if kept is not None:
        model.config = kept


def _set_rates(attributes: dict, p: float) -> None:
    for name, value in attributes.items():
        layers = "layerdrop" in name
        if "drop" in name and isinstance(value, float) and not (layers and p):
            attributes[name] = p


def set_threads(threads: int) -> None:
    """CPU threads of torch and of SciPy's BLAS; a sum's rounding depends on them, so a run fixes them.

    Two runs side by side on one thread each must not bring two threads of BLAS each: on two cores an eigenvalue
    decomposition that has to share them takes thirty times as long.
    """
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    blas = ThreadpoolController().select(user_api="blas")
    if any(library.num_threads != threads for library in blas.lib_controllers):
        blas.limit(limits=threads)
