"""Who is told how runs go."""

from __future__ import annotations

from typing import Protocol

# The stage in which a training, under way, is measured on the rows that may stop it.
HELD_OUT = "held out"


class Observer(Protocol):
    """Who is told how a run goes; the command line draws it."""

    def lane(self, number: int) -> Observer:
        """Who is told of the runs of one of several workers, which are numbered from 0."""

    def say(self, line: str) -> None:
        """Something happened that a person should read."""

    def begin(self, label: str, steps: int) -> None:
        """A run starts that will take so many optimiser steps (0 for a measurement on a finished run)."""

    def stage(self, name: str, done: int, total: int, note: str = "") -> None:
        """A stage (``train``, :data:`HELD_OUT`, ``evaluate``, ``svd``, ``truncate``) has done so much of its total."""

    def drop(self) -> None:
        """What was under way is lost and will begin again, its steps with it."""


class Silent:
    """An observer that shows nothing."""

    def lane(self, number: int) -> Observer:
        """Nothing is shown of any worker."""
        return self

    def say(self, line: str) -> None:
        """Ignore it."""

    def begin(self, label: str, steps: int) -> None:
        """Ignore it."""

    def stage(self, name: str, done: int, total: int, note: str = "") -> None:
        """Ignore it."""

    def drop(self) -> None:
        """Ignore it."""
