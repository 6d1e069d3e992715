"""Predictions of a model on encoded examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from rankprobe.training.batches import collate, sorted_batches
from rankprobe.training.precision import autocast

EVAL_BATCH = 64


@dataclass(frozen=True)
class Predictions:
    """What a model says of each evaluation row, in the rows' order.

    Attributes
    ----------
    labels : ndarray, shape (n,), int64 or float64
        The truth.
    predictions : ndarray, shape (n,), int64 or float64
        Class of the largest logit; in regression the output itself.
    scores : ndarray, shape (n,), float64
        Probability of the predicted class; in regression the output itself.
    loss : float
        Mean cross-entropy in nats (mean squared error in regression).
    """

    labels: np.ndarray
    predictions: np.ndarray
    scores: np.ndarray
    loss: float


@torch.inference_mode()
def logits(model: nn.Module, rows: Sequence[dict], pad_id: int, *, dtype: str = "float32", batch_size: int = EVAL_BATCH,
           progress: Callable[[int, int], None] | None = None) -> torch.Tensor:
    """The model's outputs for encoded rows, float32, shape (n, classes), in the rows' order, on the CPU."""
    device = next(model.parameters()).device
    model.eval()
    out: torch.Tensor | None = None
    done = 0
    for index in sorted_batches([len(r["input_ids"]) for r in rows], batch_size):
        batch = collate([rows[i] for i in index], pad_id)
        with autocast(device.type, dtype):
            chunk = model(**{k: v.to(device) for k, v in batch.items()}).logits
        if out is None:
            out = torch.empty(len(rows), chunk.shape[-1])
        out[index] = chunk.float().cpu()
        done += len(index)
        if progress:
            progress(done, len(rows))
    return out


def predict(model: nn.Module, rows: Sequence[dict], labels: Sequence[float], pad_id: int, *, regression: bool = False,
            dtype: str = "float32", batch_size: int = EVAL_BATCH,
            progress: Callable[[int, int], None] | None = None) -> Predictions:
    """Predictions, their scores and the mean loss.

    Parameters
    ----------
    model : nn.Module
    rows : sequence of dict
        From :func:`rankprobe.training.batches.encode`.
    labels : sequence of int or float
    pad_id : int
    regression : bool
    dtype : str
        ``"float32"``, or ``"bfloat16"`` for autocast.
    """
    out = logits(model, rows, pad_id, dtype=dtype, batch_size=batch_size, progress=progress).double()
    if regression:
        truth = np.asarray(labels, dtype=np.float64)
        values = out[:, 0].numpy()
        return Predictions(truth, values, values, float(np.mean((values - truth) ** 2)))
    truth = torch.as_tensor(list(labels), dtype=torch.long)
    loss = float(torch.nn.functional.cross_entropy(out, truth))
    best, classes = out.softmax(-1).max(-1)
    return Predictions(truth.numpy(), classes.numpy(), best.numpy(), loss)
