"""How often something may be measured during a training, so that it stays a small share of the training's time."""

from __future__ import annotations

from collections import deque
from statistics import fmean, median

# Step times are judged by the median of so many, which the first steps and a stall do not move.
_STEPS = 50
# A measurement's cost by the mean of so many.
_COSTS = 3
# A shorter interval is taken only where it fits with room to spare, so that noise does not move it to and fro.
_ROOM = 0.7


class Pace:
    """Says at which steps to measure, from what steps and measurements took so far.

    Steps are multiples of an interval, and the interval is ``every`` times a power of two: the grids of two trainings,
    or of one whose interval changed, lie within each other. Beside that a ledger is kept, and a step that the budget
    does not cover is left out.

    Parameters
    ----------
    every : int
        The shortest interval, in optimiser steps.
    budget : float or None
        Share of the training's time that measurements may take; None measures at every multiple of ``every``.

    Attributes
    ----------
    interval : int
        Steps between two measurements, as things are now.
    cost_s : float or None
        What one measurement is expected to take; None before the first is tried.
    trained_s, spent_s : float
        Seconds that training and that measuring took so far.

    Examples
    --------
    >>> pace = Pace(every=10, budget=0.03)
    >>> for _ in range(10):
    ...     pace.step(0.1)
    >>> pace.expect(0.05)
    >>> pace.interval, pace.due(10), pace.due(20), pace.affordable()
    (20, False, True, False)
    """

    def __init__(self, every: int, budget: float | None) -> None:
        self.every = self.interval = every
        self.budget = budget
        self.trained_s = self.spent_s = 0.0
        self.cost_s: float | None = None
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self._costs: deque[float] = deque(maxlen=_COSTS)

    def step(self, seconds: float | None) -> None:
        """A step took so long; None where something else came between, which counts as a usual step."""
        if seconds is not None:
            self._steps.append(seconds)
        self.trained_s += seconds if seconds is not None else median(self._steps or [0.0])

    def spend(self, seconds: float) -> None:
        """Something beside a whole measurement took so long."""
        self.spent_s += seconds

    def expect(self, seconds: float) -> None:
        """A measurement will take about so long, before there has been one."""
        self.cost_s = seconds
        self._settle()

    def measured(self, seconds: float) -> None:
        """A measurement took so long."""
        self.spent_s += seconds
        self._costs.append(seconds)
        self.cost_s = fmean(self._costs)
        self._settle()

    def due(self, step: int) -> bool:
        """Whether a step is one of the grid."""
        return step % self.interval == 0

    def affordable(self) -> bool:
        """Whether one more measurement stays within the budget of the time trained so far."""
        return self.budget is None or self.spent_s + (self.cost_s or 0.0) <= self.budget * self.trained_s

    def share_with(self, seconds: float) -> float:
        """Time spent, and so many seconds that are being spent, by time trained."""
        return (self.spent_s + seconds) / self.trained_s if self.trained_s else 0.0

    def _settle(self) -> None:
        """The shortest interval whose steps pay for a measurement."""
        if self.budget is None or not self._steps:
            return
        earned = self.budget * median(self._steps)  # a step
        while self.cost_s > earned * self.interval and earned > 0:
            self.interval *= 2
        while self.interval > self.every and self.cost_s <= _ROOM * earned * (self.interval // 2):
            self.interval //= 2
