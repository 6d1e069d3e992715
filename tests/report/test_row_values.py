"""What rows add to a score, against the plain jackknife, closed forms and the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from rankprobe.report import row_values as module
from rankprobe.report.row_values import comparable_score, row_score, row_values
from rankprobe.report.stats import bootstrap_score


def classes(n: int, seed: int = 0, k: int = 2):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    return labels, np.where(rng.random(n) < 0.8, labels, rng.integers(0, k, n)), None


def tokens(n: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    count = rng.integers(3, 40, n)
    return count, rng.binomial(count, 0.6), rng.gamma(2.0, 0.6, n) * count


def plain_jackknife(table, metric: str) -> np.ndarray:
    """The definition, one row at a time."""
    n, rows = len(table[0]), np.arange(len(table[0]))
    whole = comparable_score(table, metric)
    return np.array([n * whole - (n - 1) * comparable_score(table, metric, rows[rows != i]) for i in rows])


@pytest.mark.parametrize(
    ("metric", "table"),
    [
        ("accuracy", classes(60)),
        ("f1", classes(60)),
        ("matthews", classes(60, k=3)),
        ("perplexity", tokens(40)),
        ("token_accuracy", tokens(40)),
        ("spearman", (*np.random.default_rng(0).normal(size=(2, 30)), None)),
    ],
)
def test_every_metric_has_the_jackknifes_values(metric, table):
    assert row_values(table, metric) == pytest.approx(plain_jackknife(table, metric), abs=1e-9)


@pytest.mark.parametrize(("metric", "k"), [("f1", 2), ("matthews", 2), ("matthews", 3)])
def test_their_spread_is_the_bootstraps(metric, k):
    table = classes(500, 3, k)
    values = row_values(table, metric)
    drawn = bootstrap_score(lambda rows: row_score(table, metric, rows), 500, level=0.6827, resamples=1500)
    assert values.std(ddof=1) / np.sqrt(500) == pytest.approx((drawn.high - drawn.low) / 2, rel=0.08)
    assert values.mean() == pytest.approx(drawn.estimate, abs=0.01)


def test_a_perplexity_is_compared_by_its_logarithm_and_more_is_better():
    worse, better = tokens(50, 1), tokens(50, 1)
    better = (better[0], better[1], better[2] * 0.9)
    gain = comparable_score(better, "perplexity") - comparable_score(worse, "perplexity")
    assert gain == pytest.approx(0.1 * worse[2].sum() / worse[0].sum())
    # A ratio of sums by the delta method: (nll - mean * tokens) / mean tokens, around minus the mean.
    nll, count = worse[2], worse[0]
    delta = -(nll - nll.sum() / count.sum() * count) / count.mean()
    values = row_values(worse, "perplexity")
    assert values.std(ddof=1) == pytest.approx(delta.std(ddof=1), rel=0.05)


def test_many_rows_go_in_blocks_with_the_same_standard_error(monkeypatch):
    table = tokens(3000, 2)
    blocks = row_values(table, "perplexity")
    assert blocks.shape == (module.MAX_BLOCKS,)
    monkeypatch.setattr(module, "MAX_BLOCKS", 3000)
    single = row_values(table, "perplexity")
    errors = [v.std(ddof=1) / np.sqrt(len(v)) for v in (blocks, single)]
    assert errors[0] == pytest.approx(errors[1], rel=0.08)
