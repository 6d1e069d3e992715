"""Table 1's claims: verdicts follow from intervals, on tables whose ratios are known."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from rankprobe.paper.published import published
from rankprobe.report.claims_latency import latency
from rankprobe.report.verdicts import CLAIM_COLUMNS, VERDICTS, Evidence
from tests.report.synthetic import make_latency
from tests.report.synthetic_table1 import make_table1

WORDS = ("merged", "unmerged", "adapter-l", "adapter-h")
SHAPES = ("b1-l128", "b16-l256", "b32-l512")


def claims_of(table1=None, of_model=None, papers=None) -> pd.DataFrame:
    found = published() if papers is None else papers
    evidence = Evidence([], pd.DataFrame(), pd.DataFrame(), of_model, found,
                        table1=pd.DataFrame() if table1 is None else table1)  # fmt: skip
    return pd.DataFrame(latency(evidence), columns=CLAIM_COLUMNS).set_index("claim_id")


def test_before_anything_is_measured_each_claim_is_there_and_not_run():
    claims = claims_of()
    assert list(claims.index) == ["merged-latency", "unmerged-latency", *(f"table1-{word}" for word in WORDS)]
    assert set(claims["verdict"]) == {"not_run"} and claims["measured"].isna().all()


def test_a_claim_for_every_variant_and_shape_with_the_papers_figure_beside_it():
    claims = claims_of(make_table1())
    table1 = claims[claims.index.str.startswith("table1")]
    assert list(table1.index) == [f"table1-{word}-{shape}" for word in WORDS for shape in SHAPES]
    assert table1["published"].tolist() == pytest.approx(
        [1.0] * 3 + [math.nan] * 3 + [1.207, 1.05, 1.022] + [1.303, 1.084, 1.03], nan_ok=True
    )
    assert set(table1["verdict"]) == {"supported"} and set(table1["n"]) == {60} and set(table1["unit"]) == {"ratio"}
    row = table1.loc["table1-adapter-h-b1-l128"]
    assert row["statement"] == "Adapter-H adds latency to a GPT-2 (batch 1, length 128)"
    assert (row["measured"], row["ci_low"], row["ci_high"]) == pytest.approx((1.33, 1.324, 1.336))
    assert "gpt2-medium with random weights, float32 on NVIDIA H200" in row["note"] and "A/A 0.994" in row["note"]
    assert row["source"].endswith("Table 1")


@pytest.mark.parametrize(
    ("settings", "merged", "adapter"),
    [
        ({}, "supported", "supported"),
        ({"lora_merged": 1.06, "adapter_h": 1.01}, "contradicted", "supported"),
        ({"lora_merged": 0.94, "adapter_h": 0.97}, "contradicted", "contradicted"),
        ({"lora_merged": 1.027, "adapter_h": 1.004}, "inconclusive", "inconclusive"),
        # an interval above 1 that two copies of the base reach too is no finding
        ({"adapter_h": 1.007, "base_copy": 1.0}, "supported", "inconclusive"),
        # a machine that sees 3 % between two copies cannot say that merged LoRA adds none, but 33 % it can see
        ({"aa_half": 0.03}, "inconclusive", "supported"),
        ({"half": 0.4}, "inconclusive", "inconclusive"),
    ],
)
def test_verdicts_follow_from_the_intervals(settings, merged, adapter):
    claims = claims_of(make_table1(**settings))
    assert claims.loc["table1-merged-b1-l128", "verdict"] == merged
    assert claims.loc["table1-adapter-h-b1-l128", "verdict"] == adapter
    assert set(claims["verdict"]) <= set(VERDICTS)


def test_without_a_second_copy_of_the_base_nothing_is_judged():
    table = make_table1()
    claims = claims_of(table[table["variant"] != "base_copy"])
    measured = claims[claims["n"] > 0]
    assert len(measured) == 12 and set(measured["verdict"]) == {"inconclusive"}
    assert measured["note"].str.contains("no second copy of the base was timed").all()


def test_a_variant_that_was_not_timed_is_not_run():
    table = make_table1()
    claims = claims_of(table[table["variant"] != "adapter_l"])
    assert set(claims.loc[[f"table1-adapter-l-{shape}" for shape in SHAPES], "verdict"]) == {"not_run"}


def test_table_1_and_the_models_own_latency_are_claims_apart():
    both, alone = claims_of(make_table1(), make_latency()), claims_of(None, make_latency())
    own = both[~both.index.str.startswith("table1")]
    pd.testing.assert_frame_equal(own, alone[~alone.index.str.startswith("table1")])
    assert both.index.is_unique and not own["note"].str.contains("random weights").any()


def test_a_pretrained_model_that_was_timed_beside_adapters_is_not_said_to_be_random():
    timed = make_latency().assign(model="all-MiniLM-L6-v2", device_name="AMD EPYC", dtype="bfloat16")
    own = claims_of(make_table1(), timed)
    own = own[~own.index.str.startswith("table1") & (own["n"] > 0)]
    assert len(own) and own["note"].str.startswith("all-MiniLM-L6-v2, bfloat16 on AMD EPYC; ").all()


def test_without_published_numbers_only_those_are_missing():
    claims = claims_of(make_table1(), papers=pd.DataFrame())
    table1 = claims[claims.index.str.startswith("table1")]
    assert table1["published"].isna().all() and set(table1["verdict"]) == {"supported"}
