"""Packs of runs: folders and records like lone runs', what is left after a crash, which runs go together, refusals."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from rankprobe.errors import UsageError, WorkError
from rankprobe.experiment import pack as pack_module
from rankprobe.experiment import pack_model
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.models import load_trained
from rankprobe.experiment.pack import execute_pack
from rankprobe.experiment.pack_groups import check_pack, pack_groups
from rankprobe.experiment.pack_timing import measure_pack
from rankprobe.experiment.planned_run import plan_run
from rankprobe.experiment.runs import execute, trained_predictions
from rankprobe.experiment.store import finished, load_runs, lock
from rankprobe.experiment.study import Study
from rankprobe.report.tables import methods_table
from rankprobe.tasks.load import make_task
from rankprobe.weights.pretrained import find_model
from tests.experiment.test_language_runs import rows as language_rows
from tests.experiment.test_runs import PLACE, examples
from tests.tiny_models import make_tiny

CONFIGURATIONS = (
    Configuration("lora", r=1, lr=1e-2, seeds=2),
    Configuration("lora", r=4, alpha=4.0, lr=5e-3),
    Configuration("lora", r=3, lr=1e-2, rslora=True),
)


@pytest.fixture
def task():
    return make_task("toy", "eval", examples(90), examples(60, 1000), ("no", "yes"), ("accuracy",))


def planned(tmp_path, task, *configurations, kind="bert", runs="runs", **settings):
    source = find_model(make_tiny(kind, tmp_path / "base"))
    study = Study("toy", configurations or CONFIGURATIONS, epochs=2, batch_size=16, max_length=16, **settings)
    return [plan_run(spec, source, task, tmp_path / runs) for spec in study.specs(**PLACE)]


def elsewhere(runs, folder):
    """The same runs in another store."""
    return [replace(run, folder=folder / run.run_id) for run in runs]


class Seen:
    """An observer that keeps the stages' names, and may raise at one."""

    def __init__(self, at=None, error=KeyboardInterrupt):
        self.at, self.error, self.stages = at, error, []

    def begin(self, label, steps):
        pass

    def stage(self, name, done, total, note=""):
        self.stages.append((name, done, note))
        if self.at == (name, sum(1 for stage, *_ in self.stages if stage == name)):
            raise self.error


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama"])
def test_members_are_as_lone_runs(tmp_path, task, kind):
    runs = planned(tmp_path, task, kind=kind)
    alone = [execute(run) for run in elsewhere(runs, tmp_path / "alone")]
    together = execute_pack(runs)
    for run, theirs, ours in zip(runs, alone, together, strict=True):
        assert ours["status"] == "ok", ours["error"]
        assert ours == finished(run.folder, need_weights=True) == json.loads((run.folder / "run.json").read_text())
        assert {*ours} - {*theirs} == {"pack"} and {*theirs} <= {*ours}
        for name in set(theirs) - {"started", "metrics", "timings", "files"}:
            assert ours[name] == theirs[name], name
        assert ours["metrics"]["accuracy"] == theirs["metrics"]["accuracy"]
        assert ours["metrics"]["loss"] == pytest.approx(theirs["metrics"]["loss"], abs=1e-5)
        assert set(ours["files"]) == set(theirs["files"])
        other = tmp_path / "alone" / run.run_id
        first, second = (pd.read_csv(folder / "predictions.csv") for folder in (run.folder, other))
        assert (first["prediction"] == second["prediction"]).all() and (first["row"] == second["row"]).all()
        np.testing.assert_allclose(first["score"], second["score"], atol=1e-5)
        history, lone = (pd.read_csv(folder / "history.csv") for folder in (run.folder, other))
        np.testing.assert_allclose(history["loss"], lone["loss"], atol=1e-5)
        assert list(history.columns) == list(lone.columns)
        spectra, theirs_spectra = (pd.read_csv(folder / "spectra.csv") for folder in (run.folder, other))
        assert (spectra["name"] == theirs_spectra["name"]).all()
        np.testing.assert_allclose(spectra["sigma"], theirs_spectra["sigma"], rtol=1e-3, atol=1e-5)
        # What is on disk is what was evaluated, under the lone run's own PEFT config.
        again = trained_predictions(run, load_trained(run.folder, run.spec, run.source, task))
        assert (again.predictions == first["prediction"]).all()
        config = "adapter/adapter_config.json"
        assert (run.folder / config).read_bytes() == (other / config).read_bytes()
        assert str(tmp_path) not in (run.folder / "run.json").read_text()


