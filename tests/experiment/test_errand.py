"""A piece done elsewhere: in a store that is seen, or in a folder that comes back; and what is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rankprobe.errors import UsageError, WorkError
from rankprobe.experiment import errand as errands
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.errand import (
    Errand,
    install,
    install_error,
    on_this_machine,
    read_files,
    run_errand,
    wait_until_seen,
)  # fmt: skip
from rankprobe.experiment.pieces import Piece
from rankprobe.experiment.runs import execute
from rankprobe.experiment.store import LockedError, finished, lock
from rankprobe.experiment.truncation import truncation_done
from rankprobe.experiment.unmeasured import Unmeasured
from tests.experiment.test_jobs import FULL, HEAD, base, planned, task, unmeasurable  # noqa: F401 (fixtures)


def errand(piece, *, seen, sent=None):
    store = piece.runs[0].folder.parent
    store.mkdir(parents=True, exist_ok=True)
    (store / ".probe").write_text("token" if seen else "another machine's")
    return Errand.of(piece, ".probe", "token", sent)


def shared(run):
    return run.source, run.task


@pytest.fixture
def full(tmp_path, base, task):  # noqa: F811
    return planned(tmp_path / "runs", base, task, replace(FULL, seeds=1), truncate=("full",)).runs[0]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


def test_seen_or_sent_back_the_folder_is_the_same(tmp_path, full):
    away = replace(full, folder=tmp_path / "elsewhere" / full.run_id)
    in_place = run_errand(errand(Piece((full,)), seen=True), shared(full))
    assert in_place.what == "end" and not in_place.made and finished(full.folder) == in_place.records[0]
    answer = run_errand(errand(Piece((away,)), seen=False), shared(away))
    assert answer.what == "end" and answer.records[0]["status"] == "ok"
    assert not away.folder.exists(), "nothing is written into the store before all is there"
    install(Piece((away,)), answer.made)
    assert finished(away.folder, need_weights=True) == answer.records[0]
    assert contents(away.folder) == contents(full.folder) and len(contents(full.folder)) >= 3
    assert {path.name for path in away.folder.glob(".*")} == {".lock"}
    # Functional rank: the folder is sent along where it is not seen.
    rank = Piece((away,), truncation=True)
    assert run_errand(errand(rank, seen=False), shared(away)).what == "send" and not truncation_done(away)
    sent = {away.run_id: read_files(away.folder)}
    answer = run_errand(errand(rank, seen=False, sent=sent), shared(away))
    assert answer.what == "end" and set(answer.made[away.run_id]) == {"truncation.csv", "functional_rank.csv"}
    install(rank, answer.made)
    assert run_errand(errand(Piece((full,), truncation=True), seen=True), shared(full)).what == "end"
    assert contents(away.folder) == contents(full.folder) and truncation_done(full)


def test_a_pack_takes_its_finished_members_along(tmp_path, base, task):  # noqa: F811
    """Or they would be trained again, and what is left summed with others than in a store that is seen."""
    pack = tuple(planned(tmp_path / "runs", base, task, Configuration("lora", r=2, lr=1e-2, seeds=2)).runs)
    [first] = run_errand(errand(Piece(pack[:1]), seen=True), shared(pack[0])).records
    piece = Piece(pack)
    assert run_errand(errand(piece, seen=False), shared(pack[0])).what == "send"
    sent = {first["run_id"]: read_files(pack[0].folder)}
    answer = run_errand(errand(piece, seen=False, sent=sent), shared(pack[0]))
    assert answer.what == "end" and answer.records[0] == first and "pack" not in answer.records[1]
    install(piece, answer.made)
    assert finished(pack[1].folder) == answer.records[1]


def test_installing_ends_with_the_record_and_leaves_finished_runs_alone(tmp_path, base, task, monkeypatch):  # noqa: F811
    run = planned(tmp_path / "runs", base, task, HEAD).runs[0]
    made = run_errand(errand(Piece((run,)), seen=False), shared(run)).made
    (run.folder / "model").mkdir(parents=True)
    (run.folder / "model" / "half").write_text("of a killed run")
    import os

    replaced = os.replace
    moved = []

    def killed(source, target):
        moved.append(Path(target).name)
        if Path(target).name == "run.json":
            raise KeyboardInterrupt
        replaced(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        install(Piece((run,)), made)
    assert moved[-1] == "run.json" and finished(run.folder) is None and not (run.folder / "model").exists()
    monkeypatch.undo()
    with lock(run.folder), pytest.raises(LockedError):
        install(Piece((run,)), made)
    install(Piece((run,)), made)
    before = (run.folder / "run.json").stat().st_mtime_ns
    install(Piece((run,)), made)
    assert (run.folder / "run.json").stat().st_mtime_ns == before
    with pytest.raises(WorkError, match="must lie in its folder"):
        install(Piece((replace(run, folder=tmp_path / "b" / run.run_id),)), {run.run_id: {"../run.json": b""}})


def test_what_goes_wrong_is_an_answer(tmp_path, base, task):  # noqa: F811
    run = planned(tmp_path / "runs", base, task, HEAD).runs[0]
    with lock(run.folder):
        held = run_errand(errand(Piece((run,)), seen=True), shared(run))
    assert held.what == "locked" and isinstance(held.error, LockedError) and held.error.holder.startswith("process ")
    old = replace(errand(Piece((run,)), seen=True), version="0.0.1")
    answer = run_errand(old, shared(run))
    assert answer.what == "error" and isinstance(answer.error, WorkError)
    assert "rankprobe must be the same on every node. Got" in str(answer.error)
    wrong = replace(run, spec=replace(run.spec, method="lora", r=999, alpha=1.0, targets="q"))
    assert isinstance(run_errand(errand(Piece((wrong,)), seen=True), shared(run)).error, UsageError)


def test_why_a_functional_rank_could_not_be_measured_lies_in_the_store_either_way(tmp_path, full):
    [_] = run_errand(errand(Piece((full,)), seen=True), shared(full)).records
    piece, file = unmeasurable(full), full.folder / "error.txt"
    (full.folder / ".again").mkdir()
    (full.folder / ".again" / "half").write_text("of a redo that was killed: stays here")
    sent = {full.run_id: read_files(full.folder)}
    assert "run.json" in sent[full.run_id] and not any("half" in name for name in sent[full.run_id])
    for seen in (True, False):
        answer = run_errand(errand(piece, seen=seen, sent=sent), shared(full))
        assert answer.what == "error" and isinstance(answer.error, Unmeasured)
        assert f"See {file}; the same command tries again" in str(answer.error)
        install_error(piece, answer.made)
        assert "set_num_threads" in file.read_text()
    rank = Piece((full,), truncation=True)
    answer = run_errand(errand(rank, seen=False, sent={full.run_id: read_files(full.folder)}), shared(full))
    assert answer.what == "end" and set(answer.made[full.run_id]) == {"truncation.csv", "functional_rank.csv"}
    install(rank, answer.made)
    assert truncation_done(full) and not file.exists()


def test_a_redo_is_waited_for_until_its_weights_are_seen(tmp_path, base, task, monkeypatch):  # noqa: F811
    run = planned(tmp_path / "runs", base, task, HEAD).runs[0]
    monkeypatch.setattr(errands, "_SEEN_S", 0.3)
    old = execute(run, keep_weights=False)
    piece = Piece((run,), need_weights=frozenset({run.run_id}))
    with pytest.raises(WorkError, match="the run store must show what a node wrote into it"):
        wait_until_seen(piece, [old | {"weights_kept": True}])
    for status in ("failed", "diverged"):
        wait_until_seen(piece, [old | {"status": status}])  # what there was stays: there is nothing to wait for
    new = execute(run, need_weights=True)
    wait_until_seen(piece, [new])
    wait_until_seen(Piece((run,)), [new])


def test_the_model_has_to_be_on_the_other_machine(tmp_path, base):  # noqa: F811
    assert on_this_machine(base) == base
    gone = replace(base, path=tmp_path / "nowhere")
    with pytest.raises(WorkError, match=r"model base must be on every node. Got .* without it at .*nowhere. Put it"):
        on_this_machine(gone)
    shutil.copytree(base.path, tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 2'))
    with pytest.raises(WorkError, match="with other weights at"):
        on_this_machine(replace(base, path=tmp_path / "other"))
