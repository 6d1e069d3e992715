"""The curve that one run foresees: exact where it was cut, interpolated between, its error and its smallest r."""

import math

import numpy as np
import pandas as pd
import pytest

from rankprobe.errors import UsageError
from rankprobe.report.page import make_page
from rankprobe.report.predicted_curve import COLUMNS, predicted_curve, predicted_curves, prediction_summary
from rankprobe.report.predicted_plots import draw_predicted, predicted_cells
from rankprobe.report.style import style

KS = (0, 1, 2, 4, 8, 16)
CUT = (0.50, 0.70, 0.74, 0.76, 0.78, 0.78)


def truncation(run_id="lora-r16", method="lora", r=16, scores=CUT, ks=KS, half=0.01):
    rows = {"run_id": run_id, "method": method, "r": r, "seed": 3, "rule": "rest_tuned", "k": ks, "accuracy": scores}
    table = pd.DataFrame(rows)
    table["ci_low"], table["ci_high"] = table["accuracy"] - half, table["accuracy"] + half
    table["ci_method"] = "bootstrap"
    other = table.assign(rule="rest_base", accuracy=0.1)
    return pd.concat([other, table], ignore_index=True)


def sweep(scores, targets="q,v", half=0.02, metric="accuracy"):
    table = pd.DataFrame({"r": list(scores), "accuracy_mean": list(scores.values()), "targets": targets, "n_seeds": 3})
    table["accuracy_ci_low"], table["accuracy_ci_high"] = table["accuracy_mean"] - half, table["accuracy_mean"] + half
    return table.assign(metric=metric)


def test_it_is_the_cut_score_at_each_r_and_its_error_has_the_joint_interval():
    table = predicted_curve(truncation(), sweep({1: 0.72, 4: 0.75, 16: 0.78}))
    assert list(table.columns) == COLUMNS and table["predicted"].tolist() == [0.70, 0.76, 0.78]
    assert table["error"].tolist() == pytest.approx([-0.02, 0.01, 0.0])
    assert table["own"].tolist() == [False, False, True]
    np.testing.assert_allclose(table["error_ci_high"] - table["error"], math.hypot(0.01, 0.02))
    np.testing.assert_allclose(table["error"] - table["error_ci_low"], math.hypot(0.01, 0.02))
    assert set(table["source_seed"]) == {3} and set(table["source_r"]) == {16}


def test_uneven_intervals_are_joined_by_the_ends_that_face_each_other():
    real = sweep({2: 0.75})
    real["accuracy_ci_low"], real["accuracy_ci_high"] = 0.74, 0.79
    row = predicted_curve(truncation(), real).iloc[0]
    assert row["error_ci_low"] == pytest.approx(-0.01 - math.hypot(0.01, 0.04))
    assert row["error_ci_high"] == pytest.approx(-0.01 + math.hypot(0.01, 0.01))


def test_between_two_ks_it_is_linear_in_log2_and_above_the_runs_own_r_there_is_none():
    table = predicted_curve(truncation(), sweep({3: 0.7, 12: 0.8, 32: 0.8}))
    share = math.log2(3) - 1
    assert table["predicted"].iloc[0] == pytest.approx(0.74 + 0.02 * share) and table["predicted"].iloc[1] == 0.78
    assert "interpolated between k = 2 and 4" in table["predicted_ci_method"].iloc[0]
    assert math.isnan(table["predicted"].iloc[2]) and math.isnan(table["error"].iloc[2])
    assert prediction_summary(table, whole=0.78)["n_rs"] == 2