def test_a_record_says_what_it_was_packed_with_and_shares_add_up(tmp_path, task):
    runs = planned(tmp_path, task)
    records = execute_pack(runs)
    for record in records:
        assert record["pack"] == records[0]["pack"]
        assert record["timings"]["peak_memory_bytes"] is None
        assert record["timings"]["tokens_per_s"] > 0 and record["timings"]["eval_time_s"] > 0
    assert records[0]["pack"]["size"] == 4 and records[0]["pack"]["runs"] == [run.run_id for run in runs]
    assert records[0]["pack"]["peak_memory_bytes"] > 2**20
    shares = sum(record["timings"]["train_time_s"] for record in records)
    assert shares == pytest.approx(records[0]["pack"]["train_time_s"])
    table = methods_table(load_runs([run.folder for run in runs]))
    assert table[["peak_memory_bytes", "train_time_s", "tokens_per_s"]].isna().all(axis=None) and len(table) == 3


def test_a_language_model_is_packed_too(tmp_path):
    task = make_task(
        "reverse", "eval", language_rows(60, 0), language_rows(30, 1000), (), ("perplexity", "token_accuracy")
    )
    for kind in ("gpt2", "llama"):  # without a head, and with an output layer that the checkpoint lacks
        runs = planned(tmp_path / kind, task, kind=kind)
        alone = [execute(run) for run in elsewhere(runs, tmp_path / kind / "alone")]
        for theirs, ours in zip(alone, execute_pack(runs), strict=True):
            assert ours["params"] == theirs["params"]
            assert ours["metrics"]["token_accuracy"] == theirs["metrics"]["token_accuracy"]
            assert ours["metrics"]["perplexity"] == pytest.approx(theirs["metrics"]["perplexity"], rel=1e-5)


def test_a_regression_task_is_packed_too(tmp_path):
    rows = [tuple(replace(e, label=float(e.label)) for e in part) for part in (examples(60), examples(40, 1000))]
    runs = planned(tmp_path, make_task("score", "eval", *rows, (), ("pearson",)))
    alone = [execute(run) for run in elsewhere(runs, tmp_path / "alone")]
    for theirs, ours in zip(alone, execute_pack(runs), strict=True):
        assert ours["metrics"]["pearson"] == pytest.approx(theirs["metrics"]["pearson"], abs=1e-4)


def test_one_that_diverges_is_recorded_and_the_others_are_as_lone_runs(tmp_path, task):
    runs = planned(tmp_path, task, *CONFIGURATIONS[1:], Configuration("lora", r=2, lr=1e30))
    alone = [execute(run) for run in elsewhere(runs, tmp_path / "alone")]
    records = execute_pack(runs)
    assert [r["status"] for r in records] == ["ok", "ok", "diverged"] == [r["status"] for r in alone]
    assert records[2]["error"] == alone[2]["error"] and records[2]["metrics"] == {}
    assert records[2]["params"] == alone[2]["params"] and not (runs[2].folder / "adapter").exists()
    assert [r["metrics"].get("accuracy") for r in records] == [r["metrics"].get("accuracy") for r in alone]


# Crashes, and taking up again


def test_a_crash_in_training_leaves_no_record(tmp_path, task):
    runs = planned(tmp_path, task)
    with pytest.raises(KeyboardInterrupt):
        execute_pack(runs, observer=Seen(at=("train", 5)))
    assert not any((run.folder / "run.json").exists() for run in runs)
    assert all(record["status"] == "ok" for record in execute_pack(runs))


