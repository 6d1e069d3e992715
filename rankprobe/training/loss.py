"""What a model is asked for, and what its answer costs: the loss of each problem."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from rankprobe.errors import UsageError, must
from rankprobe.tasks.task import CLASSIFICATION, LANGUAGE_MODELLING, PROBLEMS, REGRESSION
from rankprobe.training.batches import IGNORED


def pick_problem(problem: str, regression: bool) -> str:
    """A problem's name, checked; ``regression`` is short for naming that one.

    Raises
    ------
    UsageError
        If there is no such problem.
    """
    if problem not in PROBLEMS:
        raise UsageError(must("problem", f"be one of {', '.join(PROBLEMS)}", repr(problem), "Pass a task's problem"))
    return REGRESSION if regression else problem


def loss_of(problem: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a problem as ``(logits, truth) -> scalar``, in float32 whatever dtype the logits have.

    Parameters
    ----------
    problem : str
        ``classification``: mean cross-entropy in nats of logits (n, classes) and class ids (n,). ``regression``: mean
        squared error of outputs (n, 1) and scores (n,). ``language_modelling``: see :func:`next_token_loss`.
    """
    losses = {CLASSIFICATION: _cross_entropy, REGRESSION: _squared_error, LANGUAGE_MODELLING: next_token_loss}
    return losses[problem]


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats, averaged over all the target tokens of a batch.

    Parameters
    ----------
    logits : Tensor, shape (n, length, vocabulary)
    targets : Tensor, shape (n, length), int64
        What follows each token, -100 where that is not asked for.

    Returns
    -------
    Tensor
        Scalar, float32. A long row weighs more than a short one.
    """
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), classes)


def _squared_error(outputs: Tensor, scores: Tensor) -> Tensor:
    return functional.mse_loss(outputs.float()[:, 0], scores)
