"""What people pass: folders, files, runs, hub names, adapters; and one clear line for everything else."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankprobe.errors import UsageError
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.planned_run import plan_run
from rankprobe.experiment.runs import execute
from rankprobe.experiment.study import Study
from rankprobe.tasks.load import make_task
from rankprobe.tasks.task import Example
from rankprobe.weights.checkpoint import Checkpoint
from rankprobe.weights.factors import AdapterSource
from rankprobe.weights.inputs import base_of, open_input
from rankprobe.weights.pair import pair
from rankprobe.weights.pretrained import find_model
from tests.tiny_models import make_tiny
from tests.weights.memory import adapter_of, bert_like, random

QUERY = "encoder.layer.0.attention.self.query"


def refused(where, message, **how):
    with pytest.raises(UsageError, match=message) as error:
        open_input(where, **how)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run store with a full fine-tuning, a LoRA run and a head's, and the base's folder."""
    folder = tmp_path_factory.mktemp("lab")
    source = find_model(make_tiny("bert", folder / "base"))
    rows = tuple(Example(f"row{i}", ("good file", "bad sum")[i % 2], None, i % 2) for i in range(32))
    evaluation = tuple(replace(row, row=f"e{row.row}", text=f"the {row.text}") for row in rows)
    task = make_task("toy", "eval", rows, evaluation, ("no", "yes"), ("accuracy",))
    made = {}
    for of in (Configuration("full", lr=1e-3), Configuration("lora", r=2, lr=1e-2), Configuration("head", lr=1e-2)):
        study = Study("toy", (of,), epochs=1, batch_size=16, max_length=8)
        (spec,) = study.specs(dtype="float32", device="cpu", threads=1)
        run = plan_run(spec, source, task, folder / "runs")
        assert execute(run)["status"] == "ok"
        made[of.method] = run.folder
    return made, folder / "base"


def test_a_run_of_full_fine_tuning_is_its_model(runs, monkeypatch):
    made, base = runs
    monkeypatch.chdir(base.parent)  # a run knows its base's name and hash, never its path
    folder = made["full"]
    for where, store in ((folder, "nowhere"), (str(folder), "nowhere"), (folder.name, folder.parent)):
        opened = open_input(where, runs=store)
        assert isinstance(opened, Checkpoint) and (opened.label, opened.path) == (folder.name, folder)
        assert base_of(where, store) == Path(base.name)
    monkeypatch.chdir(base)
    with pytest.raises(UsageError, match=f"BASE must be the model that the run {folder.name} .* Got no base here"):
        base_of(folder)
    pairing = pair(open_input(base), opened)
    saved = load_file(folder / "model" / "model.safetensors")
    before = load_file(base / "model.safetensors")
    for matrix in pairing.matrices:
        W0 = before[matrix.parameter.removeprefix("bert.")]
        assert torch.equal(matrix.delta().dW, saved[matrix.parameter].double() - W0.double())
    assert len(pairing.matrices) > 12 and pairing.notes == ["Names matched after taking 'bert.' off TUNED"]


def test_a_run_of_lora_is_its_adapter_and_a_heads_run_is_refused(runs):
    made, base = runs
    opened = open_input(made["lora"])
    assert isinstance(opened, AdapterSource) and opened.label == made["lora"].name and len(opened.modules) == 4
    for of in (None, open_input(base)):
        ranks = {int(torch.linalg.matrix_rank(m.delta().B)) for m in pair(of, opened).matrices}
        assert ranks == {2}
    refused(made["head"], f"The run {made['head'].name} must have changed the model's matrices. Got a head alone")
    assert base_of(base) is None and base_of("no-such-run") is None


@pytest.mark.parametrize("change, message", [
    ({"status": "diverged"}, "must have ended well. Got status diverged"),
    ({"kind": "latency"}, "must be one that trained a model. Got one of kind latency"),
    ({"spec": {"method": "magic"}}, "must be a record that rankprobe wrote"),
    ({"model": None}, "must be a record that rankprobe wrote"),
])
def test_records_of_runs_that_cannot_be_used(runs, tmp_path, change, message):
    folder = tmp_path / "run"
    shutil.copytree(runs[0]["full"], folder)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | change))
    refused(folder, message)


def test_runs_without_their_weights(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs[0]["full"], folder)
    shutil.rmtree(folder / "model")
    refused(folder, "must have its weights beside its record. Got no model in .* Copy the whole folder")
    record = json.loads((folder / "run.json").read_text()) | {"weights_kept": False}
    (folder / "run.json").write_text(json.dumps(record))
    refused(folder, "Got a run whose weights were dropped .*ranks.csv holds its ranks.* without --drop-weights")
    for text in ("{", "\x00", "[" * 99_999):
        (folder / "run.json").write_text(text)
        refused(folder, "run.json must be a record that rankprobe wrote")


def test_a_base_that_is_not_the_runs_own_is_not_taken(runs, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(runs[0]["full"], folder)
    monkeypatch.chdir(runs[1].parent)
    record = json.loads((folder / "run.json").read_text())
    record["model"]["sha256"] = "0" * 64
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="BASE must be the model that the run .* started from. Got base with other"):
        base_of(folder)


def test_files_of_weights(tmp_path):
    W = bert_like()
    save_file(W, tmp_path / "tuned.safetensors")
    torch.save({"model": W}, tmp_path / "epoch3.ckpt")
    for name in ("tuned.safetensors", "epoch3.ckpt"):
        opened = open_input(tmp_path / name)
        assert opened.label == name.split(".")[0] and set(opened.shapes) == set(W)
    (tmp_path / "m").mkdir()
    save_file(W, tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "config.json").write_text('{"model_type": "bert"}')
    opened = open_input(tmp_path / "m" / "model.safetensors")
    assert opened.label == "m" and opened.config == {"model_type": "bert"}
    refused(tmp_path / "m" / "model.safetensors", "alpha must be given for an adapter. Got alpha 3 for the whole model",
            alpha=3)


