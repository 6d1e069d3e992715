"""Whole models on disk and in memory: in one file or many, tied weights once, and what is refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rankprobe.errors import UsageError
from rankprobe.weights.checkpoint import checkpoint_in_memory, open_checkpoint
from rankprobe.weights.inputs import open_input
from tests.tiny_models import make_tiny
from tests.weights.memory import random


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = make_tiny("llama", tmp_path_factory.mktemp("llama"))
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def sharded(model, folder):
    model.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def parameters(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def pickled(folder):
    """The same folder with torch.save's files, named as transformers names them."""
    for file in folder.glob("model*.safetensors"):
        torch.save(load_file(file), folder / f"pytorch_{file.stem}.bin")
        file.unlink()
    index = folder / "model.safetensors.index.json"
    if index.exists():
        text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()
    return folder


@pytest.mark.parametrize("form", ["one", "shards", "one .bin", ".bin shards"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_file_or_many_hold_the_same_model(llama, tmp_path, form, dtype):
    model = transformers.LlamaForCausalLM(llama.config).to(dtype)
    model.load_state_dict(llama.state_dict())
    model.save_pretrained(tmp_path) if form.startswith("one") else sharded(model, tmp_path)
    if ".bin" in form:
        pickled(tmp_path)
    opened = open_input(tmp_path)
    expected = parameters(model)
    assert set(opened.shapes) == set(expected) and opened.config["model_type"] == "llama"
    assert set(opened.dtypes.values()) == {str(dtype).removeprefix("torch.")}
    for name, tensor in expected.items():
        assert opened.shapes[name] == tuple(tensor.shape) and torch.equal(opened.read(name), tensor)
    with pytest.raises(KeyError):
        opened.read("model.layers.9.mlp.up_proj.weight")


def test_every_tensor_keeps_its_own_dtype(tmp_path):
    tensors = {f"layers.{i}.weight": random(4, 4, seed=i, dtype=d)
               for i, d in enumerate((torch.float64, torch.float32, torch.float16, torch.bfloat16))}
    save_file(tensors, tmp_path / "model.safetensors")
    opened = open_input(tmp_path)
    assert opened.dtypes == {n: str(t.dtype).removeprefix("torch.") for n, t in tensors.items()}
    assert opened.config == {}
    assert all(opened.read(name).dtype == of.dtype and torch.equal(opened.read(name), of)
               for name, of in tensors.items())


def refused(folder, message):
    with pytest.raises(UsageError, match=message) as error:
        open_input(folder)
    assert "\n" not in str(error.value)


def test_a_shard_that_is_missing_damaged_or_elsewhere(llama, tmp_path):
    folder = sharded(llama, tmp_path / "m")
    index, shards = folder / "model.safetensors.index.json", sorted(folder.glob("model-*.safetensors"))
    whole = json.loads(index.read_text())
    refused_index = {
        r"model.safetensors.index.json must name shards inside its own folder. Got '../out.safetensors'": "../out",
        r"inside its own folder. Got 'a/../../out.safetensors'": "a/../../out",
        r"inside its own folder. Got '/etc/out.safetensors'": "/etc/out",
        r"inside its own folder. Got 'C:\\\\out.safetensors'": r"C:\out",
        r"inside its own folder. Got '..\\\\out.safetensors'": r"..\out",
        r"inside its own folder. Got 'a\\nb.safetensors'": "a\nb",
        "be whole. Got no model-00099.safetensors in .*/m, which model.safetensors.index.json names": "model-00099",
        "be whole. Got no xxx": "x" * 5000,
    }
    shutil.copy(shards[0], tmp_path / "out.safetensors")
    for message, shard in refused_index.items():
        moved = {name: f"{shard}.safetensors" if i == 0 else of for i, (name, of) in enumerate(
            whole["weight_map"].items())}
        index.write_text(json.dumps({"weight_map": moved}))
        refused(folder, message)
    names = list(whole["weight_map"])
    turned = dict(zip(names, reversed(whole["weight_map"].values()), strict=True))
    index.write_text(json.dumps({"weight_map": turned}))
    refused(folder, "must name the shard that a parameter lies in. Got '.*' not in .* but in model-0")
    index.write_text(json.dumps({"weight_map": whole["weight_map"] | {"more.weight": shards[0].name}}))
    refused(folder, "Got 'more.weight' not in model-00001")
    for text in ("{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": []}', "[" * 99_999):
        index.write_text(text)
        refused(folder, "model.safetensors.index.json must be a weight index")
    index.write_text('{"weight_map": {"a": "x", "a": "y"}}')
    refused(folder, "'a' stands twice")
    index.write_text(json.dumps(whole))
    os.truncate(shards[1], shards[1].stat().st_size - 8)
    refused(folder, f"{shards[1].name} must be a whole safetensors file. Got .* bytes of data where its header tells")
    shards[1].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(folder, f"{shards[1].name} must be the weights themselves. Got a Git LFS pointer")
    shards[1].unlink()
    refused(folder, f"be whole. Got no {shards[1].name} in ")


def test_shards_in_a_folder_below_and_links_as_in_the_hubs_cache(llama, tmp_path):
    folder = sharded(llama, tmp_path / "m")
    (folder / "blobs").mkdir()
    for file in folder.glob("model-*.safetensors"):
        target = tmp_path / f"blob-of-{file.stem}"
        file.rename(target)
        file.symlink_to(target)
    assert set(open_input(folder).shapes) == set(parameters(llama))


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_tied_weights_are_there_once(tmp_path, kind, ending):
    """Saved once by transformers, twice as a copy by other tools, under both names by torch.save."""
    classes = {"gpt2": transformers.AutoModelForCausalLM, "bert": transformers.AutoModelForMaskedLM}
    model = classes[kind].from_pretrained(make_tiny(kind, tmp_path / "base"))
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert inputs is outputs
    names = {id(p): n for n, p in model.named_parameters()}
    kept, state = names[id(inputs)], model.state_dict()
    if ending == "safetensors":
        save_file({n: t.clone() for n, t in state.items()}, tmp_path / "model.safetensors")
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    shutil.copy(tmp_path / "base" / "config.json", tmp_path)
    opened = open_input(tmp_path)
    assert kept in opened.shapes and {n for n, shape in opened.shapes.items() if len(shape) == 2} == {
        n for n, p in model.named_parameters() if p.dim() == 2}
    alias = next(n for n, p in model.named_parameters(remove_duplicate=False) if p is inputs and n != kept)
    assert opened.tied[alias] == kept
    assert torch.equal(opened.read(alias), inputs)


def test_embeddings_that_only_look_tied_stay_apart(tmp_path):
    E = random(8, 4)
    tensors = {"model.embed_tokens.weight": E, "lm_head.weight": E.clone()}
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": false}')
    save_file(tensors, tmp_path / "model.safetensors")
    assert open_input(tmp_path).tied == {}
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    assert open_input(tmp_path).tied == {"lm_head.weight": "model.embed_tokens.weight"}
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    assert open_input(tmp_path).tied == {}


def test_a_module_and_a_state_dict_in_memory(llama):
    for model, label in ((llama, "LlamaForCausalLM"), (llama.state_dict(), "TUNED")):
        opened = open_input(model)
        assert opened.label == label and opened.path is None and set(opened.shapes) == set(parameters(llama))
        assert all(torch.equal(opened.read(name), p) for name, p in parameters(llama).items())
        assert not opened.read("model.norm.weight").requires_grad
    assert open_input(llama).config["model_type"] == "llama"


def test_a_module_in_memory_has_tied_weights_once(tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(make_tiny("gpt2", tmp_path))
    opened = checkpoint_in_memory(model)
    assert opened.tied == {"lm_head.weight": "transformer.wte.weight"} and "lm_head.weight" not in opened.shapes
    assert torch.equal(opened.read("lm_head.weight"), model.lm_head.weight)


@pytest.mark.parametrize("model, message", [
    ({}, "TUNED must be tensors by name. Got nothing"),
    ({"a": 3}, "be tensors by name. Got 'a' of another type"),
    ({3: torch.ones(2)}, "be tensors by name. Got 3 of another type"),
    ({"a": torch.ones(2, 2, device="meta")}, "dense tensors with data. Got a, which is on meta"),
    ({"a": torch.eye(2).to_sparse()}, "dense tensors with data. Got a, which is on meta, sparse"),
    ({"a": torch.arange(3)}, "weights in floating point. Got 1 tensors of which none is"),
    ({"a.lora_A.weight": torch.ones(2, 2)}, "merged model or an adapter on disk. Got LoRA factors, a.lora_A.weight"),
    (torch.nn.ReLU(), "be tensors by name. Got nothing"),
    (3, "TUNED must be a model's folder, .* Got int. Pass a path"),
    (None, "Got NoneType"),
])
def test_what_in_memory_is_refused(model, message):
    with pytest.raises(UsageError, match=message) as error:
        open_input(model)
    assert "\n" not in str(error.value)


def test_the_fingerprint_knows_the_same_files_and_tells_others_apart(llama, tmp_path):
    folder = sharded(llama, tmp_path / "a")
    first = open_input(folder).fingerprint
    folder = folder.rename(tmp_path / "b")
    assert open_input(folder).fingerprint == first
    shard = next(folder.glob("model-*.safetensors"))
    tensors, before = load_file(shard), shard.stat()
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, shard, metadata={"format": "pt"})
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))  # as an archive would unpack it
    assert shard.stat().st_size == before.st_size and open_input(folder).fingerprint != first
    state = llama.state_dict()
    assert open_input(state).fingerprint == open_input(llama.state_dict()).fingerprint
    changed = {n: t + (t.dim() == 2) for n, t in state.items()}
    assert open_input(changed).fingerprint != open_input(state).fingerprint


def test_what_is_no_matrix_is_listed_and_nothing_is_lost(tmp_path):
    tensors = {"scale": torch.tensor(1.5), "conv.weight": random(2, 3, 4), "layers.0.weight": random(4, 4),
               "ids": torch.arange(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    opened = open_checkpoint([tmp_path / "model.safetensors"], label="m", path=tmp_path)
    assert opened.shapes == {"scale": (), "conv.weight": (2, 3, 4), "layers.0.weight": (4, 4)}
    assert float(opened.read("scale")) == 1.5 and opened.skipped == {"ids": "whole numbers (int64)"}


@pytest.mark.parametrize("text", ["{", "[]", "3", "\x00", "[" * 99_999])
def test_a_config_that_does_not_parse_is_said(tmp_path, text):
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    Path(tmp_path / "config.json").write_text(text)
    refused(tmp_path, "config.json must be ")
