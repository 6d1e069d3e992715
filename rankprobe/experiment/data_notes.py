"""What a person should know of a task's rows before a model is trained on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rankprobe.tasks.task import REGRESSION
from rankprobe.training.batches import encode
from rankprobe.weights.pretrained import load_tokenizer

if TYPE_CHECKING:
    from rankprobe.tasks.task import Task
    from rankprobe.weights.source import ModelSource

# So many training rows, evenly spread, are looked at; fewer cut ones than this share are not worth a line.
_SAMPLE, _FEW = 500, 0.01
_UNCUT = 10**6
# Labels about like these are what an output that begins near 0 with a loss of squares is made for.
_MEAN, _DEVIATION = 1.0, (0.3, 3.0)


def data_notes(source: ModelSource, task: Task, max_length: int) -> list[str]:
    """A sentence for each: texts that are cut, a user's scores far from what a squared error learns in a few epochs.

    Parameters
    ----------
    source : ModelSource
        For its tokenizer.
    task : Task
    max_length : int
        Tokens of a row.

    Raises
    ------
    UsageError
        As :func:`rankprobe.training.batches.encode`.
    """
    notes = [_cut(source, task, max_length)]
    if task.problem == REGRESSION and task.name == "files":  # a benchmark's scores are compared as they are
        notes.append(_far([example.label for example in task.train]))
    return [note for note in notes if note]


def _cut(source: ModelSource, task: Task, max_length: int) -> str:
    rows = task.train[:: max(1, math.ceil(len(task.train) / _SAMPLE))]
    encoded = encode(load_tokenizer(source), rows, _UNCUT, problem=task.problem)
    lengths = [len(row["input_ids"]) for row in encoded]
    share = float(np.mean(np.array(lengths) > max_length)) if lengths else 0.0
    if share < _FEW:
        return ""
    about = "about " if len(rows) < len(task.train) else ""
    return (
        f"Of {task.name}'s training texts {about}{100 * share:.0f} % are longer than {max_length} tokens and are cut "
        f"(the longest of {len(rows):,} has {max(lengths):,}); --max-length reads more, up to the model's positions"
    )


def _far(labels: Sequence[float]) -> str:
    mean, deviation = float(np.mean(labels)), float(np.std(labels))
    if deviation == 0 or (abs(mean) <= _MEAN and _DEVIATION[0] <= deviation <= _DEVIATION[1]):
        return ""
    return (
        f"The training labels have a mean of {mean:.4g} and a standard deviation of {deviation:.4g}. The loss is their "
        "plain squared error and an output begins near 0: much of a short training goes into reaching the mean, and "
        f"scores suffer. Pass (label - {mean:.4g}) / {deviation:.4g}, which no correlation minds"
    )
