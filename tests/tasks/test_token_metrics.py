"""Perplexity and token accuracy: closed forms, what they do not depend on, degenerate rows, resampled rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rankprobe.errors import UsageError
from rankprobe.report.row_values import row_score
from rankprobe.report.score_intervals import paired_difference, score_interval
from rankprobe.tasks.metrics import LOWER_IS_BETTER, METRICS, TOKEN_METRICS, score
from rankprobe.tasks.task import LANGUAGE_METRICS

BOTH = ("perplexity", "token_accuracy")


def test_closed_forms():
    # A uniform guess among 50 words costs ln 50 nats a token, however the tokens lie in rows.
    tokens = np.array([3, 1, 7])
    assert score(BOTH, tokens, [1, 1, 0], tokens * math.log(50)) == {
        "perplexity": pytest.approx(50, rel=1e-14),
        "token_accuracy": 2 / 11,
    }
    assert score(BOTH, [4], [4], [0.0]) == {"perplexity": 1.0, "token_accuracy": 1.0}


def test_a_token_counts_the_same_in_a_long_row_and_in_a_short_one():
    whole = score(BOTH, [10], [4], [12.0])
    assert score(BOTH, [9, 1], [4, 0], [9.5, 2.5]) == pytest.approx(whole)
    # Control: a mean over rows would say otherwise.
    assert math.exp((9.5 / 9 + 2.5) / 2) > 1.5 * whole["perplexity"]


def test_perplexity_is_the_inverse_geometric_mean_of_the_tokens_probabilities():
    rng = np.random.default_rng(0)
    probabilities = [rng.uniform(0.01, 1, n) for n in (5, 1, 12)]
    nll = [-np.log(p).sum() for p in probabilities]
    expected = 1 / np.prod(np.concatenate(probabilities)) ** (1 / 18)
    assert score(("perplexity",), [5, 1, 12], [0, 0, 0], nll)["perplexity"] == pytest.approx(expected, rel=1e-12)


def test_names():
    assert tuple(TOKEN_METRICS) == LANGUAGE_METRICS == BOTH
    assert set(LOWER_IS_BETTER) == {"perplexity"} and not set(METRICS) & set(TOKEN_METRICS)


def test_what_no_number_can_hold_is_inf():
    assert score(("perplexity",), [1, 1], [0, 0], [1000.0, 1000.0]) == {"perplexity": math.inf}


@pytest.mark.parametrize(
    ("name", "tokens", "right", "nll", "message"),
    [
        ("perplexity", [2, 1], [0, 0], None, "perplexity must be made of each row's likelihood. Got no scores"),
        ("perplexity", [2, 1], [0, 0], [1.0, math.nan], "scores must be finite. Got NaN or inf in 1 rows"),
        ("perplexity", [2, 0], [0, 0], [1.0, 0.0], "labels must be counts of tokens, 1 or more. Got 0 in row 1"),
        ("perplexity", [2.5], [0], [1.0], "labels must be counts of tokens, 1 or more. Got 2.5 in row 0"),
        ("token_accuracy", [2, 3], [1, 4], None, "be between 0 and the row's tokens. Got 4 of 3 in row 1"),
        ("token_accuracy", [2, 3], [-1, 0], None, "be between 0 and the row's tokens. Got -1 of 2 in row 0"),
        ("perplexity", [2, 3], [1, 1], [1.0], "of one length above 0. Got 2 and 2 and 1"),
        ("perplexity", [], [], [], "of one length above 0"),
    ],
)
def test_bad_input_is_one_line(name, tokens, right, nll, message):
    with pytest.raises(UsageError, match=message) as error:
        score((name,), tokens, right, nll)
    assert "\n" not in str(error.value)


def _table(rng, extra=0.0):
    tokens = rng.integers(1, 30, 400)
    return tokens, rng.binomial(tokens, 0.3), tokens * (rng.gamma(4.0, 0.5, 400) + extra)


def test_rows_can_be_resampled():
    rng = np.random.default_rng(1)
    table = _table(rng)
    chosen = rng.integers(0, 400, 400)
    tokens, right, nll = (column[chosen] for column in table)
    assert row_score(table, "perplexity", chosen) == pytest.approx(math.exp(nll.sum() / tokens.sum()))
    assert row_score(table, "token_accuracy", chosen) == right.sum() / tokens.sum()


def test_intervals_over_rows_hold_the_estimate_and_find_a_worse_model():
    table = _table(np.random.default_rng(2))
    found = score_interval([table], metric="perplexity")
    assert found.estimate == row_score(table, "perplexity") and found.low < found.estimate < found.high
    worse = (*table[:2], table[2] + 0.1 * table[0])  # a tenth of a nat more a token
    difference = paired_difference([worse], [table], metric="perplexity")
    expected = found.estimate * (math.exp(0.1) - 1)
    assert difference.estimate == pytest.approx(expected)
    assert 0 < difference.low < difference.estimate < difference.high
