"""The published numbers: sourced, unique, and consistent with their own tables."""

from __future__ import annotations

import pytest

from rankprobe.paper.published import PUBLISHED_COLUMNS, published

GLUE = ["mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb"]


def test_every_row_has_a_source_and_a_value_or_says_why_not():
    table = published()
    assert list(table.columns) == PUBLISHED_COLUMNS
    assert (table["source"] != "").all() and (table["model"] != "").all()
    assert table.loc[table["value"].isna(), "note"].str.contains("no figure is printed").all()


def test_no_number_is_given_twice():
    table = published()
    keys = ["source", "model", "method", "r", "targets", "trainable_params", "task", "metric", "note"]
    assert not table.duplicated(keys).any()


def test_glue_averages_are_the_means_of_their_rows():
    table = published()
    glue = table[table["source"].str.endswith("Table 2")]
    rows = glue.pivot_table(index=["model", "method", "trainable_params"], columns="task", values="value")
    assert len(rows) == 14 and rows[GLUE].notna().all(axis=None)
    # Printed to one digit; the paper rounds its averages down or up, never by more than a tenth.
    assert (rows[GLUE].mean(axis=1) - rows["GLUE average"]).abs().max() < 0.11


def test_slowdowns_follow_from_the_latencies():
    table = published()
    one = table[table["source"].str.endswith("Table 1")]
    base = one[one["method"] == "full"].set_index("task")["value"]
    for method in ("adapter L", "adapter H"):
        mine = one[one["method"] == method].set_index(["metric", "task"])["value"]
        for task in base.index:
            assert 100 * (mine["latency", task] / base[task] - 1) == pytest.approx(mine["slowdown", task], abs=0.25)


def test_sweeps_are_complete():
    table = published()
    six = table[table["source"].str.endswith("Table 6")]
    assert len(six) == 30 and set(six["r"]) == {1, 2, 4, 8, 64}
    eighteen = table[table["source"].str.endswith("Table 18")]
    assert eighteen["r"].tolist() == [2**i for i in range(11)] and eighteen["value"].idxmax() == eighteen.index[2]


def test_computed_parameter_counts_are_arithmetic():
    table = published()
    computed = table[table["source"].str.startswith("computed: sum of r")].set_index(["model", "r", "targets"])["value"]
    shapes = {
        "RoBERTa base": (12, 768),
        "RoBERTa large": (24, 1024),
        "GPT-2 medium": (24, 1024),
        "GPT-2 large": (36, 1280),
        "DeBERTa XXL": (48, 1536),
        "GPT-3 175B": (96, 12288),
    }
    for (model, r, targets), value in computed.items():
        if model in shapes:
            layers, d = shapes[model]
            assert value == layers * len(targets.split(",")) * r * 2 * d, (model, r, targets)
        else:
            assert value == 16 * (512 + 512)


def test_callers_get_a_copy():
    mine = published()
    mine.loc[0, "value"] = -1.0
    assert published().loc[0, "value"] != -1.0
