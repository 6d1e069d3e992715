"""Runs from end to end on tiny models: what a folder holds, that it is repeatable, that truncation's ends agree."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from rankprobe.errors import UsageError
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.fit import parameter_counts
from rankprobe.experiment.latency import execute_latency, plan_latency
from rankprobe.experiment.models import count_parameters, load_base, load_trained, prepare, set_dropout
from rankprobe.experiment.planned_run import plan_run
from rankprobe.experiment.runs import execute, trained_predictions
from rankprobe.experiment.store import finished, load_runs
from rankprobe.experiment.study import Study
from rankprobe.experiment.sweep import PlannedStudy, run_study
from rankprobe.experiment.truncation import measure_truncation
from rankprobe.methods.lora import lora_deltas
from rankprobe.tasks.load import make_task
from rankprobe.tasks.task import Example
from rankprobe.weights.pretrained import find_model
from tests.tiny_models import KINDS, make_tiny

PLACE = {"dtype": "float32", "device": "cpu", "threads": 1}


def examples(n, start=0):
    words = "sum of the mean list array index file good bad row column".split()
    rng = np.random.default_rng(start)
    rows = []
    for i in range(n):
        text = " ".join(rng.choice(words, 6))
        rows.append(Example(f"row{start + i}", text, None, int("good" in text)))
    return tuple(rows)


@pytest.fixture
def task():
    return make_task("toy", "eval", examples(96), examples(60, 1000), ("no", "yes"), ("accuracy",))


def planned(tmp_path, task, *configurations, kind="bert", truncate=()):
    source = find_model(make_tiny(kind, tmp_path / "base"))
    study = Study("toy", configurations, epochs=3, batch_size=16, max_length=16, truncate=truncate)
    runs = tuple(plan_run(s, source, task, tmp_path / "runs") for s in study.specs(**PLACE))
    return PlannedStudy(study, runs, tuple(r for r in runs if r.spec.method in truncate))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "configuration",
    [Configuration("full", lr=1e-3), Configuration("lora", r=2, lr=1e-2), Configuration("head", lr=1e-2)],
)
def test_a_run_of_every_method_on_every_architecture(tmp_path, task, kind, configuration):
    run = planned(tmp_path, task, configuration, kind=kind).runs[0]
    record = execute(run)
    assert record["status"] == "ok", record["error"]
    assert finished(run.folder, need_weights=True) == record
    predictions = pd.read_csv(run.folder / "predictions.csv")
    assert list(predictions.columns) == ["row", "label", "prediction", "score"] and len(predictions) == 60
    assert record["metrics"]["accuracy"] == (predictions["label"] == predictions["prediction"]).mean()
    assert record["params"]["trainable"] == record["params"]["head"] + record["params"]["method"]
    # What is on disk is what was evaluated.
    again = trained_predictions(run, load_trained(run.folder, run.spec, run.source, task))
    assert (again.predictions == predictions["prediction"]).all()
    np.testing.assert_allclose(again.scores, predictions["score"], atol=1e-5)
    text = (run.folder / "run.json").read_text()
    assert str(tmp_path) not in text, "a record holds no path"
    if configuration.method == "head":
        assert not (run.folder / "ranks.csv").exists() and record["params"]["method"] == 0
    else:
        ranks = pd.read_csv(run.folder / "ranks.csv")
        assert set("qv") <= set(ranks["kind"])
        if configuration.method == "lora":
            assert (ranks["numerical_rank"] <= 2).all() and (ranks["source"] == "factored").all()


def test_the_same_run_twice_is_the_same_and_a_finished_one_is_not_redone(tmp_path, task):
    first = planned(tmp_path, task, Configuration("lora", r=2, lr=1e-2)).runs[0]
    record = execute(first)
    before = (first.folder / "run.json").stat().st_mtime_ns
    assert execute(first) == record and (first.folder / "run.json").stat().st_mtime_ns == before
    second = replace(first, folder=tmp_path / "elsewhere" / first.run_id)
    again = execute(second)
    for name in ("predictions.csv", "ranks.csv", "spectra.csv"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes(), name
    assert again["metrics"] == record["metrics"] and again["run_id"] == record["run_id"]


def test_leftovers_of_a_killed_run_are_not_trusted(tmp_path, task):
    run = planned(tmp_path, task, Configuration("head", lr=1e-2)).runs[0]
    run.folder.mkdir(parents=True)
    (run.folder / "predictions.csv").write_text("row,label,prediction,score\nrow1000,1,1,1.0\n")
    (run.folder / "model").mkdir()
    execute(run)
    assert len(pd.read_csv(run.folder / "predictions.csv")) == 60 and not (run.folder / "model").exists()


def test_divergence_is_a_result_and_is_kept(tmp_path, task):
    study = planned(tmp_path, task, Configuration("full", lr=1e30), Configuration("head", lr=1e-2))
    records = list(run_study(study))
    assert [r["status"] for r in records] == ["diverged", "ok"]
    assert "must be finite" in records[0]["error"] and records[0]["metrics"] == {}
    assert json.loads((study.runs[0].folder / "run.json").read_text())["status"] == "diverged"
    assert [r["status"] for r in load_runs(r.folder for r in study.runs)] == ["diverged", "ok"]


def test_a_mistake_leaves_no_record(tmp_path, task):
    run = planned(tmp_path, task, Configuration("lora", r=999, lr=1e-2)).runs[0]
    with pytest.raises(UsageError, match="r must be from 1"):
        execute(run)
    assert finished(run.folder) is None


@pytest.mark.parametrize(
    "configuration", [Configuration("full", lr=3e-3), Configuration("lora", r=4, targets="all", lr=2e-2)]
)
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_truncation_ends_are_the_run_and_the_base_weights(tmp_path, task, configuration, kind):
    run = planned(tmp_path, task, configuration, kind=kind).runs[0]
    record = execute(run)
    ranks = measure_truncation(run)
    curve = pd.read_csv(run.folder / "truncation.csv")
    tuned = curve[curve["rule"] == "rest_tuned"].set_index("k")["accuracy"]
    assert tuned.iloc[-1] == pytest.approx(record["metrics"]["accuracy"], abs=1 / 60 + 1e-9), (
        "k = p is the run's own model"
    )
    rules = {"full": {"rest_tuned", "rest_base"}, "lora": {"rest_tuned"}}[configuration.method]
    assert tuned.index[0] == 0 and set(ranks["q"]) == {0.9, 0.99} and set(ranks["rule"]) == rules == set(curve["rule"])


def test_a_pooler_that_the_checkpoint_lacked_goes_with_the_head(tmp_path, task):
    """In the cut model with the base's own rest, k = p: a pooler put back to random values would end near chance."""
    config = transformers.AutoConfig.from_pretrained(make_tiny("bert", tmp_path / "made"))
    shutil.copytree(tmp_path / "made", tmp_path / "mlm")
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
    source, study = find_model(tmp_path / "mlm"), planned(tmp_path, task, Configuration("full", lr=3e-3)).study
    run = plan_run(study.specs(**PLACE)[0], source, task, tmp_path / "runs")
    record = execute(run)
    trained, base = load_trained(run.folder, run.spec, source, task), load_base(run.spec, source, task)[0]
    head = {name for name, _ in base.named_parameters() if "pooler" in name or "classifier" in name}
    measure_truncation(run)
    curve = pd.read_csv(run.folder / "truncation.csv").query("rule == 'rest_base'").set_index("k")["accuracy"]
    parameters = dict(base.named_parameters())
    for name, p in trained.model.named_parameters():
        if name in head:
            parameters[name].data.copy_(p)
    trained.trainee = trained.model = base
    expected = trained_predictions(run, trained)
    assert curve[0] == pytest.approx(np.mean(np.equal(expected.labels, expected.predictions)))
    assert record["params"]["head"] == sum(parameters[name].numel() for name in head)
    assert parameter_counts([run])[run.run_id] == record["params"]["trainable"]


