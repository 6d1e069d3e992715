"""Ranks while a model is trained: :class:`RankCallback` for transformers.Trainer."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable
from time import perf_counter
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from rankprobe.errors import UsageError, must
from rankprobe.linalg.rank import energy_rank, stable_rank
from rankprobe.training.calling_handler import calling_handler
from rankprobe.training.pace import Pace
from rankprobe.training.rank_table import RankTable, RankTables
from rankprobe.training.watched import (
    Update,
    dense_updates,
    factored_updates,
    labels,
    lora_modules,
    read_W0,
    snapshot_W0,
    watched_sites,
)

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["RankCallback"]

# Where the Trainer logs no steps of its own.
_EVERY = 100
_log = logging.getLogger(__name__)


class RankCallback(TrainerCallback):
    """Log the stable rank and the energy rank (90 % of Σσ²) of weight updates while transformers.Trainer trains.

    Full fine-tuning is measured as ``dW = W - W0``, LoRA (peft's, or rankprobe's own) by its factors, which are never
    multiplied out. The figures are logged as the Trainer logs, and so go to its history and to all of its trackers:
    ``rank/layer3.q/stable`` and ``rank/layer3.q/energy_90`` a matrix, ``rank/stable_rank_mean`` and
    ``rank/energy_rank_90_mean`` over all of them, and ``rank/cost_share``, the time that measuring has taken so far by
    the time that training has.

    Parameters
    ----------
    targets : str
        Which matrices: short names (``q,v``, ``qkvo``, ``all``) or a regular expression on module paths, among those of
        the model's blocks; of a LoRA model, among those that it adapts.
    layers : iterable of int, optional
        Blocks to measure; all without.
    every : int, optional
        Measure at multiples of so many optimiser steps. The Trainer's ``logging_steps`` without, or 100 where it logs
        by epoch or not at all.
    W0 : str, Path, nn.Module or mapping of str to Tensor, optional
        The weights that dW is counted from. Without, those that the model has when training begins; of a training that
        is resumed, those that it had when the Trainer was made, before the checkpoint was loaded.
    budget : float or None
        Share of the training's time that measuring may take: where ``every`` steps do not pay for a measurement, it is
        done every ``2, 4, 8 ... * every`` steps. None measures at every multiple of ``every``. What no clock sees
        (caches that a measurement leaves cold) comes on top: the default is meant to keep the whole below 3 %.
    device : str, optional
        Where dW is decomposed, in float64; where the weights are without.
    path : Path, optional
        A CSV for the figures too: step, name, stable_rank, energy_rank_90, sigma_max, fro_norm. Where one callback
        serves several trainings, as in cross-validation, the second has ``ranks-2.csv`` beside ``ranks.csv``, and so
        on; one that is resumed goes on with its own, in the same process. In another give each a path of its own.
    each : bool
        Log every matrix; without, the means alone.

    Raises
    ------
    UsageError
        If a setting is out of range; when training begins, if a target or a layer matches nothing, all that match are
        frozen, or the model is sharded (FSDP, ZeRO-3); while training, if a weight is NaN or infinite, with the
        matrix's name, since no later step can mend that.

    Notes
    -----
    Definitions are those of :mod:`rankprobe.linalg.rank`. W0 is kept on the CPU in its storage dtype, the chosen
    matrices alone; beside it one matrix at a time is in float64. The first step of the grid times one matrix of each
    shape, and from then on the budget is kept by the clock: which steps are measured depends on the machine, but they
    are multiples of ``every`` times a power of two, and the last step wherever the budget allows. Evaluating and saving
    do not count as training. On several processes only the main one measures, and the others wait for it at their next
    step. Gradient accumulation changes nothing: steps are the optimiser's.

    transformers hands a callback no way to log. The handler that calls it has one, and is found on the call stack; the
    figures make a row of their own, and the Trainer's rows stay as they are.

    References
    ----------
    Hu et al. (2021), arXiv:2106.09685, section 7 (the rank of dW); Rudelson & Vershynin (2007), arXiv:math/0503442
    (stable rank).

    Examples
    --------
    >>> from rankprobe import RankCallback
    >>> callback = RankCallback(targets="q,v", every=50, path="ranks.csv")
    >>> # Trainer(model, arguments, train_dataset=rows, callbacks=[callback])
    """

    def __init__(
        self,
        targets: str = "q,v",
        layers: Iterable[int] | None = None,
        every: int | None = None,
        *,
        W0: object = None,
        budget: float | None = 0.02,
        device: str | None = None,
        path: str | os.PathLike | None = None,
        each: bool = True,
    ) -> None:
        if every is not None and (not isinstance(every, int) or every < 1):
            raise UsageError(must("every", "be a whole number of steps, at least 1", every, "Pass 50, say"))
        if budget is not None and not 0 < budget <= 1:
            next_step = "Pass 0.02 for 2 % of the training's time, or None for no limit"
            raise UsageError(must("budget", "be above 0 and at most 1", budget, next_step))
        self.targets, self.layers, self.every, self.budget = targets, layers, every, budget
        self.layers = None if layers is None else tuple(layers)
        self.W0, self.device, self.path, self.each = W0, device, path, each
        self._tables = None if path is None else RankTables(path)
        self._handler: CallbackHandler | None = None
        # By the handler of each Trainer, the sites and their W0 when it was made.
        self._at_start: WeakKeyDictionary[CallbackHandler, tuple] = WeakKeyDictionary()
        self._forget()

    def attach(self, trainer: Trainer) -> RankCallback:
        """Add this to a Trainer that is made already; the same as its ``callbacks=[...]``, and returns this.

        ``trainer.add_callback`` does too, but for a training that is resumed, whose W0 it can no longer see.
        """
        self._handler = trainer.callback_handler
        if self not in self._handler.callbacks:
            trainer.add_callback(self)
        self.on_init_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
        return self

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module = None, **kwargs
    ) -> None:
        """Keep W0: a checkpoint to resume from is loaded after this."""
        if not state.is_world_process_zero or model is None:
            return
        sites, handler = watched_sites(model, self.targets, self.layers), calling_handler() or self._handler
        if self.W0 is None and handler is not None and not lora_modules(model):
            self._at_start[handler] = sites, snapshot_W0(model, sites)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module = None, **kwargs
    ) -> None:
        """Find the matrices and their W0."""
        unended = self._handler if self._updates else None
        self._forget()
        if not state.is_world_process_zero:
            return
        # Who calls now: a callback may serve one Trainer after the other, as in cross-validation.
        self._handler = calling_handler() or self._handler
        if self._handler is None:
            got = "a call from elsewhere"
            raise UsageError(must("RankCallback", "be called by a Trainer", got, "Call RankCallback().attach(trainer)"))
        start = perf_counter()
        sites = watched_sites(model, self.targets, self.layers)
        if lora_modules(model):
            self._updates, notes = factored_updates(model, sites)
        else:
            self._updates, notes = dense_updates(model, sites, self._base(model, sites, resumed=state.global_step > 0))
        for note in notes:
            _log.warning("RankCallback: %s.", note)
        self._labels = labels([update.site for update in self._updates])
        if self._tables is not None:
            # A Trainer that looks for a batch size which fits begins the same training again.
            self._table = self._tables.open(args.output_dir, state.global_step, again=self._handler is unended)
        by_steps = args.logging_strategy == "steps"
        self._pace = Pace(self.every or (int(state.logging_steps) if by_steps else _EVERY), self.budget)
        self._last = perf_counter()
        self._pace.spend(self._last - start)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module = None, **kwargs
    ) -> None:
        """Measure, where this step is one to measure at."""
        if not self._updates:
            return
        pace, step = self._pace, state.global_step
        last = step >= state.max_steps
        if pace.due(step) or last:
            self._wait(model)
        now = perf_counter()
        pace.step(None if self._interrupted else now - self._last)
        self._interrupted = False
        if pace.due(step) or last:
            if pace.cost_s is None:
                self._try()
                now = perf_counter()
            if (pace.due(step) or last) and pace.affordable():
                figures = self._measure(step)
                share = {"rank/cost_share": pace.share_with(perf_counter() - now)}
                self._send(figures | share, args, state, control)
                pace.measured(perf_counter() - now)  # what a tracker takes for a row, the next one costs too
        self._last = perf_counter()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Time that went to this is not a step's."""
        self._interrupted = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Time that went to this is not a step's."""
        self._interrupted = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Say so where no step was worth measuring."""
        if self._updates and not self._count:
            pace = self._pace
            if pace.cost_s is None:
                _log.warning("RankCallback: measured nothing: %d steps, and every is %d. Pass a smaller every.",
                             state.global_step, pace.every)  # fmt: skip
            else:
                _log.warning(
                    "RankCallback: measured nothing: one measurement takes about %.2g s, and %g %% of the %.2g s of "
                    "training do not pay for it. Raise budget, or name fewer layers.",
                    pace.cost_s, 100 * pace.budget, pace.trained_s,
                )  # fmt: skip
        self._forget()

    def _forget(self) -> None:
        self._updates: list[Update] = []
        self._labels: list[str] = []
        self._table: RankTable | None = None
        self._interrupted, self._count = False, 0

    def _base(self, model: nn.Module, sites: list, *, resumed: bool) -> list:
        """W0 of the sites."""
        if self.W0 is not None:
            return read_W0(self.W0, model, sites)
        now = snapshot_W0(model, sites)
        begun, W0 = self._at_start.get(self._handler, (None, None))
        known = begun == sites
        same = known and all(torch.equal(a, b) for a, b in zip(W0, now, strict=True))
        if not resumed:
            return W0 if same else now  # one copy of it is enough
        if known and not same:
            return W0
        _log.warning("RankCallback: training was resumed, and the weights that it first began from are not known: dW "
                     "is counted from the checkpoint. Pass W0=, the model that was fine-tuned.")  # fmt: skip
        return now

    def _try(self) -> None:
        """Time one matrix of each shape, to know what a measurement will cost before it is paid for."""
        start = perf_counter()
        seconds: dict[tuple[int, int], float] = {}
        # Twice: the first time libraries are loaded and a device is made ready, and a busy machine stalls at moments.
        for update in 2 * list({update.site.shape: update for update in self._updates}.values()):
            begun = perf_counter()
            update.singular_values(self.device).cpu()
            seconds[update.site.shape] = min(seconds.get(update.site.shape, math.inf), perf_counter() - begun)
        self._pace.spend(perf_counter() - start)
        self._pace.expect(sum(seconds[update.site.shape] for update in self._updates))

    def _measure(self, step: int) -> dict[str, float]:
        """Measure every matrix."""
        figures: dict[str, float] = {}
        rows = []
        for label, update in zip(self._labels, self._updates, strict=True):
            S = update.singular_values(self.device).cpu()
            stable, energy, sigma_max = float(stable_rank(S)), int(energy_rank(S, 0.9)), float(S[0])
            rows.append((step, update.site.name, stable, energy, sigma_max, sigma_max * math.sqrt(stable)))
            if self.each:
                figures |= {f"rank/{label}/stable": stable, f"rank/{label}/energy_90": energy}
        figures["rank/stable_rank_mean"] = sum(row[2] for row in rows) / len(rows)
        figures["rank/energy_rank_90_mean"] = sum(row[3] for row in rows) / len(rows)
        if self._table is not None:
            try:
                self._table.add(rows)
            except OSError as error:
                _log.warning("RankCallback: %s is not written any more (%s).", self._table.path, error.strerror)
                self._table = None
        self._count += 1
        return figures

    def _send(
        self, figures: dict[str, float], args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        """Log as Trainer.log does, but for itself alone: its gathering of losses would wait for the other processes."""
        logs = figures | {"epoch": state.epoch}
        state.log_history.append({**logs, "step": state.global_step})
        should_log = control.should_log
        self._handler.on_log(args, state, control, logs)
        control.should_log = should_log  # on_log takes the Trainer's own log of this step for done

    @staticmethod
    def _wait(model: nn.Module) -> None:
        """Let the device end the step, whose time is training's."""
        if next(model.parameters()).device.type not in ("cpu", "meta"):
            torch.accelerator.synchronize()
