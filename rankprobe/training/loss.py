"""What a model is asked for, and what its answer costs: the loss of each problem."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from rankprobe.errors import UsageError, must
from rankprobe.tasks.task import CLASSIFICATION, LANGUAGE_MODELLING, PROBLEMS, REGRESSION
from rankprobe.training.batches import IGNORED


def check_problem(problem: str) -> None:
    """Refuse a problem that does not exist.

    Raises
    ------
    UsageError
        If there is no such problem.
    """
    if problem not in PROBLEMS:
        raise UsageError(must("problem", f"be one of {', '.join(PROBLEMS)}", repr(problem), "Pass a task's problem"))


def loss_of(problem: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a problem as ``(logits, truth) -> scalar``, in float32 whatever dtype the logits have.

    Parameters
    ----------
    problem : str
        ``classification``: mean cross-entropy in nats of logits (n, classes) and class ids (n,). ``regression``: mean
        squared error of outputs (n, 1) and scores (n,). ``language_modelling``: see :func:`next_token_loss`.
    """
    check_problem(problem)
    losses = {CLASSIFICATION: _cross_entropy, REGRESSION: _squared_error, LANGUAGE_MODELLING: next_token_loss}
    return losses[problem]


def member_losses_of(problem: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The loss of each member of a pack as ``(logits, truth, counted) -> (members,)``, as :func:`loss_of` has it alone.

    Parameters
    ----------
    problem : str
        Logits and truth are those of the members one after the other, each with as many rows; ``counted`` (members,
        rows) is 1.0 for rows that count and 0.0 for those that fill up a batch shorter than another member's.
    """
    check_problem(problem)
    losses = {CLASSIFICATION: _cross_entropies, REGRESSION: _squared_errors, LANGUAGE_MODELLING: _next_token_losses}
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


def _cross_entropies(logits: Tensor, classes: Tensor, counted: Tensor) -> Tensor:
    return _means(functional.cross_entropy(logits.float(), classes, reduction="none").view_as(counted), counted)


def _squared_errors(outputs: Tensor, scores: Tensor, counted: Tensor) -> Tensor:
    return _means(functional.mse_loss(outputs.float()[:, 0], scores, reduction="none").view_as(counted), counted)


def _next_token_losses(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    targets = targets.masked_fill(counted.view(-1, 1) == 0, IGNORED).flatten()
    each = functional.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="none")
    asked = (targets != IGNORED).to(each.dtype)
    return _means(each.view(len(counted), -1), asked.view(len(counted), -1))


def _means(each: Tensor, counted: Tensor) -> Tensor:
    return (each * counted).sum(1) / counted.sum(1)
