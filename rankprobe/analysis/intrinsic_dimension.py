"""Intrinsic dimension: the smallest random subspace in which training reaches a share of full fine-tuning's score."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

from rankprobe.analysis.bootstrap import Score, bootstrap_scores
from rankprobe.analysis.crossing import bracket, crossings, reaches
from rankprobe.errors import UsageError, must

_ENDS = (0.025, 0.975)
# A reason: the threshold needs no training of the encoder at all.
HEAD_PASSES = "the trained head alone reaches it"


@dataclass(frozen=True)
class IntrinsicDimension:
    """The smallest d that reaches a share of full fine-tuning's score.

    Attributes
    ----------
    curve : str
        Its name: did or said.
    share : float
    of : str
        ``score``, or ``gain``: of what full fine-tuning gains over a trained head.
    d : float
        Interpolated; the smallest measured d where that reaches it already, infinite where none does, NaN where the
        share is one of nothing.
    d_below, d_above : float
        The measured ds that it lies between: 0 and infinite at the ends.
    ci_low, ci_high : float
        95 % interval of d. It is open where the measured ds are: 0 below them, infinite above.
    threshold, full : float
        The score to reach, and full fine-tuning's.
    n_eval, n_seeds : int
        Evaluation rows; the fewest seeds of any d.
    method : str
        How the interval was made.
    reason : str
        What d is where it is not a crossing between two measured ds; else empty.
    ratio, ratio_ci_low, ratio_ci_high : float
        d over the first curve's d, from the same resamples; NaN for the first, and where one of the two is no number.
    """

    curve: str
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
    reason: str = ""
    ratio: float = math.nan
    ratio_ci_low: float = math.nan
    ratio_ci_high: float = math.nan

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
    """d90, and its like for other shares, of one curve; with a ``head`` the share is one of the gain over it.

    See :func:`intrinsic_dimensions`, which takes several curves and gives both shares.

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
    curves = {"": predictions}
    return intrinsic_dimensions(labels, curves, full, score, share, head=head, n_resamples=n_resamples, seed=seed)[-1]


def intrinsic_dimensions(
    labels: ArrayLike,
    curves: Mapping[str, Mapping[int, Sequence[ArrayLike]]],
    full: Sequence[ArrayLike],
    score: Score,
    share: float = 0.9,
    *,
    head: Sequence[ArrayLike] = (),
    n_resamples: int = 2000,
    seed: int = 0,
) -> list[IntrinsicDimension]:
    """The smallest d of some curves for a share of the score, and of the gain over a head, from predictions.

    Parameters
    ----------
    labels : array-like, shape (n,)
    curves : mapping of str to (mapping of int to sequence of array-likes, shape (n,) each)
        By name and d: what each seed predicts on the same rows.
    full : sequence of array-likes, shape (n,) each
        Full fine-tuning's, a seed each.
    score : callable
        ``score(labels, predictions) -> float``, more is better.
    share : float
        Above 0 and at most 1.
    head : sequence of array-likes, optional
        A trained head's on the frozen model. Without it there is no gain to take a share of.
    n_resamples, seed : int
        Of the bootstrap, at least 1000 resamples.

    Returns
    -------
    list of IntrinsicDimension
        By curve, for the score and then for the gain.

    Raises
    ------
    UsageError
        If there is no curve, a curve without d, a d without runs, no full fine-tuning, a share out of range, or lengths
        differ.

    Notes
    -----
    Scores are averaged over seeds, made non-decreasing in d by isotonic regression (a larger subspace can do what a
    smaller one can; that it measures worse is noise), and the threshold's crossing is interpolated linearly in log d.

    For the interval evaluation rows are resampled, the same for all models. What other seeds would give is added to
    every mean as normal noise: two seeds of one d say next to nothing about their spread, so it is one for all ds, full
    fine-tuning and the head, from the deviations of all of them, with the uncertainty of that estimate.

    A resample whose curve reaches the threshold nowhere counts as the largest d for the lower end and as infinite for
    the upper; one that does at the smallest d as 0 and as that d: what was not measured stays open.

    The source takes 90 % of the score itself, "a satisfactory solution"; where guessing gives 50 % that is a low bar,
    which the head alone may pass, and the share of the gain says more.

    References
    ----------
    Li et al. (2018), arXiv:1804.08838, section 2; Aghajanyan et al. (2020), arXiv:2012.13255, section 3.1 (d90).
    """
    if not 0 < share <= 1:
        raise UsageError(must("share", "be above 0 and at most 1", share, "Pass 0.9, as the source does"))
    least = min((len(curve) for curve in curves.values()), default=0)
    if not least or not len(full) or any(not len(found) for curve in curves.values() for found in curve.values()):
        got = f"{least} ds and {len(full)} runs of full fine-tuning"
        raise UsageError(must("An intrinsic dimension", "have a run at some d and a full one", got, "Train them first"))
    labels = np.asarray(labels)
    by_d = {name: dict(sorted(curve.items())) for name, curve in curves.items()}
    groups = [*itertools.chain(*(curve.values() for curve in by_d.values())), full, *([head] if len(head) else [])]
    means = _means(labels, groups, score, n_resamples, seed)
    full_means = means[:, sum(map(len, by_d.values()))]
    head_means = means[:, -1]
    found = []
    first: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    start = 0
    for name, curve in by_d.items():
        ds, seeds = list(curve), [len(runs) for runs in curve.values()]
        scores = means[:, start : start + len(ds)]
        start += len(ds)
        for of in ("score", "gain") if len(head) else ("score",):
            base = head_means if of == "gain" else np.zeros(len(means))
            gain = full_means - base
            thresholds = np.where(gain > 0, base + share * gain, np.nan)
            known = {"curve": name, "share": share, "of": of, "threshold": float(thresholds[0]),
                     "full": float(full_means[0]), "n_eval": len(labels), "n_seeds": min(seeds),
                     "method": f"bootstrap over {len(labels):,} eval rows and seeds"}  # fmt: skip
            if reason := _nothing_to_share(of, full_means, base):
                nothing = dict.fromkeys(("d", "d_below", "d_above", "ci_low", "ci_high"), math.nan)
                found.append(IntrinsicDimension(**known, **nothing, reason=reason))
                continue
            found_at = crossings(ds, scores, thresholds, seeds)
            below, above = bracket(ds, scores[0], thresholds[0], seeds)
            passed = len(head) and of == "score" and reaches(head_means[0], thresholds[0])
            found.append(IntrinsicDimension(
                **known, **_of_d(found_at, below, above), **_ratio(found_at, first.get(of)),
                reason=HEAD_PASSES if passed else _open_end(below, above),
            ))  # fmt: skip
            first.setdefault(of, found_at)
    return found


