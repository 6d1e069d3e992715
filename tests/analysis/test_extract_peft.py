"""peft loads what extract writes, and computes with it what W0 + [dW]_k computes."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from rankprobe.analysis.extract import extract
from rankprobe.weights.inputs import open_input
from rankprobe.weights.pair import pair
from tests.analysis.fine_tuned import CLASSES, fine_tune, load, logits, rebuilt, truncated, with_adapter

EVERY = [(kind, name) for kind, names in CLASSES.items() for name in names]
TASKS = {"AutoModel": "FEATURE_EXTRACTION", "AutoModelForSequenceClassification": "SEQ_CLS",
         "AutoModelForCausalLM": "CAUSAL_LM", "AutoModelForMaskedLM": None}


def opened(base, tuned):
    return pair(None if base is None else open_input(base), open_input(tuned), fused=True)


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.fixture(scope="module", params=EVERY, ids=[f"{kind}-{name}" for kind, name in EVERY])
def models(request, tmp_path_factory):
    kind, class_name = request.param
    return kind, class_name, *fine_tune(kind, class_name, tmp_path_factory.mktemp(kind))


def test_the_logits_are_those_of_the_truncated_update(models, tmp_path):
    _, class_name, base, tuned = models
    done = extract(opened(base, tuned), tmp_path / "a", rank=3)
    theirs = logits(rebuilt(base, tuned, class_name, lambda module: 3))
    ours = logits(with_adapter(base, class_name, tmp_path / "a"))
    assert (theirs - logits(load(tuned, class_name))).abs().max() > 1e-3  # or else rank 3 would show nothing
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert done.lost == [] and done.summary["task_type"] == TASKS[class_name] == config_of(tmp_path / "a")["task_type"]


def test_at_full_rank_they_are_those_of_the_tuned_model(models, tmp_path):
    _, class_name, base, tuned = models
    extract(opened(base, tuned), tmp_path / "a", rank=10_000)
    ours, theirs = logits(with_adapter(base, class_name, tmp_path / "a")), logits(load(tuned, class_name))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_ranks_that_differ_from_module_to_module_are_loaded_as_they_were_written(models, tmp_path):
    _, class_name, base, tuned = models
    done = extract(opened(base, tuned), tmp_path / "a", energy=0.6)
    ranks = {row["name"].removesuffix(".weight"): row["r"] for row in done.rows}
    assert len(set(ranks.values())) > 1 and config_of(tmp_path / "a")["rank_pattern"]
    found = with_adapter(base, class_name, tmp_path / "a")
    prefix = load(base, class_name).base_model_prefix
    shown = {(name.removeprefix(f"{prefix}.") if class_name == "AutoModel" else name): k for name, k in ranks.items()}
    assert not [name for name in shown if name not in dict(found.get_base_model().named_modules())]
    theirs = logits(rebuilt(base, tuned, class_name, shown.get))
    torch.testing.assert_close(logits(found), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("embeddings", ["whole", "drop"])
@pytest.mark.parametrize(("kind", "class_name"), [("gpt2", "AutoModelForCausalLM"), ("llama", "AutoModelForCausalLM"),
                                                  ("bert", "AutoModelForSequenceClassification")])
def test_embeddings_saved_whole_or_left_as_they_are(kind, class_name, embeddings, tmp_path):
    base, tuned = fine_tune(kind, class_name, tmp_path)
    done = extract(opened(base, tuned), tmp_path / "a", rank=10_000, embeddings=embeddings)
    assert "embed" not in {row["kind"] for row in done.rows}
    model, names = load(tuned, class_name), set()
    if embeddings == "drop":
        old = dict(load(base, class_name).named_parameters())
        with torch.no_grad():
            for path, module in model.named_modules():
                if isinstance(module, torch.nn.Embedding):
                    module.weight.copy_(old[f"{path}.weight"])
                    names.add(f"{path}.weight")
        assert {one["name"] for one in done.lost} == names and all(one["change"] > 0 for one in done.lost)
    else:
        assert done.lost == []
    ours = logits(with_adapter(base, class_name, tmp_path / "a"))
    torch.testing.assert_close(ours, logits(model), atol=1e-4, rtol=0)


def test_a_tied_output_layer_has_the_embeddings_factors(tmp_path):
    base, tuned = fine_tune("gpt2", "AutoModelForCausalLM", tmp_path)
    done = extract(opened(base, tuned), tmp_path / "a", rank=2)
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    A = stored["base_model.model.transformer.wte.lora_embedding_A"]
    torch.testing.assert_close(stored["base_model.model.lm_head.lora_B.weight"], A.T, atol=0, rtol=0)
    row = next(row for row in done.rows if "wte" in row["name"])
    assert row["parameters"] == 2 * 2 * (row["m"] + row["n"])  # both copies are counted
    assert any("tied" in note for note in done.notes)


def test_gpt2_is_merged_by_peft_into_the_tuned_model(tmp_path):
    base, tuned = fine_tune("gpt2", "AutoModelForCausalLM", tmp_path)
    extract(opened(base, tuned), tmp_path / "a", rank=10_000, embeddings="whole")
    merged = with_adapter(base, "AutoModelForCausalLM", tmp_path / "a").merge_and_unload()
    torch.testing.assert_close(logits(merged), logits(load(tuned, "AutoModelForCausalLM")), atol=1e-4, rtol=0)


def test_biases_of_adapted_layers_alone_go_with_the_factors(tmp_path):
    """Then the base keeps its own, and peft can take the adapter off again."""
    base, tuned = fine_tune("bert", "AutoModelForSequenceClassification", tmp_path)
    weights, before = load_file(tuned / "model.safetensors"), load_file(base / "model.safetensors")
    for name, W in before.items():
        if "LayerNorm" in name or "embeddings" in name:
            weights[f"bert.{name}"] = W
    save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})
    done = extract(opened(base, tuned), tmp_path / "a", rank=10_000)
    assert config_of(tmp_path / "a")["lora_bias"] and config_of(tmp_path / "a")["bias"] == "none"
    assert {one["how"] for one in done.beside if one["why"] == "bias"} == {"bias of lora_B"}
    found = with_adapter(base, "AutoModelForSequenceClassification", tmp_path / "a")
    theirs = logits(load(tuned, "AutoModelForSequenceClassification"))
    torch.testing.assert_close(logits(found), theirs, atol=1e-4, rtol=0)
    bias = "encoder.layer.0.intermediate.dense.bias"
    kept = dict(found.get_base_model().named_parameters())[f"bert.{bias.replace('.bias', '.base_layer.bias')}"]
    torch.testing.assert_close(kept, before[bias], atol=0, rtol=0)


# --- adapters at another rank ---


def train(base, class_name, folder, seed=0, **config):
    """An adapter that peft wrote, with random factors in place of training; its model beside it."""
    torch.manual_seed(seed)
    model = get_peft_model(load(base, class_name), LoraConfig(**config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


ADAPTERS = {
    "bert-head": ("bert", "AutoModelForSequenceClassification",
                  {"r": 6, "lora_alpha": 9, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
    "bert-rslora-patterns": ("bert", "AutoModel", {
        "r": 6, "lora_alpha": 4, "use_rslora": True, "target_modules": ["query", "output.dense"],
        "rank_pattern": {"query": 3}, "alpha_pattern": {"output.dense": 7}}),
    "bert-biases": ("bert", "AutoModel", {"r": 4, "lora_alpha": 8, "target_modules": ["query", "key"],
                                          "lora_bias": True}),
    "gpt2": ("gpt2", "AutoModelForCausalLM", {"r": 5, "lora_alpha": 5, "target_modules": ["c_attn", "c_proj"],
                                              "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}),
    "gpt2-embedding": ("gpt2", "AutoModel", {"r": 5, "lora_alpha": 10, "target_modules": ["wte", "c_fc"],
                                             "fan_in_fan_out": True}),
    "llama-norms": ("llama", "AutoModel", {
        "r": 5, "lora_alpha": 10, "target_modules": ["q_proj", "down_proj"], "modules_to_save": ["norm"]}),
}  # fmt: skip


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_resized_exactly(name, with_base, tmp_path):
    kind, class_name, config = ADAPTERS[name]
    base, tuned = fine_tune(kind, class_name, tmp_path)[0], tmp_path / "adapter"
    model = train(base, class_name, tuned, **config)
    pairing = opened(base if with_base else None, tuned)
    extract(pairing, tmp_path / "whole", rank=10_000)
    torch.testing.assert_close(logits(with_adapter(base, class_name, tmp_path / "whole")), logits(model),
                               atol=1e-4, rtol=0)
    done = extract(pairing, tmp_path / "two", rank=2)
    assert {row["r"] for row in done.rows} == {2} and done.lost == []
    cut = with_adapter(base, class_name, tmp_path / "two")
    with torch.no_grad():
        for path, layer in model.named_modules():
            if not hasattr(layer, "get_delta_weight"):
                continue
            dW = layer.get_delta_weight("default")
            shown = dict(cut.named_modules())[path].get_delta_weight("default").double()
            torch.testing.assert_close(shown, truncated(dW.double(), 2), atol=1e-6 * float(dW.norm()), rtol=0)
    assert (logits(cut) - logits(model)).abs().max() > 1e-5
    assert isinstance(cut, PeftModel)


def test_a_resized_adapter_of_an_extraction_is_the_extraction_of_that_rank(tmp_path):
    base, tuned = fine_tune("roberta", "AutoModelForSequenceClassification", tmp_path)
    extract(opened(base, tuned), tmp_path / "r8", rank=8)
    extract(opened(base, tuned), tmp_path / "r3", rank=3)
    extract(opened(None, tmp_path / "r8"), tmp_path / "r8to3", rank=3)
    name = "AutoModelForSequenceClassification"
    ours, theirs = (logits(with_adapter(base, name, tmp_path / folder)) for folder in ("r8to3", "r3"))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_loralib_file_with_its_head_becomes_an_adapter_that_peft_loads(tmp_path):
    base, tuned = fine_tune("roberta", "AutoModelForSequenceClassification", tmp_path)
    W = {name: t for name, t in load_file(tuned / "model.safetensors").items() if name.startswith("classifier.")}
    for i in range(2):
        for kind in ("query", "value"):
            path = f"roberta.encoder.layer.{i}.attention.self.{kind}.lora_"
            W |= {f"{path}A": torch.randn(6, 32), f"{path}B": torch.randn(32, 6)}
    torch.save(W, tmp_path / "loralib.bin")
    pairing = pair(None, open_input(tmp_path / "loralib.bin", alpha=3), fused=True)
    done = extract(pairing, tmp_path / "a", rank=2)
    assert (done.summary["task_type"], done.summary["num_labels"]) == ("SEQ_CLS", 3)
    model = load(base, "AutoModelForSequenceClassification")
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, t in W.items():
            if name.endswith("lora_A"):
                dW = 0.5 * W[name.replace("lora_A", "lora_B")].double() @ t.double()
                modules[name.removesuffix(".lora_A")].weight += truncated(dW, 2).float()
        model.load_state_dict({name: t for name, t in W.items() if "lora_" not in name}, strict=False)
    ours = logits(with_adapter(base, "AutoModelForSequenceClassification", tmp_path / "a"))
    torch.testing.assert_close(ours, logits(model), atol=1e-4, rtol=0)
