"""``rankprobe intrinsic-dim`` on a tiny model: the grid, the tables, going on, and what is refused."""

from pathlib import Path

import pandas as pd
import pytest

from rankprobe.experiment import pieces
from tests.cli.lab import COMPUTE, FILES, SMALL, assert_one_line, rankprobe, refused
from tests.tiny_models import make_tiny

COMMAND = ("intrinsic-dim", "--model", "base", *FILES, *COMPUTE, *SMALL, "--lr", "full=1e-3", "--lr", "head=1e-2",
           "--lr", "did=3e-2", "--lr", "said=3e-2", "--d-min", "10", "--d-max", "100", "--points-per-decade", "1",
           "--tolerance", "100", "--out", "out")  # fmt: skip


def test_tables_page_and_going_on(bench):
    result = rankprobe(*COMMAND)
    assert result.exit_code == 0, result.output
    curve = pd.read_csv("out/intrinsic_curve.csv")
    assert set(curve["method"]) == {"did", "said"} and set(curve["d"]) <= {10, 100}
    assert (curve.groupby(["method", "d"])["seed"].nunique() == 2).all()
    table = pd.read_csv("out/intrinsic_dimension.csv")
    assert table.groupby("method")["of"].apply(set).tolist() == [{"score", "gain"}] * 2
    known = table.dropna(subset="d")
    assert (known["ci_low"] <= known["d"]).all() and (known["d"] <= known["ci_high"]).all()
    assert table.loc[table["d"].isna(), "reason"].notna().all()
    beside = pd.read_csv("out/comparison.csv")
    assert any("energy_rank_90" in text for text in beside["measure"])
    page = (bench / "out" / "report.html").read_text(encoding="utf-8")
    assert "Intrinsic dimension of files" in page
    folders = sorted(path.name for path in bench.glob("runs/*"))
    again = rankprobe(*COMMAND)
    assert again.exit_code == 0 and sorted(path.name for path in bench.glob("runs/*")) == folders
    assert not list(bench.glob("runs/did*/model")), "a subspace's weights are dropped"
    dry = rankprobe(*COMMAND, "--dry-run")
    assert f"{len(folders)} runs are done" in dry.output


def test_without_the_functional_rank_the_page_is_written_and_the_reason_said(bench, monkeypatch):
    def measure(run, observer):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(pieces, "measure_truncation", measure)
    result = rankprobe(*COMMAND)
    assert (bench / "out" / "report.html").is_file() and "Smallest d" in result.output
    assert result.exit_code == 1
    assert_one_line(result.stderr.splitlines(keepends=True)[-1], "functional rank of full-.* must be measured. Got Run")


def test_a_damaged_record_of_a_run_that_is_none_of_these_is_no_matter(bench):
    damaged = bench / "runs" / "lora-r1-qv-eval-s0-0000000000" / "run.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    result = rankprobe(*COMMAND, "--method", "did")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "options, message",
    [
        (("--d-max", "999999999"), "d must be .* Got 999999999"),
        (("--d-min", "3", "--method", "said"), "d must be above the number of layers, 3.* Got 3"),
        (("--d-min", "200"), "d_min and d_max must be at least 1 and in order. Got 200 and 100"),
        (("--d-min", "0"), "d_min and d_max must be at least 1 and in order. Got 0 and 100. Pass"),
        (("--tolerance", "inf"), "tolerance must be a factor above 1"),
        (("--method", ","), "method must be did or said. Got none"),
        (("--seeds", "1"), "seeds must be at least 2. Got 1"),
        (("--method", "dod"), "method must be did or said. Got dod"),
        (("--tolerance", "1"), "tolerance must be a factor above 1"),
        (("--share", "1.5"), "share must be above 0 and at most 1"),
        (("--points-per-decade", "0"), "points_per_decade must be at least 1"),
    ],
)
def test_bad_input(bench, options, message):
    refused(rankprobe(*COMMAND, *options), 2, message)
    assert not (bench / "out").exists() and not list(bench.glob("runs/*"))


def test_seeds_in_two_processes_give_the_same_tables(bench):
    assert rankprobe(*COMMAND).exit_code == 0
    both = ("--threads", "2", "--jobs", "2", "--runs", "runs2")  # a thread a run, as before
    result = rankprobe(*COMMAND[:-1], "out2", *both)
    assert result.exit_code == 0, result.output
    assert {path.name for path in bench.glob("runs/*")} == {path.name for path in bench.glob("runs2/*")}
    for name in ("intrinsic_curve.csv", "intrinsic_dimension.csv"):
        one, two = (pd.read_csv(f"{out}/{name}") for out in ("out", "out2"))
        same = one.columns.drop("train_time_s", errors="ignore")
        pd.testing.assert_frame_equal(one[same], two[same])
    assert not list(bench.glob("runs2/did*/model")) and list(bench.glob("runs2/full*/functional_rank.csv"))


def test_a_language_task_is_refused_for_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_tiny("gpt2", "gpt")
    Path("mol.smi").write_text("CCO\n" * 20)
    command = ("intrinsic-dim", "--task", "smiles", "--data-dir", "mol.smi", "--model", "gpt", "--dry-run")
    refused(rankprobe(*command), 2, "The task must be scored by what more of is better. Got smiles, .*classification")
