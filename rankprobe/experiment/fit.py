"""Whether planned runs fit their model, and what they would train: known before the first step of the first."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace

import torch

from rankprobe.errors import UsageError, must
from rankprobe.experiment.parameters import Setting, count, meta_model
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.spec import RunSpec
from rankprobe.methods.prefix import check_prefix
from rankprobe.weights.architecture import beyond_matrices, max_positions
from rankprobe.weights.lacking import stored_names
from rankprobe.weights.pretrained import check_padding, load_config
from rankprobe.weights.source import ModelSource


def check_fit(
    specs: Iterable[RunSpec], source: ModelSource, *, problem: str = "classification", num_labels: int = 2
) -> None:
    """Refuse what does not fit the model, before the first run of many is trained.

    Parameters
    ----------
    specs : iterable of RunSpec
    source : ModelSource
    problem, num_labels
        As in :func:`meta_model`.

    Warns
    -----
    UserWarning
        Where full fine-tuning trains weights in the blocks that are no matrices, which nothing else here does.

    Raises
    ------
    UsageError
        If a method does not fit the architecture, its size or r is out of range, targets match nothing, there are fewer
        positions than max_length, or than it and a prefix together, or the model reads padding.
    """
    config, stored = load_config(str(source.path)), stored_names(source.path)
    check_padding(config, source)
    model = meta_model(config, problem, num_labels)
    note = unadapted_note(model)
    settings: dict[Setting, Setting] = {}
    for spec in specs:
        if note and spec.method in ("full", "lora"):
            warnings.warn(note, stacklevel=2)
            note = None
        check_length(spec.max_length, model, "max_length")
        if spec.prefix_length is not None:
            check_prefix(model, spec.prefix_length, spec.max_length)
        setting = Setting(spec.method, spec.targets, spec.r, spec.size, spec.rank_pattern)
        # Of those that differ in r alone the largest: where it fits, smaller ones do.
        alike = replace(setting, r=None)
        settings[alike] = max(settings.get(alike, setting), setting, key=lambda each: each.r or 0)
    for setting in settings.values():
        count(config, setting, problem=problem, num_labels=num_labels, stored=stored)


def unadapted_note(model: torch.nn.Module) -> str | None:
    """A sentence for people where a part of the blocks is beyond LoRA, dW's ranks and cuts; None elsewhere."""
    beyond = beyond_matrices({name: p.shape for name, p in model.named_parameters()})
    return beyond and (
        f"{beyond} have three dimensions or more. Full fine-tuning trains them; LoRA here, a run's ranks of dW and its "
        "cuts leave them out"
    )


def check_length(length: int, model: torch.nn.Module, what: str) -> None:
    """Refuse more tokens than a model has position embeddings.

    Raises
    ------
    UsageError
    """
    positions = max_positions(model)
    if positions is not None and length > positions:
        raise UsageError(must(what, f"be at most {positions}, the positions of the model", length, "Lower it"))


def parameter_counts(runs: Iterable[PlannedRun]) -> dict[str, int]:
    """Trainable parameters of planned runs, head included, by run_id; counted on the meta device."""
    counts, found = {}, {}
    for run in runs:
        spec, labels = run.spec, max(1, len(run.task.labels))
        setting = Setting(spec.method, spec.targets, spec.r, spec.size, spec.rank_pattern)
        key = (str(run.source.path), setting, run.task.problem, labels)
        if key not in found:
            config = load_config(str(run.source.path))
            stored = stored_names(run.source.path)
            counted = count(config, setting, problem=run.task.problem, num_labels=labels, stored=stored)
            found[key] = counted.method + counted.head
        counts[run.run_id] = found[key]
    return counts
