"""Trainable parameters of every method, from an architecture alone: on the meta device, no weight is made or read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch

from rankprobe.errors import UsageError, must
from rankprobe.experiment.study import RunSpec
from rankprobe.methods.head import head_parameters
from rankprobe.methods.lora import check_rank
from rankprobe.weights.architecture import WeightSite, canonical_targets, max_positions, model_shapes, target_sites
from rankprobe.weights.pretrained import load_config
from rankprobe.weights.source import ModelSource

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PretrainedConfig

    from rankprobe.experiment.runs import PlannedRun


def meta_classifier(config: PretrainedConfig, num_labels: int = 2) -> torch.nn.Module:
    """A sequence classifier on the meta device: shapes without storage.

    Raises
    ------
    UsageError
        If the architecture has no such head.
    """
    from transformers import AutoModelForSequenceClassification

    config.num_labels = num_labels
    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise UsageError(
            must("model", "have a sequence-classification head", config.model_type, "Pass another --model")
        ) from None


def check_fit(specs: Iterable[RunSpec], source: ModelSource) -> None:
    """Refuse what does not fit the model, before the first run of many is trained.

    Raises
    ------
    UsageError
        If targets match nothing, r is out of range or max_length is more than the model has positions.
    """
    model = meta_classifier(load_config(str(source.path)))
    shapes = model_shapes(model)
    for spec in specs:
        check_length(spec.max_length, model, "max_length")
        if spec.method == "lora":
            check_rank(spec.r, target_sites(shapes, spec.targets))


def check_length(length: int, model: torch.nn.Module, what: str) -> None:
    """Refuse more tokens than a model has position embeddings.

    Raises
    ------
    UsageError
    """
    positions = max_positions(model)
    if positions is not None and length > positions:
        raise UsageError(must(what, f"be at most {positions}, the positions of the model", length, "Lower it"))


def lora_count(sites: list[WeightSite], r: int) -> int:
    """LoRA's parameters: the sum of r (m + n) over the targets.

    >>> lora_count([WeightSite("w.weight", 0, "q", (512, 512))], 16)
    16384
    """
    return sum(r * (s.shape[0] + s.shape[1]) for s in sites)


def parameter_counts(runs: Iterable[PlannedRun]) -> dict[str, int]:
    """Trainable parameters of planned runs, head included, by run_id; counted on the meta device."""
    counts = {}
    for run in runs:
        spec = run.spec
        table = parameter_table(
            load_config(str(run.source.path)),
            num_labels=max(1, len(run.task.labels)),
            targets=[spec.targets or "all"],
            rs=[spec.r or 1],
        ).set_index("method")
        counts[run.run_id] = int(table.loc[spec.method, "trainable_params"])
    return counts


def parameter_table(config: PretrainedConfig, *, num_labels: int, targets: list[str], rs: list[int]) -> pd.DataFrame:
    """Counts of full fine-tuning, head only, and LoRA for every choice of targets and r.

    Returns
    -------
    DataFrame
        Columns method, targets, r, method_params, head_params, trainable_params, total_params, trainable_pct (of the
        total), method_pct (without the head on either side).
    """
    model = meta_classifier(config, num_labels)
    shapes, head_names = model_shapes(model), head_parameters(model)
    counts = {name: p.numel() for name, p in model.named_parameters()}
    head, total = sum(counts[n] for n in head_names), sum(counts.values())
    rows = [("full", None, None, total - head), ("head", None, None, 0)]
    for text in targets:
        sites = target_sites(shapes, text)
        for r in rs:
            check_rank(r, sites)
            rows.append(("lora", canonical_targets(text), r, lora_count(sites, r)))
    table = pd.DataFrame(rows, columns=["method", "targets", "r", "method_params"])
    table["r"] = table["r"].astype("Int64")
    table["head_params"] = head
    table["trainable_params"] = table["method_params"] + head
    table["total_params"] = total
    table["trainable_pct"] = 100 * table["trainable_params"] / total
    table["method_pct"] = 100 * table["method_params"] / (total - head)
    return table
