"""d90 from predictions: closed forms, degenerate curves, and how often the interval holds the truth."""

import math

import numpy as np
import pytest

from rankprobe.analysis.bootstrap import accuracy
from rankprobe.analysis.intrinsic_dimension import intrinsic_dimension, intrinsic_dimensions
from rankprobe.errors import UsageError
from rankprobe.tasks.metrics import matthews

N = 2000
LABELS = np.arange(N) % 2


def right(count, n=N):
    """Predictions of which the first ``count`` are right."""
    return np.where(np.arange(n) < count, np.arange(n) % 2, 1 - np.arange(n) % 2)


def found(counts, full=1600, **settings):
    predictions = {d: [right(count)] for d, count in counts.items()}
    return intrinsic_dimension(LABELS, predictions, [right(full)], accuracy, **settings)


def test_the_crossing_is_linear_in_log_d():
    # 0.9 · 0.8 = 0.72 lies 3/5 of the way from 0.6 to 0.8.
    result = found({100: 1200, 10_000: 1600})
    assert result.threshold == pytest.approx(0.72)
    assert result.d == pytest.approx(100 * 100**0.6)
    assert (result.d_below, result.d_above) == (100, 10_000)
    assert result.ci_low <= result.d <= result.ci_high


def test_a_share_of_the_gain_asks_for_more_than_one_of_the_score():
    counts = {10: 1100, 100: 1300, 1000: 1500, 10_000: 1600}
    score, gain = found(counts), found(counts, head=[right(1000)])
    assert gain.of == "gain" and gain.threshold == pytest.approx(0.5 + 0.9 * 0.3)
    assert gain.d > score.d


def test_a_dip_is_noise_and_made_even():
    dipped = found({10: 1000, 100: 1500, 1000: 1400, 10_000: 1600})
    even = found({10: 1000, 100: 1450, 1000: 1450, 10_000: 1600})
    assert dipped.d == pytest.approx(even.d)


def test_the_ends_of_the_grid():
    never = found({10: 1000, 100: 1100})
    assert never.d == math.inf and never.ci_high == math.inf and (never.d_below, never.d_above) == (100, math.inf)
    assert never.reason == "not reached at 100, the largest d measured"
    at_once = found({10: 1600, 100: 1600})
    assert (at_once.d, at_once.d_below, at_once.d_above) == (10, 0, 10)
    assert (at_once.ci_low, at_once.ci_high) == (0, 10), "what lies below the grid was not measured"
    assert at_once.reason == "reached at 10, the smallest d measured"


def test_a_head_that_passes_the_bar_alone_is_said():
    result = intrinsic_dimensions(LABELS, {"did": {10: [right(1500)], 100: [right(1600)]}}, [right(1600)], accuracy,
                                  head=[right(1450)])  # fmt: skip
    assert [r.of for r in result] == ["score", "gain"]
    assert result[0].reason == "the trained head alone reaches it" and result[1].reason == ""


@pytest.mark.parametrize(
    "head, why", [(1600, "0.0000, is not above 0"), (1700, "-0.0500, is not above 0"), (1599, "cannot be told from 0")]
)
def test_no_gain_has_no_share(head, why):
    result = found({10: 1000, 100: 1600}, head=[right(head)])
    assert math.isnan(result.d) and math.isnan(result.ci_high) and why in result.reason


def test_the_ratio_of_two_curves_is_tighter_than_that_of_their_intervals():
    curves = {"did": {100: [right(1200)], 10_000: [right(1600)]}, "said": {10: [right(1200)], 1000: [right(1600)]}}
    did, said = intrinsic_dimensions(LABELS, curves, [right(1600)], accuracy)
    assert math.isnan(did.ratio) and said.ratio == pytest.approx(0.1) == said.d / did.d
    # The rows are the same and so are the errors: the ratio is known exactly.
    assert said.ratio_ci_low == pytest.approx(0.1) and said.ratio_ci_high == pytest.approx(0.1)


def test_other_seeds_widen_the_interval():
    same = {d: [right(n)] * 2 for d, n in {100: 1200, 10_000: 1600}.items()}
    spread = {d: [right(n - 60), right(n + 60)] for d, n in {100: 1200, 10_000: 1600}.items()}
    narrow, wide = (intrinsic_dimension(LABELS, p, [right(1600)] * 2, accuracy) for p in (same, spread))
    assert narrow.d == pytest.approx(wide.d) and wide.ci_high / wide.ci_low > 1.5 * narrow.ci_high / narrow.ci_low


def test_a_subspace_that_nearly_reaches_it_has_an_open_interval():
    result = found({10: 1000, 100: 1430})  # 0.715 of the 0.72 asked for
    assert result.d == math.inf and 10 < result.ci_low < 100


def test_any_score_will_do():
    predictions = {d: [right(count)] for d, count in {10: 1200, 1000: 1600}.items()}
    result = intrinsic_dimension(LABELS, predictions, [right(1600)], matthews, n_resamples=1000)
    # Matthews of 0.6 and 0.8 accuracy on balanced labels: 0.2 and 0.6; threshold 0.54.
    assert result.d == pytest.approx(10 * 100 ** ((0.54 - 0.2) / 0.4), rel=1e-6)


@pytest.mark.parametrize("share, message", [(0.0, "share must be above 0"), (1.1, "share must be above 0")])
def test_shares_out_of_range(share, message):
    with pytest.raises(UsageError, match=message):
        found({10: 1000}, share=share)


def test_nothing_to_measure():
    with pytest.raises(UsageError, match="have a run at some d and a full one. Got 0 ds"):
        intrinsic_dimension(LABELS, {}, [right(1)], accuracy)
    with pytest.raises(UsageError, match="0 runs of full"):
        intrinsic_dimension(LABELS, {10: [right(1)]}, [], accuracy)


def test_the_interval_holds_the_true_d_of_other_rows():
    """Rows are drawn anew: models with known accuracies, whose curve crosses the threshold at a known d."""
    ds, p, full = (10, 100, 1000, 10_000), np.array([0.55, 0.65, 0.75, 0.79]), 0.8
    truth = 100 * 10 ** ((0.72 - 0.65) / 0.10)
    rng, hits = np.random.default_rng(0), 0
    for draw in range(60):
        predictions = {d: [_drawn(rng, share), _drawn(rng, share)] for d, share in zip(ds, p, strict=True)}
        result = intrinsic_dimension(LABELS, predictions, [_drawn(rng, full) for _ in range(2)], accuracy,
                                     n_resamples=1000, seed=draw)  # fmt: skip
        hits += result.ci_low <= truth <= result.ci_high
    assert hits >= 52, hits  # 95 % of 60 is 57


def _drawn(rng, share):
    return np.where(rng.random(N) < share, LABELS, 1 - LABELS)
