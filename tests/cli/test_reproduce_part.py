"""reproduce-paper on the real model as far as one figure needs it, and when its time is up before it began."""

import pandas as pd
import pytest

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
    assert set(claims.drop("figure4-seeds-share")) >= {"not_run"} and claims["lora-equals-full"] == "not_run"
    assert (out / "figures" / "figure4.png").stat().st_size > 10_000
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/run.json")}
    assert rankprobe(*SMOKE, "--only", "figure4").exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/run.json")} == before


def test_no_hours_left_begins_nothing_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = rankprobe(*SMOKE, "--hours", "1e-9")
    assert result.exit_code == 0, result.output
    assert "Stopped after 1e-09 hours with 0 of 22 runs; the same command goes on." in result.output
    assert not list(tmp_path.glob("runs/*/run.json"))
    claims = pd.read_csv(tmp_path / "results" / "reproduce-paper-smoke" / "tables" / "claims.csv")
    assert set(claims["verdict"]) <= {"not_run", "supported"}
