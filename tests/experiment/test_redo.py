"""A finished run that is done again for its weights: nothing of it is lost before the new one is whole."""

import json
from pathlib import Path

import pytest

from rankprobe.experiment import runs as runs_module
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.observer import Silent
from rankprobe.experiment.pack import execute_pack
from rankprobe.experiment.pieces import Agenda, Piece
from rankprobe.experiment.runs import execute
from rankprobe.experiment.store import finished, lock
from rankprobe.experiment.truncation import measure_truncation
from rankprobe.tasks.load import make_task
from tests.experiment.test_runs import examples, planned

LORA = Configuration("lora", r=2, lr=1e-2)


@pytest.fixture
def task():
    return make_task("toy", "eval", examples(40), examples(20, 1000), ("no", "yes"), ("accuracy",))


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failing(error):
    def save(*args):
        raise error

    return save


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), RuntimeError("a bug")])
def test_what_there_is_stays_when_the_redo_comes_to_nothing(tmp_path, task, monkeypatch, error):
    run = planned(tmp_path, task, LORA).runs[0]
    record = execute(run, keep_weights=False)
    before = content(run.folder)
    with monkeypatch.context() as patch:
        patch.setattr(runs_module, "save_trained", failing(error))
        if isinstance(error, RuntimeError):
            assert execute(run, need_weights=True)["status"] == "failed"
            assert "a bug" in (run.folder / "error.txt").read_text()
            del (left := content(run.folder))[Path("error.txt")]
        else:
            with pytest.raises(type(error)):
                execute(run, need_weights=True)
            left = content(run.folder)
    assert left == before and finished(run.folder) == record
    again = execute(run, need_weights=True)
    assert again["weights_kept"] and again["run_id"] == run.run_id and finished(run.folder, need_weights=True) == again
    assert {path.name for path in run.folder.iterdir() if path.name != ".lock"} == {
        "run.json", "predictions.csv", "history.csv", "ranks.csv", "spectra.csv", "adapter",
    }  # fmt: skip


def test_a_redo_that_loses_its_workers_failed_and_what_there_is_stays(tmp_path, task):
    run = planned(tmp_path, task, LORA).runs[0]
    record = execute(run, keep_weights=False)
    before = content(run.folder)
    agenda = Agenda([Piece((run,), need_weights=frozenset({run.run_id}))], Silent(), lambda: False)
    for lost in (1, 2):
        piece, records = agenda.next()
        assert records == []
        with lock(run.folder):  # as its worker was when it was killed
            (run.folder / ".again" / run.run_id).mkdir(parents=True, exist_ok=True)
        failures = agenda.lost(piece, "its process was ended by SIGKILL")
        assert len(failures) == lost - 1
    assert failures[0]["status"] == "failed" and "SIGKILL, 2 times" in failures[0]["error"] and not agenda
    left = content(run.folder)
    assert left.pop(Path("error.txt")).decode().strip() == failures[0]["error"]
    assert left == before and finished(run.folder) == record
    assert execute(run, need_weights=True)["weights_kept"]
    assert not (run.folder / "error.txt").exists() and not (run.folder / ".again").exists()


def test_a_functional_rank_stays_where_the_redo_predicts_the_same(tmp_path, task):
    run = planned(tmp_path, task, LORA).runs[0]
    execute(run)
    measure_truncation(run)
    measured = (run.folder / "functional_rank.csv").stat()
    record = json.loads((run.folder / "run.json").read_text())
    dropped = record | {"weights_kept": False}

    def drop(predictions):
        (run.folder / "predictions.csv").write_text(predictions)
        sizes = {name: (run.folder / name).stat().st_size for name in record["files"]}
        (run.folder / "run.json").write_text(json.dumps(dropped | {"files": sizes}))

    predictions = (run.folder / "predictions.csv").read_text()
    drop(predictions)
    assert execute(run, need_weights=True)["weights_kept"]
    assert (run.folder / "functional_rank.csv").stat() == measured and (run.folder / "truncation.csv").is_file()
    drop(predictions.replace("row1000", "row9999"))  # another machine's
    execute(run, need_weights=True)
    assert not (run.folder / "functional_rank.csv").exists() and not (run.folder / "truncation.csv").exists()
    assert (run.folder / "predictions.csv").read_text() == predictions


def test_of_a_pack_one_member_is_done_again_and_ends_as_it_was(tmp_path, task):
    runs = planned(tmp_path, task, LORA, Configuration("lora", r=1, lr=1e-2)).runs
    first = execute_pack(runs, keep_weights=False)
    before = content(runs[0].folder)
    again = execute_pack(runs, need_weights={runs[1].run_id})
    assert content(runs[0].folder) == before, "its weights are not needed"
    assert again[0] == first[0] and again[1]["weights_kept"]
    assert again[1]["metrics"] == first[1]["metrics"] and again[1]["pack"]["runs"] == first[1]["pack"]["runs"]
    assert finished(runs[1].folder, need_weights=True) == again[1]