def test_a_crash_after_some_were_recorded_ends_with_the_same_bytes(tmp_path, task):
    undisturbed = elsewhere(planned(tmp_path, task), tmp_path / "undisturbed")
    execute_pack(undisturbed)
    runs = planned(tmp_path, task)
    with pytest.raises(KeyboardInterrupt):
        execute_pack(runs, observer=Seen(at=("evaluate", 3)))
    there = [finished(run.folder) for run in runs]
    assert [bool(record) for record in there] == [True, True, False, False]
    before = [(run.folder / "run.json").read_bytes() for run in runs[:2]]
    records = execute_pack(runs)
    assert records[:2] == there[:2] and [(run.folder / "run.json").read_bytes() for run in runs[:2]] == before
    assert records[2]["pack"]["runs"] == [run.run_id for run in runs]
    for run, other in zip(runs, undisturbed, strict=True):
        for name in ("predictions.csv", "history.csv", "spectra.csv", "adapter/adapter_model.safetensors"):
            assert (run.folder / name).read_bytes() == (other.folder / name).read_bytes(), (run.run_id, name)


def test_finished_runs_are_left_out_and_a_last_one_is_done_alone(tmp_path, task):
    runs = planned(tmp_path, task)
    lone = execute(runs[1])
    records = execute_pack(runs)
    assert records[1] == lone and "pack" not in lone
    assert records[0]["pack"]["runs"] == [runs[0].run_id, runs[2].run_id, runs[3].run_id]
    seen = Seen()
    assert execute_pack(runs, observer=seen) == records and not seen.stages
    others = elsewhere(runs[:2], tmp_path / "others")
    execute(others[0])
    assert "pack" not in execute_pack(others)[1]
    assert (others[1].folder / "predictions.csv").read_bytes() == (runs[1].folder / "predictions.csv").read_bytes()


def test_what_no_check_foresaw_fails_every_run_that_is_left(tmp_path, task):
    runs = planned(tmp_path, task)
    records = execute_pack(runs, observer=Seen(at=("train", 2), error=RuntimeError(f"boom in {tmp_path}/x")))
    assert {r["status"] for r in records} == {"failed"} and {r["error"] for r in records} == {"RuntimeError: boom in x"}
    assert all("boom" in (run.folder / "error.txt").read_text() for run in runs)
    assert all(record["status"] == "ok" for record in execute_pack(runs))


def test_what_goes_wrong_with_one_member_is_its_own(tmp_path, task):
    runs = planned(tmp_path, task)
    records = execute_pack(runs, observer=Seen(at=("evaluate", 2), error=RuntimeError("boom")))
    assert [r["status"] for r in records] == ["ok", "failed", "ok", "ok"]
    again = execute_pack(runs)
    assert [r["status"] for r in again] == ["ok"] * 4 and again[0] == records[0]
    assert again[1]["pack"] == records[0]["pack"] | {
        key: again[1]["pack"][key] for key in ("train_time_s", "peak_memory_bytes")
    }


def test_a_run_that_another_process_holds_is_refused(tmp_path, task):
    runs = planned(tmp_path, task)
    with lock(runs[2].folder), pytest.raises(WorkError, match="be used by one process at a time"):
        execute_pack(runs)
    assert not any((run.folder / "run.json").exists() for run in runs)


