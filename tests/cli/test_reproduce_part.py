"""reproduce-paper on the real model as far as one figure needs it, and when its time is up before it began."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from rankprobe.cli import reproduce_extras
from rankprobe.experiment.executors import IN_TURN
from rankprobe.experiment.observer import Silent
from rankprobe.experiment.sweep import Place, plan_study
from rankprobe.experiment.unmeasured import Unmeasured
from rankprobe.paper.reproduce import load_scale, needs_of
from tests.cli.lab import rankprobe

SMOKE = ("reproduce-paper", "--scale", "smoke", "--threads", "1", "--dtype", "float32")

pytestmark = pytest.mark.filterwarnings("ignore:docmatch-smoke is made of other rows")


@pytest.mark.slow
def test_only_a_figure_trains_what_it_shows_and_reuses_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = rankprobe(*SMOKE, "--only", "figure4")
    assert result.exit_code == 0, result.output
    runs = sorted(path.name for path in tmp_path.glob("runs/*"))
    assert [name.split("-")[0] for name in runs] == ["compare", "lora", "lora"] and all("r64" in name for name in runs)
    out = tmp_path / "results" / "reproduce-paper-smoke"
    claims = pd.read_csv(out / "tables" / "claims.csv").set_index("claim_id")["verdict"]
    assert claims["figure4-seeds-share"] != "not_run"
    assert claims["lora-equals-full"] == "not_run"
    assert (out / "figures" / "figure4.png").stat().st_size > 10_000
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/run.json")}
    assert rankprobe(*SMOKE, "--only", "figure4").exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/run.json")} == before


@pytest.mark.parametrize("claim", ["vignette-parameters", "table1"])
def test_a_claim_that_leaves_a_study_without_runs_is_no_mistake(tmp_path, monkeypatch, claim):
    monkeypatch.chdir(tmp_path)
    result = rankprobe(*SMOKE, "--only", claim, "--hours", "1e-9")
    assert result.exit_code == 0, result.output


def test_a_table_1_that_fails_is_said_and_the_folder_is_there(tmp_path, monkeypatch):
    """On a GPU too small for GPT-2 medium, say."""
    monkeypatch.chdir(tmp_path)

    def execute(*args, **settings):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(reproduce_extras, "execute_latency", execute)
    result = rankprobe(*SMOKE, "--only", "table1")
    assert result.exit_code == 1, result.output
    assert "Table 1 must be measured. Got RuntimeError: CUDA out of memory" in result.output
    assert (tmp_path / "results" / "reproduce-paper-smoke" / "report.html").is_file()
    [file] = tmp_path.rglob("*error.txt")
    assert file.parent.parent.name == "runs" and "Traceback" in file.read_text()


def test_a_pair_that_cannot_be_compared_does_not_stop_the_next(tmp_path, monkeypatch):
    plans = [SimpleNamespace(name=name, folder=tmp_path / name, x=name, y=name) for name in ("r8-r64", "seeds")]
    compared = []

    def execute(plan, *, observer):
        compared.append(plan.name)
        if plan is plans[0]:
            raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(reproduce_extras, "execute_pair", execute)
    monkeypatch.setattr(reproduce_extras, "_ready", lambda run: True)
    with pytest.raises(Unmeasured, match="r8-r64 share must be measured. Got RuntimeError: CUDA out of memory"):
        list(reproduce_extras._pairs(plans, Silent(), lambda: False, IN_TURN))
    assert compared == ["r8-r64", "seeds"] and "CUDA" in (tmp_path / "r8-r64" / "error.txt").read_text()


def test_only_one_claim_leaves_the_others_measurements_in_the_plan(monkeypatch):
    """The folder's report is about all of them, whichever was asked for last."""
    scale, place = load_scale("smoke"), Place(Path("runs"), "float32", "cpu", 1)
    planned = [plan_study(study, place) for study in scale.studies]
    monkeypatch.setattr(reproduce_extras, "finished_intrinsic", lambda sweep: [{"run_id": "did-100-eval-s0"}])
    found = reproduce_extras.extras(scale, planned, place, needs_of("figure4"))
    [plan] = [extra.entry["intrinsic"] for extra in found if "intrinsic" in extra.entry]
    assert plan[-1] == "did-100-eval-s0" and plan[0].startswith("full")


def test_no_hours_left_begins_nothing_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = rankprobe(*SMOKE, "--hours", "1e-9")
    assert result.exit_code == 0, result.output
    assert "Stopped after 1e-09 hours with 0 of 22 runs; the same command goes on." in result.output
    assert not list(tmp_path.glob("runs/*/run.json"))
    claims = pd.read_csv(tmp_path / "results" / "reproduce-paper-smoke" / "tables" / "claims.csv")
    assert set(claims["verdict"]) <= {"not_run", "supported"}
