"""The agenda: what begins when, what is put off, done again or given up; nothing is trained."""

import json
from types import SimpleNamespace

import pytest

from rankprobe.experiment import pieces
from rankprobe.experiment.executors import InTurn
from rankprobe.experiment.observer import Silent
from rankprobe.experiment.pieces import Agenda, Piece, Unmeasured, perform
from rankprobe.experiment.store import LockedError, finished, lock, write_atomic


class Listener(Silent):
    """Keeps the lines that it is told."""

    def __init__(self):
        self.lines, self.begun = [], []

    def say(self, line):
        self.lines.append(line)

    def begin(self, label, steps):
        self.begun.append(label)


def run(tmp_path, name):
    return SimpleNamespace(run_id=name, folder=tmp_path / name, steps=5, spec=SimpleNamespace(label=f"run {name}"))


def finish(run, status="ok"):
    record = {"schema": 1, "run_id": run.run_id, "kind": "train", "status": status, "files": {}, "weights_kept": True}
    record |= {key: {} for key in ("spec", "model", "task", "params", "metrics", "timings")}
    write_atomic(run.folder / "run.json", json.dumps(record))
    return record


@pytest.fixture
def doing(monkeypatch):
    """Stands in for training: what was done, in order."""
    done = []

    def execute(run, *, keep_weights, need_weights, observer):
        if record := finished(run.folder, need_weights=need_weights):
            return record
        with lock(run.folder):
            done.append(run.run_id)
            return finish(run)

    def measure(run, observer):
        done.append(f"truncate {run.run_id}")
        (run.folder / "functional_rank.csv").write_text("q\n")

    monkeypatch.setattr(pieces, "execute", execute)
    monkeypatch.setattr(pieces, "measure_truncation", measure)
    def record_failure(run, error, *, need_weights):
        return {"run_id": run.run_id, "error": error}

    monkeypatch.setattr(pieces, "record_failure", record_failure)
    monkeypatch.setattr(pieces, "_LATER_S", 0.05)
    monkeypatch.setattr(pieces, "_PAUSE_S", 0.01)
    return done


def never():
    return False


def test_in_turn_is_the_planned_order_and_a_second_time_does_nothing(tmp_path, doing):
    a, b, c = (run(tmp_path, name) for name in "abc")
    work = [Piece((a,)), Piece((b,)), Piece((a,), truncation=True), Piece((c,))]
    heard = [record["run_id"] for record in InTurn()(work, Listener(), never)]
    assert doing == ["a", "b", "truncate a", "c"] and heard == ["a", "b", "a", "c"]
    listener = Listener()
    assert [record["run_id"] for record in InTurn()(work, listener, never)] == ["a", "b", "c"]
    assert doing == ["a", "b", "truncate a", "c"] and not listener.begun


def test_a_functional_rank_waits_for_its_run_and_for_no_other(tmp_path, doing):
    a, b = run(tmp_path, "a"), run(tmp_path, "b")
    agenda = Agenda([Piece((a,)), Piece((a,), truncation=True), Piece((b,))], Listener(), never)
    first, _ = agenda.next()
    second, _ = agenda.next()
    assert first.runs == (a,) and second.runs == (b,) and agenda.next() == (None, [])
    finish(a)
    agenda.end(first)
    third, _ = agenda.next()
    assert third.truncation and third.runs == (a,)
    agenda.end(third), agenda.end(second)
    assert not agenda


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_run_that_did_not_end_well_has_no_functional_rank(tmp_path, doing, status):
    a = run(tmp_path, "a")
    agenda = Agenda([Piece((a,)), Piece((a,), truncation=True)], Listener(), never)
    piece, _ = agenda.next()
    finish(a, status)
    agenda.end(piece)
    assert agenda.next() == (None, []) and not agenda


def test_what_another_holds_is_done_after_the_others(tmp_path, doing):
    a, b, c = (run(tmp_path, name) for name in "abc")
    listener = Listener()
    work = InTurn()([Piece((a,)), Piece((a,), truncation=True), Piece((b,)), Piece((c,))], listener, never)
    with lock(a.folder):
        assert [next(work)["run_id"], next(work)["run_id"]] == ["b", "c"]
    assert [record["run_id"] for record in work] == ["a", "a"]
    assert doing == ["b", "c", "a", "truncate a"]
    [line] = listener.lines
    assert line.startswith("a: process ") and "looked at again after the others" in line
    assert listener.begun.count("run a") == 1, "a run that could not begin was not begun"


