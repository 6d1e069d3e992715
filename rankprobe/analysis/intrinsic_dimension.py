"""Intrinsic dimension: the smallest random subspace in which training reaches a share of full fine-tuning's score."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from rankprobe.analysis.bootstrap import Score, bootstrap_scores
from rankprobe.errors import UsageError, must

_ENDS = (0.025, 0.975)


@dataclass(frozen=True)
class IntrinsicDimension:
    """The smallest d that reaches a share of full fine-tuning's score.

    Attributes
    ----------
    share : float
    of : str
        ``score``, or ``gain``: of what full fine-tuning gains over a trained head.
    d : float
        Interpolated; the first measured d where that reaches it already, infinite where none does.
    d_below, d_above : float
        The measured ds that it lies between: 0 and infinite at the ends.
    ci_low, ci_high : float
        95 % interval of d.
    threshold, full : float
        The score to reach, and full fine-tuning's.
    n_eval, n_seeds : int
        Evaluation rows; the fewest seeds of any d.
    method : str
        How the interval was made.
    """

    share: float
    of: str
    d: float
    d_below: float
    d_above: float
    ci_low: float
    ci_high: float
    threshold: float
    full: float
    n_eval: int
    n_seeds: int
    method: str

    def row(self) -> dict:
        """As a table has it."""
        return asdict(self)


def intrinsic_dimension(
    labels: ArrayLike,
    predictions: Mapping[int, Sequence[ArrayLike]],
    full: Sequence[ArrayLike],
    score: Score,
    share: float = 0.9,
    *,
    head: Sequence[ArrayLike] = (),
    n_resamples: int = 2000,
    seed: int = 0,
) -> IntrinsicDimension:
    """d90, and its like for other shares, from predictions at some ds.

    Parameters
    ----------
    labels : array-like, shape (n,)
    predictions : mapping of int to sequence of array-likes, shape (n,) each
        By d: what each seed predicts on the same rows.
    full : sequence of array-likes, shape (n,) each
        Full fine-tuning's, a seed each.
    score : callable
        ``score(labels, predictions) -> float``, more is better.
    share : float
        Above 0 and at most 1.
    head : sequence of array-likes, optional
        A trained head's on the frozen model: the share is then one of the gain over it.
    n_resamples, seed : int
        Of the bootstrap, at least 1000 resamples.

    Returns
    -------
    IntrinsicDimension

    Raises
    ------
    UsageError
        If there is no d, no full fine-tuning, a share out of range, or lengths differ.

    Notes
    -----
    Scores are averaged over seeds, made non-decreasing in d by isotonic regression (a larger subspace can do what a
    smaller one can; that it measures worse is noise), and the threshold's crossing is interpolated linearly in log d.
    For the interval evaluation rows are resampled, the same for all models, and at every d, and for full fine-tuning,
    its seeds; with two or three seeds their share of the uncertainty is understated, and so is the interval's width.

    The source takes 90 % of the score itself, "a satisfactory solution"; where guessing gives 50 % that is a low bar,
    and the share of the gain says more.

    References
    ----------
    Li et al. (2018), arXiv:1804.08838, section 2; Aghajanyan et al. (2020), arXiv:2012.13255, section 3.1 (d90).

    Examples
    --------
    >>> from rankprobe.analysis.bootstrap import accuracy
    >>> labels = np.ones(1000)
    >>> def right(n):
    ...     return np.where(np.arange(1000) < n, 1, 0)
    >>> found = intrinsic_dimension(labels, {10: [right(600)], 100: [right(800)]}, [right(800)], accuracy)
    >>> round(found.threshold, 2), round(found.d, 1), (found.d_below, found.d_above)
    (0.72, 39.8, (10, 100))
    """
    if not 0 < share <= 1:
        raise UsageError(must("share", "be above 0 and at most 1", share, "Pass 0.9, as the source does"))
    ds = sorted(predictions)
    if not ds or not full or any(not predictions[d] for d in ds):
        got = f"{len(ds)} ds and {len(full)} runs of full fine-tuning"
        raise UsageError(must("An intrinsic dimension", "have a run at some d and a full one", got, "Train them first"))
    groups = [*([predictions[d] for d in ds]), full, *([head] if len(head) else [])]
    ends = np.cumsum([0, *map(len, groups)])
    models = [p for group in groups for p in group]
    labels = np.asarray(labels)
    measured = np.array([score(labels, np.asarray(p)) for p in models])
    drawn = bootstrap_scores(labels, models, score, n_resamples=n_resamples, seed=seed)
    rng = np.random.default_rng([seed, 1])
    means = np.empty((n_resamples, len(groups)))
    for i, (start, end) in enumerate(itertools.pairwise(ends)):
        picked = rng.integers(start, end, (n_resamples, end - start))
        means[:, i] = np.take_along_axis(drawn, picked, axis=1).mean(axis=1)
    point = np.array([measured[start:end].mean() for start, end in itertools.pairwise(ends)])
    resampled = np.array([_crossing(ds, row[: len(ds)], _threshold(row, len(ds), share)) for row in means])
    low, high = np.quantile(resampled, _ENDS, method="inverted_cdf")
    threshold = _threshold(point, len(ds), share)
    fitted = isotonic_regression(point[: len(ds)]).x
    reached = np.flatnonzero(fitted >= threshold - 1e-12)
    at = int(reached[0]) if len(reached) else len(ds)
    return IntrinsicDimension(
        share,
        "gain" if len(head) else "score",
        _crossing(ds, point[: len(ds)], threshold),
        ds[at - 1] if at else 0,
        ds[at] if at < len(ds) else math.inf,
        float(low),
        float(high),
        float(threshold),
        float(point[len(ds)]),
        len(labels),
        min(len(predictions[d]) for d in ds),
        f"bootstrap over {len(labels):,} eval rows and seeds",
    )


def _threshold(means: np.ndarray, count: int, share: float) -> float:
    """A share of full fine-tuning's score, or of its gain where a head's score is there too."""
    full, base = means[count], means[count + 1] if len(means) > count + 1 else 0.0
    return base + share * (full - base)


def _crossing(ds: Sequence[int], scores: np.ndarray, threshold: float) -> float:
    """Where non-decreasing scores reach the threshold, linear in log d."""
    fitted = isotonic_regression(scores).x
    reached = np.flatnonzero(fitted >= threshold - 1e-12)
    if not len(reached):
        return math.inf
    i = int(reached[0])
    if i == 0:
        return float(ds[0])
    part = (threshold - fitted[i - 1]) / (fitted[i] - fitted[i - 1])
    return float(ds[i - 1] * (ds[i] / ds[i - 1]) ** part)
