"""Runs with a known truth → tables that say it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rankprobe.errors import UsageError
from rankprobe.report.comparison import comparisons, configurations, difference, full_reference, lora_groups, main_lora
from rankprobe.report.merged import merged_ranks, merged_spectra, merged_truncation
from rankprobe.report.tables import (
    METHOD_COLUMNS,
    best_settings,
    chosen_among,
    methods_table,
    rank_sweep_table,
    runs_table,
)
from tests.report.synthetic import make_latency, make_run


def test_a_row_a_configuration_in_reading_order(findings):
    methods = findings.tables["methods"]
    assert list(methods.columns) == METHOD_COLUMNS
    assert methods["method"].tolist() == ["full", "lora", "lora", "lora", "lora", "lora", "head"]
    assert methods["r"].tolist()[1:6] == [1, 2, 4, 8, 64]
    assert methods["n_seeds"].tolist() == [3, 3, 1, 1, 3, 1, 1]
    assert rank_sweep_table(methods)["r"].tolist() == [1, 2, 4, 8, 64]


def test_means_differences_and_shares_are_those_of_the_runs(study, findings):
    methods = findings.tables["methods"].set_index(["method", "r"])
    accuracy = {}
    for run in study:
        accuracy.setdefault((run["spec"]["method"], run["spec"]["r"]), []).append(run["metrics"]["accuracy"])
    r8 = methods.loc[("lora", 8)]
    assert r8["accuracy_mean"] == pytest.approx(np.mean(accuracy["lora", 8]))
    assert r8["diff_vs_full"] == pytest.approx(np.mean(accuracy["lora", 8]) - np.mean(accuracy["full", None]))
    assert r8["ci_method"] == "t over 3 seeds"
    assert r8["diff_ci_method"] == "t over 3 paired seeds, normal over 600 eval rows"
    r4 = methods.loc[("lora", 4)]
    # One seed: compared with full's same seed, not with the mean of its three.
    assert r4["diff_vs_full"] == pytest.approx(accuracy["lora", 4][0] - accuracy["full", None][0])
    assert "bootstrap over 600" in r4["diff_ci_method"]
    assert r8["trainable_pct"] == pytest.approx(100 * (770 + 6 * 2 * 8 * 768) / 22_713_986)
    full = findings.tables["methods"].iloc[0]
    assert full["trainable_pct"] == 100 and pd.isna(full["diff_vs_full"])


def test_latency_of_the_smallest_batch_goes_to_what_was_timed(findings):
    methods = findings.tables["methods"].set_index(["method", "r"])
    assert methods.loc[("lora", 8), "latency_ratio"] == pytest.approx(1.003)
    assert methods.loc[("lora", 8), "latency_ms"] == pytest.approx(3.1 * 1.003)
    assert pd.isna(methods.loc[("lora", 4), "latency_ratio"])  # r = 4 was not timed


def test_a_prefix_has_the_latency_of_its_own_length(tmp_path):
    runs = [make_run(tmp_path, method="full"), make_run(tmp_path, method="prompt", prefix_length=32, note="32"),
            make_run(tmp_path, method="prompt", prefix_length=8, note="8")]  # fmt: skip
    timed = make_latency().assign(prefix_length=pd.NA, bottleneck=pd.NA)
    own = timed[timed["variant"] == "full"].assign(variant="prompt", prefix_length=32, ratio=1.4)
    methods = methods_table(runs, pd.concat([timed, own])).set_index("size")
    assert methods.loc[32, "latency_ratio"] == 1.4 and pd.isna(methods.loc[8, "latency_ratio"])


def test_two_evaluation_sets_never_share_a_table(tmp_path):
    runs = [make_run(tmp_path, method="full"), make_run(tmp_path, method="full", eval_sha256="f" * 64)]
    assert len(comparisons(runs)) == 2
    for make in (methods_table, runs_table, merged_ranks, merged_spectra, merged_truncation):
        with pytest.raises(UsageError, match=r"docmatch \(eeeeeeee, eval\), docmatch \(ffffffff, eval\)"):
            make(runs)


def test_another_dtype_is_another_comparison_other_epochs_another_configuration(tmp_path):
    runs = [make_run(tmp_path, r=8), make_run(tmp_path, r=8, dtype="float16"), make_run(tmp_path, r=8, epochs=3)]
    assert [len(part) for part in comparisons(runs)] == [2, 1]
    assert methods_table([runs[0], runs[2]])["epochs"].nunique() == 2


def test_the_same_run_twice_counts_once_and_latency_records_are_no_runs(tmp_path):
    run = make_run(tmp_path)
    assert [len(p) for p in comparisons([run, run, {"kind": "latency", "run_id": "latency-1"}])] == [1]


def test_without_full_the_difference_is_empty(tmp_path):
    methods = methods_table([make_run(tmp_path, r=1)])
    assert pd.isna(methods["diff_vs_full"]).all() and methods["accuracy_mean"].notna().all()


def test_diverged_and_failed_runs_are_counted(tmp_path):
    runs = [
        make_run(tmp_path, method="full", accuracy=0.8),
        make_run(tmp_path, r=8, accuracy=0.7),
        make_run(tmp_path, r=8, seed=1, status="diverged"),
        make_run(tmp_path, r=64, status="diverged"),
        make_run(tmp_path, r=64, seed=1, status="failed"),
    ]
    methods = methods_table(runs).set_index("r")
    assert methods.loc[8, ["n_seeds", "n_diverged", "n_failed"]].tolist() == [1, 1, 0]
    assert methods.loc[64, ["n_seeds", "n_diverged", "n_failed"]].tolist() == [0, 1, 1]
    assert pd.isna(methods.loc[64, "accuracy_mean"]) and methods.loc[64, "trainable_params"] > 0
    assert runs_table(runs)["status"].value_counts().to_dict() == {"ok": 2, "diverged": 2, "failed": 1}


def test_full_reference_is_the_best_learning_rate_among_those_with_most_seeds(tmp_path):
    runs = [
        make_run(tmp_path, method="full", accuracy=0.75, lr=1e-4, dropout=0.0),
        make_run(tmp_path, method="full", accuracy=0.79, lr=3e-4, dropout=0.0),
    ]
    assert full_reference(configurations(runs))[0]["spec"]["lr"] == 3e-4


def test_main_lora_has_the_most_seeds_then_r_nearest_8(tmp_path):
    runs = [make_run(tmp_path, r=r) for r in (1, 4, 64)]
    assert main_lora(runs)[0]["spec"]["r"] == 4
    runs.append(make_run(tmp_path, r=64, seed=1))
    assert main_lora(runs)[0]["spec"]["r"] == 64


def test_a_clone_without_predictions_still_gives_what_it_can(tmp_path):
    full = [make_run(tmp_path, method="full", seed=s, accuracy=a) for s, a in enumerate((0.80, 0.79, 0.81))]
    lora = [make_run(tmp_path, r=8, seed=s, accuracy=a) for s, a in enumerate((0.78, 0.785, 0.79))]
    one = make_run(tmp_path, r=2, accuracy=0.77)
    with_files = methods_table([*full, *lora, one])
    for run in (*full, *lora, one):
        (Path(run["path"]) / "predictions.csv").unlink()
    without = methods_table([*full, *lora, one])
    for column in ("accuracy_mean", "accuracy_ci_low", "accuracy_ci_high"):
        assert without[column].tolist() == pytest.approx(with_files[column].tolist())
    without = without.set_index("r")
    assert without.loc[8, "diff_ci_method"] == "t over 3 paired seeds"
    assert pd.isna(without.loc[2, "diff_ci_low"]) and "predictions.csv is not here" in without.loc[2, "diff_ci_method"]


def test_rows_that_do_not_match_are_refused(tmp_path):
    a, b = make_run(tmp_path, method="full", n=50), make_run(tmp_path, r=8, n=50)
    path = Path(b["path"]) / "predictions.csv"
    table = pd.read_csv(path)
    table["row"] = table["row"].iloc[::-1].tolist()
    table.to_csv(path, index=False)
    with pytest.raises(UsageError, match="same rows in the same order"):
        difference([b], [a])


def test_merged_tables_name_their_run(study, findings):
    ranks, spectra, truncation = (findings.tables[n] for n in ("ranks", "spectra", "truncation"))
    assert ranks["run_id"].nunique() == 12  # the head has none
    assert set(ranks.columns[:4]) == {"run_id", "method", "r", "seed"}
    assert spectra["run_id"].nunique() == 6  # the first seed of each configuration
    r8 = spectra[spectra["run_id"] == "lora-r8-qv-docmatch-s0"]
    assert r8.groupby("name").size().tolist() == [8] * 12
    assert truncation["run_id"].nunique() == 2 and len(truncation) == 2 * 2 * 11


def test_whole_numbers_stay_whole_in_csv(findings):
    text = findings.tables["methods"].to_csv(index=False)
    assert ",lora,8," in text and "8.0,16" not in text


def test_no_runs_give_empty_tables():
    assert methods_table([]).empty and runs_table([]).empty and merged_ranks([]).empty


def test_tables_do_not_name_this_machine(findings, study):
    root = str(Path(study[0]["path"]).parent)
    for name, table in findings.tables.items():
        assert root not in table.to_csv(), name


def test_a_run_without_ranks_is_left_out_of_the_merge(tmp_path):
    run = make_run(tmp_path, method="full", spectra=True, n=50)
    (Path(run["path"]) / "ranks.csv").unlink()
    assert merged_ranks([run]).empty and not merged_spectra([run]).empty


def test_a_truncation_curve_that_is_still_growing_is_left_out(tmp_path):
    runs = [make_run(tmp_path, method="full", seed=seed, truncation=True, n=50) for seed in range(2)]
    (Path(runs[0]["path"]) / "functional_rank.csv").unlink()
    assert set(merged_truncation(runs)["run_id"]) == {runs[1]["run_id"]}


def test_of_several_learning_rates_the_best_stands_for_its_method(tmp_path):
    runs = [
        make_run(tmp_path, r=8, lr=1e-3, accuracy=0.74, dropout=0.0),
        make_run(tmp_path, r=8, lr=2e-3, accuracy=0.77, dropout=0.0),
        make_run(tmp_path, r=8, lr=4e-3, accuracy=0.75, dropout=0.0),
        make_run(tmp_path, r=4, accuracy=0.79),
    ]
    assert best_settings(methods_table(runs))["lr"].tolist() == [1e-3, 2e-3]
    assert main_lora(runs)[0]["spec"]["lr"] == 2e-3
    assert lora_groups(runs, "q,v")[8][0]["spec"]["lr"] == 2e-3
    # More seeds weigh more than a better score of one.
    runs.append(make_run(tmp_path, r=8, lr=4e-3, accuracy=0.75, seed=1, dropout=0.0))
    assert best_settings(methods_table(runs))["lr"].tolist() == [1e-3, 4e-3]


@pytest.mark.parametrize(("settings", "words"), [
    ([{"lr": 1e-3}, {"lr": 2e-3}], "learning rates"),
    ([{"alpha": 8.0}, {"alpha": 16.0}], "alphas"),
    ([{"lr": 1e-3, "alpha": 8.0}, {"lr": 2e-3, "alpha": 16.0}], "learning rates and alphas"),
    ([{"r": 4}, {"r": 8}], ""),
])  # fmt: skip
def test_what_was_chosen_among_is_named(tmp_path, settings, words):
    runs = [make_run(tmp_path, **{"r": 8, **of}) for of in settings]
    for i, run in enumerate(runs):
        run["run_id"] = f"lora-{i}"
    assert chosen_among(methods_table(runs, None)) == words
