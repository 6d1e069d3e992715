"""What every task hands to training: examples with a stable id, two splits, and how it is scored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One row: a text, perhaps a second one, and its label.

    Attributes
    ----------
    row : str
        Stable id, unique in its split; predictions are paired across runs by it.
    text, text_b : str
        ``text_b`` is None in a single-text task.
    label : int or float
        Index into ``Task.labels``; a float score in a regression task.
    """

    row: str
    text: str
    text_b: str | None
    label: int | float


@dataclass(frozen=True)
class Task:
    """A train split, an evaluation split and the score.

    Attributes
    ----------
    name : str
        As tables show it: ``docmatch``, ``docmatch@1a2b3c4d``, ``sst2``.
    split : str
        ``eval``, or ``tuning`` where ``eval`` holds the rows that learning rates are chosen on; the two never overlap.
    train, eval : tuple of Example
    labels : tuple of str
        Class names in label order; empty for regression.
    metrics : tuple of str
        Names understood by :mod:`rankprobe.tasks.metrics`; the first is the one that tables show.
    sha256 : str
        Of the rows used, both splits: two runs are compared only where it is the same for ``eval_sha256``.
    eval_sha256 : str
        Of the evaluation rows alone.
    """

    name: str
    split: str
    train: tuple[Example, ...]
    eval: tuple[Example, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    sha256: str
    eval_sha256: str

    @property
    def is_regression(self) -> bool:
        """Whether labels are scores rather than classes."""
        return not self.labels

    @property
    def problem(self) -> str:
        """``classification``, ``regression`` or ``language_modelling``."""
        return "classification" if self.labels else "regression"
