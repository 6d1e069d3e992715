"""Latency of the base, of a fully tuned copy, and of LoRA merged and not: one measurement, stored like a run."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from rankprobe.experiment.models import pick_attention, set_threads
from rankprobe.experiment.parameters import check_length
from rankprobe.experiment.provenance import device_record, git_state, versions
from rankprobe.experiment.runs import Observer, Silent
from rankprobe.experiment.store import RUN_FILE, files_of, finished, lock, write_atomic, write_table
from rankprobe.methods.lora import apply_lora, unload_lora
from rankprobe.training.latency import measure_latency
from rankprobe.training.precision import autocast
from rankprobe.weights.architecture import canonical_targets, model_shapes, target_sites
from rankprobe.weights.pretrained import load_classifier, load_config
from rankprobe.weights.source import ModelSource

LATENCY_FILE = "latency.csv"
# The claims ask for 3 % and for a machine that tells apart 2 %: an A/A interval of this width is narrow enough.
_AA_WIDTH = 0.02


@dataclass(frozen=True)
class LatencySpec:
    """All that a latency measurement is of; see :func:`rankprobe.training.latency.measure_latency`."""

    r: int
    targets: str
    shapes: tuple[tuple[int, int], ...]
    budget_s: float
    dtype: str
    device: str
    threads: int


@dataclass(frozen=True)
class LatencyPlan:
    """A measurement with its model and folder.

    Attributes
    ----------
    spec : LatencySpec
    source : ModelSource
    folder : Path
        ``runs/latency-<hash>``.
    """

    spec: LatencySpec
    source: ModelSource
    folder: Path

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.folder.name


def plan_latency(
    source: ModelSource,
    runs: Path,
    *,
    r: int,
    targets: str,
    shapes: tuple[tuple[int, int], ...],
    budget_s: float,
    dtype: str,
    device: str,
    threads: int,
) -> LatencyPlan:
    """Name the measurement's folder; nothing is written.

    Parameters
    ----------
    budget_s : float
        Seconds for all shapes together.
    """
    spec = LatencySpec(r, canonical_targets(targets), tuple(map(tuple, shapes)), budget_s, dtype, device, threads)
    content = {**asdict(spec), "model_sha256": source.sha256, "semantics": 1}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    return LatencyPlan(spec, source, Path(runs) / f"latency-r{r}-{digest}")


def execute_latency(plan: LatencyPlan, *, observer: Observer | None = None, again: bool = False) -> pd.DataFrame:
    """Measure, or read what was measured.

    Parameters
    ----------
    plan : LatencyPlan
    observer : Observer, optional
    again : bool
        Measure even where a finished measurement is there.

    Returns
    -------
    DataFrame
        latency.csv.
    """
    observer = observer or Silent()
    if finished(plan.folder) and not again:
        return pd.read_csv(plan.folder / LATENCY_FILE)
    spec = plan.spec
    with lock(plan.folder):
        set_threads(spec.threads)
        start = time.perf_counter()
        variants = build_variants(plan)
        tables = []
        for i, shape in enumerate(spec.shapes):
            observer.stage("latency", i + 1, len(spec.shapes), f"batch {shape[0]}, length {shape[1]}")
            tables.append(
                measure_latency(
                    variants,
                    _inputs(plan),
                    [shape],
                    budget_s=spec.budget_s / len(spec.shapes),
                    aa_width=_AA_WIDTH,
                    dtype=spec.dtype,
                    device=spec.device,
                    r=spec.r,
                    targets=spec.targets,
                )
            )
        table = pd.concat(tables, ignore_index=True)
        write_table(plan.folder / LATENCY_FILE, table)
        record = {
            "schema": 1,
            "run_id": plan.run_id,
            "kind": "latency",
            "status": "ok",
            "error": None,
            "spec": asdict(spec),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "git": git_state(),
            "versions": versions(),
            "model": {"name": plan.source.name, "sha256": plan.source.sha256, "architecture": plan.source.architecture},
            "device": device_record(spec.device, spec.threads),
            "weights_kept": False,
            "timings": {"total_s": time.perf_counter() - start},
            "files": files_of(plan.folder),
        }
        write_atomic(plan.folder / RUN_FILE, json.dumps(record, indent=1) + "\n")
    return table


def build_variants(plan: LatencyPlan) -> dict[str, Callable[[dict], object]]:
    """The models to time, as callables.

    Time does not depend on the weights' values, so none is trained: the fully tuned copy differs from the base by
    noise, LoRA's factors are random. All have weights of their own, as deployed models would.
    """
    base, _, _ = load_classifier(plan.source, 2, seed=0)
    check_length(max(length for _, length in plan.spec.shapes), base, "a shape's length")
    pick_attention(base, plan.spec.device)
    generator = torch.Generator().manual_seed(0)
    tuned, merged, unmerged = (copy.deepcopy(base) for _ in range(3))
    for p in tuned.parameters():
        p.data.add_(torch.randn(p.shape, generator=generator), alpha=1e-3)
    for model in (merged, unmerged):
        layers = apply_lora(model, target_sites(model_shapes(model), plan.spec.targets), plan.spec.r, 2.0 * plan.spec.r)
        for layer in layers.values():
            for B in layer.B:
                B.data.normal_(0, 1e-3, generator=generator)
            if model is merged:
                layer.merge()
    unload_lora(merged)
    models = {
        "base": base,
        "base_copy": copy.deepcopy(base),
        "full": tuned,
        "lora_merged": merged,
        "lora_unmerged": unmerged,
    }
    return {name: _caller(model.eval().to(plan.spec.device), plan.spec) for name, model in models.items()}


def _caller(model: nn.Module, spec: LatencySpec) -> Callable[[dict], object]:
    def call(inputs: dict) -> object:
        with autocast(spec.device, spec.dtype):
            return model(**inputs)

    return call


def _inputs(plan: LatencyPlan) -> Callable[[int, int], dict]:
    vocabulary = load_config(str(plan.source.path)).vocab_size

    def make(batch: int, length: int) -> dict:
        generator = torch.Generator().manual_seed(batch * 100_003 + length)
        ids = torch.randint(min(5, vocabulary - 1), vocabulary, (batch, length), generator=generator)
        return {"input_ids": ids.to(plan.spec.device), "attention_mask": torch.ones_like(ids).to(plan.spec.device)}

    return make
