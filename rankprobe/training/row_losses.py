"""Each row's own loss, for comparisons row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from rankprobe.tasks.task import CLASSIFICATION, LANGUAGE_MODELLING, REGRESSION
from rankprobe.training.evaluate import EVAL_BATCH, logits, predict


def row_losses(
    model: nn.Module,
    rows: Sequence[dict],
    labels: Sequence[float],
    pad_id: int,
    *,
    problem: str = CLASSIFICATION,
    dtype: str = "float32",
    batch_size: int = EVAL_BATCH,
) -> np.ndarray:
    """Loss of every row, in the rows' order.

    Parameters
    ----------
    model : nn.Module
    rows : sequence of dict
        From :func:`rankprobe.training.batches.encode`.
    labels : sequence of int or float
        Not read in language modelling.
    pad_id : int
    problem : str
        A task's.
    dtype : str
        ``"float32"``, or ``"bfloat16"`` for autocast.
    batch_size : int

    Returns
    -------
    ndarray, shape (n,), float64
        Cross-entropy in nats; squared error in regression; in language modelling the mean over the row's own tokens.
    """
    if problem == LANGUAGE_MODELLING:
        found = predict(model, rows, labels, pad_id, problem=problem, dtype=dtype, batch_size=batch_size)
        return found.scores / found.labels
    out = logits(model, rows, pad_id, dtype=dtype, batch_size=batch_size).double()
    if problem == REGRESSION:
        return (out[:, 0].numpy() - np.asarray(labels, dtype=np.float64)) ** 2
    truth = torch.as_tensor(list(labels), dtype=torch.long)
    return functional.cross_entropy(out, truth, reduction="none").numpy()
