"""The training loop for a pack: LoRA runs that share a frozen base, each as :func:`rankprobe.training.train.train`.

A step puts one batch of every member through the base at once. Members keep their own order of batches, rate, loss,
gradient norm and end; one that diverges or stops early is taken out, and the others go on as if it had not been there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.methods.packed_lora import Pack
from rankprobe.tasks.task import CLASSIFICATION, LANGUAGE_MODELLING, REGRESSION
from rankprobe.training.batches import TARGETS, RowTable, epoch_batches
from rankprobe.training.divergence import Watch
from rankprobe.training.early_stop import EarlyStop, HeldOut
from rankprobe.training.loss import member_losses_of
from rankprobe.training.memory import peak_bytes, reset_peak
from rankprobe.training.packed_adamw import PackedAdamW
from rankprobe.training.precision import autocast
from rankprobe.training.train import TrainResult, lr_factor, total_steps


def train_packed(
    pack: Pack,
    rows: Sequence[dict],
    labels: Sequence[float],
    pad_id: int,
    *,
    lrs: Sequence[float],
    seeds: Sequence[int],
    epochs: int,
    batch_size: int,
    warmup_ratio: float = 0.06,
    weight_decay: float = 0.01,
    clip_norm: float = 1.0,
    dtype: str = "float32",
    problem: str = CLASSIFICATION,
    held_out: HeldOut | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[TrainResult]:
    """Train all members of a pack, in place.

    Parameters
    ----------
    pack : Pack
        On its device. Dropout in the model must be off: its random numbers would not be a lone run's.
    rows, labels, pad_id
        As for :func:`rankprobe.training.train.train`.
    lrs : sequence of float
        Peak learning rate of each member.
    seeds : sequence of int
        Of each member's order of batches.
    epochs, batch_size, warmup_ratio, weight_decay, clip_norm, dtype, problem
        As for ``train``, of all members; a batch of each goes through at a time.
    held_out : HeldOut, optional
        As for ``train``; each member stops when its own loss has not fallen, and leaves the pack, which remembers what
        it had at its best epoch.
    progress : callable, optional
        Called after each step with (steps done, total, mean loss of the members still in).

    Returns
    -------
    list of TrainResult
        One a member, in their order: what ``train`` returns for it alone, to rounding. ``train_time_s`` is the member's
        share of the pack's time, each step's divided evenly among those in it; ``peak_memory_bytes`` is the pack's.

    Raises
    ------
    UsageError
        If there are no rows, rates and seeds are not one a member, or the model gives its layers other things than the
        batch's rows.
    """
    if not rows:
        raise UsageError(must("training rows", "be at least one", 0, "Raise --train-size"))
    if not len(lrs) == len(seeds) == len(pack.members):
        rule, got = f"be one for each of {len(pack.members)} members", f"{len(lrs)} rates and {len(seeds)} seeds"
        raise UsageError(must("rates and seeds", rule, got, "Pass as many"))
    device = pack.matrix.device
    table = RowTable(rows, pad_id, device)
    total = total_steps(len(rows), batch_size, epochs)
    optimizer = PackedAdamW(pack, lrs, weight_decay=weight_decay, clip_norm=clip_norm)
    losses_of = member_losses_of(problem)
    truth = torch.as_tensor(list(labels), dtype=torch.float32 if problem == REGRESSION else torch.long).to(device)
    results = [TrainResult() for _ in seeds]
    watches = [Watch(total, problem) for _ in seeds]
    stops = [EarlyStop(held_out.patience) if held_out else None for _ in seeds]
    pack.model.train()
    reset_peak(device.type)
    step, mark = 0, time.perf_counter()
    for epoch in range(epochs):
        orders = {seed: epoch_batches(table.lengths, batch_size, seed, epoch) for seed in set(seeds)}
        for number in range(total // epochs):
            members, factor = pack.members, lr_factor(step, total, warmup_ratio)
            batches = [orders[seeds[member]][number] for member in members]
            index, counted = _level(batches)
            batch = table.batch(index)
            wanted = batch.pop(TARGETS) if problem == LANGUAGE_MODELLING else truth[torch.tensor(index).to(device)]
            with autocast(device.type, dtype):
                out = pack(batch)
            losses = losses_of(out, wanted, counted.to(device))
            losses.sum().backward()
            norms = optimizer.gather()
            optimizer.step(factor)
            step += 1
            # One wait for the device a step. A member that must not take this step has taken it; it is dropped.
            values, grad_norms = torch.stack((losses.detach(), norms.to(losses.dtype))).tolist()
            now = time.perf_counter()
            share, mark = (now - mark) / len(members), now
            for place, member in enumerate(members):
                result, watch, value = results[member], watches[member], values[place]
                result.train_time_s += share
                lost = watch.refuse(value, grad_norms[place], step)
                if not lost:
                    result.tokens += sum(table.lengths[i] for i in batches[place])
                    figures = {"loss": value, "lr": lrs[member] * factor, "grad_norm": grad_norms[place]}
                    result.history.append({"step": step, "epoch": epoch + 1, **figures})
                    lost = watch.follow(value, step, out.shape[-1])
                if lost:
                    result.status, result.error = "diverged", lost
            if not _keep(pack, optimizer, [results[member].status == "ok" for member in members]):
                return _with_peak(results, device)
            if progress:
                progress(step, total, sum(watches[member].smoothed for member in pack.members) / len(pack.members))
        if held_out is not None:
            members = pack.members
            for member, loss in zip(members, held_out.member_losses(pack), strict=True):
                result, stop = results[member], stops[member]
                if stop.follow(loss):
                    pack.remember(member)
                result.held_out_losses, result.best_epoch = stop.losses, stop.best
                if lost := stop.lost():
                    result.status, result.error = "diverged", lost
            pack.model.train()
            now = time.perf_counter()
            for member in members:
                results[member].train_time_s += (now - mark) / len(members)
            mark = now
            go_on = [results[member].status == "ok" and not stops[member].over for member in members]
            if not _keep(pack, optimizer, go_on):
                break
    return _with_peak(results, device)


def _keep(pack: Pack, optimizer: PackedAdamW, stay: Sequence[bool]) -> int:
    """Take out the members that do not stay; how many are left."""
    kept = [place for place, stays in enumerate(stay) if stays]
    if len(kept) < len(stay):
        pack.keep(kept)
        optimizer.keep(kept)
    return len(kept)


def _level(batches: Sequence[Sequence[int]]) -> tuple[list[int], Tensor]:
    """Batches made equally long, one after the other, by repeating a row of each; and which rows count, 1.0 or 0.0.

    An epoch's last batch may be short, and comes at another step in each order.

    >>> _level([[3, 1], [2]])
    ([3, 1, 2, 2], tensor([[1., 1.], [1., 0.]]))
    """
    size = max(map(len, batches))
    counted = torch.tensor([[1.0] * len(batch) + [0.0] * (size - len(batch)) for batch in batches])
    return [i for batch in batches for i in (*batch, *[batch[0]] * (size - len(batch)))], counted


def _with_peak(results: list[TrainResult], device: torch.device) -> list[TrainResult]:
    peak = peak_bytes(device.type)
    for result in results:
        result.peak_memory_bytes = peak
    return results
