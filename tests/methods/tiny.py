"""Tiny models as a method gets them: frozen but for their head, with a padded batch, and what tests do to them."""

from __future__ import annotations

import atexit
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from torch import Tensor, nn

from rankprobe.methods.head import freeze_all_but, head_parameters
from rankprobe.weights.pretrained import find_model, load_causal_lm, load_classifier
from tests.tiny_models import KINDS, make_tiny

TEXTS = ["the cat sat", "a dog ran over the hill", "one"]
# Kind and task of every model that methods are tried on.
MODELS = [*((kind, "classifier") for kind in KINDS), ("gpt2", "language_model"), ("llama", "language_model")]
# Of tests.tiny_models: blocks, width, width of ELECTRA's embeddings.
L, D, E = 2, 32, 16


@dataclass
class Tiny:
    """A model, its head's names and a batch with padding.

    Attributes
    ----------
    kind, task : str
    model : PreTrainedModel
        In evaluation mode.
    head : set of str
    batch : dict of str to Tensor
    pad_id : int
    """

    kind: str
    task: str
    model: nn.Module
    head: set[str]
    batch: dict[str, Tensor]
    pad_id: int


def load_tiny(kind: str, task: str = "classifier", seed: int = 1, *, loud: bool = False) -> Tiny:
    """A fresh copy, frozen but for its head.

    ``seed`` is a classifier's head's. ``loud`` makes every weight larger: those of a fresh model are so small that its
    output hardly depends on its input.
    """
    source = find_model(_folder(kind))
    if task == "language_model":
        # The tiny Llama is saved without its output layer, which counts as pretrained: always the same.
        model, tokenizer, _ = load_causal_lm(source, seed=1)
        missing = []
    else:
        model, tokenizer, missing = load_classifier(source, 3, seed=seed)
    head = head_parameters(model, missing)
    if loud:
        perturb(model)
    freeze_all_but(model, head)
    batch = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    return Tiny(kind, task, model.eval(), head, batch, tokenizer.pad_token_id)


@cache
def _folder(kind: str) -> Path:
    folder = Path(mkdtemp(prefix="tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_tiny(kind, folder)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What requires a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def count(tiny: Tiny) -> int:
    """Parameters that require a gradient besides the head's."""
    return sum(p.numel() for name, p in trained(tiny.model).items() if name not in tiny.head)


def perturb(model: nn.Module, seed: int = 0, size: float = 0.3) -> None:
    """Move everything that is trained away from its start, which would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for p in trained(model).values():
        p.data.add_(torch.randn(p.shape, generator=generator).to(p), alpha=size)


@torch.no_grad()
def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).logits


def row_of(batch: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """One text of a batch without its padding."""
    tokens = int(batch["attention_mask"][i].sum())
    return {key: value[i : i + 1, :tokens] for key, value in batch.items()}


def with_names(cases) -> list:
    """Cases of ``pytest.mark.parametrize``, named by their parts."""
    return [pytest.param(*case, id="-".join(str(part) for part in case)) for case in cases]