def test_lora_spectra_are_those_of_the_multiplied_update(tmp_path, task):
    run = planned(tmp_path, task, Configuration("lora", r=3, lr=1e-2)).runs[0]
    execute(run)
    spectra = pd.read_csv(run.folder / "spectra.csv")
    deltas = list(lora_deltas(load_trained(run.folder, run.spec, run.source, task).layers))
    for d in deltas:
        dense = torch.linalg.svdvals(d.scaling * d.B.double() @ d.A.double())[:3]
        np.testing.assert_allclose(spectra[spectra["name"] == d.name]["sigma"], dense, rtol=1e-6, atol=1e-9)


def test_counts_agree_with_the_meta_device(tmp_path, task):
    from rankprobe.experiment.parameters import parameter_table
    from rankprobe.weights.pretrained import load_config

    run = planned(tmp_path, task, Configuration("lora", r=2, lr=1e-2)).runs[0]
    counted = count_parameters(prepare(run.spec, run.source, task))
    table = parameter_table(load_config(str(tmp_path / "base")), num_labels=2, targets=["q,v"], rs=[2]).set_index(
        "method"
    )
    assert counted["method"] == table.loc["lora", "method_params"] == 2 * 4 * 2 * 32
    assert counted["head"] == table.loc["lora", "head_params"] and counted["total"] == table.loc["full", "total_params"]


