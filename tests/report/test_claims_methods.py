"""LoRA beside other methods, one budget on different matrices, r on other targets: verdicts and the paper's tables."""

import numpy as np
import pytest

from rankprobe.paper.published import published
from rankprobe.report.claims import claims_table
from rankprobe.report.claims_methods import OTHERS, budget_groups
from rankprobe.report.findings import Measured, find
from rankprobe.report.paper_tables import TABLE_2, table_2, table_5, table_6
from rankprobe.report.tables import methods_table
from rankprobe.report.verdicts import Evidence
from tests.report.synthetic import make_run

SEEDS = (0, 1, 2)


def claims_of(runs):
    methods = methods_table(runs, None)
    return claims_table(Evidence(runs, methods, methods.iloc[:0], None, published())).set_index("claim_id")


def with_seeds(store, wrong, seeds=SEEDS, **settings):
    """Runs of some seeds, of which each has a few more rows wrong than the one before."""
    return [make_run(store, seed=seed, wrong=np.arange(wrong + seed), **settings) for seed in seeds]


def budget(store, targets, wrong, r, method_params=73_728, seeds=SEEDS):
    runs = with_seeds(store, wrong, seeds, r=r, targets=targets)
    for run in runs:
        run["params"]["method"] = method_params
    return runs


def test_a_method_far_above_lora_contradicts_and_one_far_below_supports(tmp_path):
    runs = with_seeds(tmp_path, 375) + with_seeds(tmp_path, 300, method="bitfit")
    runs += with_seeds(tmp_path, 450, method="adapter_h", bottleneck=6)
    claims = claims_of(runs)
    row = claims.loc["lora-vs-bitfit"]
    assert row["verdict"] == "contradicted" and row["measured"] == pytest.approx(-5.0)
    assert claims.loc["lora-vs-adapter-h", "verdict"] == "supported"
    assert "Adapter-H, bottleneck 6" in claims.loc["lora-vs-adapter-h", "statement"]
    assert claims.loc["lora-vs-prefix", "verdict"] == "not_run"


def test_what_the_paper_prints_of_every_other_method(tmp_path):
    claims = claims_of([])
    # GPT-3's mean of WikiSQL and MNLI of the smallest row, and GPT-2 M's BLEU.
    printed = {
        "bitfit": (73.4 + 91.7 - 71.3 - 91.0) / 2,
        "prompt": (73.4 + 91.7 - 63.1 - 88.6) / 2,
        "prefix": (73.4 + 91.7 - 70.1 - 89.5) / 2,
        "adapter_h": (73.4 + 91.7 - 71.9 - 89.8) / 2,
        "adapter_l": 70.4 - 66.3,
        "top_layers": 70.4 - 68.1,
    }
    assert set(printed) == set(OTHERS)
    for method, value in printed.items():
        row = claims.loc[f"lora-vs-{method.replace('_', '-')}"]
        assert row["published"] == pytest.approx(value) and row["verdict"] == "not_run"
    assert claims.loc["table5-qv-vs-q", "published"] == pytest.approx((73.7 + 91.3 - 70.4 - 91.0) / 2)
    assert claims.loc["table6-r1-qkvo", "published"] == pytest.approx((74.1 + 91.2 - 73.9 - 91.4) / 2)


def test_two_seeds_carry_no_verdict(tmp_path):
    runs = with_seeds(tmp_path, 375) + with_seeds(tmp_path, 450, seeds=(0, 1), method="bitfit")
    row = claims_of(runs).loc["lora-vs-bitfit"]
    assert row["verdict"] == "inconclusive" and "fewer than 3 seeds" in row["note"] and row["measured"] > 4


