"""Runs of causal language models: full, LoRA and the other methods, on rows with a prompt and without."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rankprobe.experiment import runs
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.models import load_trained
from rankprobe.experiment.runs import execute, trained_predictions
from rankprobe.experiment.store import load_runs
from rankprobe.experiment.truncation import measure_truncation
from rankprobe.report.tables import methods_table
from rankprobe.tasks.load import make_task
from rankprobe.tasks.task import Example
from tests.experiment.test_other_methods import CONFIGURATIONS
from tests.experiment.test_runs import planned

WORDS = "sum of the mean list array index file good bad row column".split()


def rows(n, start):
    """A prompt of three words, and the same three in reverse as its completion."""
    rng = np.random.default_rng(start)
    out = []
    for i in range(n):
        words = list(rng.choice(WORDS, 3))
        out.append(Example(f"row{start + i}", " ".join(words), " " + " ".join(words[::-1]), 0))
    return tuple(out)


@pytest.fixture
def task():
    return make_task("reverse", "eval", rows(96, 0), rows(40, 1000), (), ("perplexity", "token_accuracy"))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["full", "lora", *CONFIGURATIONS])
def test_every_method_trains_a_language_model(tmp_path, task, kind, method):
    if (method, kind) == ("bitfit", "llama"):
        pytest.skip("Llama has no biases: tests of bitfit say so")
    known = {"full": Configuration("full", lr=1e-3), "lora": Configuration("lora", r=2, lr=1e-2), **CONFIGURATIONS}
    run = planned(tmp_path, task, known[method], kind=kind).runs[0]
    record = execute(run)
    assert record["status"] == "ok", record["error"]
    # The tiny Llama's checkpoint has no output layer, and its own is not tied: a new one is what a task trains.
    assert (record["params"]["head"] == 0) is (kind == "gpt2")
    assert record["task"]["majority"] is None
    found = pd.read_csv(run.folder / "predictions.csv")
    perplexity = np.exp(found["score"].sum() / found["label"].sum())
    assert record["metrics"]["perplexity"] == pytest.approx(perplexity)
    assert record["metrics"]["token_accuracy"] == pytest.approx(found["prediction"].sum() / found["label"].sum())
    assert record["metrics"]["loss"] == pytest.approx(np.log(perplexity))
    again = trained_predictions(run, load_trained(run.folder, run.spec, run.source, task))
    np.testing.assert_allclose(again.scores, found["score"], rtol=1e-5)


def test_training_lowers_the_perplexity_and_its_rank_can_be_measured(tmp_path, task):
    run = planned(tmp_path, task, Configuration("full", lr=3e-3), kind="gpt2").runs[0]
    history = execute(run) and pd.read_csv(run.folder / "history.csv")
    assert history["loss"].iloc[-3:].mean() < history["loss"].iloc[:3].mean() - 0.5
    ranks = measure_truncation(run)
    assert len(ranks) and (ranks["n"] == 40).all()


def test_a_table_says_how_much_lower_than_full_a_perplexity_is(tmp_path, task):
    configurations = [Configuration("full", lr=1e-3), Configuration("lora", r=2, lr=1e-2)]
    runs = planned(tmp_path, task, *configurations, kind="gpt2").runs
    for run in runs:
        execute(run)
    table = methods_table(load_runs([run.folder for run in runs])).set_index("method")
    full, lora = table.loc["full"], table.loc["lora"]
    assert lora["metric"] == "perplexity"
    assert lora["diff_vs_full"] == pytest.approx(lora["accuracy_mean"] - full["accuracy_mean"])
    assert lora["accuracy_ci_low"] < lora["accuracy_mean"] < lora["accuracy_ci_high"]


def test_a_perplexity_beyond_all_numbers_has_diverged(tmp_path, task, monkeypatch):
    """exp of a loss above 709 is infinite, which JSON cannot hold and no mean can be made of."""
    run = planned(tmp_path, task, Configuration("lora", r=2, lr=1e-3), kind="gpt2").runs[0]
    predict = runs.trained_predictions

    def far_off(*args):
        found = predict(*args)
        return replace(found, scores=[1e6 for _ in found.scores], loss=800.0)

    monkeypatch.setattr(runs, "trained_predictions", far_off)
    record = execute(run)
    assert record["status"] == "diverged" and record["metrics"] == {}
    assert "perplexity must be finite. Got inf after the last step. Lower the learning rate" in record["error"]
