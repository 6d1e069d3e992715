"""Runs of the methods that LoRA is measured against: what they train, what they leave, and that it can be read back."""

import numpy as np
import pandas as pd
import pytest

from rankprobe.errors import UsageError
from rankprobe.experiment import pairs
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.models import count_parameters, load_trained, prepare
from rankprobe.experiment.pair_files import read_pair
from rankprobe.experiment.pairs import execute_pair, plan_pair
from rankprobe.experiment.runs import execute, trained_predictions
from rankprobe.experiment.spec import METHODS
from rankprobe.experiment.store import finished
from rankprobe.experiment.unmeasured import Unmeasured, unmeasured
from rankprobe.tasks.load import make_task
from rankprobe.weights.run_folder import WHOLE_MODEL
from tests.experiment.test_runs import examples, planned

# Of the tiny models: d = 32, two blocks, each with two norms.
CONFIGURATIONS = {
    "bitfit": Configuration("bitfit", lr=1e-2),
    "top_layers": Configuration("top_layers", layers=1, lr=1e-3),
    "adapter_h": Configuration("adapter_h", bottleneck=3, lr=1e-2),
    "adapter_l": Configuration("adapter_l", bottleneck=3, lr=1e-2),
    "prompt": Configuration("prompt", prefix_length=4, lr=1e-1),
    "prefix": Configuration("prefix", prefix_length=4, lr=1e-2),
    "did": Configuration("did", d=50, lr=1e-2),
    "said": Configuration("said", d=50, lr=1e-2),
}
TRAINED = {"adapter_h": 2 * 2 * (2 * 32 * 3 + 3 + 32) + 2 * 4 * 32, "adapter_l": 2 * (2 * 32 * 3 + 3 + 32) + 2 * 2 * 32,
           "prompt": 4 * 32, "prefix": 2 * 4 * 32, "did": 50, "said": 50}  # fmt: skip


@pytest.fixture
def task():
    return make_task("toy", "eval", examples(96), examples(60, 1000), ("no", "yes"), ("accuracy",))


def test_every_method_is_tried_here_or_in_test_runs():
    assert set(CONFIGURATIONS) | {"full", "head", "lora"} == set(METHODS)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("method", CONFIGURATIONS)
def test_a_run_of_every_other_method(tmp_path, task, kind, method):
    if (method, kind) == ("bitfit", "llama"):
        pytest.skip("Llama has no biases: tests of bitfit say so")
    run = planned(tmp_path, task, CONFIGURATIONS[method], kind=kind).runs[0]
    record = execute(run)
    assert record["status"] == "ok", record["error"]
    if method in TRAINED and kind != "llama":
        assert record["params"]["method"] == TRAINED[method]
    full = count_parameters(prepare(planned(tmp_path, task, Configuration("full", lr=1e-3), kind=kind).runs[0].spec,
                                    run.source, task))  # fmt: skip
    assert record["params"]["total"] == full["total"], "what a method adds is not the base's"
    predictions = pd.read_csv(run.folder / "predictions.csv")
    again = trained_predictions(run, load_trained(run.folder, run.spec, run.source, task))
    assert (again.predictions == predictions["prediction"]).all()
    np.testing.assert_allclose(again.scores, predictions["score"], atol=1e-5)
    assert (run.folder / "model").is_dir() is (method in WHOLE_MODEL)
    assert (run.folder / "ranks.csv").exists() is (method == "top_layers")
    # Training did something: an untrained copy predicts otherwise.
    fresh = trained_predictions(run, prepare(run.spec, run.source, task))
    assert np.abs(fresh.scores - predictions["score"]).max() > 1e-4


def test_the_last_layers_alone_have_updates(tmp_path, task):
    run = planned(tmp_path, task, CONFIGURATIONS["top_layers"]).runs[0]
    execute(run)
    ranks = pd.read_csv(run.folder / "ranks.csv")
    assert set(ranks["layer"].dropna()) == {1} and (ranks.loc[ranks["layer"] == 1, "fro_norm"] > 0).all()


@pytest.mark.parametrize(
    "configuration, message",
    [
        (Configuration("top_layers", layers=3, lr=1e-3), "layers must be from 1 to the model's 2 blocks. Got 3"),
        (Configuration("prefix", prefix_length=500, lr=1e-3), "prefix_length must be at most"),
        (Configuration("did", d=10**9, lr=1e-3), "d must be .* Got 1000000000"),
        (Configuration("said", d=3, lr=1e-3), "d must be above the number of layers, 3"),
    ],
)
def test_a_size_that_does_not_fit_is_refused(tmp_path, task, configuration, message):
    run = planned(tmp_path, task, configuration).runs[0]
    with pytest.raises(UsageError, match=message):
        execute(run)
    assert not (run.folder / "run.json").exists()


def test_a_pair_of_runs_is_compared_once(tmp_path, task, monkeypatch):
    configurations = [Configuration("lora", r=r, lr=1e-2) for r in (1, 4)] + [Configuration("full", lr=1e-3)]
    runs = planned(tmp_path, task, *configurations).runs
    for run in runs:
        execute(run)
    plan = plan_pair("r1-r4", runs[0], runs[1], tmp_path / "runs", of="A")
    with pytest.raises(Unmeasured), monkeypatch.context() as patch, unmeasured("pair", plan.folder / "error.txt"):
        patch.setattr(pairs, "compare", lambda *args, **settings: [][0])
        execute_pair(plan)
    assert "IndexError" in (plan.folder / "error.txt").read_text()
    found = execute_pair(plan)
    assert finished(plan.folder) and not (plan.folder / "error.txt").exists()
    assert set(found["amplification"]["lora_r"]) == {1, 4} and (found["amplification"]["method"] == "lora").all()
    assert found["intruders"].loc[found["intruders"]["side"] == "W0", "method"].isna().all()
    assert str(tmp_path) not in (plan.folder / "run.json").read_text()
    before = (plan.folder / "run.json").stat().st_mtime_ns
    execute_pair(plan)
    assert (plan.folder / "run.json").stat().st_mtime_ns == before
    (plan.folder / "overlap.csv").unlink()
    assert read_pair(plan.folder) is None, "a folder without all of its files is unfinished"
    assert len(execute_pair(plan)["overlap"])
    dense = execute_pair(plan_pair("r1-full", runs[0], runs[2], tmp_path / "runs"))
    assert set(dense["intruders"]["method"].dropna()) == {"lora", "full"}


def test_a_pair_whose_weights_were_dropped_is_refused(tmp_path, task):
    runs = planned(tmp_path, task, Configuration("lora", r=1, lr=1e-2), Configuration("lora", r=2, lr=1e-2)).runs
    execute(runs[0], keep_weights=False)
    execute(runs[1])
    plan = plan_pair("r1-r2", runs[0], runs[1], tmp_path / "runs")
    with pytest.raises(UsageError, match="have its weights beside its record"):
        execute_pair(plan)
    assert not (plan.folder / "run.json").exists()