def test_model_dropout_reaches_every_dropout(tmp_path, task):
    run = planned(tmp_path, task, Configuration("full", lr=1e-3)).runs[0]
    model = prepare(run.spec, run.source, task).model
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    set_dropout(model, 0.3)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}


def test_latency_is_measured_once_and_has_every_variant(tmp_path):
    source = find_model(make_tiny("bert", tmp_path / "base"))
    plan = plan_latency(source, tmp_path / "runs", r=2, targets="v,q", shapes=((1, 8),), budget_s=0.3, **PLACE)
    table = execute_latency(plan)
    assert set(table["variant"]) == {"base", "base_copy", "full", "lora_merged", "lora_unmerged"}
    assert (table["latency_ms"] > 0).all() and (table["targets"] == "q,v").all()
    pd.testing.assert_frame_equal(execute_latency(plan), pd.read_csv(plan.folder / "latency.csv"))
    assert not execute_latency(plan, again=True)["latency_ms"].equals(table["latency_ms"])


def test_a_saved_model_knows_its_labels(tmp_path, task):
    run = planned(tmp_path, task, Configuration("full", lr=1e-3)).runs[0]
    execute(run)
    config = json.loads((run.folder / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "yes"} and config["label2id"] == {"no": 0, "yes": 1}


def test_default_rates_elsewhere_are_said_to_be_untuned(tmp_path, task):
    assert "were tuned for all-MiniLM-L6-v2 on docmatch, not for base on toy" in planned(
        tmp_path, task, Configuration("full"), Configuration("head", lr=1e-2)
    ).untuned
    assert planned(tmp_path, task, Configuration("full", lr=1e-3)).untuned == ""


def test_a_text_of_no_tokens_is_a_text(tmp_path):
    """GPT-2's tokenizer puts nothing around a text, and the longest-first batches end with the empty one alone."""
    rows = (*examples(64, 1000), Example("empty", "", None, 0))
    task = make_task("toy", "eval", (*examples(63), Example("none", "", None, 1)), rows, ("no", "yes"), ("accuracy",))
    run = planned(tmp_path, task, Configuration("head", lr=1e-2), kind="gpt2").runs[0]
    record = execute(run)
    assert record["status"] == "ok", record["error"]
    assert len(pd.read_csv(run.folder / "predictions.csv")) == 65
