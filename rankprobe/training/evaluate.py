"""Predictions of a model on encoded examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rankprobe.tasks.task import CLASSIFICATION, LANGUAGE_MODELLING, REGRESSION
from rankprobe.training.batches import IGNORED, TARGETS, collate, sorted_batches
from rankprobe.training.loss import check_problem
from rankprobe.training.precision import autocast

EVAL_BATCH = 64


@dataclass(frozen=True)
class Predictions:
    """What a model says of each evaluation row, in the rows' order.

    Attributes
    ----------
    labels : ndarray, shape (n,), int64 or float64
        The truth; in language modelling how many tokens the row asks for.
    predictions : ndarray, shape (n,), int64 or float64
        Class of the largest logit; in regression the output itself; in language modelling how many of the row's tokens
        have the largest logit.
    scores : ndarray, shape (n,), float64
        Probability of the predicted class; in regression the output itself; in language modelling the negative
        log-likelihood of the row's tokens, summed, in nats.
    loss : float
        Mean cross-entropy in nats (mean squared error in regression; a token's mean in language modelling).
    """

    labels: np.ndarray
    predictions: np.ndarray
    scores: np.ndarray
    loss: float


@torch.inference_mode()
def logits(model: nn.Module, rows: Sequence[dict], pad_id: int, *, dtype: str = "float32", batch_size: int = EVAL_BATCH,
           progress: Callable[[int, int], None] | None = None) -> Tensor:
    """A classifier's outputs for encoded rows, float32, shape (n, classes), in the rows' order, on the CPU."""
    model.eval()
    out: Tensor | None = None
    for index in _each_batch(rows, batch_size, progress):
        chunk, _ = _forward(model, [rows[i] for i in index], pad_id, dtype)
        if out is None:
            out = torch.empty(len(rows), chunk.shape[-1])
        out[index] = chunk.float().cpu()
    return out


def predict(model: nn.Module, rows: Sequence[dict], labels: Sequence[float], pad_id: int, *,
            problem: str = CLASSIFICATION, dtype: str = "float32",
            batch_size: int = EVAL_BATCH, progress: Callable[[int, int], None] | None = None) -> Predictions:
    """Predictions, their scores and the mean loss.

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
    """
    check_problem(problem)
    if problem == LANGUAGE_MODELLING:
        return _predict_tokens(model, rows, pad_id, dtype, batch_size, progress)
    out = logits(model, rows, pad_id, dtype=dtype, batch_size=batch_size, progress=progress).double()
    if problem == REGRESSION:
        truth = np.asarray(labels, dtype=np.float64)
        values = out[:, 0].numpy()
        return Predictions(truth, values, values, float(np.mean((values - truth) ** 2)))
    truth = torch.as_tensor(list(labels), dtype=torch.long)
    loss = float(functional.cross_entropy(out, truth))
    best, classes = out.softmax(-1).max(-1)
    return Predictions(truth.numpy(), classes.numpy(), best.numpy(), loss)


@torch.inference_mode()
def _predict_tokens(model: nn.Module, rows: Sequence[dict], pad_id: int, dtype: str, batch_size: int,
                    progress: Callable[[int, int], None] | None) -> Predictions:
    """A language model's; nothing of a batch's logits is kept, as they can be larger than the model."""
    model.eval()
    tokens, right = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
    nll = np.zeros(len(rows))
    for index in _each_batch(rows, batch_size, progress):
        tokens[index], right[index], nll[index] = _judge(*_forward(model, [rows[i] for i in index], pad_id, dtype))
    return Predictions(tokens, right, nll, float(nll.sum() / tokens.sum()))


def _judge(batch_logits: Tensor, batch_targets: Tensor) -> tuple[list[int], list[int], list[float]]:
    """Of each row: target tokens, those with the largest logit, and their negative log-likelihood."""
    tokens, right, nll = [], [], []
    # Row by row and without what is not asked for: in float32 all at once would take twice the logits' own memory.
    for row_logits, targets in zip(batch_logits, batch_targets, strict=True):
        asked = (targets != IGNORED).nonzero()[:, 0]
        wanted = targets[asked].to(row_logits.device)
        found = row_logits[asked.to(row_logits.device)].float()
        tokens.append(len(asked))
        right.append(int((found.argmax(-1) == wanted).sum()))
        nll.append(float(functional.cross_entropy(found, wanted, reduction="none").double().sum()))
    return tokens, right, nll


def _each_batch(rows: Sequence[dict], batch_size: int, progress: Callable[[int, int], None] | None
                ) -> Iterator[list[int]]:
    """Row numbers of each batch; how many rows are done is told after it."""
    done = 0
    for index in sorted_batches([len(r["input_ids"]) for r in rows], batch_size):
        yield index
        done += len(index)
        if progress:
            progress(done, len(rows))


def _forward(model: nn.Module, rows: Sequence[dict], pad_id: int, dtype: str) -> tuple[Tensor, Tensor | None]:
    """A batch's logits on the model's device and, on the CPU, the target tokens where the rows have them."""
    device = next(model.parameters()).device
    batch = collate(rows, pad_id)
    targets = batch.pop(TARGETS, None)
    with autocast(device.type, dtype):
        return model(**{k: v.to(device) for k, v in batch.items()}).logits, targets
