"""When a training is lost: its loss or gradient is no number, or its loss stays far above where it began."""

from __future__ import annotations

import math

from rankprobe.errors import must
from rankprobe.tasks.task import REGRESSION

# Diverged: the smoothed loss stays this many times above where it began. Real training crosses it only when lost.
_BLOWN_UP = 5.0
_SMOOTHING_STEPS = 20
_IN_A_ROW = 3


class Watch:
    """Follows one training's loss and says when it has diverged.

    Where it began is its first step's loss at first, and the mean of the first 20 once they are taken. Until then three
    steps in a row have to be far above it: one odd batch is in a mean of few.

    Parameters
    ----------
    total : int
        Steps of the whole training.
    problem : str
        A task's.

    Attributes
    ----------
    smoothed : float
        Mean of the losses at first, exponential average later; NaN before the first step.
    """

    def __init__(self, total: int, problem: str) -> None:
        self.total, self.problem = total, problem
        self.smoothed, self._first, self._above = math.nan, math.nan, 0

    def refuse(self, loss: float, grad_norm: float, step: int) -> str | None:
        """Why a step (from 1) must not be taken: its loss or gradient is not finite. None where it may."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return None
        name, bad = ("loss", loss) if not math.isfinite(loss) else ("gradient norm", grad_norm)
        return _diverged(name, "be finite", f"{bad} at step {step}")

    def follow(self, loss: float, step: int, outputs: int) -> str | None:
        """Take in the loss of a step (from 1) that was taken; why the training is lost after it, or None.

        Parameters
        ----------
        loss : float
        step : int
        outputs : int
            The model's: classes, or the vocabulary's size.
        """
        smoothed = self.smoothed
        smoothed = loss if math.isnan(smoothed) else smoothed + (loss - smoothed) / min(step, _SMOOTHING_STEPS)
        self.smoothed = smoothed
        if step == 1:
            self._first = loss
        if step == min(_SMOOTHING_STEPS, self.total):
            self._first = smoothed
        # A constant guess costs ln(classes), or ln(vocabulary): below that a small start is not a blow-up.
        floor = 1.0 if self.problem == REGRESSION else math.log(max(2, outputs))
        self._above = self._above + 1 if smoothed > _BLOWN_UP * max(self._first, floor) else 0
        if self._above >= (_IN_A_ROW if step < _SMOOTHING_STEPS else 1):
            rule = f"stay under {_BLOWN_UP:g} times its start {self._first:.3g}"
            return _diverged("loss", rule, f"{smoothed:.3g} at step {step}")
        return None


def _diverged(what: str, rule: str, got: str) -> str:
    return must(what, rule, got, "Lower the learning rate")
