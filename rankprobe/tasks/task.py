"""What every task hands to training: examples with a stable id, two splits, and how it is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CLASSIFICATION, REGRESSION, LANGUAGE_MODELLING = "classification", "regression", "language_modelling"
PROBLEMS = (CLASSIFICATION, REGRESSION, LANGUAGE_MODELLING)
# What every language-modelling task is scored by.
LANGUAGE_METRICS = ("perplexity", "token_accuracy")


@dataclass(frozen=True)
class Example:
    """One row: a text, perhaps a second one, and its label.

    Attributes
    ----------
    row : str
        Stable id, unique in its split; predictions are paired across runs by it.
    text, text_b : str
        ``text_b`` is None in a single-text task. In language modelling ``text`` is the prompt, which may be empty, and
        ``text_b`` what is to follow it.
    label : int or float
        Index into ``Task.labels``; a float score in a regression task; 0 in language modelling.
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
        Class names in label order; empty for regression and language modelling.
    metrics : tuple of str
        Names understood by :mod:`rankprobe.tasks.metrics`; the first is the one that tables show.
    sha256 : str
        Of the rows used, both splits: two runs are compared only where it is the same for ``eval_sha256``.
    eval_sha256 : str
        Of the evaluation rows alone.
    held_out : tuple of Example
        Tuning rows that may stop a training early, none of them in ``train``; empty where none are asked for.
    """

    name: str
    split: str
    train: tuple[Example, ...]
    eval: tuple[Example, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    sha256: str
    eval_sha256: str
    held_out: tuple[Example, ...] = ()

    @property
    def problem(self) -> str:
        """``classification``, ``regression`` or ``language_modelling``."""
        return problem_of(self.labels, self.metrics)

    @property
    def is_regression(self) -> bool:
        """Whether labels are scores rather than classes."""
        return self.problem == REGRESSION

    @property
    def is_language_modelling(self) -> bool:
        """Whether a row's second text is to be predicted, token by token."""
        return self.problem == LANGUAGE_MODELLING


def problem_of(labels: Sequence[str], metrics: Sequence[str]) -> str:
    """What a task asks for: one of its classes, the next token where it is scored by perplexity, else a number.

    >>> problem_of(("no", "yes"), ("accuracy",)), problem_of((), ("pearson",)), problem_of((), ("perplexity",))
    ('classification', 'regression', 'language_modelling')
    """
    if labels:
        return CLASSIFICATION
    return LANGUAGE_MODELLING if LANGUAGE_METRICS[0] in metrics else REGRESSION
