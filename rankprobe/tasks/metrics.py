"""Scores of predictions: accuracy, F1, Matthews, Pearson and Spearman correlation; perplexity, token accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from rankprobe.errors import UsageError, must


def score(
    metrics: Sequence[str], labels: ArrayLike, predictions: ArrayLike, scores: ArrayLike | None = None
) -> dict[str, float]:
    """Score predictions by each metric.

    Parameters
    ----------
    metrics : sequence of str
        Keys of :data:`METRICS` or :data:`TOKEN_METRICS`.
    labels : array-like, shape (n,)
        Class ids; float scores for the two correlations; for the token metrics how many tokens a row asks for.
    predictions : array-like, shape (n,)
        Likewise; for the token metrics how many of them were guessed right.
    scores : array-like, shape (n,), optional
        As runs store them: of the predicted class; for perplexity, which needs them, a row's negative log-likelihood
        in nats, summed over its tokens. The other metrics are not made of them: they are checked for length only.

    Returns
    -------
    dict of str to float
        In the order of ``metrics``; dimensionless, more is better but for those in :data:`LOWER_IS_BETTER`.

    Raises
    ------
    UsageError
        If a metric is unknown, the lengths differ or are 0, a value is not finite, or a count is none.

    Examples
    --------
    >>> score(["accuracy", "matthews"], [0, 1, 1, 0], [0, 1, 0, 0])
    {'accuracy': 0.75, 'matthews': 0.577...}
    """
    known = (*METRICS, *TOKEN_METRICS)
    if unknown := [name for name in metrics if name not in known]:
        raise UsageError(must("A metric", f"be one of {', '.join(known)}", repr(unknown[0]), "Pass one of them"))
    y = np.asarray(labels, dtype=np.float64)
    p = np.asarray(predictions, dtype=np.float64)
    lengths = [len(y), len(p)] if scores is None else [len(y), len(p), len(np.asarray(scores))]
    if y.ndim != 1 or p.ndim != 1 or len(set(lengths)) > 1 or not len(y):
        got = " and ".join(map(str, lengths))
        raise UsageError(must("labels and predictions", "be 1-dimensional, of one length above 0", got, "Pair them"))
    if not (np.isfinite(y).all() and np.isfinite(p).all()):
        bad = int((~(np.isfinite(y) & np.isfinite(p))).sum())
        raise UsageError(must("labels and predictions", "be finite", f"NaN or inf in {bad} rows", "Check the training"))
    nll = None if scores is None else np.asarray(scores, dtype=np.float64)
    return {name: METRICS[name](y, p) if name in METRICS else TOKEN_METRICS[name](y, p, nll) for name in metrics}


def accuracy(y: np.ndarray, p: np.ndarray) -> float:
    """Share of rows predicted right."""
    return float((y == p).mean())


def f1(y: np.ndarray, p: np.ndarray) -> float:
    """F1 of class 1 against class 0, 2 TP / (2 TP + FP + FN); 0 where class 1 is neither there nor predicted.

    Raises
    ------
    UsageError
        If there are other classes.
    """
    if extra := sorted((set(np.unique(y)) | set(np.unique(p))) - {0.0, 1.0}):
        raise UsageError(must("f1", "be asked for classes 0 and 1 only", f"class {extra[0]:g}", "Use accuracy"))
    true_positives = float(((y == 1) & (p == 1)).sum())
    positives = float((y == 1).sum() + (p == 1).sum())
    return 2 * true_positives / positives if positives else 0.0


def matthews(y: np.ndarray, p: np.ndarray) -> float:
    """Matthews correlation of two or more classes; 0 where labels or predictions are of one class only.

    References
    ----------
    Gorodkin (2004), "Comparing two K-category assignments by a K-category correlation coefficient", eq. 8.
    """
    classes = np.unique(np.concatenate([y, p]))
    in_labels = np.array([(y == c).sum() for c in classes], dtype=np.float64)
    predicted = np.array([(p == c).sum() for c in classes], dtype=np.float64)
    n = float(len(y))
    covariance = float((y == p).sum()) * n - in_labels @ predicted
    spread = (n * n - in_labels @ in_labels) * (n * n - predicted @ predicted)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(y: np.ndarray, p: np.ndarray) -> float:
    """Pearson correlation; 0 where labels or predictions are constant.

    Notes
    -----
    The correlation with a constant is undefined (scipy gives NaN). A model that always says the same has learned
    nothing of the labels' order, and its score must be one that tables, means and JSON can hold: 0, as for Matthews.
    """
    if (y == y[0]).all() or (p == p[0]).all():
        return 0.0
    y, p = _standardised(y), _standardised(p)
    return float(np.clip(y @ p, -1.0, 1.0))


def spearman(y: np.ndarray, p: np.ndarray) -> float:
    """Spearman correlation: Pearson's of the ranks, ties sharing their mean rank; 0 where either is constant."""
    from scipy.stats import rankdata

    return pearson(rankdata(y), rankdata(p))


