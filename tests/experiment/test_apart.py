"""What is said of a folder's earlier runs: the settings in which all of them differ from all that are planned."""

import json
from dataclasses import asdict, replace

import pytest

from rankprobe.experiment.apart import settings_apart
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.planned_run import plan_run
from rankprobe.experiment.study import Study
from rankprobe.tasks.load import make_task
from rankprobe.tasks.task import Example
from rankprobe.weights.source import find_model
from tests.tiny_models import make_tiny

HERE = {"dtype": "float32", "device": "cpu", "threads": 2}


@pytest.fixture
def plan(tmp_path):
    """Plans the same two configurations under other settings; the store is always the same."""
    rows = tuple(Example(f"row{i}", f"good list {i}", None, i % 2) for i in range(8))
    task = make_task("toy", "eval", rows, rows, ("no", "yes"), ("accuracy",))
    source = find_model(make_tiny("bert", tmp_path / "base"))

    def make(task_sha256=task.sha256, epochs=1, **place):
        study = Study("toy", (Configuration("full", lr=1e-3, seeds=2), Configuration("lora", r=2)), epochs=epochs)
        of = replace(task, sha256=task_sha256)
        return [plan_run(spec, source, of, tmp_path / "runs") for spec in study.specs(**HERE | place)]

    return make


def records(runs):
    """As run.json has them."""
    return [
        json.loads(json.dumps({"spec": asdict(r.spec), "model": {"sha256": r.source.sha256},
                               "task": {"sha256": r.task.sha256}}))
        for r in runs
    ]  # fmt: skip


def test_what_the_machine_decided_comes_with_the_options_that_bring_finished_runs_back(plan):
    earlier = plan(dtype="bfloat16", threads=1)
    words = "dtype bfloat16, not float32; threads 1, not 2"
    assert settings_apart(records(earlier), plan()) == words, "a clone has no runs, only records"
    done = {"schema": 1, "run_id": earlier[0].run_id, "kind": "train", "status": "ok", "files": {}, "spec": {},
            "weights_kept": False, "model": {}, "task": {}, "params": {}, "metrics": {}, "timings": {}}  # fmt: skip
    earlier[0].folder.mkdir(parents=True)
    (earlier[0].folder / "run.json").write_text(json.dumps(done))
    hint = " (with --dtype bfloat16 --threads 1 they would be used)"
    assert settings_apart(records(earlier), plan()) == words + hint


def test_where_the_study_changed_no_option_would_bring_the_runs_back(plan):
    assert settings_apart(records(plan(epochs=3, threads=1)), plan()) == "epochs 3, not 1; threads 1, not 2"
    said = settings_apart(records(plan(task_sha256="feed" * 16)), plan())
    assert said.startswith("task toy feedfeed, not toy "), "a task of the same name and other rows"


def test_nothing_is_said_of_settings_that_only_some_runs_have_otherwise(plan):
    assert settings_apart(records(plan()), plan()) == ""
    assert settings_apart(records([*plan(threads=1), *plan()]), plan()) == ""
    assert settings_apart(records(plan()[:1]), plan()[1:]) == "", "another seed, another method"
    assert settings_apart([], plan()) == settings_apart(records(plan()), []) == ""
