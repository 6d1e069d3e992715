"""Members of a pack on tiny models, trained alone and together on the same batches."""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import nn

from rankprobe.experiment.models import set_dropout
from rankprobe.methods.apply import apply_method
from rankprobe.methods.head import head_parameters
from rankprobe.methods.lora_layer import LoRALayer
from rankprobe.methods.packed_lora import LoneState, Pack, lone_state
from rankprobe.training.packed import train_packed
from rankprobe.training.train import TrainResult, train
from rankprobe.weights.pretrained import find_model, load_causal_lm, load_classifier
from tests.tiny_models import make_tiny

LABELS = 3
LM, REGRESSION = "language_modelling", "regression"


@dataclass(frozen=True)
class Member:
    """Settings of one run."""

    r: int = 4
    alpha: float = 8.0
    lr: float = 3e-3
    seed: int = 0
    rslora: bool = False
    targets: str = "q,v"


# Ranks, scalings, rates and orders of batches all mixed.
MEMBERS = (
    Member(r=1, alpha=2.0, lr=1e-2, seed=0),
    Member(r=4, alpha=4.0, lr=2e-3, seed=1),
    Member(r=8, alpha=24.0, lr=5e-3, seed=0, rslora=True),
    Member(r=4, alpha=1.5, lr=1e-3, seed=2),
)


@dataclass
class Lone:
    """A model with LoRA on it."""

    model: nn.Module
    layers: dict[str, LoRALayer]
    head: set[str]

    @property
    def state(self) -> LoneState:
        return lone_state(self.model, self.layers, self.head)


def lone(kind: str, member: Member, problem: str = "classification", dtype: torch.dtype = torch.float64) -> Lone:
    """A member's model as it is before its training."""
    model, head = base(kind, member.seed, problem)
    settings = {"r": member.r, "alpha": member.alpha, "targets": member.targets, "rslora": member.rslora}
    applied = apply_method(model, head, "lora", **settings, seed=member.seed)
    return Lone(model.to(dtype), applied.layers, head)


def base(kind: str, seed: int, problem: str = "classification") -> tuple[nn.Module, set[str]]:
    """A tiny model with the seed's head, dropout off, and the head's names."""
    source = find_model(_folder(kind))
    if problem == LM:
        model, _, missing = load_causal_lm(source, seed=seed)
    else:
        model, _, missing = load_classifier(source, 1 if problem == REGRESSION else LABELS, seed=seed, problem=problem)
    set_dropout(model, 0.0)
    return model, head_parameters(model, missing)


@cache
def _folder(kind: str) -> Path:
    folder = Path(mkdtemp(prefix="tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_tiny(kind, folder)


def pack_of(
    kind: str, members: Sequence[Member], problem: str = "classification", dtype: torch.dtype = torch.float64
) -> Pack:
    """The members before their training, on one base."""
    states = [lone(kind, member, problem, dtype).state for member in members]
    return Pack(base(kind, 0, problem)[0].to(dtype), states)


def rows_of(n: int, problem: str = "classification", seed: int = 0) -> tuple[list[dict], list]:
    """Rows of 4 to 12 tokens; the number of rows need not divide by a batch's."""
    generator = torch.Generator().manual_seed(seed)
    rows, labels = [], []
    for i in range(n):
        length = int(torch.randint(4, 13, (1,), generator=generator))
        ids = torch.randint(10, 40, (length,), generator=generator).tolist()
        row = {"input_ids": ids, "attention_mask": [1] * length}
        if problem == LM:
            row["targets"] = [-100] * (i % 3) + [*ids[1:], -100][i % 3 :]
        rows.append(row)
        labels.append(ids[0] / 10 if problem == REGRESSION else ids[0] % LABELS)
    return rows, labels


def train_alone(trained: Lone, member: Member, rows, labels, **settings) -> TrainResult:
    """The lone run; settings as of ``train``."""
    pad_id = trained.model.config.pad_token_id
    return train(trained.model, rows, labels, pad_id, lr=member.lr, seed=member.seed, **settings)


def train_together(pack: Pack, members: Sequence[Member], rows, labels, **settings) -> list[TrainResult]:
    """The same runs as a pack."""
    lrs, seeds = [m.lr for m in members], [m.seed for m in members]
    return train_packed(pack, rows, labels, pack.model.config.pad_token_id, lrs=lrs, seeds=seeds, **settings)


def tensors(state: LoneState) -> dict[str, torch.Tensor]:
    """All of a state's, by names of their own."""
    return {f"{kind} {name}": tensor for kind, part in (("A", state.A), ("B", state.B), ("head", state.head))
            for name, tensor in part.items()}  # fmt: skip


def largest_difference(first: LoneState, second: LoneState) -> float:
    """Over all that the two hold."""
    ours, theirs = tensors(first), tensors(second)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
