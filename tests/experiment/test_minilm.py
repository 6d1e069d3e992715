"""The real model: the hash, and a run repeated bit for bit in the dtype that the product picks."""

from dataclasses import replace

import pandas as pd
import pytest

from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.planned_run import plan_run
from rankprobe.experiment.runs import execute
from rankprobe.experiment.study import Study
from rankprobe.tasks.load import load_task
from rankprobe.training.precision import pick_dtype
from rankprobe.weights.source import DEFAULT_SHA256, find_model


@pytest.mark.parametrize("configuration", [Configuration("full"), Configuration("lora", r=8)], ids=["full", "lora"])
def test_the_same_run_of_minilm_twice_gives_the_same_predictions_and_spectra(tmp_path, configuration):
    source = find_model()
    assert source.sha256 == DEFAULT_SHA256
    task = load_task("docmatch-smoke", train_size=96, eval_size=64)
    study = Study("twice", (configuration,), task="docmatch-smoke", epochs=1, max_length=48)
    (spec,) = study.specs(dtype=pick_dtype("cpu"), device="cpu", threads=1)
    first = plan_run(spec, source, task, tmp_path / "a")
    second = replace(first, folder=tmp_path / "b" / first.run_id)
    one, two = execute(first), execute(second, keep_weights=False)
    assert one["metrics"] == two["metrics"] and one["run_id"] == two["run_id"]
    for name in ("predictions.csv", "spectra.csv"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    ranks = pd.read_csv(first.folder / "ranks.csv")
    blocks = ranks[ranks["layer"].notna()]
    assert len(blocks) == {"full": 36, "lora": 12}[configuration.method]
    assert (blocks["relative_change"] > 0).all()
