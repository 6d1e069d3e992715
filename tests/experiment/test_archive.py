"""Runs in a file without their weights: unpacked they are finished, and only what needs weights is done again."""

import importlib.util
import json
import tarfile
from dataclasses import replace
from pathlib import Path

from click.testing import CliRunner

from rankprobe.experiment.store import finished, write_atomic
from rankprobe.experiment.sweep import run_study
from tests.experiment.test_jobs import FULL, HEAD, base, planned, task  # noqa: F401 (fixtures)


def archive_runs():
    path = Path(__file__).parents[2] / "studies" / "archive_runs.py"
    spec = importlib.util.spec_from_file_location("archive_runs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_unpacked_runs_are_finished_and_small(tmp_path, base, task):  # noqa: F811
    configurations = (replace(FULL, seeds=1), HEAD)
    study = planned(tmp_path / "runs", base, task, *configurations, truncate=("full",))
    list(run_study(study))
    out = tmp_path / "out"
    write_atomic(out / "plan.json", json.dumps({"name": "s", "runs": [run.run_id for run in study.runs]}))
    for _ in range(2):
        result = CliRunner().invoke(archive_runs(), [str(out), "--runs", str(tmp_path / "runs")])
        assert result.exit_code == 0 and "2 of 2 runs" in result.output
        made = (out / "runs.tar.xz").read_bytes()
    assert (out / "runs.tar.xz").read_bytes() == made, "the same runs give the same bytes"
    with tarfile.open(out / "runs.tar.xz") as archive:
        archive.extractall(tmp_path / "elsewhere", filter="data")
    assert not list((tmp_path / "elsewhere").rglob("*.safetensors"))
    again = planned(tmp_path / "elsewhere", base, task, *configurations, truncate=("full",))
    assert again.left() == [], "its functional rank is there: nothing needs its weights"
    for run, other in zip(study.runs, again.runs, strict=True):
        before, after = finished(run.folder), finished(other.folder)
        assert after == before | {"weights_kept": False, "files": after["files"]}
        assert all((other.folder / name).read_bytes() == (run.folder / name).read_bytes() for name in after["files"])
    (again.runs[0].folder / "functional_rank.csv").unlink()
    assert again.left() == [again.runs[0]] and again.left(weights_of=[again.runs[1].run_id]) == list(again.runs)