def _standardised(x: np.ndarray) -> np.ndarray:
    """Mean 0, norm 1; scaled first, so that squares neither overflow nor vanish."""
    x = x - x.mean()
    x = x / np.abs(x).max()
    return x / np.linalg.norm(x)


def perplexity(tokens: np.ndarray, right: np.ndarray, nll: np.ndarray | None) -> float:
    """exp of the mean negative log-likelihood of a token; inf where that mean is above 709 nats.

    Parameters
    ----------
    tokens, right, nll : ndarray, shape (n,)
        A row's tokens, how many of them were guessed right (not used), and the sum of their negative log-likelihoods in
        nats: long rows weigh more than short ones, as in a text that all rows are parts of.

    Raises
    ------
    UsageError
        If likelihoods are missing or not finite, or tokens are no counts.
    """
    if nll is None:
        raise UsageError(must("perplexity", "be made of each row's likelihood", "no scores", "Pass scores"))
    if not np.isfinite(nll).all():
        bad = int((~np.isfinite(nll)).sum())
        raise UsageError(must("scores", "be finite", f"NaN or inf in {bad} rows", "Check the training"))
    with np.errstate(over="ignore"):
        return float(np.exp(nll.sum() / _total(tokens)))


def token_accuracy(tokens: np.ndarray, right: np.ndarray, nll: np.ndarray | None) -> float:
    """Share of all tokens that the model would have guessed, each after the true ones before it.

    Raises
    ------
    UsageError
        If tokens are no counts, or more are right than there are.
    """
    total = _total(tokens)
    if ((right < 0) | (right > tokens)).any():
        row = int(((right < 0) | (right > tokens)).argmax())
        got = f"{right[row]:g} of {tokens[row]:g} in row {row}"
        raise UsageError(must("tokens guessed right", "be between 0 and the row's tokens", got, "Pair them"))
    return float(right.sum() / total)


def _total(tokens: np.ndarray) -> float:
    """All rows' tokens: each row has one or more."""
    if ((tokens < 1) | (tokens % 1 != 0)).any():
        row = int(((tokens < 1) | (tokens % 1 != 0)).argmax())
        got = f"{tokens[row]:g} in row {row}"
        raise UsageError(must("labels", "be counts of tokens, 1 or more", got, "Pass a language model's predictions"))
    return float(tokens.sum())


METRICS = {"accuracy": accuracy, "f1": f1, "matthews": matthews, "pearson": pearson, "spearman": spearman}
# Of a language model's rows; these are made of scores as well.
TOKEN_METRICS = {"perplexity": perplexity, "token_accuracy": token_accuracy}
# Of these less is better.
LOWER_IS_BETTER = frozenset({"perplexity"})


def truncation_metric(main: str) -> str:
    """What a cut dW is scored by, where more has to be better: the task's main metric or, in place of a perplexity, the
    share of tokens that the model has right.

    >>> truncation_metric("accuracy"), truncation_metric("perplexity")
    ('accuracy', 'token_accuracy')
    """
    return "token_accuracy" if main in LOWER_IS_BETTER else main
