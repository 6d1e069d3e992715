"""The base of a pack of runs with every run's own start, and each run's own model after it was trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from rankprobe.errors import WorkError, must
from rankprobe.experiment.models import Prepared, load_base, set_dropout
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.methods.apply import apply_method
from rankprobe.methods.lora import unload_lora
from rankprobe.methods.lora_layer import LoRALayer
from rankprobe.methods.packed_lora import LoneState, Pack, load_state, lone_state

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class PackedRuns:
    """Runs on one base, ready to train.

    Attributes
    ----------
    pack : Pack
    base : nn.Module
        What the pack is on.
    tokenizer : PreTrainedTokenizerBase
    head : set of str
        Names of the head's parameters.
    total : int
        Parameters of the base with its head.
    """

    pack: Pack
    base: nn.Module
    tokenizer: PreTrainedTokenizerBase
    head: set[str]
    total: int

    def member(self, run: PlannedRun, state: LoneState | None) -> Prepared:
        """A run's own model with what it trained, once the pack has been taken off the base.

        One at a time: ``unload_lora`` gives the base back.
        """
        layers = _with_lora(self.base, self.head, run)
        if state is not None:
            load_state(self.base, layers, state)
        return Prepared(self.base, self.tokenizer, self.head, layers, self.base, self.total)


def prepare_pack(runs: Sequence[PlannedRun]) -> PackedRuns:
    """Load the base, and every run's own start: the head of its seed, and its A.

    Raises
    ------
    UsageError
        If a run does not fit the model, or the model cannot be packed.
    """
    states: dict[int, LoneState] = {}
    first = None
    # A head is drawn as its model is loaded: once a seed, and the first one's model stays.
    for seed in dict.fromkeys(run.spec.seed for run in runs):
        members = [(i, run) for i, run in enumerate(runs) if run.spec.seed == seed]
        spec, source, task = members[0][1].spec, members[0][1].source, members[0][1].task
        model, tokenizer, head = load_base(spec, source, task)
        set_dropout(model, spec.model_dropout)
        total = sum(p.numel() for p in model.parameters())
        for i, run in members:
            states[i] = lone_state(model, _with_lora(model, head, run), head)
            unload_lora(model)
        first = first or (model, tokenizer, head, total)
    return PackedRuns(Pack(first[0], [states[i] for i in range(len(runs))]), *first)


@contextlib.contextmanager
def fits(runs: Sequence[PlannedRun]) -> Iterator[None]:
    """Say in one line that a pack is too large for a GPU: fewer at once are the way out, not another try."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        got = f"{len(runs)} runs, and: {str(error).splitlines()[0]}"
        next_step = f"Pass --pack {max(1, len(runs) // 2)} with another --out: finished runs are taken from the store"
        raise WorkError(must("A pack", "fit the device's memory", got, next_step)) from error


def _with_lora(model: nn.Module, head: set[str], run: PlannedRun) -> dict[str, LoRALayer]:
    """The LoRA layers of a run, put on a model."""
    s = run.spec
    settings = {"r": s.r, "alpha": s.alpha, "targets": s.targets, "dropout": s.dropout, "rslora": s.rslora}
    return apply_method(model, head, s.method, **settings, seed=s.seed).layers
