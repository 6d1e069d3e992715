"""Small real models beside the project: a Llama and a GPT-2, trained for a moment and read back by peft."""

import pandas as pd
import peft
import pytest
import torch

from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.planned_run import plan_run
from rankprobe.experiment.runs import execute
from rankprobe.experiment.study import Study
from rankprobe.tasks.load import load_task
from rankprobe.training.batches import encode
from rankprobe.training.evaluate import logits
from rankprobe.weights.pretrained import find_model, load_classifier


@pytest.mark.parametrize("name", ["stories260k-llama", "chemtsv3-gpt2-smiles-0.5m"])
def test_lora_on_a_real_decoder_is_read_by_peft(shared, tmp_path, name):
    source = find_model(shared / "models" / name)
    task = load_task("sst2", data_dir=shared / "data" / "sst2", train_size=64, eval_size=32)
    study = Study("real", (Configuration("lora", r=4, lr=5e-3),), epochs=1, batch_size=16, max_length=32)
    (spec,) = study.specs(dtype="float32", device="cpu", threads=1)
    run = plan_run(spec, source, task, tmp_path)
    record = execute(run)
    assert record["status"] == "ok", record["error"]
    ranks = pd.read_csv(run.folder / "ranks.csv")
    assert set(ranks["kind"]) == {"q", "v"} and (ranks["numerical_rank"] == 4).all()
    base, tokenizer, _ = load_classifier(source, 2, seed=7)
    theirs = peft.PeftModel.from_pretrained(base, run.folder / "adapter")
    rows = encode(tokenizer, task.eval, spec.max_length)
    classes = logits(theirs, rows, tokenizer.pad_token_id).argmax(-1)
    assert torch.equal(classes, torch.tensor(pd.read_csv(run.folder / "predictions.csv")["prediction"].to_numpy()))
