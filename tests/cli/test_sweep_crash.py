"""Sweeps in several processes and beside each other: killed, interrupted, out of disk, with files of other times."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from rankprobe.experiment.output import hold_output
from rankprobe.experiment.store import LockedError, lock
from tests.cli.crashes import CONFIGURED, finished_records, no_pictures, results_of, wait_for
from tests.cli.lab import SWEEP, assert_one_line, rankprobe, refused

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Threads are divided: each run has one, as in CONFIGURED, so that they are the same runs.
JOBS = ("--threads", "2", "--jobs", "2")
ENDLESS = (*SWEEP, "--epochs", "100000", "--r", "1,2", "--no-full", "--no-head", "--out", "out", *JOBS)


def holders(folder: Path) -> set[int]:
    """Processes that hold runs which are not finished."""
    found = set()
    for path in folder.glob("runs/*/.lock"):
        pid = path.read_text().partition(" ")[0]
        if pid and not (path.parent / "run.json").exists():
            found.add(int(pid))
    return found


def gone(pids: set[int]) -> bool:
    """Whether none of the processes is there, but as what its parent has not asked after."""
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                return False
        except OSError:
            continue
    return True


def free(folder: Path) -> bool:
    """Whether nobody holds a run folder."""
    try:
        with lock(folder):
            return True
    except LockedError:
        return False


def assert_undisturbed(folder: Path, undisturbed) -> None:
    files, tables = results_of(folder)
    assert files == undisturbed[0], "predictions, ranks, spectra and functional ranks are the same bytes"
    assert list(tables) == list(undisturbed[1])
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, undisturbed[1][name], obj=name)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_sweep_of_two_workers_killed_in_the_middle_goes_on_with_the_same_results(bench, children, undisturbed):
    child = children(bench, (*CONFIGURED, *JOBS), no_pictures)
    wait_for(lambda: finished_records(bench) and holders(bench), 300)
    workers = holders(bench)
    os.kill(child.pid, signal.SIGKILL)
    before = finished_records(bench)
    wait_for(lambda: gone(workers | holders(bench)), 60)  # one may have taken its lock after the others
    # A process is a zombie when its first thread ends; what it has open is closed when its last one does.
    wait_for(lambda: all(map(free, bench.glob("runs/*"))), 60)
    child.join(10)
    before |= finished_records(bench)
    again = children(bench, (*CONFIGURED, *JOBS), no_pictures)
    again.join(400)
    assert again.exitcode == 0, (bench / "stderr").read_text()
    after = finished_records(bench)
    assert len(after) == 4 and {path: after[path] for path in before} == before, "no finished run is redone"
    assert_undisturbed(bench, undisturbed)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_ctrl_c_ends_all_workers_with_one_line(bench, children):
    child = children(bench, ENDLESS, no_pictures)
    wait_for(lambda: len(holders(bench)) == 2, 300)
    workers = holders(bench)
    assert child.pid not in workers
    for pid in (*workers, child.pid):  # as a terminal does, which tells every process in the foreground
        os.kill(pid, signal.SIGINT)
    child.join(30)
    said = (bench / "stderr").read_text()
    assert child.exitcode == 130 and said.splitlines()[-1].startswith("rankprobe: interrupted."), said
    assert "Traceback" not in said and gone(workers)
    assert not list(bench.rglob("run.json")) and not (bench / "out" / ".lock").exists()


def test_two_sweeps_on_one_store_at_once(bench, children, undisturbed):
    """Each does what the other does not, and waits for the rest; both end with everything."""
    commands = [(*CONFIGURED[:-1], out) for out in ("out", "out2")]
    pair = [children(bench, command, no_pictures) for command in commands]
    for child in pair:
        child.join(300)
    assert [child.exitcode for child in pair] == [0, 0], (bench / "stderr").read_text()
    assert_undisturbed(bench, undisturbed)
    for table in (bench / "out" / "tables").glob("*.csv"):
        assert table.read_bytes() == (bench / "out2" / "tables" / table.name).read_bytes()


def test_two_sweeps_into_one_folder_are_refused(bench, no_pictures):
    with hold_output(Path("out"), {"name": "sweep files"}):
        before = Path("out/plan.json").read_text()
        message = rf"output folder must be used by one command at a time. Got out, which process {os.getpid()} on .* h"
        refused(rankprobe(*CONFIGURED), 1, message)
        assert Path("out/plan.json").read_text() == before
    assert not Path("out/.lock").exists() and not Path("runs").exists()


def test_a_folder_of_other_files_gets_no_lock_file(bench):
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("x")
    refused(rankprobe(*CONFIGURED), 2, "output folder must be empty or hold an earlier plan.json")
    assert [path.name for path in Path("out").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--threads", "2", "--jobs", "3"), "--jobs must be at most the CPU threads, .* Got 3 on 2. Pass --jobs 2 or"),
        (("--address", "auto"), "--address must come with --executor ray. Got auto"),
        (("--executor", "ray", "--jobs", "2"), "--jobs must be left out with --executor ray. Got 2"),
        (("--executor", "ray"), "--executor ray must have the package ray. Got no such package. pip install"),
    ],
)
def test_options_that_do_not_go_together(bench, monkeypatch, options, message):
    monkeypatch.setitem(sys.modules, "ray", None)
    refused(rankprobe(*CONFIGURED, *options), 2, message)
    assert not Path("runs").exists() and not Path("out").exists()


@pytest.fixture
def old(undisturbed_folder, bench):
    """A bench whose sweep is done."""
    subprocess.run(["cp", "-a", *(str(undisturbed_folder / name) for name in ("runs", "out")), str(bench)], check=True)
    return bench


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: json.dumps({**json.loads(text), "schema": 7}),
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "metrics"}),
    ],
    ids=["cut short", "empty", "a schema of another version", "a field less"],
)
def test_a_record_of_another_version_stops_with_a_line_and_costs_nothing(old, no_pictures, undisturbed, damage):
    record = sorted(old.glob("runs/*/run.json"))[1]
    record.write_text(damage(record.read_text()))
    before = finished_records(old)
    message = r"run.json must be a record that rankprobe wrote. Got .* Delete runs/.* and run the same command"
    refused(rankprobe(*CONFIGURED), 2, message)
    assert finished_records(old) == before, "nothing is touched"
    for path in record.parent.iterdir():
        path.rename(old / path.name) if path.is_dir() else path.unlink()
    record.parent.rmdir()
    assert rankprobe(*CONFIGURED).exit_code == 0
    after = finished_records(old)
    assert all(after[path] == before[path] for path in before if path != record)
    assert_undisturbed(old, undisturbed)


def test_a_table_of_another_size_is_unfinished_work_and_redone(old, no_pictures, undisturbed):
    table = sorted(old.glob("runs/*/predictions.csv"))[0]
    table.write_text(table.read_text()[:-3])
    before = finished_records(old)
    assert rankprobe(*CONFIGURED).exit_code == 0
    after = finished_records(old)
    assert [path for path in before if after[path] != before[path]] == [table.parent / "run.json"]
    assert_undisturbed(old, undisturbed)


def test_a_clock_that_jumps_back_changes_no_duration(bench, no_pictures, undisturbed, monkeypatch):
    now = [2e9]

    def back(*_):
        now[0] -= 3600
        return now[0]

    gmtime = time.gmtime
    monkeypatch.setattr(time, "time", back)
    monkeypatch.setattr(time, "gmtime", lambda *given: gmtime(*(given or (back(),))))
    assert rankprobe(*CONFIGURED).exit_code == 0
    for path in finished_records(bench):
        timings = json.loads(path.read_text())["timings"]
        assert 0 < timings["train_time_s"] < 600 and 0 < timings["eval_time_s"] < 600
    assert_undisturbed(bench, undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 150 kB, where the tests may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", place]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs tmpfs")
def test_a_disk_that_fills_up_stops_two_workers_with_one_line(bench, small_disk, no_pictures, undisturbed):
    command = (*CONFIGURED, *JOBS, "--runs", small_disk / "runs")
    result = rankprobe(*command)
    assert result.exit_code == 1
    last = result.stderr.splitlines(keepends=True)[-1]
    assert_one_line(last, "the disk must have room. Got No space left on device .* Free space")
    before = {path: path.read_bytes() for path in small_disk.rglob("run.json")}
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert rankprobe(*command).exit_code == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(list(small_disk.rglob("run.json"))) == 4
    for name, table in results_of(bench)[1].items():
        pd.testing.assert_frame_equal(table, undisturbed[1][name], obj=name)