def _means(
    labels: np.ndarray, groups: Sequence[Sequence[ArrayLike]], score: Score, n_resamples: int, seed: int
) -> np.ndarray:
    """Mean scores of groups of seeds: as measured in the first row, then on resampled rows and with other seeds."""
    models = [np.asarray(p) for group in groups for p in group]
    drawn = bootstrap_scores(labels, models, score, n_resamples=n_resamples, seed=seed)
    every = np.vstack([[score(labels, p) for p in models], drawn])
    ends = np.cumsum([0, *map(len, groups)])
    means = np.stack([every[:, a:b].mean(axis=1) for a, b in itertools.pairwise(ends)], axis=1)
    sizes = np.diff(ends)
    freedom = int((sizes - 1).sum())
    if freedom:
        rng = np.random.default_rng([seed, 1])
        squares = ((every[0] - np.repeat(means[0], sizes)) ** 2).sum()
        deviation = np.sqrt(squares / rng.chisquare(freedom, (n_resamples, 1)))
        means[1:] += deviation / np.sqrt(sizes) * rng.standard_normal((n_resamples, len(groups)))
    return means


def _nothing_to_share(of: str, full: np.ndarray, base: np.ndarray) -> str:
    """Why there is nothing to reach a share of; empty where there is. First the measured values, then resampled."""
    gain = full - base
    low = np.quantile(gain[1:][np.isfinite(gain[1:])], _ENDS[0]) if np.isfinite(gain[1:]).any() else -math.inf
    if gain[0] > 0 and low > 0:
        return ""
    what = "full fine-tuning's score" if of == "score" else "what full fine-tuning gains over the head"
    return f"{what}, {gain[0]:.4f}, is not above 0" if not gain[0] > 0 else f"{what} cannot be told from 0"


def _of_d(found: tuple[np.ndarray, ...], below: float, above: float) -> dict[str, float]:
    d, low, high = found
    return {"d": float(d[0]), "d_below": below, "d_above": above, **_interval("ci", low[1:], high[1:])}


def _ratio(of: tuple[np.ndarray, ...], to: tuple[np.ndarray, ...] | None) -> dict[str, float]:
    """One d over another, resample by resample; the ends are those of all that an open end leaves possible."""
    if to is None:
        return {}
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, low, high = of[0][0] / to[0][0], of[1][1:] / to[2][1:], of[2][1:] / to[1][1:]
    return {"ratio": float(ratio), **_interval("ratio_ci", low, high)}


def _interval(name: str, low: np.ndarray, high: np.ndarray) -> dict[str, float]:
    return {
        f"{name}_low": float(np.quantile(low, _ENDS[0], method="lower")),
        f"{name}_high": float(np.quantile(high, _ENDS[1], method="higher")),
    }


def _open_end(below: float, above: float) -> str:
    if math.isinf(above):
        return f"not reached at {below:,}, the largest d measured"
    return "" if below else f"reached at {above:,}, the smallest d measured"
