"""The store: a run is finished when its record says so and its files are there; nothing else is trusted."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from rankprobe.errors import UsageError, WorkError
from rankprobe.experiment.output import claim_output, read_plan
from rankprobe.experiment.store import files_of, finished, load_runs, lock, read_record, write_atomic


def record(folder, **change):
    folder.mkdir(exist_ok=True)
    (folder / "predictions.csv").write_text("row,label\n")
    content = {
        "schema": 1,
        "run_id": folder.name,
        "kind": "train",
        "status": "ok",
        "weights_kept": False,
        "spec": {},
        "model": {},
        "task": {},
        "params": {},
        "metrics": {},
        "timings": {},
        "files": files_of(folder),
        **change,
    }
    write_atomic(folder / "run.json", json.dumps(content))
    return content


def test_finished_needs_the_record_and_its_files(tmp_path):
    run = tmp_path / "a"
    run.mkdir()
    (run / "predictions.csv").write_text("row,label\n")
    assert finished(run) is None, "files without a record are unfinished work"
    content = record(run)
    assert finished(run) == content
    assert finished(run, need_weights=True) is None, "its weights were dropped"
    (run / "predictions.csv").unlink()
    assert finished(run) is None, "a clone has the record alone"
    (run / "predictions.csv").write_text("row")
    assert finished(run) is None, "cut short"


@pytest.mark.parametrize("status, done", [("ok", True), ("diverged", True), ("failed", False)])
def test_failed_runs_are_redone_diverged_ones_are_not(tmp_path, status, done):
    record(tmp_path / "a", status=status)
    assert (finished(tmp_path / "a") is not None) is done


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"schema": 1}',
        "[]",
        '{"schema": 2, "run_id": "a", "status": "ok"}',
        '{"schema": 1, "run_id": "a", "kind": "train", "status": "ok", "files": []}',
    ],
)
def test_a_corrupt_record_is_named_with_what_to_do(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(
        UsageError, match=r"run.json must be a record that rankprobe wrote. Got .* Delete .* to redo it"
    ):
        read_record(tmp_path)


def test_load_runs_skips_unfinished_and_adds_functional_rank(tmp_path):
    record(tmp_path / "a")
    pd.DataFrame({"q": [0.9], "k": [4.0]}).to_csv(tmp_path / "a" / "functional_rank.csv", index=False)
    (tmp_path / "b").mkdir()
    runs = load_runs([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert [r["run_id"] for r in runs] == ["a"] and runs[0]["analysis"]["functional_rank"] == [{"q": 0.9, "k": 4.0}]


def test_atomic_write_keeps_the_old_content_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    write_atomic(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_two_processes_on_one_run(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(os.getcwd())!r})\n"
        "from rankprobe.experiment.store import lock\nfrom pathlib import Path\n"
        f"with lock(Path({str(tmp_path)!r})):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(WorkError, match="one process at a time"), lock(tmp_path):
            pass
        other.stdin.close()
    with lock(tmp_path):
        pass


def test_output_folder_is_claimed_once_and_taken_up_again(tmp_path):
    out = tmp_path / "out"
    claim_output(out, {"name": "a"})
    claim_output(out, {"name": "a", "runs": ["x"]})
    assert read_plan(out) == {"name": "a", "runs": ["x"]}
    with pytest.raises(UsageError, match="output folder must be of 'b'. Got .* which is of 'a'"):
        claim_output(out, {"name": "b"})


def test_output_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="output folder must be empty or hold"):
        claim_output(tmp_path, {"name": "a"})
    with pytest.raises(UsageError, match="output folder must be a folder"):
        claim_output(tmp_path / "thesis.tex", {"name": "a"})
    with pytest.raises(WorkError, match="output folder must be writable"):
        claim_output(tmp_path / "thesis.tex" / "sub", {"name": "a"})


def test_a_damaged_plan_is_named(tmp_path):
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UsageError, match="plan.json must be a plan"):
        claim_output(tmp_path, {"name": "a"})