def test_what_another_finished_meanwhile_is_not_done_again(tmp_path, doing):
    a, b = run(tmp_path, "a"), run(tmp_path, "b")
    work = InTurn()([Piece((a,)), Piece((b,))], Listener(), never)
    with lock(a.folder):
        assert next(work)["run_id"] == "b"
        finish(a)
    assert [record["run_id"] for record in work] == ["a"] and doing == ["b"]


def test_who_does_not_wait_is_told_who_holds_it(tmp_path, doing):
    a = run(tmp_path, "a")
    with lock(a.folder), pytest.raises(LockedError, match=r"one process at a time. Got process \d+ on .*, which holds"):
        list(InTurn(wait=False)([Piece((a,))], Listener(), never))


def test_stopped_nothing_begins_and_what_is_finished_is_heard_of(tmp_path, doing):
    a, b, c = (run(tmp_path, name) for name in "abc")
    finish(c)
    stopped = []
    work = InTurn()([Piece((a,)), Piece((b,)), Piece((a,), truncation=True), Piece((c,))], Listener(), lambda: stopped)
    assert next(work)["run_id"] == "a"
    stopped.append(True)
    assert [record["run_id"] for record in work] == ["c"] and doing == ["a"]


def test_stopped_nobody_waits_for_what_another_holds(tmp_path, doing):
    a = run(tmp_path, "a")
    with lock(a.folder):
        assert list(InTurn()([Piece((a,))], Listener(), lambda: True)) == []


def test_a_lost_worker_costs_a_second_try_and_then_the_run(tmp_path, doing):
    a, b = run(tmp_path, "a"), run(tmp_path, "b")
    listener = Listener()
    agenda = Agenda([Piece((a,)), Piece((b,)), Piece((a,), truncation=True)], listener, never)
    first, _ = agenda.next()
    assert agenda.lost(first, "its process was ended by SIGKILL") == []
    assert listener.lines == ["a: its process was ended by SIGKILL; it is done again"]
    again, _ = agenda.next()
    assert again.runs == (a,), "before the others, as it was"
    [record] = agenda.lost(again, "its process was ended by SIGKILL")
    assert record["run_id"] == "a"
    assert "Got its process was ended by SIGKILL, 2 times. Lower the batch" in record["error"]
    last, _ = agenda.next()
    assert last.runs == (b,)
    finish(b)
    agenda.end(last)
    assert agenda.next() == (None, []) and not agenda, "no functional rank of a run that is not there"
    agenda.close()


def test_a_worker_lost_after_the_record_was_written_costs_nothing(tmp_path, doing):
    a = run(tmp_path, "a")
    agenda = Agenda([Piece((a,))], Listener(), never)
    piece, _ = agenda.next()
    record = finish(a)
    assert agenda.lost(piece, "its process ended with exit code 1") == []
    assert agenda.next() == (None, [record]) and not agenda


def test_a_functional_rank_that_loses_its_workers_is_said_at_the_end(tmp_path, doing):
    a, b = run(tmp_path, "a"), run(tmp_path, "b")
    finish(a)
    agenda = Agenda([Piece((a,), truncation=True), Piece((b,))], Listener(), never)
    for _ in range(2):
        piece, _ = agenda.next()
        assert agenda.lost(piece, "its process was ended by SIGKILL") == []
    other, _ = agenda.next()
    assert other.runs == (b,), "the others are done"
    agenda.end(other)
    with pytest.raises(Unmeasured, match="functional rank of a must be measured. Got its process was ended by SIGKILL"):
        agenda.close()