def test_one_budget_compares_runs_of_as_many_parameters_only(tmp_path):
    runs = budget(tmp_path, "q,v", 300, 8) + budget(tmp_path, "q", 400, 16) + budget(tmp_path, "v", 300, 16)
    runs += budget(tmp_path, "q", 100, 64, method_params=294_912)  # better, but with four times the parameters
    runs += budget(tmp_path, "q,k,v,o", 330, 4, seeds=(0,))
    groups = budget_groups(runs)
    assert {targets: group[0]["spec"]["r"] for targets, group in groups.items()} == {
        "q,v": 8, "q": 16, "v": 16, "q,k,v,o": 4,
    }  # fmt: skip
    claims = claims_of(runs)
    assert claims.loc["table5-qv-vs-q", "verdict"] == "supported"
    assert claims.loc["table5-qv-vs-q", "measured"] == pytest.approx(100 * 100 / 1500)
    assert claims.loc["table5-qv-vs-v", "verdict"] == "inconclusive"
    assert claims.loc["table5-qkvo-vs-q", "verdict"] == "inconclusive"  # one seed
    table = table_5(runs, published())
    assert table["targets"].tolist() == ["q", "v", "q,v", "q,k,v,o"]
    assert table["diff_vs_q"].isna().tolist() == [True, False, False, False]
    printed = table.set_index("targets").loc["q,v", ["paper_wikisql", "paper_mnli"]].tolist()
    assert printed == pytest.approx([0.737, 0.913])


def test_small_r_on_other_targets(tmp_path):
    runs = with_seeds(tmp_path, 375, r=1, targets="q") + with_seeds(tmp_path, 300, r=64, targets="q")
    runs += with_seeds(tmp_path, 300, r=1, targets="q,k,v,o") + with_seeds(tmp_path, 300, r=64, targets="q,k,v,o")
    claims = claims_of(runs)
    assert claims.loc["table6-r1-q", "verdict"] == "contradicted"
    assert claims.loc["table6-r1-qkvo", "verdict"] == "supported"
    table = table_6(runs, published())
    assert table[["targets", "r"]].values.tolist() == [["q", 1], ["q", 64], ["q,k,v,o", 1], ["q,k,v,o", 64]]
    assert table["paper_wikisql"].tolist() == pytest.approx([0.688, 0.700, 0.741, 0.739])


def test_table_2_has_a_row_for_each_configuration_and_task(tmp_path):
    docmatch = with_seeds(tmp_path, 375) + with_seeds(tmp_path, 300, method="bitfit")
    sst2 = [make_run(tmp_path, task="sst2", eval_sha256="s" * 64), make_run(tmp_path, task="sst2", eval_sha256="s" * 64,
                                                                          method="bitfit")]  # fmt: skip
    table = table_2([methods_table(runs, None) for runs in (docmatch, sst2)], published())
    assert list(table.columns) == TABLE_2 and len(table) == 4
    found = table.set_index(["task", "method"])
    assert found.loc[("sst2", "bitfit"), "paper_score"] == pytest.approx(0.937)
    assert found.loc[("sst2", "lora"), "paper_score"] == pytest.approx(0.951)
    assert found.loc["docmatch", "paper_score"].isna().all()
    assert found.loc[("docmatch", "bitfit"), "n_seeds"] == 3


def test_the_papers_tables_are_there_where_they_are_asked_for(tmp_path):
    runs = with_seeds(tmp_path, 375)
    assert "table5" not in find(runs, None, published()).tables
    assert {"table1", "table5", "table6"} <= set(find(runs, None, published(), Measured()).tables)


def test_of_several_rates_the_one_that_stands_for_its_targets_is_compared(tmp_path):
    """Not the lowest rate, which trained as many seeds: q would seem far worse than q,v."""
    runs = budget(tmp_path / "qv", "q,v", 120, 8)
    for lr, wrong in ((1e-5, 450), (1e-3, 100)):
        group = with_seeds(tmp_path / f"{lr}", wrong, r=16, targets="q", lr=lr)
        for run in group:
            run["params"]["method"] = 73_728
        runs += group
    assert budget_groups(runs)["q"][0]["spec"]["lr"] == 1e-3
    row = claims_of(runs).loc["table5-qv-vs-q"]
    assert row["measured"] == pytest.approx(-100 * 20 / 1500, abs=1e-4) and row["verdict"] == "contradicted"