def test_folders_with_other_names_for_their_weights(tmp_path):
    W, folder = bert_like(), tmp_path / "m"
    folder.mkdir()
    save_file(W, folder / "consolidated.safetensors")
    torch.save({"state": 1}, folder / "optimizer.pt")
    assert open_input(folder).label == "m"
    save_file(W, folder / "other.safetensors")
    refused(folder, "must hold one model. Got .* with consolidated.safetensors, other.safetensors")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    half = len(W) // 2
    for i, names in enumerate((list(W)[:half], list(W)[half:]), 1):
        save_file({name: W[name] for name in names}, folder / f"part-0000{i}-of-00002.safetensors")
    assert set(open_input(folder).shapes) == set(W)
    refused(folder / "part-00001-of-00002.safetensors", "all of the weights. Got .* one shard of 2. Pass the folder")
    (folder / "part-00001-of-00002.safetensors").unlink()
    refused(folder, "must be whole. Got 1 shards of 2 in .* Fetch the shard that is missing")


def test_folders_without_weights_say_what_may_have_been_meant(tmp_path):
    refused(tmp_path, "TUNED must be a folder with weights .* Got .* without weights. Pass a model's folder")
    (tmp_path / "tf_model.h5").write_bytes(b"x")
    refused(tmp_path, "Got .* with tf_model.h5. Convert it to safetensors with transformers")
    for step in (5, 40, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file(bert_like(), tmp_path / f"checkpoint-{step}" / "model.safetensors")
    refused(tmp_path, "Pass one of the folders in it, such as .*/checkpoint-100")
    assert open_input(tmp_path / "checkpoint-40").label == f"{tmp_path.name}/checkpoint-40"


def test_adapters_are_found_out(tmp_path):
    folder = adapter_of(tmp_path, {QUERY: (8, 8)})
    for where in (folder, str(folder), folder / "adapter_model.safetensors"):
        opened = open_input(where)
        assert isinstance(opened, AdapterSource) and opened.label == "a" and opened.modules[QUERY].scaling == 2
    refused(folder, "alpha must come from one place. Got 3 beside lora_alpha: 4", alpha=3)
    config = (folder / "adapter_config.json").rename(tmp_path / "config")
    refused(folder, "A PEFT adapter must have its adapter_config.json beside it. Got adapter_model.safetensors alone")
    refused(folder / "adapter_model.safetensors", "must have its adapter_config.json beside it")
    config.rename(folder / "adapter_config.json")
    (folder / "adapter_model.safetensors").unlink()
    refused(folder, "Got .* with adapter_config.json and no adapter_model.safetensors")


def test_loralibs_file_needs_alpha(tmp_path):
    A, B = random(2, 6), random(4, 2)
    torch.save({"layer.0.query.lora_A": A, "layer.0.query.lora_B": B}, tmp_path / "lora.bin")
    refused(tmp_path / "lora.bin", "lora_alpha must be known.*Pass --alpha")
    opened = open_input(tmp_path / "lora.bin", alpha=6)
    d = pair(None, opened).matrices[0].delta()
    assert d.scaling == 3 and torch.equal(d.B, B) and torch.equal(d.A, A)
    refused(tmp_path, "lora_alpha must be known")


@pytest.mark.parametrize("where, message", [
    ("", "TUNED must be a model's folder"), ("a\nb", r"Got 'a\\nb'"), ("x" * 5000, "Got 'xxx"), ("\x00", "Got"),
    ("/no/such/folder", "Got /no/such/folder, which does not exist. Check the path for a typing error"),
    ("./none", "does not exist"), ("a/b/c", "does not exist"), ("none.safetensors", "does not exist"),
    ("x" * 300, "TUNED must exist. Got 'xxx"),
    ("a model", "Got 'a model', which is no folder, file or run here and no"),
    ("no-such-org/no-such-model", "TUNED must be on this machine. Got"),
    (b"bytes", "Got bytes"), (["a"], "Got list"),
])
def test_what_is_nothing_at_all(tmp_path, monkeypatch, where, message):
    monkeypatch.chdir(tmp_path)
    refused(where, message)
    refused(where, message.replace("TUNED", "BASE"), role="BASE", offline=True)


def test_a_hub_name_is_found_in_the_cache_without_a_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "1" * 40
    snapshot = tmp_path / "models--org--tuned" / "snapshots" / commit
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    shutil.copytree(make_tiny("bert", tmp_path / "made"), snapshot)
    opened = open_input("org/tuned", offline=True)
    assert opened.label == "org/tuned" and opened.path == snapshot and opened.config["model_type"] == "bert"
    assert open_input(snapshot).label == "org/tuned"
    shutil.copytree(adapter_of(tmp_path, {QUERY: (8, 8)}), snapshot, dirs_exist_ok=True)
    assert isinstance(open_input("org/tuned", offline=True), AdapterSource)


def test_a_folder_goes_before_a_hub_name_and_the_home_is_known(tmp_path, monkeypatch):
    save_file(bert_like(), (tmp_path / "all-MiniLM-L6-v2.safetensors"))
    (tmp_path / "org" / "m").mkdir(parents=True)
    save_file(bert_like(), tmp_path / "org" / "m" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_input("org/m").path == Path("org/m")
    assert open_input("~/org/m").label == "m"