def test_a_functional_rank_that_cannot_be_measured_does_not_stop_the_others(tmp_path, doing, monkeypatch):
    """A GPU's memory that one model fits in and the measurement does not: whatever no check foresaw."""
    a, b = run(tmp_path, "a"), run(tmp_path, "b")

    def measure(run, observer):
        raise RuntimeError(f"CUDA out of memory at {run.run_id}")

    monkeypatch.setattr(pieces, "measure_truncation", measure)
    listener = Listener()
    found = []
    with pytest.raises(Unmeasured, match=r"functional rank of a must be measured. Got RuntimeError: CUDA out of mem"):
        ranks = (Piece((a,), truncation=True), Piece((b,), truncation=True))
        for record in InTurn()([Piece((a,)), ranks[0], Piece((b,)), ranks[1]], listener, never):
            found.append(record["run_id"])
    assert found == ["a", "b"] and doing == ["a", "b"]
    assert "CUDA out of memory at a" in (a.folder / "error.txt").read_text()
    assert [line.split(". See")[0] for line in listener.lines] == [
        f"rankprobe: warning: functional rank of {x} must be measured. Got RuntimeError: CUDA out of memory at {x}"
        for x in "ab"
    ]


def test_what_a_killed_redo_left_is_removed_where_its_weights_are_no_longer_needed(tmp_path, doing):
    a = run(tmp_path, "a")
    record = finish(a)
    for left in (".again", ".incoming-x1"):
        (a.folder / left / "a").mkdir(parents=True)
    with lock(a.folder):
        assert list(InTurn()([Piece((a,))], Listener(), never)) == [record]
        assert (a.folder / ".again").is_dir(), "someone may be at it"
    assert list(InTurn()([Piece((a,))], Listener(), never)) == [record]
    assert sorted(path.name for path in a.folder.iterdir()) == [".lock", "run.json"] and finished(a.folder) == record


def test_only_those_of_a_pack_whose_weights_are_needed_are_left(tmp_path, doing):
    a, b = run(tmp_path, "a"), run(tmp_path, "b")
    for one in (a, b):
        record = finish(one) | {"weights_kept": False}
        write_atomic(one.folder / "run.json", json.dumps(record))
    piece = Piece((a, b), need_weights=frozenset({"b"}))
    assert piece.unfinished() == (b,) and [record["run_id"] for record in piece.records()] == ["a"]


def test_a_pack_of_which_some_are_done_stays_whole_and_is_heard_of_once(tmp_path, doing):
    """Its finished runs belong to it still: what a kill has left of a pack is trained with the same others."""
    a, b, c = (run(tmp_path, name) for name in "abc")
    finish(b)
    agenda = Agenda([Piece((a, b, c)), Piece((b,), truncation=True)], Listener(), never)
    piece, records = agenda.next()
    assert piece.runs == (a, b, c) and [record["run_id"] for record in records] == ["b"]
    assert agenda.next() == (None, []), "a functional rank waits until the whole pack is over"
    finish(a)
    with lock(c.folder):
        agenda.locked(piece, LockedError("held", "process 1 on there"))
    assert agenda.next() == (None, []), "not asked for again at once"
    while not (found := agenda.next())[0]:
        agenda.pause()
    again, records = found
    assert again.runs == (a, b, c) and [record["run_id"] for record in records] == ["a"], "b was heard of"
    agenda.lost(again, "its process was ended by SIGKILL")
    again, records = agenda.next()
    assert again.runs == (a, b, c) and not records
    finish(b)
    given_up = agenda.lost(again, "its process was ended by SIGKILL")
    assert [(record["run_id"], "error" in record) for record in given_up] == [("c", True)]


def test_a_run_that_another_process_ends_before_it_begins_is_heard_of(tmp_path, doing):
    a = run(tmp_path, "a")
    agenda = Agenda([Piece((a,))], Listener(), never)
    piece, _ = agenda.next()
    record = finish(a)
    assert list(perform(piece, Silent())) == [record]


def test_finished_members_of_a_pack_that_is_given_up_are_heard_of(tmp_path, doing):
    a, b = run(tmp_path, "a"), run(tmp_path, "b")
    agenda = Agenda([Piece((a, b))], Listener(), never)
    for time in range(2):
        piece, records = agenda.next()
        assert not records
        if time:
            finish(a)
        found = agenda.lost(piece, "its process was ended by SIGKILL")
    assert [(record["run_id"], "error" in record) for record in found] == [("a", False), ("b", True)]
