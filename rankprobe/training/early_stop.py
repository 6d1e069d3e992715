"""When to stop a training: its loss on rows that it does not learn from has stopped falling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rankprobe.errors import UsageError, must
from rankprobe.methods.packed_lora import Pack
from rankprobe.tasks.task import CLASSIFICATION, LANGUAGE_MODELLING, REGRESSION
from rankprobe.training.batches import IGNORED, TARGETS, RowTable, sorted_batches
from rankprobe.training.evaluate import EVAL_BATCH, predict
from rankprobe.training.loss import member_losses_of
from rankprobe.training.precision import autocast


@dataclass(frozen=True)
class HeldOut:
    """Rows that a training is watched by: it learns from none of them, and no reported score is of any.

    Attributes
    ----------
    rows : sequence of dict
        Encoded, from :func:`rankprobe.training.batches.encode`.
    labels : sequence of int or float
        As for :func:`rankprobe.training.train.train`.
    pad_id : int
    patience : int
        So many epochs in a row without a lower loss end the training; at least 1.
    problem, dtype : str
        As for ``train``.
    progress : callable, optional
        Called with (rows done, rows in all) while a loss is measured.
    """

    rows: Sequence[dict]
    labels: Sequence[float]
    pad_id: int
    patience: int
    problem: str = CLASSIFICATION
    dtype: str = "float32"
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if not self.rows:
            raise UsageError(must("held-out rows", "be at least one", 0, "Raise --tuning-size"))
        if self.patience < 1:
            raise UsageError(must("patience", "be at least 1", self.patience, "Leave it out to train all epochs"))

    def loss(self, model: nn.Module) -> float:
        """Mean loss of a model, in nats (squared error in regression; a token's mean in language modelling).

        The model is left in evaluation mode.
        """
        return predict(model, self.rows, self.labels, self.pad_id, problem=self.problem, dtype=self.dtype,
                       progress=self.progress).loss  # fmt: skip

    @torch.no_grad()
    def member_losses(self, pack: Pack) -> list[float]:
        """:meth:`loss` of each member of a pack, in their order, to rounding; a batch goes through for all at once."""
        members, device = len(pack.members), pack.matrix.device
        table = RowTable(self.rows, self.pad_id, device)
        kind = torch.float32 if self.problem == REGRESSION else torch.long
        truth = torch.as_tensor(list(self.labels), dtype=kind).to(device)
        losses_of = member_losses_of(self.problem)
        sums, weights, done = torch.zeros(members, dtype=torch.float64), 0, 0
        pack.model.eval()
        for index in sorted_batches(table.lengths, max(1, EVAL_BATCH // members)):
            batch = table.batch(index * members)
            language = self.problem == LANGUAGE_MODELLING
            wanted = batch.pop(TARGETS) if language else truth[torch.tensor(index * members).to(device)]
            # Of a language model a long row weighs more than a short one.
            weight = int((wanted != IGNORED).sum()) // members if language else len(index)
            with autocast(device.type, self.dtype):
                out = pack(batch)
            counted = torch.ones(members, len(index), device=device)
            sums += weight * losses_of(out, wanted, counted).double().cpu()
            weights += weight
            done += len(index)
            if self.progress:
                self.progress(done, len(self.rows))
        return (sums / weights).tolist()


class EarlyStop:
    """Follows one training's loss on held-out rows, epoch by epoch.

    Parameters
    ----------
    patience : int

    Attributes
    ----------
    losses : list of float
        After each epoch.
    best : int
        The epoch, from 1, of the lowest loss, the first of equal ones; 0 before any.

    References
    ----------
    Prechelt (1998), "Early stopping - but when?", in Neural Networks: Tricks of the Trade, LNCS 1524: the third of its
    criteria, which counts strips in a row in which the loss did not fall; here below the lowest so far.

    Examples
    --------
    >>> stop = EarlyStop(2)
    >>> [stop.follow(loss) for loss in (0.7, 0.5, 0.6, 0.5)], stop.best, stop.over
    ([True, True, False, False], 2, True)
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.losses: list[float] = []
        self.best = 0

    def follow(self, loss: float) -> bool:
        """Take in the loss after an epoch; whether it is the lowest so far."""
        self.losses.append(loss)
        if self.best and not loss < self.losses[self.best - 1]:
            return False
        self.best = len(self.losses)
        return True

    @property
    def over(self) -> bool:
        """Whether the loss has not fallen for ``patience`` epochs."""
        return len(self.losses) - self.best >= self.patience

    def lost(self) -> str | None:
        """Why a training whose last loss is no number has diverged; None where it is one."""
        if math.isfinite(self.losses[-1]):
            return None
        got = f"{self.losses[-1]} after epoch {len(self.losses)}"
        return must("loss on the held-out rows", "be finite", got, "Lower the learning rate")
