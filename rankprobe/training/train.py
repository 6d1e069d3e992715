"""The one training loop, for every method: AdamW, linear warmup and decay, clipping, batches of like length."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from rankprobe.errors import UsageError, must
from rankprobe.tasks.task import CLASSIFICATION, LANGUAGE_MODELLING, REGRESSION
from rankprobe.training.batches import TARGETS, collate, epoch_batches
from rankprobe.training.divergence import Watch
from rankprobe.training.early_stop import EarlyStop, HeldOut
from rankprobe.training.loss import loss_of
from rankprobe.training.memory import peak_bytes, reset_peak
from rankprobe.training.precision import autocast

# Of a training's history, a row a step.
HISTORY = ("step", "epoch", "loss", "lr", "grad_norm")


@dataclass
class TrainResult:
    """How training went.

    Attributes
    ----------
    status : str
        ``"ok"`` or ``"diverged"``.
    error : str or None
        What diverged, and where.
    history : list of dict
        One a step, :data:`HISTORY`: loss in nats, grad_norm before clipping.
    train_time_s : float
    tokens : int
        Without padding.
    peak_memory_bytes : int
    held_out_losses : list of float
        After each epoch, where the training was watched by held-out rows.
    best_epoch : int or None
        From 1: the one of the lowest of them, whose weights were kept.
    """

    status: str = "ok"
    error: str | None = None
    history: list[dict] = field(default_factory=list)
    train_time_s: float = 0.0
    tokens: int = 0
    peak_memory_bytes: int = 0
    held_out_losses: list[float] = field(default_factory=list)
    best_epoch: int | None = None


def total_steps(rows: int, batch_size: int, epochs: int) -> int:
    """Optimiser steps of a whole training.

    >>> total_steps(100, 32, 2)
    8
    """
    return math.ceil(rows / batch_size) * epochs


def lr_factor(step: int, total: int, warmup_ratio: float) -> float:
    """Share of the peak learning rate at a step (from 0): linear up over the warmup, then linear down to 0.

    >>> [round(lr_factor(s, 10, 0.2), 3) for s in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    """
    warmup = max(1, round(total * warmup_ratio)) if warmup_ratio else 0
    return (step + 1) / warmup if step < warmup else (total - step) / max(1, total - warmup)


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over what requires a gradient; vectors (biases, norms) are not decayed, as is usual."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, fused=True)


def train(
    model: nn.Module,
    rows: Sequence[dict],
    labels: Sequence[float],
    pad_id: int,
    *,
    lr: float,
    epochs: int,
    batch_size: int,
    seed: int,
    warmup_ratio: float = 0.06,
    weight_decay: float = 0.01,
    clip_norm: float = 1.0,
    dtype: str = "float32",
    problem: str = CLASSIFICATION,
    held_out: HeldOut | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> TrainResult:
    """Train what requires a gradient, in place.

    Parameters
    ----------
    model : nn.Module
        Returns ``.logits``; on its device already.
    rows : sequence of dict
        Encoded examples, from :func:`rankprobe.training.batches.encode`.
    labels : sequence of int or float
        Classes, or scores in regression; not read in language modelling, where rows hold what is to be predicted.
    pad_id : int
    lr : float
        Peak learning rate.
    epochs, batch_size, seed : int
        The seed decides the batches' order and dropout.
    warmup_ratio : float
        Share of all steps.
    weight_decay, clip_norm : float
        ``clip_norm`` 0 clips nothing.
    dtype : str
        ``"float32"``, or ``"bfloat16"`` for autocast.
    problem : str
        A task's; it decides the loss, as :func:`rankprobe.training.loss.loss_of` has it.
    held_out : HeldOut, optional
        Stop once the loss on these rows has not fallen for its ``patience`` epochs, and end with the weights of the
        epoch of the lowest. The learning rate comes down as if all epochs were to be trained.
    progress : callable, optional
        Called after each step with (steps done, total, loss).

    Returns
    -------
    TrainResult
        With status ``diverged`` where the loss (also that on held-out rows) or the gradient was not finite, or the
        loss grew to 5 times its start; training stops there, with the weights as they then are.
    """
    if not rows:
        raise UsageError(must("training rows", "be at least one", 0, "Raise --train-size"))
    device = next(model.parameters()).device
    total = total_steps(len(rows), batch_size, epochs)
    optimizer = make_optimizer(model, lr, weight_decay)
    trainable = [p for group in optimizer.param_groups for p in group["params"]]
    lengths = [len(row["input_ids"]) for row in rows]
    batch_loss = loss_of(problem)
    truth = torch.as_tensor(list(labels), dtype=torch.float32 if problem == REGRESSION else torch.long)
    result = TrainResult()
    stop, best = EarlyStop(held_out.patience) if held_out else None, []
    torch.manual_seed(seed)
    model.train()
    reset_peak(device.type)
    start, step, watch = time.perf_counter(), 0, Watch(total, problem)
    for epoch in range(epochs):
        for index in epoch_batches(lengths, batch_size, seed, epoch):
            batch = {k: v.to(device) for k, v in collate([rows[i] for i in index], pad_id).items()}
            lr_now = lr * lr_factor(step, total, warmup_ratio)
            for group in optimizer.param_groups:
                group["lr"] = lr_now
            wanted = batch.pop(TARGETS) if problem == LANGUAGE_MODELLING else truth[index].to(device)
            with autocast(device.type, dtype):
                out = model(**batch).logits
            loss = batch_loss(out, wanted)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(trainable, clip_norm or math.inf, foreach=True)
            # One wait for the device a step: both figures at once.
            value, grad_norm = torch.stack((loss.detach(), norm.to(loss.dtype))).tolist()
            if lost := watch.refuse(value, grad_norm, step + 1):
                return _finish(result, start, device, lost)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            result.tokens += sum(lengths[i] for i in index)
            result.history.append(
                {"step": step, "epoch": epoch + 1, "loss": value, "lr": lr_now, "grad_norm": grad_norm}
            )
            if lost := watch.follow(value, step, out.shape[-1]):
                return _finish(result, start, device, lost)
            if progress:
                progress(step, total, watch.smoothed)
        if held_out is not None:
            if stop.follow(held_out.loss(model)):
                best = [p.detach().to("cpu", copy=True) for p in trainable]  # not beside the model on a GPU
            model.train()
            result.held_out_losses, result.best_epoch = stop.losses, stop.best
            if lost := stop.lost():
                return _finish(result, start, device, lost)
            if stop.over:
                break
    if best:
        with torch.no_grad():
            for parameter, value in zip(trainable, best, strict=True):
                parameter.copy_(value)
    return _finish(result, start, device, None)


def _finish(result: TrainResult, start: float, device: torch.device, diverged: str | None) -> TrainResult:
    if diverged:
        result.status, result.error = "diverged", diverged
    result.train_time_s = time.perf_counter() - start
    result.peak_memory_bytes = peak_bytes(device.type)
    return result
