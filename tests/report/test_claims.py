"""Verdicts from intervals, on runs whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from rankprobe.methods.lora_layer import LoRALayer
from rankprobe.paper.published import published
from rankprobe.report.claims import claims_table
from rankprobe.report.claims_rank import full_energy_shares
from rankprobe.report.findings import find
from rankprobe.report.page_tables import claims_cells
from rankprobe.report.verdicts import CLAIM_COLUMNS, VERDICTS, Evidence, verdict
from rankprobe.weights.architecture import WeightSite
from tests.report.synthetic import make_latency, make_run


def claims_of(runs, latency=None, papers=None) -> pd.DataFrame:
    found = find(runs, latency, published() if papers is None else papers)
    return found.tables["claims"].set_index("claim_id")


def three(store, **settings) -> list[dict]:
    """Three seeds of one configuration, alike in every row: fewer carry no verdict."""
    return [make_run(store, seed=seed, **settings) for seed in range(3)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-1.9, 1.9, "supported"),
        (-2.0, 2.0, "supported"),  # the bound belongs to the region
        (-2.0000000000000018, 1.0, "supported"),  # and a last bit does not decide
        (-2.001, 1.0, "inconclusive"),
        (-3.0, 3.0, "inconclusive"),
        (1.0, 2.5, "inconclusive"),
        (2.0, 3.0, "inconclusive"),  # touches it
        (2.001, 3.0, "contradicted"),
        (-9.0, -2.001, "contradicted"),
        (math.nan, math.nan, "not_run"),
        (-math.inf, math.inf, "inconclusive"),
    ],
)
def test_verdict_at_its_bounds(low, high, expected):
    assert verdict(low, high, (-2.0, 2.0)) == expected


def test_equal_predictions_support_equality(tmp_path):
    wrong = np.arange(200)
    runs = [
        *three(tmp_path, method="full", wrong=wrong),
        *three(tmp_path, r=8, wrong=wrong),
        make_run(tmp_path, method="head", accuracy=0.55),
    ]
    row = claims_of(runs).loc["lora-equals-full"]
    one_seed = claims_of([run for run in runs if run["spec"]["seed"] == 0]).loc["lora-equals-full"]
    assert one_seed["verdict"] == "inconclusive" and one_seed["note"].endswith("fewer than 3 seeds: no verdict")
    assert (row["verdict"], row["measured"], row["n"]) == ("supported", 0.0, 1500)
    assert -0.3 < row["ci_low"] < 0 < row["ci_high"] < 0.3  # no difference seen in 1,500 rows, not: none exists
    assert row["published"] == pytest.approx(0.8)


def test_five_points_below_contradict_equality_and_a_small_r(tmp_path):
    runs = []
    for seed in range(3):
        base = np.arange(300 + seed)
        runs.append(make_run(tmp_path, method="full", seed=seed, wrong=base))
        runs.append(make_run(tmp_path, r=8, seed=seed, wrong=np.arange(375 + 2 * seed)))
        runs.append(make_run(tmp_path, r=1, seed=seed, wrong=np.arange(375 + 2 * seed)))
    claims = claims_of(runs)
    row = claims.loc["lora-equals-full"]
    # 75, 76 and 77 rows of 1,500
    assert row["measured"] == pytest.approx(-100 * 76 / 1500, abs=1e-6)
    # t over seeds alone would be 0.17 points wide on either side; 5 % of 1,500 rows differ, whose own chance is more.
    of_rows = 1.96 * 100 * math.sqrt(0.05 * 0.95 / 1500)
    assert of_rows < row["ci_high"] - row["measured"] < 1.3 * of_rows
    assert row["verdict"] == "contradicted" and row["n"] == 3
    assert claims.loc["small-r1-vs-full", "verdict"] == "contradicted"
    assert claims.loc["small-r1-vs-r8", "verdict"] == "supported"
    assert claims.loc["small-r2-vs-r8", "verdict"] == "not_run"


def test_a_small_r_that_is_better_suffices_though_it_is_not_equal(tmp_path):
    runs = [*three(tmp_path, r=1, wrong=np.arange(200)), *three(tmp_path, r=64, wrong=np.arange(400))]
    row = claims_of(runs).loc["small-r1-vs-r64"]
    assert row["verdict"] == "supported" and row["ci_low"] > 10
    assert row["published"] == pytest.approx((73.4 + 91.3 - 73.5 - 91.4) / 2)


def test_constant_predictions_leave_equality_open_and_are_not_exact(tmp_path):
    settings = {"n": 60, "metrics": ("matthews",)}
    runs = [*three(tmp_path, method="full", **settings), *three(tmp_path, r=8, **settings)]
    for run in runs:
        path = f"{run['path']}/predictions.csv"
        pd.read_csv(path).assign(prediction=0).to_csv(path, index=False)
        run["metrics"]["matthews"] = 0.0
    found = find(runs, None, published())
    row = found.tables["claims"].set_index("claim_id").loc["lora-equals-full"]
    assert (row["verdict"], row["ci_low"], row["ci_high"]) == ("inconclusive", -200, 200)
    ends = {line[0].text: line[2].small for line in claims_cells(found).rows}
    assert ends[row["statement"]] == "[−200.0, +200.0]"
    assert sorted(ends.values()).count("exact") == 2  # the vignette's and the trainable parameters


def test_few_rows_leave_it_open(tmp_path):
    runs = [
        make_run(tmp_path, method="full", wrong=np.arange(12), n=60),
        make_run(tmp_path, r=8, wrong=np.arange(3, 15), n=60),
    ]
    row = claims_of(runs).loc["lora-equals-full"]
    assert row["measured"] == 0 and row["verdict"] == "inconclusive"


def test_equality_means_nothing_where_full_gains_nothing(tmp_path):
    wrong = np.arange(600)
    runs = [
        *three(tmp_path, method="full", wrong=wrong),
        *three(tmp_path, r=8, wrong=wrong),
        *three(tmp_path, r=1, wrong=np.arange(900)),
    ]
    assert claims_of(runs).loc["lora-equals-full", "verdict"] == "supported"
    claims = claims_of([*runs, make_run(tmp_path, method="head", wrong=np.arange(10, 615))])
    row = claims.loc["lora-equals-full"]
    assert row["verdict"] == "inconclusive" and "too little or too uncertain" in row["note"]
    # What is worse than a margin stays worse, whatever the head does.
    assert claims.loc["small-r1-vs-full", "verdict"] == "contradicted"


@pytest.mark.parametrize(
    ("settings", "merged", "unmerged"),
    [
        ({}, "supported", "supported"),
        ({"merged": 1.06}, "contradicted", "supported"),
        ({"merged": 0.93}, "contradicted", "supported"),  # faster than the base is not the base's latency either
        ({"merged": 1.027}, "inconclusive", "supported"),
        ({"unmerged": 1.03}, "supported", "supported"),
        ({"unmerged": 1.01}, "supported", "inconclusive"),  # no more than two copies of the base differ
        ({"unmerged": 0.97}, "supported", "contradicted"),
        ({"aa_half": 0.03}, "inconclusive", "supported"),  # this machine cannot see 3 %, but it does see 16 %
        ({"aa": 1.019}, "inconclusive", "supported"),
        ({"aa_half": 0.2}, "inconclusive", "inconclusive"),
    ],
)
def test_latency_verdicts(tmp_path, settings, merged, unmerged):
    claims = claims_of([make_run(tmp_path, n=50)], make_latency(**settings))
    for shape in ("b1-l32", "b8-l64", "b32-l64"):
        assert claims.loc[f"merged-latency-{shape}", "verdict"] == merged
        assert claims.loc[f"unmerged-latency-{shape}", "verdict"] == unmerged


def test_latency_without_a_second_copy_of_the_base_is_not_judged(tmp_path):
    latency = make_latency()
    claims = claims_of([make_run(tmp_path, n=50)], latency[latency["variant"] != "base_copy"])
    row = claims.loc["merged-latency-b1-l32"]
    assert row["verdict"] == "inconclusive" and "no second copy" in row["note"]


def test_the_vignette_is_counted_in_a_layer():
    row = claims_of([]).loc["vignette-parameters"]
    assert row["measured"] == row["published"] == row["ci_low"] == 6.25
    assert "16,384 of 262,144" in row["note"] and row["verdict"] == "supported"
    site = WeightSite("weight", None, "other", (512, 512))
    layer = LoRALayer(torch.nn.Linear(512, 512, bias=False), [site], 16, 32.0, False, 0.0, torch.Generator())
    assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == 16_384


def test_trainable_parameters_include_the_head(tmp_path):
    row = claims_of([make_run(tmp_path, r=8, n=50)]).loc["trainable-parameters"]
    assert row["measured"] == pytest.approx(100 * (73_728 + 770) / 22_713_986, abs=1e-6)
    assert row["published"] == pytest.approx(0.24) and row["verdict"] == "supported"
    assert claims_of([make_run(tmp_path, r=64, n=50)]).loc["trainable-parameters", "verdict"] == "contradicted"


def full_run_with_energy_ranks(tmp_path, values, p=384):
    run = make_run(tmp_path, method="full", n=50)
    rows = [
        {"name": f"layer.{i}.q.weight", "layer": i, "kind": "q", "m": p, "n": p, "energy_rank_90": v}
        for i, v in enumerate(values)
    ]
    rows.append({"name": "embeddings.weight", "layer": None, "kind": "embed", "m": 30000, "n": p, "energy_rank_90": p})
    pd.DataFrame(rows).to_csv(f"{run['path']}/ranks.csv", index=False)
    return run


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([20] * 12, "supported"),
        ([100] * 12, "contradicted"),
        ([10, 70] * 6, "inconclusive"),
        ([38.4] * 12, "supported"),
    ],
)
def test_low_rank_by_energy(tmp_path, values, expected):
    row = claims_of([full_run_with_energy_ranks(tmp_path, values)]).loc["dw-low-rank-by-energy"]
    assert row["verdict"] == expected and row["n"] == 12  # the embeddings are no block matrix
    assert row["measured"] == pytest.approx(100 * np.median(values) / 384, abs=1e-5)


def test_energy_shares_are_means_over_seeds(findings, study):
    shares = full_energy_shares(findings.tables["ranks"], study)
    ranks = findings.tables["ranks"]
    one = ranks[(ranks["method"] == "full") & (ranks["layer"] == 2) & (ranks["kind"] == "up")]
    row = shares[(shares["layer"] == 2) & (shares["kind"] == "up")].iloc[0]
    assert len(shares) == 36 and row["energy_rank_90"] == pytest.approx(one["energy_rank_90"].mean())
    assert row["pct"] == pytest.approx(100 * row["energy_rank_90"] / 384)


def functional(k, low, high, reason=""):
    return {
        "rule": "rest_tuned",
        "q": 0.9,
        "k": k,
        "ci_low": low,
        "ci_high": high,
        "n": 600,
        "method": "paired bootstrap",
        "reason": reason,
    }


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([functional(2, 1, 4)], "supported"),
        ([functional(8, 4, 8)], "supported"),
        ([functional(8, 4, 16)], "inconclusive"),
        ([functional(64, 16, 128)], "contradicted"),
        ([functional(2, 1, 4), functional(16, 16, 32)], "inconclusive"),  # the widest of the seeds
        ([functional(math.nan, math.nan, math.nan, "the update brings no gain")], "inconclusive"),
        ([functional(2, 1, 4), functional(None, None, None, "no gain")], "inconclusive"),
        ([], "not_run"),
    ],
)
def test_low_rank_by_function(tmp_path, rows, expected):
    runs = []
    for seed, row in enumerate(rows or [None]):
        run = make_run(tmp_path, method="full", seed=seed, n=50)
        run["analysis"] = {"functional_rank": [row]} if row else {}
        runs.append(run)
    assert claims_of(runs).loc["dw-low-rank-by-function", "verdict"] == expected


def test_seeds_without_a_functional_rank_could_have_any(tmp_path):
    """One of three seeds has k = 2, of the others the gain is not told from 0: the ratio may be anything above 0."""
    runs = [make_run(tmp_path, method="full", seed=seed, n=600, spectra=True) for seed in range(3)]
    rows = [functional(2, 1, 4), *2 * [functional(math.nan, math.nan, math.nan, "cannot be told from 0")]]
    for known, expected in ((rows, "inconclusive"), ([rows[0]] * 3, "supported")):
        for run, row in zip(runs, known, strict=True):
            run["analysis"] = {"functional_rank": [row]}
        row = claims_of(runs).loc["energy-rank-over-functional-rank"]
        assert row["verdict"] == expected and (row["ci_low"] == 0) == (expected == "inconclusive")


def test_a_ratio_whose_both_ends_are_open_is_inconclusive(tmp_path):
    """Too few matrices for an interval of the energy rank, and a seed without a functional rank."""
    runs = [full_run_with_energy_ranks(tmp_path, [20] * 3), make_run(tmp_path, method="full", seed=1, n=50)]
    runs[0]["analysis"] = {"functional_rank": [functional(2, 1, 4)]}
    runs[1]["analysis"] = {"functional_rank": [functional(None, None, None, "no gain")]}
    row = claims_of(runs).loc["energy-rank-over-functional-rank"]
    assert (row["verdict"], row["ci_low"], row["ci_high"]) == ("inconclusive", 0, math.inf)


def test_nothing_run_yet_says_so_in_every_row_but_the_arithmetic():
    claims = claims_of([]).reset_index()
    assert list(claims.columns) == CLAIM_COLUMNS
    measured = claims[claims["claim_id"] != "vignette-parameters"]
    assert set(measured["verdict"]) == {"not_run"} and measured["measured"].isna().all()
    assert (measured["note"] == "not run yet").all() and claims["claim_id"].is_unique


def test_no_published_numbers_leave_that_column_empty(study):
    evidence = Evidence(study, pd.DataFrame(), pd.DataFrame(), None, pd.DataFrame())
    claims = claims_table(evidence).set_index("claim_id")
    assert math.isnan(claims.loc["lora-equals-full", "published"])
    assert claims.loc["lora-equals-full", "verdict"] in VERDICTS


def test_tuning_rows_carry_no_verdict(tmp_path):
    runs = [make_run(tmp_path, method="full", split="tuning"), make_run(tmp_path, r=8, split="tuning")]
    claims = claims_of(runs)
    assert claims.loc["lora-equals-full", "verdict"] == "not_run"
    assert "no verdict" in claims.loc["lora-equals-full", "note"]
    assert claims.loc["vignette-parameters", "verdict"] == "supported"
