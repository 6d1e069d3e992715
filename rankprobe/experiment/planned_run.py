"""A run before it is done: its spec, what that means on this machine, and the folder that is its name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rankprobe.experiment.spec import RunSpec
from rankprobe.experiment.store import run_id
from rankprobe.tasks.task import Task
from rankprobe.training.train import total_steps
from rankprobe.weights.source import ModelSource


@dataclass(frozen=True)
class PlannedRun:
    """A spec with the data and the model that it means on this machine.

    Attributes
    ----------
    spec : RunSpec
    source : ModelSource
    task : Task
    folder : Path
        ``runs/<run_id>``.
    """

    spec: RunSpec
    source: ModelSource
    task: Task
    folder: Path

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return total_steps(len(self.task.train), self.spec.batch_size, self.spec.epochs)


def plan_run(spec: RunSpec, source: ModelSource, task: Task, runs: Path) -> PlannedRun:
    """Name the run's folder in the store ``runs``; nothing is written."""
    spec = replace(spec, model=source.name, task=task.name)  # --model may have been a path, which no record holds
    hashes = {"model_sha256": source.sha256, "tokenizer_sha256": source.tokenizer_sha256, "task_sha256": task.sha256}
    identity = run_id(spec, **hashes, architecture=source.architecture)
    return PlannedRun(spec, source, task, Path(runs) / identity)
