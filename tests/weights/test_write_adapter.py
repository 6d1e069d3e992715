"""Adapters on disk: bytes that the library reads, configs that peft takes for the modules that were meant."""

from __future__ import annotations

import json
import re

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file

from rankprobe.errors import UsageError
from rankprobe.weights.write_adapter import (
    Entry,
    adapter_config,
    added_by_peft,
    factor_entries,
    task_type,
    write_files,
    write_tensors,
)


def entry(key, tensor, dtype=None):
    return Entry(key, tuple(tensor.shape), dtype or tensor.dtype, lambda: tensor)


# --- tensors ---


def test_the_library_reads_what_was_written_one_tensor_at_a_time(tmp_path):
    tensors = {
        "odd": torch.arange(5, dtype=torch.uint8),
        "half": torch.randn(3, 7).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "single": torch.randn(4, 3),
        "double": torch.randn(3, dtype=torch.float64),
        "whole": torch.arange(6).reshape(2, 3),
        "number": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "turned": torch.randn(5, 2).T,
    }
    write_tensors(tmp_path / "a.safetensors", [entry(key, t) for key, t in tensors.items()], {"who": "ä"})
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys()
    for key, t in tensors.items():
        assert read[key].dtype == t.dtype and torch.equal(read[key], t)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "who": "ä"}


def test_one_tensor_is_asked_for_at_a_time_and_once(tmp_path):
    asked = []

    def ask(key):
        asked.append(key)
        return torch.ones(2)

    entries = [Entry(key, (2,), torch.float32, lambda key=key: ask(key)) for key in "cab"]
    assert asked == []
    write_tensors(tmp_path / "a.safetensors", entries)
    assert asked == ["a", "b", "c"]


def test_wide_dtypes_first_so_that_all_are_aligned(tmp_path):
    entries = [entry("a", torch.ones(3, dtype=torch.uint8)), entry("b", torch.ones(1, dtype=torch.float64)),
               entry("c", torch.ones(1).half())]
    write_tensors(tmp_path / "a.safetensors", entries)
    raw = (tmp_path / "a.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    assert size % 8 == 0
    assert [header[key]["data_offsets"] for key in "bca"] == [[0, 8], [8, 10], [10, 13]]


def test_a_cast_that_loses_the_value_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"w must be finite in the adapter's dtype. Got values up to 1e\+06"):
        write_tensors(tmp_path / "a.safetensors", [entry("w", torch.tensor([1e6]), torch.float16)])
    write_tensors(tmp_path / "a.safetensors", [entry("w", torch.tensor([3.0]), torch.float16)])
    assert load_file(tmp_path / "a.safetensors")["w"].dtype == torch.float16


def test_a_tensor_of_another_shape_than_promised_is_our_own_mistake(tmp_path):
    with pytest.raises(ValueError, match="w has shape"):
        write_tensors(tmp_path / "a.safetensors", [Entry("w", (3,), torch.float32, lambda: torch.ones(2))])


def test_a_full_disk_names_the_file(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(OSError) as caught:
            write_files(tmp_path, {"r": 1}, [entry("w", torch.ones(1000))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / "adapter_model.safetensors")
    assert not (tmp_path / "adapter_config.json").exists()


# --- factors ---


def test_factors_of_a_layer_and_of_an_embedding():
    factors = {"B": torch.randn(8, 2), "A": torch.randn(2, 5)}
    layer = {e.key: e for e in factor_entries("x.y", (8, 5), 2, torch.float32, factors.get, embedding=False)}
    assert torch.equal(layer["base_model.model.x.y.lora_B.weight"].read(), factors["B"])
    assert torch.equal(layer["base_model.model.x.y.lora_A.weight"].read(), factors["A"])
    rows = {e.key: e for e in factor_entries("x.e", (8, 5), 2, torch.float32, factors.get, embedding=True)}
    A, B = (rows[f"base_model.model.x.e.lora_embedding_{f}"] for f in "AB")
    torch.testing.assert_close((B.read() @ A.read()).T, factors["B"] @ factors["A"])
    for e in (*layer.values(), *rows.values()):
        assert e.shape == tuple(e.read().shape) and e.size == 4 * e.read().numel()


# --- the config ---


def adapted(config, modules):
    """What peft adapts in a model of linear layers with these paths, each with r and alpha."""
    model = torch.nn.Module()
    for path in modules:
        *parents, leaf = path.split(".")
        at = model
        for name in parents:
            if not hasattr(at, name):
                at.add_module(name, torch.nn.Module())
            at = getattr(at, name)
        at.add_module(leaf, torch.nn.Linear(8, 8))
    lora = LoraConfig(**{key: value for key, value in config.items() if key != "peft_type"})
    layers = dict(get_peft_model(model, lora).get_base_model().named_modules())
    adapted = {path: layer for path, layer in layers.items() if hasattr(layer, "lora_A")}
    return {path: (layer.r["default"], layer.lora_alpha["default"]) for path, layer in adapted.items()}


@pytest.mark.parametrize(
    "ranks",
    [
        {"h.0.q": 4, "h.1.q": 4, "h.0.v": 2},
        {"h.1.q": 3, "h.11.q": 5, "h.0.q": 3},
        {"dense": 2, "h.0.dense": 3},
        {"q": 7},
        {"h.0.q": 1, "x.h.0.q": 2, "y.h.0.q": 2, "h_0.q": 4},
    ],
)
def test_peft_adapts_just_the_targets_each_with_its_rank(ranks):
    others = "h.0.q h.1.q h.11.q h.0.v dense h.0.dense h.1.dense x.h.0.q head y.dense".split()
    modules = {*ranks, *others}
    config = adapter_config(ranks, modules, task=None)
    assert adapted(config, modules) == {name: (k, k) for name, k in ranks.items()}


def test_plain_names_where_they_are_not_ambiguous():
    config = adapter_config({"h.0.q": 4, "h.1.q": 2, "h.2.q": 4}, ["h.0.q", "h.1.q", "h.2.q", "head"], task="CAUSAL_LM")
    assert config["target_modules"] == ["h.0.q", "h.1.q", "h.2.q"] and config["r"] == 4
    assert config["rank_pattern"] == {re.escape("h.1.q"): 2} == config["alpha_pattern"]
    assert config["modules_to_save"] is None and config["bias"] == "none"


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("RobertaForSequenceClassification", "SEQ_CLS"), ("BertForTokenClassification", "TOKEN_CLS"),
        ("BertForQuestionAnswering", "QUESTION_ANS"), ("LlamaForCausalLM", "CAUSAL_LM"),
        ("GPT2LMHeadModel", "CAUSAL_LM"), ("LlamaModel", "FEATURE_EXTRACTION"), ("BertForMaskedLM", None),
        ("BertForMultipleChoice", None), ("LlavaForConditionalGeneration", "CAUSAL_LM"),
    ],
)  # fmt: skip
def test_task_types(name, task):
    assert task_type([name]) == task
    assert task is None or task in TaskType.__members__


def test_task_types_of_odd_configs():
    assert task_type(["T5ForConditionalGeneration"], encoder_decoder=True) == "SEQ_2_SEQ_LM"
    for odd in (None, [], [3], "LlamaForCausalLM", {}):
        assert task_type(odd) is None
    assert added_by_peft(None) == () and "score" in added_by_peft("SEQ_CLS")
