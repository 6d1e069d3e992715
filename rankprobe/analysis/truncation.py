"""What is left of a score when every update inside the blocks keeps only its best rank-k part: truncation.csv."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rankprobe.analysis.bootstrap import Score, accuracy, bootstrap_scores, checked_predictions, percentile_interval
from rankprobe.analysis.cut_updates import RULES, UpdateSVD, most_directions, truncated_state
from rankprobe.errors import UsageError, must

Evaluate = Callable[[dict[str, Tensor]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class TruncationPoint:
    """The score at one k under one rule.

    Attributes
    ----------
    rule : str
        One of :data:`RULES`.
    k : int
        Directions kept in every update; one that has fewer is whole.
    score : float
        In the score's units.
    ci_low, ci_high : float
        Interval over evaluation examples.
    n : int
        Evaluation examples.
    ci_method : str
    labels, predictions : ndarray, shape (n,)
        Kept for the paired intervals of :func:`rankprobe.analysis.functional_rank.functional_rank`.
    """

    rule: str
    k: int
    score: float
    ci_low: float
    ci_high: float
    n: int
    ci_method: str
    labels: np.ndarray
    predictions: np.ndarray

    def row(self) -> dict:
        """The point as a row of truncation.csv, whose column ``accuracy`` holds the task's main score."""
        return {"rule": self.rule, "k": self.k, "accuracy": self.score, "ci_low": self.ci_low, "ci_high": self.ci_high,
                "n": self.n, "ci_method": self.ci_method}


def truncation_ks(p: int) -> tuple[int, ...]:
    """The ks to measure: 0, the powers of two below p, and p.

    Parameters
    ----------
    p : int
        Directions of the largest update, :func:`most_directions`; at least 1.

    Examples
    --------
    >>> truncation_ks(384)
    (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 384)
    >>> truncation_ks(8)
    (0, 1, 2, 4, 8)
    """
    if p < 1:
        raise UsageError(must("p", "be at least 1", p, "Pass min(m, n), or r for factors"))
    return (0, *(2**i for i in range((p - 1).bit_length())), p)


@torch.no_grad()
def truncation_curve(
    W0: Mapping[str, Tensor],
    W1: Mapping[str, Tensor],
    updates: Sequence[UpdateSVD],
    evaluate: Evaluate,
    score: Score = accuracy,
    *,
    head: AbstractSet[str],
    ks: Sequence[int] | None = None,
    rules: Sequence[str] = RULES,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Iterator[TruncationPoint]:
    """The score against k, the best rank-k part of every block weight's update kept at once.

    Parameters
    ----------
    W0, W1 : mapping of str to Tensor
        Parameters before and after (LoRA: merged), of the same names and shapes.
    updates : sequence of UpdateSVD
        From :func:`decompose_updates`.
    evaluate : callable
        ``evaluate(state_dict) -> (labels, predictions)``, arrays over the same examples in the same order every time.
    score : callable
        ``score(labels, predictions) -> float``; :func:`rankprobe.analysis.bootstrap.accuracy` itself is fast.
    head : set of str
        Names of the head's parameters, which stay tuned under both rules.
    ks : sequence of int, optional
        :func:`truncation_ks` of the most directions that an update has, where None.
    rules : sequence of str
        Of :data:`RULES`; see :func:`truncated_state`.
    level : float
        Coverage that the intervals aim at.
    n_resamples, seed : int
        Of the bootstrap over examples, at least 1000 resamples.

    Yields
    ------
    TruncationPoint
        As each is measured, rules one after the other, so that what is there can be stored before the rest is done.

    Raises
    ------
    UsageError
        If names, ks or rules are wrong, or evaluate's examples change from call to call.

    References
    ----------
    Hu et al. (2021), arXiv:2106.09685, section 7.2, asks what rank an update needs by training at several r; this asks
    it of an update that was trained at full rank. The cut is Eckart & Young's best rank-k part.
    """
    ks = truncation_ks(most_directions(updates)) if ks is None else tuple(ks)
    _check_names(W0, W1, head, ks, rules)
    first: np.ndarray | None = None
    for rule in rules:
        for k in ks:
            labels, predictions = evaluate(truncated_state(W0, W1, updates, k, rule, head))
            labels, stacked = checked_predictions(labels, [predictions])
            first = labels if first is None else first
            if not np.array_equal(first, labels):
                raise UsageError(must("evaluate", "return the same examples in the same order at every k",
                                      f"other labels at k={k} ({rule})", "Do not shuffle evaluation rows"))
            low, high, method = _interval(labels, stacked, score, level, n_resamples, seed)
            value = float(score(labels, stacked[0]))
            yield TruncationPoint(rule, k, value, low, high, len(labels), method, labels, stacked[0])


def _interval(
    labels: np.ndarray, predictions: np.ndarray, score: Score, level: float, n_resamples: int, seed: int
) -> tuple[float, float, str]:
    right = int((predictions[0] == labels).sum())
    if score is accuracy and right in (0, len(labels)):
        # Every resample is the same: a bootstrap would claim to know the accuracy exactly.
        from scipy.stats import binomtest  # half a second

        ci = binomtest(right, len(labels)).proportion_ci(level, method="exact")
        return ci.low, ci.high, f"Clopper-Pearson over {len(labels)} eval examples"
    drawn = bootstrap_scores(labels, predictions, score, n_resamples=n_resamples, seed=seed)[:, 0]
    undefined = int((~np.isfinite(drawn)).sum())
    method = f"percentile bootstrap over {len(labels)} eval examples, {n_resamples} resamples"
    return *percentile_interval(drawn, level), method + (f", {undefined} undefined" if undefined else "")


def _check_names(
    W0: Mapping[str, Tensor], W1: Mapping[str, Tensor], head: AbstractSet[str], ks: Sequence[int], rules: Sequence[str]
) -> None:
    if W0.keys() != W1.keys():
        got = f"{min(W0.keys() ^ W1.keys())} in one only"
        raise UsageError(must("W0 and W1", "have the same parameters", got, "Pass two states of one model"))
    unknown = sorted(head - W1.keys())
    if unknown:
        raise UsageError(must("head", "name parameters of the model", unknown[0], "Pass names as in the state dict"))
    if not ks or min(ks) < 0:
        raise UsageError(must("ks", "be at least 0", list(ks), "Pass truncation_ks(p)"))
    wrong = [rule for rule in rules if rule not in RULES]
    if wrong:
        raise UsageError(must("rules", f"be of {', '.join(RULES)}", wrong[0], "Pass one of those"))
