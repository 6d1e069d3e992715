"""sweep where all goes well: the study it prints, rates that it chooses, the answer, what it says while it works."""

import json
from pathlib import Path

import pandas as pd
import pytest

from rankprobe.cli import progress, work
from rankprobe.experiment.latency import execute_latency, plan_latency
from rankprobe.experiment.live import LiveFile, read_live
from rankprobe.experiment.store import LockedError, lock
from rankprobe.experiment.study_file import load_study
from rankprobe.experiment.unmeasured import unless_given_up
from rankprobe.weights.source import find_model
from tests.cli.lab import COMPUTE, FILES, SMALL, SWEEP, csv, furnish, rankprobe, refused, texts

TUNED = ("sweep", "--model", "base", *FILES, *COMPUTE, *SMALL, "--lr", "full=1e-3", "--lr", "lora=4e-3", "--lr",
         "head=0.1", "--r", "1,4", "--seeds", "2", "--tune", "0.5,1,2", "--out", "out")  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A folder in which a sweep has chosen its rates and ended."""
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        furnish(folder)
        result = rankprobe(*TUNED)
    assert result.exit_code == 0, result.output
    return folder, result


def test_every_configuration_chooses_from_as_many_rates_and_is_reported_at_that_one(tuned):
    folder, _ = tuned
    rates = pd.read_csv(folder / "out" / "tables" / "tuning.csv")
    assert len(rates) == 4 * 3 and rates["chosen"].sum() == 4
    best = rates.loc[rates.groupby(["method", "r"], dropna=False)["loss"].idxmin()]
    assert best["chosen"].all(), "the lowest loss"
    methods = pd.read_csv(folder / "out" / "tables" / "methods.csv")
    assert set(methods["split"]) == {"eval"} and (methods["n_seeds"] == 2).all() and len(methods) == 4
    keys = ["method", "r", "lr"]
    assert set(methods[keys].fillna(0).itertuples(index=False)) == set(best[keys].fillna(0).itertuples(index=False))


def test_no_row_that_chose_a_rate_is_in_a_reported_score(tuned):
    folder, _ = tuned
    specs = {path.parent: json.loads(path.read_text())["spec"] for path in folder.glob("runs/*/run.json")}
    rows = {split: set() for split in ("tuning", "eval")}
    for run, spec in specs.items():
        rows[spec["split"]] |= set(pd.read_csv(run / "predictions.csv", dtype=str)["row"])
    assert len(rows["tuning"]) and len(rows["eval"]) and not rows["tuning"] & rows["eval"]
    assert not list(folder.glob("runs/*tuning*/model")), "of a run that chooses a rate no weights are kept"


def test_the_page_has_the_answer_the_rates_and_the_way_to_the_tuning_runs(tuned):
    folder, _ = tuned
    page = (folder / "out" / "report.md").read_text()
    assert "Learning rates" in page and "loss by rate" in page and "Other tasks" in page
    assert "What r is needed" in page and "TOST" in page
    assert not (folder / "out" / "tables" / "table2.csv").exists(), "that is reproduce-paper's"
    assert not (folder / "out" / ".live.json").exists()


def test_it_ends_with_the_answer(tuned):
    folder, result = tuned
    page = (folder / "out" / "report.md").read_text()
    lines = result.stdout.rstrip("\n").split("\n")
    said = [line for line in lines[lines.index("]") + 1 : -1] if line]
    assert lines[-1] == "out/report.html"
    assert all(line in page for line in said) and len(said) == 4, said
    assert said[0].startswith("What r files needs cannot be told") and "at an end of its grid" in said[3]


def test_the_same_command_does_nothing_twice(tuned, monkeypatch):
    folder, _ = tuned
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*")}
    plan = (folder / "out" / "plan.json").read_text()
    result = rankprobe(*TUNED)
    assert result.exit_code == 0 and "warning" not in result.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*")} == before
    assert (folder / "out" / "plan.json").read_text() == plan


def test_taken_up_again_it_shows_what_follows_from_the_rates_all_the_while(tuned, monkeypatch):
    folder, _ = tuned
    monkeypatch.chdir(folder)
    plans = []
    render = work.render

    def rendered(out, plan, *rest, **settings):
        plans.append(list(plan["runs"]))
        return render(out, plan, *rest, **settings)

    monkeypatch.setattr(work, "render", rendered)
    assert rankprobe(*TUNED).exit_code == 0
    assert len(plans) >= 2 and all(len(runs) == 12 + 8 for runs in plans)


def test_options_print_the_study_that_they_make(tuned, tmp_path):
    _, result = tuned
    text = result.stdout[: result.stdout.index("\n]") + 2]
    (tmp_path / "study.toml").write_text(text)
    study = load_study(tmp_path / "study.toml")
    assert study.tune == (0.5, 1.0, 2.0) and study.task == "files"
    assert [(c.method, c.r, c.lr, c.seeds) for c in study.configurations] == [
        ("full", None, 1e-3, 2), ("lora", 1, 4e-3, 2), ("lora", 4, 4e-3, 2), ("head", None, 0.1, 2),
    ]  # fmt: skip


def test_targets_of_several_choices_in_one_word(bench):
    result = rankprobe(*SWEEP, "--r", "1", "--seeds", "1", "--no-full", "--no-head", "--targets", "qv,qkvo",
                       "--targets", "v", "--dry-run")  # fmt: skip
    assert result.exit_code == 0, result.output
    Path("study.toml").write_text(result.stdout[: result.stdout.index("\n]") + 2])
    assert [c.targets for c in load_study(Path("study.toml")).configurations] == ["q,v", "q,k,v,o", "v"]


def test_dry_run_names_both_parts_and_how_long_the_first_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path)
    result = rankprobe(*TUNED, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "12 runs, 60 optimiser steps left" in result.stdout
    assert "then, at the rates that these choose, 8 runs of 40 optimiser steps" in result.stdout
    assert "in all, one after the other, by a few steps of each method" in result.stdout
    assert not Path("runs").exists() and not Path("out").exists()


def test_alphas_multiply_configurations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path)
    result = rankprobe(*SWEEP, "--r", "1,4", "--alpha", "r,16", "--no-full", "--no-head", "--dry-run")
    assert "4 runs" in result.stdout
    assert all(f"alpha = {alpha}" in result.stdout for alpha in ("1.0", "16.0", "4.0"))
    rule = "alpha must be above 0 and finite, or a multiple of r such as 2r. Got x"
    refused(rankprobe(*SWEEP, "--alpha", "x"), 2, rule)


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--tune", "0"], "tune must hold numbers above 0. Got 0"),
        (["--tune", "1,1"], "tune must hold each number once"),
        (["--tune", "a"], "must be numbers with commas between"),
        (["--margin", "2"], "2.0 is not in the range 0<x<1"),
        (["--tune", "1,2", "--tuning-size", "100000"], "--tuning-size (or --eval-size) must be between 1 and"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path)
    result = rankprobe(*SWEEP, *options)
    assert result.exit_code == 2 and expected in result.stderr, result.stderr
    assert not Path("runs").exists()


def test_several_tasks_or_models_in_a_file_share_no_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path)
    Path("both.toml").write_text(
        'task = "files"\ntruncate = []\nmax_length = 16\nepochs = 1\nmodel = ["base", "again"]\n'
        'configurations = [{ method = "head", lr = 0.1 }, { method = "lora", r = 1, lr = 1e-3 }]'
    )
    furnish(tmp_path / "x")
    (tmp_path / "x" / "base").rename(tmp_path / "again")
    from tests.tiny_models import make_tiny

    make_tiny("bert", tmp_path / "again", seed=5)
    result = rankprobe("sweep", "both.toml", *FILES, *COMPUTE, "--out", "out")
    assert result.exit_code == 0, result.output
    assert len(list(Path("runs").iterdir())) == 4
    assert "2 comparisons" in Path("out/report.md").read_text()
    refused(rankprobe("sweep", "both.toml", *FILES, "--model", "base"), 2, "be left out where a study file names one")


def test_status_tells_from_another_terminal_what_is_done_and_doing(tuned, tmp_path, monkeypatch):
    folder, _ = tuned
    monkeypatch.chdir(folder)
    result = rankprobe("status", "out")
    assert result.exit_code == 0 and "sweep files: 20 of 20 runs are done" in result.stdout
    assert "files: LoRA r=4 q,v, lr" in result.stdout and "files (tuning rows): full, lr 0.0005" in result.stdout
    assert "No process" not in result.stdout and "now:" not in result.stdout
    file = LiveFile(folder / "out", every_s=0)
    file.tell(("LoRA r=4 q,v seed 1: 3/5 loss 0.412",), 8, 10, 65.0)
    said = rankprobe("status", "out").stdout
    file.end()
    assert "now: LoRA r=4 q,v seed 1: 3/5 loss 0.412" in said
    assert "8 of 10 steps of this call, ETA 65 s (process" in said
    (run := next(folder.glob("runs/head-eval-s1-*/run.json"))).rename(run.with_name("aside"))
    try:
        said = rankprobe("status", "out").stdout
    finally:
        run.with_name("aside").rename(run)
    assert "19 of 20 runs are done" in said
    assert "No process works on it. Go on with: rankprobe" in said


def test_status_of_what_is_no_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(rankprobe("status", "nowhere"), 2, "DIR must be an output folder of sweep or reproduce-paper. Got nowhere")
    Path("out").mkdir()
    Path("out/plan.json").write_text('{"name": "sweep x"}')
    refused(rankprobe("status", "out"), 2, "plan.json must name runs. Got none")


def test_an_observer_tells_the_live_file_and_takes_it_away(tmp_path, monkeypatch):
    observer = progress.TerminalObserver(10, LiveFile(tmp_path, every_s=0))
    with pytest.raises(KeyboardInterrupt), observer.live():
        observer.begin("full seed 0", 5)
        observer.stage("train", 3, 5, "loss 0.5")
        found = read_live(tmp_path)
        assert found.now == ("full seed 0: 3/5 loss 0.5",) and (found.done, found.total) == (3, 10)
        observer.expect(10)
        observer.lane(1).begin("LoRA seed 0", 5)
        observer.lane(2).begin("LoRA seed 1", 5)
        found = read_live(tmp_path)
        assert found.now == ("LoRA seed 0: loading", "LoRA seed 1: loading") and found.total == 20
        raise KeyboardInterrupt
    assert read_live(tmp_path) is None


def test_a_packed_sweep_has_the_same_tables_and_keeps_its_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path)
    command = (*SWEEP, "--r", "1,2,4", "--seeds", "2", "--no-full", "--drop-weights")
    assert rankprobe(*command, "--runs", "lone", "--out", "a").exit_code == 0
    result = rankprobe(*command, "--runs", "packed", "--out", "b", "--pack", "4")
    assert result.exit_code == 0, result.output
    records = [json.loads(path.read_text()) for path in Path("packed").glob("*/run.json")]
    assert sorted(record.get("pack", {}).get("size", 1) for record in records) == [1, 1] + [3] * 6, "6 of LoRA, 2 packs"
    columns = ["method", "r", "n_seeds", "accuracy_mean", "diff_vs_full"]
    lone, packed = (pd.read_csv(f"{out}/tables/methods.csv")[columns] for out in ("a", "b"))
    pd.testing.assert_frame_equal(lone, packed)
    assert json.loads(Path("b/plan.json").read_text())["pack"] == 4
    refused(rankprobe(*command, "--runs", "packed", "--out", "b", "--pack", "off"), 2, "begun with, 4. Got off")
    assert rankprobe(*command, "--runs", "packed", "--out", "b").exit_code == 0
    assert json.loads(Path("b/plan.json").read_text())["pack"] == 4
    refused(rankprobe(*command, "--pack", "many"), 2, "--pack must be auto, off or a number of runs. Got 'many'")


def test_a_rate_that_diverges_while_rates_are_chosen_is_no_failure(bench):
    command = [*SWEEP, "--r", "2", "--no-full", "--no-head", "--tune", "1,1e9", "--seeds", "1", "--out", "out"]
    for _ in range(2):
        result = rankprobe(*command)
        assert result.exit_code == 0, result.output
    rates = pd.read_csv("out/tables/tuning.csv")
    assert sorted(rates["status"]) == ["diverged", "ok"] and rates.set_index("status").loc["ok", "chosen"]


def test_another_data_set_has_another_folder(bench):
    csv("other.csv", [(text, ("neg", "pos")[i % 2]) for i, text in enumerate(texts(30, 7))])
    command = [word for word in SWEEP if word != "train.csv"]
    at = command.index("--train") + 1
    for train in ("train.csv", "other.csv"):
        result = rankprobe(*command[:at], train, *command[at:], "--r", "2", "--no-full", "--no-head", "--seeds", "1")
        assert result.exit_code == 0 and "showed other runs" not in result.output
    assert len(list(Path("results").iterdir())) == 2


def test_status_is_not_taken_in_by_a_process_that_has_the_number_now(tuned, monkeypatch):
    folder, _ = tuned
    monkeypatch.chdir(folder)
    file = LiveFile(Path("out"), every_s=0, command="rankprobe sweep --out out --train /data/mine/train.csv")
    file.tell(("LoRA r=4: 3/5",), 3, 5, 60.0)
    said = json.loads(Path("out/.live.json").read_text())
    run = next(Path("runs").glob("head-eval-s1-*/predictions.csv"))
    run.rename("aside")
    try:
        assert "now: LoRA r=4: 3/5" in rankprobe("status", "out").stdout
        Path("out/.live.json").write_text(json.dumps(said | {"born": "another boot 5"}))
        shown = rankprobe("status", "out").stdout
        file.end()
        without = rankprobe("status", "out").stdout
    finally:
        Path("aside").rename(run)
        file.end()
    assert "now:" not in shown and "19 of 20" in shown, "a run whose predictions are gone would be done again"
    assert "Go on with: rankprobe sweep --out out --train /data/mine/train.csv" in shown
    assert "--out out --runs runs, with the same --data-dir or files" in without


def test_status_says_where_there_is_no_store(tuned, monkeypatch, tmp_path):
    folder, _ = tuned
    monkeypatch.chdir(tmp_path)
    said = rankprobe("status", folder / "out").stdout
    assert "0 of 20 runs are done" in said and "There is no run store runs here: pass the sweep's own" in said


def test_what_another_process_measures_is_set_aside_and_said_at_the_end(tmp_path, bench):
    plan = plan_latency(find_model("base"), tmp_path / "runs", r=2, targets="q,v", shapes=((1, 8),), budget_s=0.1,
                        dtype="float32", device="cpu", threads=1)  # fmt: skip
    observer, aside = progress.TerminalObserver(1), []
    with lock(plan.folder):
        assert work._latency(plan, observer, lambda: False, aside) is False and not aside

        def table1():
            yield "a renewal"
            execute_latency(plan)

        assert list(unless_given_up(table1(), aside)) == ["a renewal"]
    assert [type(error) for error in aside] == [LockedError] and "be used by one process at a time" in str(aside[0])
    assert work._latency(plan, observer, lambda: False, aside) is True and len(aside) == 1
