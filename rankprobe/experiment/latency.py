"""Latency of the base and of what methods make of it, interleaved: one measurement, stored like a run."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch

from rankprobe.errors import UsageError, must
from rankprobe.experiment.latency_variants import (
    BASE,
    PREFIXES,
    Architecture,
    as_callers,
    build_models,
    inputs_of,
    sizes_of,
)
from rankprobe.experiment.models import set_threads
from rankprobe.experiment.observer import Observer, Silent
from rankprobe.experiment.parts import Parts
from rankprobe.experiment.provenance import device_record, git_state, versions
from rankprobe.experiment.store import ERROR_FILE, RUN_FILE, finished, lock, write_atomic, write_table
from rankprobe.training.latency import measure_latency
from rankprobe.weights.source import ModelSource
from rankprobe.weights.targets import canonical_targets

LATENCY_FILE = "latency.csv"
# The claims ask for 3 % and for a machine that tells apart 2 %. Other ratios' intervals may be twice as wide as the A/A
# ratio's, the only one that decides when it is enough: at this width of it they are narrow enough too.
_AA_WIDTH = 0.01


@dataclass(frozen=True)
class LatencySpec:
    """All that a latency measurement is of; see :func:`rankprobe.training.latency.measure_latency`.

    Attributes
    ----------
    r, targets
        LoRA's.
    shapes : tuple of (int, int)
        (batch, length).
    budget_s : float
        For all shapes together.
    dtype, device, threads
    bottlenecks : tuple of (int, int), or None
        Of Adapter-L and Adapter-H, for each shape; None where no adapters are timed.
    prefix_length : int, or None
        Of PreLayer and PreEmbed, in tokens; None where they are not timed, and only beside adapters.
    """

    r: int
    targets: str
    shapes: tuple[tuple[int, int], ...]
    budget_s: float
    dtype: str
    device: str
    threads: int
    bottlenecks: tuple[tuple[int, int], ...] | None = None
    prefix_length: int | None = None

    def content(self) -> dict:
        """The fields as JSON has them. Some came later: a measurement without them keeps the id that it had."""
        later = ("bottlenecks", "prefix_length")
        return {key: value for key, value in asdict(self).items() if key not in later or value is not None}


@dataclass(frozen=True)
class LatencyPlan:
    """A measurement with its model and folder.

    Attributes
    ----------
    spec : LatencySpec
    source : ModelSource or Architecture
        A pretrained classifier, or a language model with random weights.
    folder : Path
        ``runs/latency-r<r>-<hash>`` or ``runs/latency-<architecture>-<hash>``.
    """

    spec: LatencySpec
    source: ModelSource | Architecture
    folder: Path

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.folder.name


def plan_latency(
    source: ModelSource | Architecture,
    runs: Path,
    *,
    r: int,
    targets: str,
    shapes: tuple[tuple[int, int], ...],
    budget_s: float,
    dtype: str,
    device: str,
    threads: int,
    bottlenecks: tuple[tuple[int, int], ...] | None = None,
    prefix_length: int | None = None,
) -> LatencyPlan:
    """Name the measurement's folder; nothing is written.

    Parameters
    ----------
    source : ModelSource or Architecture
    budget_s : float
        Seconds for all shapes together.
    bottlenecks : tuple of (int, int), optional
        Of Adapter-L and Adapter-H, for each shape; without them no adapters are timed.
    prefix_length : int, optional
        Of PreLayer and PreEmbed; with bottlenecks only.

    Raises
    ------
    UsageError
        If there are not as many bottlenecks as shapes, or a prefix without them or of no token.
    """
    shapes = tuple((int(batch), int(length)) for batch, length in shapes)
    if bottlenecks is not None:
        bottlenecks = tuple((int(lin), int(houlsby)) for lin, houlsby in bottlenecks)
        if len(bottlenecks) != len(shapes):
            got = f"{len(bottlenecks)} for {len(shapes)} shapes"
            raise UsageError(must("bottlenecks", "be a pair for each shape", got, "Pass as many"))
    if prefix_length is not None and bottlenecks is None:
        raise UsageError(must("prefix_length", "come with bottlenecks", prefix_length, "Pass both, or neither"))
    if prefix_length is not None and prefix_length < 1:
        raise UsageError(must("prefix_length", "be at least 1", prefix_length, "Pass 16, say"))
    kinds = canonical_targets(targets)
    spec = LatencySpec(r, kinds, shapes, budget_s, dtype, device, threads, bottlenecks, prefix_length)
    content = {**spec.content(), "model_sha256": source.sha256, "semantics": 1}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    name = source.name if isinstance(source, Architecture) else f"r{r}"
    return LatencyPlan(spec, source, Path(runs) / f"latency-{name}-{digest}")


def latency_done(plan: LatencyPlan) -> bool:
    """Whether a measurement is there, whole and of this machine's device: a latency says nothing of another one."""
    record = finished(plan.folder)
    return record is not None and record["device"] == device_record(plan.spec.device, plan.spec.threads)