def test_a_gpu_that_is_full_is_said_in_one_line(tmp_path, task, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    runs = planned(tmp_path, task)
    monkeypatch.setattr(pack_module, "train_packed", full)
    message = r"A pack must fit the device's memory\. Got 4 runs, and: CUDA out of memory\..*GiB\.\. Pass --pack 2 with"
    with pytest.raises(WorkError, match=message):
        execute_pack(runs)
    assert not any((run.folder / "run.json").exists() for run in runs)


# Which runs, and whether


def test_groups_are_of_runs_that_differ_in_what_a_member_may(tmp_path, task):
    runs = planned(
        tmp_path, task,
        Configuration("lora", r=1, lr=1e-2, seeds=3), Configuration("full", lr=1e-3),
        Configuration("lora", r=8, lr=2e-2, alpha=3.0, rslora=True, seeds=2),
        Configuration("lora", r=2, lr=1e-2, targets="q,k"), Configuration("lora", r=2, lr=1e-2, dropout=0.1),
    )  # fmt: skip
    same = [run for run in runs if run.spec.targets == "q,v" and not run.spec.dropout]
    assert len(same) == 5
    assert pack_groups(runs, 8) == [tuple(same)]
    assert pack_groups(runs, 4) == [tuple(same[:2]), tuple(same[2:])], "2 and 3 rather than 4 and 1"
    assert pack_groups(runs, 1) == []
    other = [replace(run, spec=replace(run.spec, epochs=3), folder=tmp_path / f"{run.run_id}-3") for run in same]
    assert pack_groups([*same, *other], 8) == [tuple(same), tuple(other)]
    assert pack_groups(planned(tmp_path, task, model_dropout=0.1), 8) == []
    with pytest.raises(UsageError, match="the size of packs must be at least 1. Got 0"):
        pack_groups(runs, 0)
    for group in pack_groups(runs, 4):
        check_pack(group)


def test_runs_that_do_not_go_together_are_refused(tmp_path, task):
    runs = planned(tmp_path, task)
    other = make_task("toy", "eval", examples(91), examples(60, 1000), ("no", "yes"), ("accuracy",))
    cases = [
        ([], "a pack must have at least one run"),
        ([*runs, runs[0]], "each be there once. Got 5 with one twice"),
        ([runs[0], replace(runs[1], spec=replace(runs[1].spec, epochs=3))], "share epochs. Got 2 and 3. Put them"),
        ([runs[0], replace(runs[1], spec=replace(runs[1].spec, batch_size=8))], "share batch_size. Got 16 and 8"),
        ([runs[0], replace(runs[1], task=other)], "share the task's content. Got"),
        ([runs[0], replace(runs[1], spec=replace(runs[1].spec, dropout=0.2))], "be without dropout. Got 0.2 on LoRA's"),
        (planned(tmp_path, task, Configuration("full", lr=1e-3)), "be of the method lora. Got full. Do that one alone"),
    ]
    for pack, message in cases:
        with pytest.raises(UsageError, match=message):
            execute_pack(pack)
    assert not (tmp_path / "runs").exists()


def test_members_that_adapt_different_matrices_can_be_asked_for(tmp_path, task):
    runs = planned(tmp_path, task, CONFIGURATIONS[1], Configuration("lora", r=2, lr=1e-2, targets="v,o,down"))
    alone = [execute(run) for run in elsewhere(runs, tmp_path / "alone")]
    for theirs, ours in zip(alone, execute_pack(runs), strict=True):
        assert ours["params"] == theirs["params"] and set(ours["files"]) == set(theirs["files"])
        assert ours["metrics"]["accuracy"] == theirs["metrics"]["accuracy"]


def test_a_mistake_leaves_no_record(tmp_path, task):
    runs = planned(tmp_path, task, CONFIGURATIONS[1], Configuration("lora", r=999, lr=1e-2))
    with pytest.raises(UsageError, match="r must be from 1"):
        execute_pack(runs)
    deberta = planned(tmp_path / "d", task, kind="deberta-v2")
    for work in (execute_pack, measure_pack):
        with pytest.raises(UsageError, match="layers get the batch's .* --pack off"):
            work(deberta)
    assert not any((run.folder / "run.json").exists() for run in [*runs, *deberta])


def test_a_base_is_loaded_once_a_seed(tmp_path, task, monkeypatch):
    loads = []
    load_base = pack_model.load_base
    monkeypatch.setattr(pack_model, "load_base", lambda spec, *rest: loads.append(spec.seed) or load_base(spec, *rest))
    execute_pack(planned(tmp_path, task))
    assert loads == [0, 1]


def test_packing_is_timed_in_turns_and_leaves_nothing(tmp_path, task):
    runs = planned(tmp_path, task)
    timing = measure_pack(runs, steps=2, rounds=3)
    assert timing.members == 4 and len(timing.speedups) == 3
    assert timing.lone_step_s > 0 and timing.packed_step_s > 0
    assert all(speedup > 0 for speedup in timing.speedups)
    assert not (tmp_path / "runs").exists()
    small = make_task("few", "eval", examples(10), examples(5, 1000), ("no", "yes"), ("accuracy",))
    assert measure_pack(planned(tmp_path, small), steps=2, rounds=1).packed_step_s > 0
