"""sweep's folder: what it shows of other runs, before and after there are new ones, and while rates are chosen."""

import json
import shutil
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file, save_file

from rankprobe.cli import sweep_plan, work
from rankprobe.errors import WorkError
from tests.cli.lab import COMPUTE, FILES, SWEEP, rankprobe, refused


def test_a_folder_that_showed_runs_of_another_machine_says_what_sets_them_apart(bench, no_pictures):
    few = (*SWEEP, "--r", "2", "--seeds", "1", "--drop-weights", "--out", "out")
    assert rankprobe(*few).exit_code == 0
    again = rankprobe(*few, "--threads", "2")
    assert again.exit_code == 0
    assert "showed other runs: threads 1, not 2 (with --threads 1 they would be used); its tables" in again.stderr


def test_a_folder_that_shows_other_runs_now_has_nothing_left_of_those_before(bench, no_pictures):
    few = (*SWEEP, "--seeds", "1", "--drop-weights", "--out", "out", "--no-head")
    assert rankprobe(*few, "--r", "1", "--tune", "0.5,1").exit_code == 0
    tables, tuning = Path("out/tables"), next(Path("out").glob("*-tuning"))
    assert (tables / "tuning.csv").is_file() and (tuning / "tables" / "runs.csv").is_file()
    for path in (Path("out/figures/truncation.svg"), tuning / "report.md"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("of before")
    mine = Path("out/figures/mine.png")
    mine.write_text("the user's own")
    assert rankprobe(*few, "--r", "2", "--no-full").exit_code == 0
    assert len(pd.read_csv(tables / "runs.csv")) == 1 and not (tables / "tuning.csv").exists()
    assert not Path("out/figures/truncation.svg").exists() and mine.is_file()
    assert {path.name for path in Path("out").iterdir() if path.is_dir()} == {"tables", "figures"}


def test_a_tuned_sweep_that_grows_shows_its_answer_until_the_new_one(bench, no_pictures, monkeypatch):
    few = (*SWEEP, "--seeds", "1", "--drop-weights", "--out", "out", "--no-head", "--tune", "0.5,1")
    assert rankprobe(*few, "--r", "1").exit_code == 0
    before = set(json.loads(Path("out/plan.json").read_text())["runs"])
    methods, render = [], work.render

    def rendered(out, plan, *rest, **settings):
        found = render(out, plan, *rest, **settings)
        assert before <= set(plan["runs"])
        methods.append(list(pd.read_csv("out/tables/methods.csv")["r"].dropna()))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(work, "render", rendered)
        more = rankprobe(*few, "--r", "1,2")
    assert more.exit_code == 0 and "showed other runs" not in more.stderr
    assert methods[0] == [1] and methods[-1] == [1, 2], "while rates are chosen, what was known before"
    assert len(json.loads(Path("out/plan.json").read_text())["runs"]) == 9
    # Without r = 1 its runs are no longer the folder's.
    less = rankprobe(*few, "--r", "2")
    assert less.exit_code == 0 and less.stderr.count("showed other runs") == 1
    assert list(pd.read_csv("out/tables/methods.csv")["r"].dropna()) == [2]
    assert not {"shows", "choosing"} & json.loads(Path("out/plan.json").read_text()).keys()


def test_an_interrupt_before_the_first_run_leaves_what_the_folder_showed(bench, no_pictures, monkeypatch):
    few = (*SWEEP, "--seeds", "1", "--drop-weights", "--out", "out", "--no-head", "--no-full")
    assert rankprobe(*few, "--r", "1").exit_code == 0
    table = Path("out/tables/runs.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(work, "run_study", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert rankprobe(*few, "--r", "2").exit_code != 0
    assert Path("out/tables/runs.csv").read_bytes() == table
    Path("out/tables/table7.csv").write_text("of before\n")
    assert rankprobe(*few, "--r", "2").exit_code == 0
    assert list(pd.read_csv("out/tables/runs.csv")["r"]) == [2] and not Path("out/tables/table7.csv").exists()


def no_eval_run(monkeypatch, end):
    """Runs that choose rates are done; the first that is reported ends in ``end``."""
    work_of = work.run_study

    def run_study(part, **settings):
        if part.study.split == "eval":
            end()
        return work_of(part, **settings)

    monkeypatch.setattr(work, "run_study", run_study)


def interrupt():
    raise KeyboardInterrupt


def test_a_tuned_sweep_keeps_the_last_answer_until_a_run_that_is_reported(bench, no_pictures, monkeypatch):
    few = (*SWEEP, "--seeds", "1", "--drop-weights", "--out", "out", "--no-head", "--no-full", "--r")
    assert rankprobe(*few, "1").exit_code == 0
    table = Path("out/tables/runs.csv").read_bytes()
    for _ in range(2):  # interrupted when rates were chosen, and again
        with monkeypatch.context() as patch:
            no_eval_run(patch, interrupt)
            stopped = rankprobe(*few, "2", "--tune", "0.5,1")
        assert stopped.exit_code != 0 and stopped.stderr.count("showed other runs") == 1
        assert Path("out/tables/runs.csv").read_bytes() == table
        refused(rankprobe("report", "out"), 2, "have a finished run of its new plan. Got what it showed before")
    done = rankprobe(*few, "2", "--tune", "0.5,1")
    assert done.exit_code == 0 and done.stderr.count("showed other runs") == 1
    assert list(pd.read_csv("out/tables/runs.csv")["r"]) == [2] and rankprobe("report", "out").exit_code == 0


def test_runs_that_all_fail_take_no_answer_away(bench, no_pictures, monkeypatch):
    few = (*SWEEP, "--seeds", "1", "--drop-weights", "--out", "out", "--no-head", "--no-full", "--r")
    assert rankprobe(*few, "1").exit_code == 0
    table = Path("out/tables/runs.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("rankprobe.experiment.runs.train", lambda *_, **__: 1 / 0)
        assert rankprobe(*few, "2").exit_code == 1
    assert Path("out/tables/runs.csv").read_bytes() == table


def test_an_answer_whose_runs_are_elsewhere_stays_while_rates_are_chosen(bench, no_pictures, monkeypatch):
    """As in a clone, which has a study's results and not its runs."""
    tuned = (*SWEEP, "--seeds", "1", "--drop-weights", "--out", "out", "--no-head", "--no-full", "--tune", "0.5,1")
    assert rankprobe(*tuned, "--r", "1").exit_code == 0
    table = Path("out/tables/runs.csv").read_bytes()
    with monkeypatch.context() as patch:
        no_eval_run(patch, interrupt)
        assert rankprobe(*tuned, "--r", "1", "--runs", "other").exit_code != 0
    assert Path("out/tables/runs.csv").read_bytes() == table
    assert rankprobe(*tuned, "--r", "1", "--runs", "other").exit_code == 0


def test_a_first_tuning_that_is_taken_up_again_shows_what_it_has(bench, no_pictures, monkeypatch):
    tuned = (*SWEEP, "--seeds", "1", "--drop-weights", "--out", "out", "--no-head", "--no-full", "--tune", "0.5,1,2")
    run_study, seen = work.run_study, []

    def some(part, **settings):
        for record in run_study(part, **settings):
            seen.append(record)
            if len(seen) == 2:
                raise KeyboardInterrupt
            yield record

    with monkeypatch.context() as patch:
        patch.setattr(work, "run_study", some)
        assert rankprobe(*tuned, "--r", "1").exit_code != 0
        before = len(pd.read_csv("out/tables/runs.csv"))
        no_eval_run(patch, interrupt)
        assert rankprobe(*tuned, "--r", "1").exit_code != 0
    assert before == 1 and len(pd.read_csv("out/tables/runs.csv")) == 3


def test_a_report_inside_another_reports_folder_stays(bench, no_pictures):
    few = (*SWEEP, "--seeds", "1", "--drop-weights", "--no-head", "--no-full")
    assert rankprobe(*few, "--r", "1", "--out", "out").exit_code == 0
    assert rankprobe(*few, "--r", "2", "--out", "out/inner").exit_code == 0
    assert rankprobe(*few, "--r", "4", "--out", "out").exit_code == 0
    assert list(pd.read_csv("out/inner/tables/runs.csv")["r"]) == [2]


_TWO_MODELS = (
    'task = "files"\nmodel = ["base", "twin"]\nepochs = 1\nbatch_size = 8\nmax_length = 16\n'
    'tune = [0.5, 1]\nconfigurations = [{ method = "lora", r = R, lr = 4e-3, seeds = 1 }]\n'
)


def _no_rate_for_base(monkeypatch):
    choose = sweep_plan.choose_rates

    def chosen(study, records):
        if study.model == "base":
            raise WorkError("No rate of LoRA")
        return choose(study, records)

    monkeypatch.setattr(sweep_plan, "choose_rates", chosen)


def _twin():
    """Another model, ``twin``, like ``base``."""
    shutil.copytree("base", "twin")
    weights = load_file("twin/model.safetensors")
    save_file({name: 1.01 * tensor for name, tensor in weights.items()}, "twin/model.safetensors", {"format": "pt"})


def test_a_study_without_rates_does_not_stop_the_others(bench, no_pictures, monkeypatch):
    Path("study.toml").write_text(_TWO_MODELS.replace("R", "2"))
    _no_rate_for_base(monkeypatch)
    _twin()
    result = rankprobe("sweep", "study.toml", *FILES, *COMPUTE, "--out", "out")
    assert result.exit_code == 1 and result.stderr.count("No rate of LoRA") == 1, result.output
    assert list(pd.read_csv("out/tables/runs.csv")["model"]) == ["twin"]


def test_a_study_that_cannot_be_done_now_keeps_what_it_showed(bench, no_pictures, monkeypatch):
    _twin()
    sweep = ("sweep", "study.toml", *FILES, *COMPUTE, "--out", "out")
    Path("study.toml").write_text(_TWO_MODELS.replace("R", "1"))
    assert rankprobe(*sweep).exit_code == 0
    _no_rate_for_base(monkeypatch)
    Path("study.toml").write_text(_TWO_MODELS.replace("R", "[1, 2]"))
    result = rankprobe(*sweep)
    assert result.exit_code == 1 and "showed other runs" not in result.stderr
    tables = [pd.read_csv(path) for path in Path("out").rglob("runs.csv")]
    reported = {(row.model, row.r) for table in tables for row in table.itertuples() if "eval" in row.run_id}
    assert reported == {("base", 1), ("twin", 1), ("twin", 2)}


def test_a_model_beside_a_file_that_names_the_default_one_is_refused_too(bench, no_pictures):
    study = 'task = "files"\ntruncate = []\nmax_length = 16\nepochs = 1\n'
    rows = 'configurations = [{ method = "head", lr = 0.1 }]'
    command = ("sweep", "study.toml", *FILES, *COMPUTE, "--out", "out", "--model", "base")
    for value, named in (('"all-MiniLM-L6-v2"', "all-MiniLM-L6-v2"), ('["base", "other"]', "base, other")):
        Path("study.toml").write_text(f"{study}model = {value}\n{rows}")
        refused(rankprobe(*command), 2, f"where a study file names one. Got base beside study.toml, which has {named}")
    Path("study.toml").write_text(study + rows)
    assert rankprobe(*command).exit_code == 0
    assert json.loads(next(Path("runs").glob("*/run.json")).read_text())["spec"]["model"] == "base"