def execute_latency(
    plan: LatencyPlan,
    *,
    observer: Observer | None = None,
    again: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> pd.DataFrame:
    """Measure, or read what was measured on this device.

    Parameters
    ----------
    plan : LatencyPlan
    observer : Observer, optional
    again : bool
        Measure anew where a finished measurement is there. One that was interrupted goes on all the same.
    stop : callable
        Asked before each shape; once it says yes no other is begun, and the measurement stays unfinished.

    Returns
    -------
    DataFrame
        latency.csv, the columns of :func:`rankprobe.training.latency.measure_latency`; with adapters also ``model``,
        ``bottleneck``, ``method_params`` (trained besides the head; of the base: by full fine-tuning) and
        ``device_name``. Shapes are in the plan's order.

    Notes
    -----
    Small shapes are measured first, each with an equal share of the budget that is left, and each is kept as soon as
    it is done.
    """
    observer = observer or Silent()
    if latency_done(plan) and not again:
        return pd.read_csv(plan.folder / LATENCY_FILE)
    spec = plan.spec
    with lock(plan.folder):
        (plan.folder / ERROR_FILE).unlink(missing_ok=True)
        set_threads(spec.threads)
        device = device_record(spec.device, spec.threads)
        parts = Parts(plan.folder, json.dumps([plan.run_id, device, versions()], sort_keys=True))
        order = sorted(range(len(spec.shapes)), key=lambda i: (spec.shapes[i][0] * spec.shapes[i][1], i))
        callers, make, built_for, build = {}, None, None, True
        for place, i in enumerate(order):
            if str(i) in parts:
                continue
            if stop():
                break
            shape = spec.shapes[i]
            what = f"batch {shape[0]}, length {shape[1]}"
            bottlenecks = spec.bottlenecks[i] if spec.bottlenecks else None
            if build or bottlenecks != built_for:
                observer.stage("latency", place, len(order), f"building models for {what}")
                callers.clear()  # before the next are made: those of GPT-2 medium take 9 GB
                models = build_models(plan.source, spec, bottlenecks)
                callers, built_for, build = as_callers(models, plan.source, spec), bottlenecks, False
                make = inputs_of(models[BASE].config, spec, mask=isinstance(plan.source, ModelSource))
                del models
            start = time.perf_counter()

            def progress(rounds: int, variant: str, place: int = place, what: str = what) -> None:
                observer.stage("latency", place, len(order), f"{what}, round {rounds + 1}, {variant}")

            table = measure_latency(
                callers,
                make,
                [shape],
                budget_s=max(0.0, spec.budget_s - _spent(parts)) / (len(order) - place),
                aa_width=_AA_WIDTH,
                dtype=spec.dtype,
                device=spec.device,
                r=spec.r,
                targets=spec.targets,
                progress=progress,
            )
            if bottlenecks:
                table = _with_sizes(table, plan, bottlenecks, device["name"])
            took = time.perf_counter() - start
            parts[str(i)] = {"took_s": took, "table": table.to_csv(index=False)}
            if not finished(plan.folder):  # what is measured anew stays whole until all of it is there
                write_table(plan.folder / LATENCY_FILE, _together(parts, len(order)))
        table = _together(parts, len(order))
        if len(parts) == len(order):
            (plan.folder / RUN_FILE).unlink(missing_ok=True)
            write_table(plan.folder / LATENCY_FILE, table)
            _write_record(plan, device, _spent(parts))
            parts.clear()
    return table


def _spent(parts: Parts) -> float:
    return sum(part["took_s"] for part in parts.values())


def _together(parts: Parts, shapes: int) -> pd.DataFrame:
    """The shapes measured so far, in the plan's order; empty before the first."""
    tables = [_read_csv(parts[str(i)]["table"]) for i in range(shapes) if str(i) in parts]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _read_csv(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text))


def _with_sizes(table: pd.DataFrame, plan: LatencyPlan, bottlenecks: tuple[int, int], device_name: str) -> pd.DataFrame:
    sizes = sizes_of(plan.source, plan.spec, bottlenecks)
    table.insert(0, "model", plan.source.name)
    prefixed = table["variant"].isin(PREFIXES)
    size = pd.Series([sizes[v][0] for v in table["variant"]], index=table.index, dtype="Int64")
    table["bottleneck"] = size.mask(prefixed)
    if prefixed.any():
        table["prefix_length"] = size.where(prefixed)
    table["method_params"] = [sizes[v][1] for v in table["variant"]]
    table["device_name"] = device_name
    return table


def _write_record(plan: LatencyPlan, device: dict, took_s: float) -> None:
    """run.json, last: with it the measurement is finished."""
    spec, source = plan.spec, plan.source
    record = {
        "schema": 1,
        "run_id": plan.run_id,
        "kind": "latency",
        "status": "ok",
        "error": None,
        "spec": spec.content(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git": git_state(),
        "versions": versions(),
        "model": {"name": source.name, "sha256": source.sha256, "architecture": source.architecture},
        "device": device,
        # "highest" is IEEE float32; a GPU would else multiply float32 as TF32, which the paper's had not.
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "weights_kept": False,
        "timings": {"total_s": took_s},
        "files": {LATENCY_FILE: (plan.folder / LATENCY_FILE).stat().st_size},
    }
    write_atomic(plan.folder / RUN_FILE, json.dumps(record, indent=1) + "\n")