def test_the_summary_leaves_the_runs_own_r_out_and_finds_the_smallest_r():
    table = predicted_curve(truncation(), sweep({1: 0.74, 2: 0.75, 4: 0.755, 16: 0.78}))
    found = prediction_summary(table, whole=0.78, margin_points=2)
    assert found["n_rs"] == 3 and found["mean_abs_error"] == pytest.approx((0.04 + 0.01 + 0.005) / 3)
    assert found["mean_error"] == pytest.approx((-0.04 - 0.01 + 0.005) / 3)
    assert found["max_abs_error"] == pytest.approx(0.04)
    assert found["n_inside"] == 2, "0.04 is outside of the root of 0.01² + 0.02²"
    # Cut at k = 4 it is exactly 2 points below; measured, only r = 16 is that near to r = 16.
    assert (found["predicted_r"], found["measured_r"], found["agree"]) == (4, 16, False)
    other = prediction_summary(table, whole=0.78, reference=0.77, margin_points=2)
    assert (other["predicted_r"], other["measured_r"], other["agree"]) == (4, 2, False)
    never = prediction_summary(table, whole=0.9, reference=0.9)
    assert never["predicted_r"] is None and never["measured_r"] is None


def test_runs_meet_the_sweep_on_their_own_targets():
    smaller = truncation("b", r=8, ks=KS[:5], scores=CUT[:5])
    cuts = pd.concat([truncation("a"), smaller, truncation("c", "full", np.nan)])
    real = pd.concat([sweep({1: 0.7, 8: 0.8}), sweep({2: 0.7, 4: 0.8}, "q"), sweep({8: 0.7}, "k")])
    curves, summary = predicted_curves(cuts, real, {"a": "q,v", "b": "q", "c": None})
    found = list(zip(summary["source"], summary["targets"], strict=True))
    assert found == [("a", "q,v"), ("b", "q"), ("c", "q,v"), ("c", "q")] and len(curves) == 8
    assert summary["source_r"].isna().tolist() == [False, False, True, True]


def test_without_a_sweep_or_on_another_scale_there_is_none():
    for cuts, real in ((pd.DataFrame(), sweep({1: 0.7, 2: 0.8})), (truncation(), sweep({1: 0.7})),
                       (truncation(), sweep({1: 3.1, 2: 2.9}, metric="perplexity"))):  # fmt: skip
        curves, summary = predicted_curves(cuts, real, {"lora-r16": "q,v"})
        assert curves.empty and summary.empty and not len(curves.columns)


def test_two_runs_or_two_rates_in_one_curve_are_refused():
    with pytest.raises(UsageError, match="the truncation curve must be of one run. Got 2 runs"):
        predicted_curve(pd.concat([truncation("a"), truncation("b")]), sweep({1: 0.7}))
    with pytest.raises(UsageError, match="the sweep must have one row for each r. Got r = 1 twice"):
        predicted_curve(truncation(), pd.concat([sweep({1: 0.7})] * 2))


def test_the_picture_draws_what_the_table_has():
    real = sweep({1: 0.72, 4: 0.75, 16: 0.78})
    cuts = (truncation(), truncation("f", "full", np.nan))
    table = pd.concat([predicted_curve(cut, real) for cut in cuts])
    with style():
        axes = draw_predicted(table, "accuracy").axes[0]
    drawn = {c.get_label(): c.lines[0].get_ydata().tolist() for c in axes.containers}
    assert drawn == {"trained at each r": [0.72, 0.75, 0.78], "foreseen from LoRA r = 16": [0.70, 0.76, 0.78],
                     "foreseen from full fine-tuning": [0.70, 0.76, 0.78]}  # fmt: skip
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "4", "16"]


def test_the_report_has_the_table_with_its_error_and_says_which_r(findings):
    summary = findings.tables["predicted_summary"]
    assert set(summary["source_method"]) == {"full", "lora"}
    assert set(findings.tables["predicted_curve"]["r"]) == {1, 2, 4, 8, 64}
    cells = predicted_cells(findings)
    assert len(cells.rows) == 10 and any(row[-1].text == "its own" for row in cells.rows)
    assert cells.caption.count("Smallest r within 2 points") == 2 and "Cutting is not training" in cells.caption
    page = make_page(findings, [], title="t", settings={})
    assert "What one run foresees of every r" in [section.title for section in page.sections]
