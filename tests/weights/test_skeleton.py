"""A model's modules: from its class, and from names alone."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

from rankprobe.weights.skeleton import by_names, skeleton_of
from tests.tiny_models import KINDS, make_tiny

HEADS = {"bert": "BertForSequenceClassification", "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM",
         "roberta": "RobertaForMaskedLM"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Config and a real model of the class that the config names."""

    def make(kind, class_name=None):
        folder = make_tiny(kind, tmp_path_factory.mktemp(kind))
        config = json.loads((folder / "config.json").read_text())
        if class_name:
            config["architectures"] = [class_name]
        model = getattr(transformers, config["architectures"][0])(transformers.AutoConfig.from_pretrained(folder))
        return config, model

    return make


def shapes_of(model):
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_modules_are_those_of_the_class(made, kind):
    config, model = made(kind, HEADS.get(kind))
    skeleton = skeleton_of(config, shapes_of(model), {})
    modules = {path: module for path, module in model.named_modules() if path}
    assert skeleton.architecture == config["architectures"][0] and skeleton.parts.keys() == modules.keys()
    for path, module in modules.items():
        part = skeleton.parts[path]
        assert part.leaf == (not list(module.children()))
        assert part.tensors == tuple(module.state_dict())
        of = {torch.nn.Linear: "linear", Conv1D: "conv1d", torch.nn.Embedding: "embedding"}.get(type(module))
        assert (part.kind == of) if of else (part.kind in ("other", "container") or not part.adaptable)
        assert part.adaptable <= (part.kind in ("linear", "conv1d", "embedding"))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "roberta"])
def test_names_alone_tell_the_same_layers(made, kind):
    config, model = made(kind, HEADS[kind])
    real = skeleton_of(config, shapes_of(model), {})
    guessed = by_names(shapes_of(model), {}, config)
    assert guessed.architecture == ""
    for path, part in real.parts.items():
        if part.kind in ("linear", "conv1d", "embedding") and path in guessed.parts:
            assert (guessed.parts[path].kind, guessed.parts[path].adaptable) == (part.kind, part.adaptable), path


def test_tied_parameters_and_the_names_that_files_leave_out(made):
    config, model = made("gpt2", "GPT2LMHeadModel")
    skeleton = skeleton_of(config, shapes_of(model), {})
    assert skeleton.tied == {"lm_head.weight": "transformer.wte.weight"}
    assert skeleton.parts["lm_head"].kind == "linear" and skeleton.parts["transformer.h.0.attn.c_attn"].kind == "conv1d"


def test_names_of_files_are_told_as_the_model_has_them(made):
    config, model = made("bert", "BertForSequenceClassification")
    skeleton = skeleton_of(config, shapes_of(model), {})
    for stored, canonical in {
        "bert.pooler.dense.weight": "bert.pooler.dense.weight",
        "pooler.dense.weight": "bert.pooler.dense.weight",
        "module.bert.pooler.dense.weight": "bert.pooler.dense.weight",
        "_orig_mod.module.pooler.dense.bias": "bert.pooler.dense.bias",
        "_fsdp_wrapped_module.module.pooler.dense.bias": "bert.pooler.dense.bias",
        "bert.encoder.layer.0._orig_mod.output.dense.bias": "bert.encoder.layer.0.output.dense.bias",
        "bert.embeddings.LayerNorm.gamma": "bert.embeddings.LayerNorm.weight",
        "embeddings.LayerNorm.beta": "bert.embeddings.LayerNorm.bias",
        "classifier.weight": "classifier.weight",
        "unknown.weight": "unknown.weight",
    }.items():
        assert skeleton.canonical(stored) == canonical
    headless, model = made("bert")
    assert skeleton_of(headless, shapes_of(model), {}).canonical("bert.pooler.dense.weight") == "pooler.dense.weight"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architectures": ["BertModel"]},
        {"model_type": "bert"},
        {"architectures": ["NoSuchModel"], "model_type": "bert"},
        {"architectures": "BertModel", "model_type": "bert"},
        {"architectures": [7], "model_type": "bert"},
        {"architectures": ["BertModel"], "model_type": "no-such-type"},
        {"architectures": ["pipeline"], "model_type": "bert"},
        {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": "wide"},
        {"architectures": ["BertModel"], "model_type": "bert", "num_hidden_layers": 10**9},
        {"architectures": ["BertModel"], "model_type": "bert", "auto_map": {"AutoModel": "own.Model"}},
    ],
)
def test_a_config_that_builds_nothing_of_these_names_leaves_the_names(config):
    shapes = {"layers.0.q_proj.weight": (4, 4), "layers.0.q_proj.bias": (4,), "layers.0.norm.weight": (4,),
              "embed_tokens.weight": (9, 4), "patch.weight": (4, 3, 2, 2)}
    skeleton = skeleton_of(config, shapes, {})
    assert skeleton.architecture == ""
    kinds = {path: (part.kind, part.adaptable) for path, part in skeleton.parts.items() if part.kind != "container"}
    assert kinds == {"layers.0.q_proj": ("linear", True), "layers.0.norm": ("other", False),
                     "embed_tokens": ("embedding", True), "patch": ("convolution", False)}


def test_names_of_a_wrapper_are_taken_off_and_ties_are_kept():
    shapes = {"module.wte.weight": (9, 4), "module.h.0.c_fc.weight": (4, 8)}
    skeleton = by_names(shapes, {"module.lm_head.weight": "module.wte.weight"}, {})
    assert {"wte", "h.0.c_fc", "lm_head"} <= skeleton.parts.keys() and skeleton.tied == {"lm_head.weight": "wte.weight"}


def test_embeddings_that_are_not_looked_up_plainly_take_no_factors(made):
    config, model = made("deberta-v2")
    skeleton = skeleton_of(config, shapes_of(model), {})
    assert skeleton.parts["embeddings.word_embeddings"].adaptable
    assert not skeleton.parts["encoder.rel_embeddings"].adaptable  # read by attribute, never called


@pytest.mark.parametrize("class_name, settings, names", [
    ("GPTNeoXForCausalLM", {"num_attention_heads": 4}, {"embed_out.weight": "lm_head.weight"}),
    ("ViTForImageClassification", {"num_attention_heads": 4, "image_size": 16, "patch_size": 4}, {
        "vit.encoder.layer.1.attention.attention.query.weight": "vit.layers.1.attention.q_proj.weight",
        "vit.encoder.layer.0.output.dense.bias": "vit.layers.0.mlp.fc2.bias"}),
    ("MixtralForCausalLM", {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}, {
        "model.layers.0.block_sparse_moe.gate.weight": "model.layers.0.mlp.gate.weight",
        # Put together with others on loading: no module's weight.
        "model.layers.0.block_sparse_moe.experts.3.w1.weight": "model.layers.0.block_sparse_moe.experts.3.w1.weight"}),
])  # fmt: skip
def test_names_that_only_files_have_are_those_that_transformers_loads_them_under(tmp_path, class_name, settings, names):
    config_class = getattr(transformers, class_name).config_class
    config = config_class(hidden_size=32, num_hidden_layers=2, intermediate_size=64, **settings)
    getattr(transformers, class_name)(config).save_pretrained(tmp_path)
    stored = {name: tuple(W.shape) for name, W in load_file(tmp_path / "model.safetensors").items()}
    skeleton = skeleton_of(json.loads((tmp_path / "config.json").read_text()), stored, {})
    assert names.keys() <= stored.keys() and skeleton.architecture == class_name
    assert {name: skeleton.canonical(name) for name in names} == names
