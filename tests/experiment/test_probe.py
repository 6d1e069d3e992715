"""How long runs will take: measured on a few steps, written nowhere, once for each kind of run."""


import pytest

from rankprobe.experiment import probe
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.probe import Pace, expected_seconds, measure_pace
from rankprobe.experiment.runs import execute
from tests.experiment.test_runs import planned, task  # noqa: F401  (the fixture)


def test_a_run_takes_loading_its_steps_and_its_rows(tmp_path, task):  # noqa: F811
    (run,) = planned(tmp_path, task, Configuration("head", lr=1e-2)).runs
    assert run.steps == 18 and len(run.task.eval) == 60
    assert Pace(load_s=1.0, step_s=0.5, row_s=0.1).seconds(run) == pytest.approx(1 + 9 + 6)


@pytest.mark.parametrize(
    "configuration",
    [Configuration("full", lr=1e-3), Configuration("lora", r=2, lr=1e-2), Configuration("head", lr=1.0)],
)
def test_the_pace_is_that_of_the_run(tmp_path, task, configuration):  # noqa: F811
    """Within a factor that even this machine's stalls do not reach; and nothing is left behind."""
    (run,) = planned(tmp_path, task, configuration).runs
    pace = measure_pace(run)
    assert not run.folder.exists()
    assert pace.load_s > 0 and pace.step_s > 0 and pace.row_s > 0
    took = execute(run)["timings"]["train_time_s"]
    assert took / 20 < pace.step_s * run.steps < took * 20


def test_one_probe_for_each_method_and_none_for_finished_runs(tmp_path, task, monkeypatch):  # noqa: F811
    runs = planned(
        tmp_path, task, Configuration("lora", r=1, lr=1e-2), Configuration("lora", r=4, lr=1e-2, seeds=2),
        Configuration("head", lr=1e-2),
    ).runs  # fmt: skip
    probed = []

    def pace(run):
        probed.append((run.spec.method, run.spec.r))
        return Pace(0.0, 1.0 if run.spec.method == "lora" else 0.5, 0.0)

    monkeypatch.setattr(probe, "measure_pace", pace)
    expected = expected_seconds(runs)
    assert sorted(probed, key=str) == [("head", None), ("lora", 4)], "the largest r stands for the others"
    assert {run.spec.label: expected[run.run_id] for run in runs} == {
        "LoRA r=1 q,v seed 0": 18.0, "LoRA r=4 q,v seed 0": 18.0, "LoRA r=4 q,v seed 1": 18.0, "head only seed 0": 9.0,
    }  # fmt: skip
