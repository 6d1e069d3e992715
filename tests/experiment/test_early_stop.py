"""Runs that tuning rows may stop: which rows those are, what is recorded, packs, studies, tables, names."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rankprobe.cli.main import main
from rankprobe.cli.show import run_summary
from rankprobe.errors import UsageError
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.models import load_trained
from rankprobe.experiment.pack import execute_pack
from rankprobe.experiment.pack_groups import check_pack
from rankprobe.experiment.probe import Pace
from rankprobe.experiment.reopen import reopen
from rankprobe.experiment.runs import execute, held_out_rows
from rankprobe.experiment.store import load_runs
from rankprobe.experiment.study import Study
from rankprobe.experiment.study_file import load_study, study_toml
from rankprobe.experiment.sweep import Place, plan_study
from rankprobe.experiment.tuning import choose_rates, tuning_study
from rankprobe.report.early_stop import early_stop_words
from rankprobe.report.tables import runs_table
from rankprobe.tasks.files import FileSpec
from rankprobe.tasks.load import load_task
from tests.experiment.test_runs import PLACE
from tests.tiny_models import make_tiny

LORA = Configuration("lora", r=2, lr=3e-2)
SETTINGS = {"task": "files", "epochs": 8, "batch_size": 8, "max_length": 16, "patience": 1}


@pytest.fixture
def files(tmp_path):
    """Labels that have nothing to do with the texts, so that training on them does not help on other rows."""
    words = "sum of the mean list array index file good bad row column".split()
    made = {}
    for name, n in (("train", 80), ("eval", 40)):
        labels = np.random.default_rng(n).choice(["no", "yes"], n)
        lines = [f"{labels[i]}\t{words[i % 12]} {words[i % 7]} {name} {words[i % 5]} {i}"
                 for i in range(n)]  # fmt: skip
        made[name] = tmp_path / f"{name}.tsv"
        made[name].write_text("\n".join(["label\ttext", *lines]) + "\n")
    return FileSpec(train=made["train"], eval=made["eval"], text="text", label="label")


@pytest.fixture
def place(tmp_path, files):
    return Place(tmp_path / "runs", **PLACE, files=files)


@pytest.fixture
def base(tmp_path):
    return make_tiny("bert", tmp_path / "base")


def planned(base, place, *configurations, **settings):
    study = Study("s", configurations or (LORA,), **{"model": str(base), **SETTINGS, "truncate": (), **settings})
    return plan_study(study, place)


def test_held_out_rows_are_tuning_rows_that_are_not_trained_on(files):
    whole, tuning = load_task("files", files=files), load_task("files", files=files, split="tuning")
    watched = load_task("files", files=files, held_out=0)
    assert watched.held_out == tuning.eval and watched.train == tuning.train and watched.eval == whole.eval
    assert not {row.row for row in watched.held_out} & {row.row for row in watched.train}
    assert watched.eval_sha256 == whole.eval_sha256, "the same rows are reported on"
    some = load_task("files", files=files, held_out=6)
    assert some.held_out == tuning.eval[:6] and some.train == watched.train
    assert len({whole.sha256, tuning.sha256, watched.sha256, some.sha256}) == 4
    on_tuning = load_task("files", files=files, split="tuning", held_out=0)
    assert on_tuning.held_out == on_tuning.eval and on_tuning.sha256 == tuning.sha256


@pytest.mark.filterwarnings("ignore:docmatch-smoke is made of other rows")
def test_a_data_set_with_tuning_rows_of_its_own_trains_on_as_many_as_ever():
    whole, watched = load_task("docmatch-smoke"), load_task("docmatch-smoke", held_out=20)
    assert watched.train == whole.train and len(watched.held_out) == 20
    with pytest.raises(UsageError, match=r"--tuning-size .* between 1 and the tuning rows there are"):
        load_task("docmatch-smoke", held_out=10**6)


def test_a_run_records_when_it_was_stopped_and_its_weights_are_its_best_epochs(base, place):
    (run,) = planned(base, place).runs
    record = execute(run)
    stopped = record["early_stop"]
    losses = stopped["held_out_losses"]
    assert record["status"] == "ok", record["error"]
    assert 1 <= stopped["best_epoch"] < len(losses) < 8 and stopped["n_rows"] == 8
    assert losses[stopped["best_epoch"] - 1] == min(losses)
    assert record["timings"]["steps"] == 9 * len(losses) == len(pd.read_csv(run.folder / "history.csv"))
    trained = load_trained(run.folder, run.spec, run.source, run.task)
    watched_by = held_out_rows(run, trained.tokenizer, None)
    assert replace(watched_by, progress=None).loss(trained.trainee) == pytest.approx(min(losses), rel=1e-6)
    again = reopen(run.folder, place.runs, model=str(base), files=place.files)
    assert again.task == run.task and again.spec == run.spec


def test_runs_that_may_stop_have_names_and_comparisons_of_their_own(base, place):
    ids = {planned(base, place, **settings).runs[0].run_id
           for settings in ({}, {"patience": 0}, {"patience": 2}, {"tuning_size": 4})}  # fmt: skip
    assert len(ids) == 4
    run = planned(base, place, patience=0).runs[0]
    assert (run.spec.patience, run.spec.tuning_size, run.task.held_out) == (None, None, ())
    with pytest.raises(UsageError, match="share patience"):
        check_pack([run, planned(base, place, Configuration("lora", r=4, lr=1e-2)).runs[0]])


def test_a_pack_stops_each_member_as_its_lone_run(base, place, tmp_path):
    rates = (LORA, Configuration("lora", r=4, lr=2e-3), Configuration("lora", r=1, lr=1e-1))
    runs = planned(base, place, *rates, patience=2).runs
    alone = [execute(replace(run, folder=tmp_path / "alone" / run.run_id)) for run in runs]
    together = execute_pack(runs)
    assert len({len(record["early_stop"]["held_out_losses"]) for record in together}) > 1
    for run, theirs, ours in zip(runs, alone, together, strict=True):
        assert ours["status"] == theirs["status"] == "ok", ours["error"]
        assert ours["early_stop"]["best_epoch"] == theirs["early_stop"]["best_epoch"]
        assert ours["early_stop"]["held_out_losses"] == pytest.approx(theirs["early_stop"]["held_out_losses"], rel=1e-4)
        assert ours["timings"]["steps"] == theirs["timings"]["steps"]
        stores = place.runs, tmp_path / "alone"
        mine, other = (pd.read_csv(store / run.run_id / "predictions.csv") for store in stores)
        assert (mine["score"] - other["score"]).abs().max() < 1e-4


def test_the_rows_that_choose_a_rate_also_stop_its_runs(base, place):
    study = replace(planned(base, place, tuning_size=6).study, tune=(0.5, 1.0))
    tried = plan_study(tuning_study(study), place)
    assert {run.spec.patience for run in tried.runs} == {1} and {run.spec.tuning_size for run in tried.runs} == {None}
    assert all(run.task.held_out == run.task.eval and len(run.task.eval) == 6 for run in tried.runs)
    records = [execute(run) for run in tried.runs]
    # A rate is judged by the loss of its best epoch.
    for record in records:
        losses = record["early_stop"]["held_out_losses"]
        assert record["metrics"]["loss"] == pytest.approx(min(losses), rel=1e-6)
    chosen = plan_study(choose_rates(study, records), place)
    assert chosen.runs[0].spec.tuning_size == 6 and chosen.runs[0].task.held_out == tried.runs[0].task.eval
    assert chosen.runs[0].task.train == tried.runs[0].task.train


def test_a_study_file_says_it_and_refuses_nonsense(tmp_path):
    (tmp_path / "study.toml").write_text('patience = 2\ntuning_size = 50\nconfigurations = [{ method = "head" }]\n')
    study = load_study(tmp_path / "study.toml")
    assert (study.patience, study.tuning_size) == (2, 50) and "patience = 2" in study_toml(study)
    with pytest.raises(UsageError, match="patience must be at least 0. Got -1"):
        replace(study, patience=-1)


def test_expected_time_counts_a_look_at_the_rows_after_each_epoch(base, place):
    (run,), (plain,) = planned(base, place).runs, planned(base, place, patience=0).runs
    pace = Pace(load_s=1.0, step_s=0.5, row_s=0.25)
    assert pace.seconds(run) == 1 + 0.5 * 8 * 9 + 0.25 * (40 + 8 * 8)
    assert pace.seconds(plain) == 1 + 0.5 * 8 * 10 + 0.25 * 40


def test_tables_and_page_say_when_runs_ended(base, place):
    for run in planned(base, place).runs:
        execute(run)
    (record,) = runs = load_runs(run.folder for run in planned(base, place).runs)
    row = runs_table(runs).iloc[0]
    epochs = len(record["early_stop"]["held_out_losses"])
    assert (row["patience"], row["n_tuning"], row["epochs_trained"]) == (1, 8, epochs)
    best = record["early_stop"]["best_epoch"]
    assert row["best_epoch"] == best and early_stop_words(runs) == (
        "a run ends after an epoch without a lower loss on 8 tuning rows and keeps its best epoch: 1 of 1 runs ended "
        f"before epoch 8, the best was epoch {best}"
    )
    for column in ("patience", "tuning_size", "epochs_trained"):
        plain = {**record, "spec": {**record["spec"], "patience": None, "tuning_size": None}}
        assert column not in runs_table([{k: v for k, v in plain.items() if k != "early_stop"}])


@pytest.mark.parametrize(("command", "tunes"), [("sweep", "--tune or --patience"), ("finetune", "--patience")])
def test_tuning_rows_that_nothing_uses_are_refused(command, tunes, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--tuning-size", "50"])
    rule, next_step = f"must be given with {tunes}, which use tuning rows", f"Pass {tunes}, or leave it out"
    assert end.value.code == 2
    assert f"--tuning-size {rule}. Got 50 alone. {next_step}" in capsys.readouterr().err


def test_from_the_command_line(base, files, tmp_path, capsys):
    words = ["sweep", "--r", "1", "--no-full", "--no-head", "--lr", "3e-2", "--epochs", "8", "--batch-size", "8",
             "--max-length", "16", "--patience", "1", "--tuning-size", "5", "--model", str(base), "--train",
             str(files.train), "--eval", str(files.eval), "--text", "text", "--label", "label", "--threads", "1",
             "--runs", str(tmp_path / "store"), "--out", str(tmp_path / "out")]  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
    printed = capsys.readouterr()
    assert "patience = 1\n" in printed.out and "tuning_size = 5\n" in printed.out
    (path,) = (tmp_path / "store").glob("lora-*/run.json")
    record = json.loads(path.read_text())
    assert record["early_stop"]["n_rows"] == 5 and record["spec"]["tuning_size"] == 5
    stopped = record["early_stop"]
    ended = f"best epoch {stopped['best_epoch']} of {len(stopped['held_out_losses'])}"
    assert f" s of training, {ended}" in printed.err + printed.out
    run_summary(record, path.parent)
    assert f"  {ended}, by the loss on 5 tuning rows\n" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.md").read_text()
    assert "| early stop | a run ends after an epoch without a lower loss on 5 tuning rows" in page
