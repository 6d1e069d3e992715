"""A rank sweep's table: a row a configuration, each number with its interval and what it was made over."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from rankprobe.report.crossed import tail_probability
from rankprobe.report.equivalence import Equivalence, equivalence
from rankprobe.report.paired import holm, mcnemar, paired_bootstrap
from rankprobe.report.power import seeds_needed
from rankprobe.report.rank_input import Configuration
from rankprobe.report.row_values import comparable_score
from rankprobe.report.score_intervals import (
    crossed_difference,
    difference_bounds,
    paired_difference,
    score_interval,
)
from rankprobe.report.stats import bootstrap_score
from rankprobe.tasks.metrics import LOWER_IS_BETTER

LEFT_OUT, REFERENCE = "left out", "reference"
RELATIVE, ABSOLUTE = "relative", "difference"
# Why no number of further seeds can be named; beside the reasons of rankprobe.report.power.
ONE_SEED, ALIKE = "one seed", "alike"
COLUMNS = [
    "label",
    "r",
    "n_seeds",
    "n_diverged",
    "metric",
    "mean",
    "ci_low",
    "ci_high",
    "ci_method",
    "n_pairs",
    "diff",
    "diff_low",
    "diff_high",
    "diff_level",
    "diff_scale",
    "diff_method",
    "p_not_worse",
    "p_not_better",
    "p_equivalent",
    "equivalent",
    "p_different",
    "p_different_holm",
    "p_different_method",
    "more_seeds",
    "more_seeds_note",
]
_WHOLE = ("r", "n_seeds", "n_diverged", "n_pairs", "more_seeds")


def score_columns(configuration: Configuration, metric: str) -> dict:
    """How one configuration scores by itself, as methods.csv has it."""
    row = {
        "label": configuration.label,
        "r": configuration.r,
        "n_seeds": len(configuration.finished),
        "n_diverged": configuration.n_diverged,
        "metric": metric,
    }
    if configuration.finished:
        mean = score_interval(list(configuration.finished.values()), metric=metric)
        row |= {"mean": mean.estimate, "ci_low": mean.low, "ci_high": mean.high, "ci_method": mean.method}
    return row


def difference_columns(
    configuration: Configuration,
    reference: Configuration,
    *,
    metric: str,
    margin: float,
    alpha: float,
    one_sided: bool,
    power: float,
) -> dict:
    """What is known of one configuration against the reference, on the seeds that both have.

    Returns
    -------
    dict
        Of :data:`COLUMNS`; ``equivalent`` is ``"left out"`` or missing, to be filled in the order of testing.
    """
    common = [seed for seed in configuration.finished if seed in reference.finished]
    a, b = ([side.finished[seed] for seed in common] for side in (configuration, reference))
    row = {"n_pairs": len(common), "diff_level": 1 - 2 * alpha}
    row["diff_scale"] = RELATIVE if metric in LOWER_IS_BETTER else ABSOLUTE
    if configuration.n_diverged or len(common) < 2:
        row["equivalent"] = LEFT_OUT
    if len(common) == 1:
        return row | _of_one_seed(a[0], b[0], metric, 1 - 2 * alpha) | {"more_seeds_note": ONE_SEED}
    if not common:
        return row
    found = equivalence(a, b, metric=metric, margin=margin, alpha=alpha)
    row |= _gap(found.difference.estimate, found.low, found.high, metric)
    row |= {
        "diff_method": f"over {len(common)} seeds and {len(a[0][0]):,} eval rows",
        "p_not_worse": found.p_not_worse,
        "p_not_better": found.p_not_better,
        "p_equivalent": found.p_not_worse if one_sided else found.p,
    }
    return row | _any_difference(a, b, metric, found) | _more_seeds(found, len(common), alpha, one_sided, power)


def table(rows: list[dict]) -> pd.DataFrame:
    """Rows → a table with all columns, Holm's correction over the configurations, whole numbers whole."""
    made = pd.DataFrame(rows, columns=COLUMNS)
    made["p_different_holm"] = holm(made["p_different"].astype(float))
    for name in _WHOLE:
        made[name] = pd.to_numeric(made[name]).astype("Int64")
    return made


def _any_difference(a: list, b: list, metric: str, found: Equivalence) -> dict:
    """Whether there is a difference at all; without the floor under rows, which holds at the margin only."""
    crossed = crossed_difference(a, b) if metric == "accuracy" else found.difference
    size = abs(crossed.estimate)
    p = 2 * float(tail_probability(size, crossed.seed_se, crossed.row_se, crossed.n_seeds))
    if crossed.se == 0:
        p = math.nan if size else 1.0
    return {"p_different": min(1.0, p), "p_different_method": f"crossed seeds and rows, {len(a)} seeds"}


def _more_seeds(found: Equivalence, n: int, alpha: float, one_sided: bool, power: float) -> dict:
    if found.difference.se == 0:
        return {"more_seeds_note": ALIKE}
    passed = (found.p_not_worse if one_sided else found.p) <= alpha
    needed = seeds_needed(
        difference=found.difference.estimate,
        bound=found.bound,
        seed_sd=found.difference.seed_sd,
        row_se=found.difference.row_se,
        alpha=alpha,
        power=power,
        one_sided=one_sided,
        at_least=2 if passed else n + 1,
    )
    return {
        "more_seeds": None if needed.total is None else max(0, needed.total - n),
        "more_seeds_note": needed.why_not,
    }


def _of_one_seed(a: tuple, b: tuple, metric: str, level: float) -> dict:
    """For these very weights: an interval over rows, and McNemar's test or a paired bootstrap."""
    if metric == "accuracy":
        gap = paired_difference([a], [b], level=level)
        p = mcnemar(np.equal(*a[:2]), np.equal(*b[:2])).p_mid
        method = "McNemar mid-p, 1 seed"
    else:
        gap = bootstrap_score(
            lambda rows: comparable_score(a, metric, rows) - comparable_score(b, metric, rows),
            len(a[0]),
            level=level,
            bounds=difference_bounds(metric),
        )
        p, method = paired_bootstrap([a], [b], metric=metric).p, "paired bootstrap over rows, 1 seed"
    return _gap(gap.estimate, gap.low, gap.high, metric) | {
        "diff_method": f"{gap.method.split(', paired')[0]}, 1 seed",
        "p_different": p,
        "p_different_method": method,
    }


def _gap(estimate: float, low: float, high: float, metric: str) -> dict:
    """A difference as tables show it: of a perplexity how much larger it is, as a fraction."""
    if metric in LOWER_IS_BETTER:
        estimate, low, high = (math.expm1(-value) for value in (estimate, high, low))
    return {"diff": estimate, "diff_low": low, "diff_high": high}
