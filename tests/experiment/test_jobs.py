"""Several worker processes: the same results as one after the other, and what happens when a worker is lost."""

import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from rankprobe.errors import UsageError
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.jobs import Jobs
from rankprobe.experiment.observer import Silent
from rankprobe.experiment.pieces import Piece
from rankprobe.experiment.planned_run import plan_run
from rankprobe.experiment.store import finished, lock
from rankprobe.experiment.study import Study
from rankprobe.experiment.sweep import PlannedStudy, run_study
from rankprobe.experiment.truncation import truncation_done
from rankprobe.experiment.unmeasured import Unmeasured
from rankprobe.tasks.load import make_task
from rankprobe.tasks.task import Example
from rankprobe.weights.source import find_model
from tests.tiny_models import make_tiny


class Listener(Silent):
    """Keeps what it is told; every worker has its own."""

    def __init__(self):
        self.lines, self.begun, self.lanes = [], [], {}

    def lane(self, number):
        return self.lanes.setdefault(number, Listener())

    def say(self, line):
        self.lines.append(line)

    def begin(self, label, steps):
        self.begun.append(label)


@pytest.fixture(scope="module")
def jobs():
    """Two workers, which all tests of this file use: a worker takes seconds to start."""
    with Jobs(2) as two:
        yield two


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return find_model(make_tiny("bert", tmp_path_factory.mktemp("model") / "base"))


@pytest.fixture(scope="module")
def task():
    def rows(n, start):
        words = ("good list of", "bad list of", "good array file", "row of the array")
        return tuple(Example(f"row{start + i}", f"{words[i % 4]} {i % 7}", None, i % 2) for i in range(n))

    return make_task("toy", "eval", rows(48, 0), rows(24, 1000), ("no", "yes"), ("accuracy",))


def planned(folder, source, task, *configurations, epochs=1, truncate=()):
    study = Study("toy", configurations, epochs=epochs, batch_size=16, max_length=16, truncate=truncate)
    specs = study.specs(dtype="float32", device="cpu", threads=1)
    runs = tuple(plan_run(spec, source, task, folder) for spec in specs)
    first = tuple(run for run in runs if run.spec.method in truncate and run.spec.seed == 0)
    return PlannedStudy(study, runs, first)


FULL, HEAD = Configuration("full", lr=1e-3, seeds=2), Configuration("head", lr=1e-2)
LORA = Configuration("lora", r=2, lr=1e-2, seeds=2)


def killer(folder, times, killed):
    """Kills the process that holds the folder's lock, whichever it is, so many times."""
    end = time.monotonic() + 300
    while len(killed) < times and time.monotonic() < end:
        try:
            pid = int((folder / ".lock").read_text().partition(" ")[0])
        except (OSError, ValueError):
            pid = 0
        if pid and pid != os.getpid() and pid not in killed:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def test_several_at_once_give_the_bytes_of_one_after_the_other(tmp_path, base, task, jobs):
    one, two = (planned(tmp_path / name, base, task, FULL, LORA, HEAD, truncate=("full",)) for name in ("one", "two"))
    in_turn = list(run_study(one))
    listener = Listener()
    at_once = list(run_study(two, executor=jobs, observer=listener))
    assert [record["run_id"] for record in in_turn] == [run.run_id for run in one.runs[:3]] + [
        one.truncate[0].run_id, *(run.run_id for run in one.runs[3:])]  # fmt: skip
    assert sorted(r["run_id"] for r in at_once) == sorted(r["run_id"] for r in in_turn)
    assert all(record["status"] == "ok" for record in at_once)
    for ours, theirs in zip(one.runs, two.runs, strict=True):
        names = sorted(path.name for path in ours.folder.iterdir() if path.suffix == ".csv")
        assert names == sorted(path.name for path in theirs.folder.iterdir() if path.suffix == ".csv")
        assert "predictions.csv" in names and (ours.run_id != one.truncate[0].run_id or "functional_rank.csv" in names)
        for name in names:
            assert (ours.folder / name).read_bytes() == (theirs.folder / name).read_bytes(), (ours.run_id, name)
    assert len(listener.lanes) == 2 and all(lane.begun for lane in listener.lanes.values()), "both had work"
    stamps = {run.run_id: (run.folder / "run.json").stat().st_mtime_ns for run in two.runs}
    again = list(run_study(two, executor=jobs))
    assert [record["run_id"] for record in again] == [run.run_id for run in two.runs]
    assert stamps == {run.run_id: (run.folder / "run.json").stat().st_mtime_ns for run in two.runs}


def test_a_worker_killed_once_is_replaced_and_its_run_done_again(tmp_path, base, task, jobs):
    study = planned(tmp_path, base, task, LORA, epochs=40)
    killed, listener = [], Listener()
    thread = threading.Thread(target=killer, args=(study.runs[0].folder, 1, killed))
    thread.start()
    records = list(run_study(study, executor=jobs, observer=listener))
    thread.join()
    assert len(killed) == 1 and [record["status"] for record in records] == ["ok", "ok"]
    [line] = listener.lines
    assert line.startswith(f"{study.runs[0].run_id}: its process was ended by SIGKILL") and "done again" in line


def test_a_run_that_loses_two_workers_is_recorded_as_failed_and_redone_later(tmp_path, base, task, jobs):
    study = planned(tmp_path, base, task, replace(LORA, seeds=1), HEAD, epochs=40)
    killed = []
    thread = threading.Thread(target=killer, args=(study.runs[0].folder, 2, killed))
    thread.start()
    records = {record["run_id"]: record for record in run_study(study, executor=jobs)}
    thread.join()
    assert len(killed) == 2
    failed, other = (records[run.run_id] for run in study.runs)
    assert other["status"] == "ok" and failed["status"] == "failed"
    assert "must live until its end. Got its process was ended by SIGKILL (out of memory?), 2 times" in failed["error"]
    assert (study.runs[0].folder / "error.txt").read_text().strip() == failed["error"]
    assert finished(study.runs[0].folder) is None
    assert [record["status"] for record in run_study(study, executor=jobs)] == ["ok", "ok"]


def unmeasurable(run):
    """A functional rank that fails where no check foresees it: torch refuses to have no thread."""
    return Piece((replace(run, spec=replace(run.spec, threads=0)),), truncation=True)


def test_a_functional_rank_that_cannot_be_measured_stops_no_training(tmp_path, base, task, jobs):
    study = planned(tmp_path, base, task, LORA)
    first, other = study.runs
    [_] = run_study(replace(study, runs=(first,)))
    heard = []
    with pytest.raises(Unmeasured, match=f"functional rank of {first.run_id} must be measured. Got Runtime"):
        for record in jobs([unmeasurable(first), Piece((other,))], Silent(), lambda: False):
            heard.append(record["run_id"])
    assert heard == [other.run_id]
    assert "set_num_threads" in (first.folder / "error.txt").read_text()
    [*_] = jobs([Piece((first,), truncation=True)], Silent(), lambda: False)
    assert truncation_done(first) and not (first.folder / "error.txt").exists()


def test_what_another_process_holds_comes_last(tmp_path, base, task, jobs):
    study = planned(tmp_path, base, task, LORA, HEAD)
    listener = Listener()
    work = run_study(study, executor=jobs, observer=listener)
    with lock(study.runs[0].folder):
        others = {next(work)["run_id"], next(work)["run_id"]}
    assert others == {run.run_id for run in study.runs[1:]}
    assert [record["run_id"] for record in work] == [study.runs[0].run_id]
    [line] = listener.lines
    assert f"process {os.getpid()} on " in line


def test_a_mistake_of_the_user_ends_the_sweep_with_its_own_line(tmp_path, base, task, jobs):
    study = planned(tmp_path, base, task, Configuration("lora", r=999, lr=1e-2))
    with pytest.raises(UsageError, match="r must be"):
        list(run_study(study, executor=jobs))
    assert not list(tmp_path.rglob("run.json"))
    assert [r["status"] for r in run_study(planned(tmp_path, base, task, HEAD), executor=jobs)] == ["ok"]


def test_a_sweep_that_is_dropped_ends_the_workers_that_are_busy(tmp_path, base, task, jobs):
    study = planned(tmp_path, base, task, replace(HEAD, seeds=1), replace(LORA, seeds=1), epochs=1)
    endless = planned(tmp_path, base, task, replace(LORA, seeds=1), epochs=100_000)
    mixed = PlannedStudy(study.study, (endless.runs[0], study.runs[0]), ())
    work = run_study(mixed, executor=jobs)
    assert next(work)["run_id"] == study.runs[0].run_id
    work.close()
    with lock(endless.runs[0].folder):
        pass
    assert not (endless.runs[0].folder / "run.json").exists()


def test_no_jobs_are_refused():
    with pytest.raises(UsageError, match="jobs must be at least 1. Got 0"):
        Jobs(0)
