"""Adapters on disk: what peft itself makes of them is what we read, and damaged ones end in one clear line."""

import json
import warnings

import peft
import pytest
import torch
import transformers
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from rankprobe.errors import UsageError
from rankprobe.weights.adapter import open_peft
from rankprobe.weights.peft_patterns import by_pattern
from tests.tiny_models import make_tiny

LINEAR = {
    "bert": ["query", "value", "intermediate.dense"],
    "roberta": ["query", "key", "attention.output.dense"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "mlp.c_proj"],
}
EMBEDDING = {"bert": "word_embeddings", "roberta": "word_embeddings", "llama": "embed_tokens", "gpt2": "wte"}
VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {r"0\..*": 2}, "alpha_pattern": {r"1\..*": 3}},
    "all biases": {"bias": "all"},
    "biases of LoRA": {"bias": "lora_only"},
    "bias on B": {"lora_bias": True},
}


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return {kind: make_tiny(kind, tmp_path_factory.mktemp(kind)) for kind in LINEAR}


def with_peft(folder, **settings):
    """A model that peft adapted, with random factors and biases."""
    model = transformers.AutoModel.from_pretrained(folder)
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    for p in filter(lambda p: p.requires_grad, model.parameters()):
        p.data.normal_(0, 0.3, generator=generator)
    return model


def tuner_layers(model):
    return {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if isinstance(m, LoraLayer)}


def product(source, path):
    factors = source.factors(path)
    return factors.scaling * factors.B.double() @ factors.A.double()


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_product_is_pefts_delta_weight(tiny_folder, tmp_path, kind, variant):
    if variant == "bias on B" and kind == "llama":
        pytest.skip("peft refuses lora_bias where the layers have no bias")
    embedding = [EMBEDDING[kind]] if variant != "bias on B" else []
    model = with_peft(tiny_folder[kind], target_modules=LINEAR[kind] + embedding, **VARIANTS[variant])
    with warnings.catch_warnings():  # peft takes a bias on B for a shard of a matrix
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path, save_embedding_layers=False)
    source = open_peft(tmp_path)
    layers = tuner_layers(model)
    assert source.modules.keys() == layers.keys()
    for path, layer in layers.items():
        expected = layer.get_delta_weight("default").double()
        stored_transposed = getattr(layer, "fan_in_fan_out", False) and not source.modules[path].embedding
        ours = product(source, path).T if stored_transposed else product(source, path)
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
        of = source.modules[path]
        assert of.shape == tuple(source.factors(path).B.shape[:1] + source.factors(path).A.shape[1:])
        assert (of.r, of.scaling) == (layer.r["default"], pytest.approx(layer.scaling["default"]))
        change = source.bias_change(path)
        assert (change is not None) == (variant == "bias on B")
        if change is not None:
            torch.testing.assert_close(change, layer.scaling["default"] * layer.lora_B["default"].bias.data)
    biases = {name for name in source.saved if name.endswith("bias")}
    assert bool(biases) == (variant in ("all biases", "biases of LoRA") and kind != "llama")
    parameters = {n.removeprefix("base_model.model.").replace(".base_layer.", "."): p
                  for n, p in model.named_parameters()}
    for name in biases:
        assert torch.equal(source.read_saved(name), parameters[name].data)


def test_a_raw_state_dict_with_adapter_names_reads_alike(tiny_folder, tmp_path):
    model = with_peft(tiny_folder["bert"], target_modules=["query"], modules_to_save=["pooler"])
    model.save_pretrained(tmp_path)
    plain = open_peft(tmp_path)
    before = {path: plain.factors(path).B for path in plain.modules}
    raw = {n: p.data.contiguous() for n, p in model.named_parameters()
           if ".lora_" in n or ".modules_to_save." in n or "pooler.original_module." in n}
    assert any(".lora_A.default.weight" in n for n in raw) and any(".original_module." in n for n in raw)
    save_file(raw, tmp_path / "adapter_model.safetensors")
    again = open_peft(tmp_path)
    assert again.modules.keys() == plain.modules.keys()
    assert again.saved == plain.saved == {"pooler.dense.weight": (32, 32), "pooler.dense.bias": (32,)}
    for path, B in before.items():
        assert torch.equal(again.factors(path).B, B)
    saved = model.base_model.model.pooler.modules_to_save["default"].dense.weight.data
    assert torch.equal(again.read_saved("pooler.dense.weight"), saved)


def test_a_pickled_adapter_reads_alike(tiny_folder, tmp_path):
    with_peft(tiny_folder["bert"], target_modules=["query"]).save_pretrained(tmp_path)
    plain = open_peft(tmp_path)
    paths = {path: plain.factors(path) for path in plain.modules}
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    pickled = open_peft(tmp_path)
    assert pickled.modules == plain.modules
    assert all(torch.equal(pickled.factors(path).A, paths[path].A) for path in paths)


def test_the_fingerprint_follows_the_files_and_not_the_folder(tiny_folder, tmp_path):
    with_peft(tiny_folder["bert"], target_modules=["query"]).save_pretrained(tmp_path / "a")
    before = open_peft(tmp_path / "a").fingerprint
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_peft(tmp_path / "b").fingerprint == before
    change(tmp_path / "b", lora_alpha=6)
    assert open_peft(tmp_path / "b").fingerprint != before


def change(folder, drop=(), **fields):
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({key: value for key, value in config.items() if key not in drop}))


def small(folder, tensors=None, **fields):
    """A hand-made adapter of two modules."""
    folder.mkdir(exist_ok=True)
    if tensors is None:
        tensors = {f"base_model.model.layers.{i}.q_proj.lora_{f}.weight": torch.ones(*shape)
                   for i in (0, 1) for f, shape in (("A", (2, 6)), ("B", (4, 2)))}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **fields}))
    return folder


def test_r_is_the_factors_own_and_alpha_may_come_from_an_option(tmp_path):
    folder = small(tmp_path / "a")
    change(folder, drop=("r", "lora_alpha"))
    source = open_peft(folder, alpha=3)
    assert source.modules["layers.0.q_proj"].scaling == 1.5 and source.base_name is None
    with pytest.raises(UsageError, match=r"lora_alpha must be known.*none for layers.0.q_proj.*Pass --alpha\.$"):
        open_peft(folder)
    change(folder, lora_alpha=4)
    with pytest.raises(UsageError, match="alpha must come from one place. Got 3 beside lora_alpha: 4"):
        open_peft(folder, alpha=3)


def test_the_first_pattern_that_matches_wins(tmp_path):
    folder = small(tmp_path / "a", alpha_pattern={r"1\.q_proj": 6, "q_proj": 8})
    modules = open_peft(folder).modules
    assert [modules[f"layers.{i}.q_proj"].alpha for i in (0, 1)] == [8, 6]


def test_patterns_that_search_for_ever_are_stopped():
    """What re would search for hours is answered, or refused after half a second."""
    path = "encoder.layer.0.attention.self.query"
    for pattern in ("(.*)*x", "((.+)+)+!", "(?:a|aa)*b"):
        assert by_pattern({pattern: 2}, path, 7) == 7
    with pytest.raises(UsageError, match=r"be matched within 0.5 s. Got '\(\(.\).*, which takes longer for encoder"):
        by_pattern({"((.)|(..)|(...))+[^y]": 2}, path, 7)


def test_a_base_is_named_without_its_path(tmp_path):
    for stored, shown in (("/home/someone/llama", "llama"), ("org/llama", "org/llama"), ("", None), (None, None),
                          (r"C:\models\llama", "llama"), (7, None)):
        assert open_peft(small(tmp_path / "a", base_model_name_or_path=stored)).base_name == shown


def test_a_start_that_moves_the_base_is_said(tmp_path):
    assert "pissa" in open_peft(small(tmp_path / "a", init_lora_weights="pissa_niter_4")).notes[0]
    assert open_peft(small(tmp_path / "a", init_lora_weights="gaussian")).notes == ()


def test_convolutions_and_parameters_are_left_out_with_the_reason(tmp_path):
    key = "base_model.model.{}.lora_{}.weight"
    tensors = {key.format("a.0.q", "A"): torch.ones(2, 6), key.format("a.0.q", "B"): torch.ones(4, 2),
               key.format("conv", "A"): torch.ones(2, 3, 3, 3), key.format("conv", "B"): torch.ones(4, 2, 1, 1),
               key.format("mlp.experts", "A"): torch.ones(8, 6), key.format("mlp.experts", "B"): torch.ones(4, 8)}
    source = open_peft(small(tmp_path / "a", tensors, target_parameters=["mlp.experts.gate_up_proj"]))
    assert list(source.modules) == ["a.0.q"]
    assert source.skipped == {"conv": "adapts a convolution (4-d factors)",
                              "mlp.experts": "adapts parameters, not a layer (target_parameters)"}


def test_parameters_that_are_targets_by_their_own_names_alone_are_left_out_too(tmp_path):
    """What peft 0.21 makes of target_modules: all-linear on a mixture of experts."""
    key = "base_model.model.{}.lora_{}.weight"
    stack = {key.format(path, "A"): torch.ones(16, 6) for path in ("mlp.experts", "mlp.experts.base_layer")}
    stack |= {of.replace("_A.", "_B."): torch.ones(4, 16) for of in stack}
    tensors = {key.format("a.0.q_proj", "A"): torch.ones(2, 6), key.format("a.0.q_proj", "B"): torch.ones(4, 2)}
    source = open_peft(small(
        tmp_path / "a", tensors | stack, target_modules=["q_proj"], target_parameters=["gate_up_proj", "down_proj"],
        rank_pattern={r".*\.gate_up_proj": 4}, alpha_pattern={r".*\.gate_up_proj": 8},
    ))  # fmt: skip
    assert list(source.modules) == ["a.0.q_proj"] and len(source.skipped) == 2


@pytest.mark.parametrize("fields, message", [
    ({"peft_type": "IA3"}, "peft_type LORA. Got IA3"),
    ({"peft_type": None}, "peft_type LORA. Got None"),
    ({"use_dora": True}, "plain B @ A. Got use_dora: true"),
    ({"alora_invocation_tokens": [5, 6]}, "plain B @ A. Got alora_invocation_tokens"),
    ({"use_qalora": True}, "use_qalora"),
    ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
    ({"r": 3}, "Got 2 in the factors of layers.0.q_proj, 3 in adapter_config.json"),
    ({"r": "two"}, "r in adapter_config.json must be a finite number. Got 'two'"),
    ({"r": True}, "r in adapter_config.json must be a finite number. Got True"),
    ({"lora_alpha": float("nan")}, "lora_alpha in adapter_config.json must be a finite number. Got nan"),
    ({"lora_alpha": float("inf")}, "finite number. Got inf"),
    ({"lora_alpha": 10**400}, "finite number"),
    ({"lora_alpha": [4]}, r"finite number. Got \[4\]"),
    ({"rank_pattern": {"k_proj": 2}}, "rank_pattern's keys must match a module of the adapter. Got 'k_proj'"),
    ({"alpha_pattern": {"k_proj": 2}}, "alpha_pattern's keys must match a module"),
    ({"rank_pattern": {"(": 2}}, r"rank_pattern's keys must be regular expressions. Got '\('"),
    ({"alpha_pattern": {"((a{1000}){1000}){1000}": 2}}, "repeats of 10,000 in all"),
    ({"rank_pattern": {"a" * 100_001: 2}}, "at most 100,000 characters"),
    ({"rank_pattern": {"(?R)": 2}}, "must be regular expressions"),
    ({"peft_type": "\x1b[2J"}, r"peft_type LORA. Got \\x1b\[2J"),
    ({"rank_pattern": ["q_proj"]}, "rank_pattern in adapter_config.json must be an object. Got list"),
    ({"rank_pattern": {"q_proj": "2"}}, r"rank_pattern\['q_proj'\] in adapter_config.json must be a finite number"),
    ({"rank_pattern": {r"0\.q_proj": 3}}, "Got 2 in the factors of layers.0.q_proj, 3"),
])
def test_configs_that_are_refused(tmp_path, fields, message):
    with pytest.raises(UsageError, match=message) as error:
        open_peft(small(tmp_path / "a", **fields))
    assert "\n" not in str(error.value)


KEY = "base_model.model.layers.0.q_proj.lora_{}.weight"


@pytest.mark.parametrize("tensors, message", [
    ({KEY.format("A"): torch.ones(2, 6)}, "both lora_A and lora_B. Got layers.0.q_proj with lora_A alone"),
    ({KEY.format("B"): torch.ones(4, 2)}, "lora_B alone"),
    ({KEY.format("A"): torch.ones(2, 6), KEY.format("B"): torch.ones(4, 3)}, r"\(4, 3\) beside lora_A \(2, 6\)"),
    ({KEY.format("A"): torch.ones(2, 6), KEY.format("B"): torch.ones(4)}, "must have the shape"),
    ({KEY.format("A"): torch.ones(0, 6), KEY.format("B"): torch.ones(4, 0)}, "must have the shape"),
    ({KEY.format("A"): torch.ones(2, 6, dtype=torch.int64), KEY.format("B"): torch.ones(4, 2)}, "be floating point"),
    ({"base_model.model.head.weight": torch.ones(3, 4)}, "hold lora_A and lora_B of a matrix. Got none"),
    ({KEY.format("A"): torch.ones(2, 6), KEY.format("B"): torch.ones(4, 2),
      "base_model.model.layers.0.q_proj.lora_magnitude_vector": torch.ones(4)}, "DoRA's magnitudes"),
    ({KEY.format("A"): torch.ones(2, 6), KEY.format("B"): torch.ones(4, 2),
      KEY.format("A.other"): torch.ones(2, 6)}, "one adapter a file"),
    ({KEY.format("A"): torch.ones(2, 6), KEY.format("B"): torch.ones(4, 2),
      "base_model.model.layers.0.q_proj.lora_diag": torch.ones(2)}, "hold lora_A and lora_B alone"),
])
def test_weights_that_are_refused(tmp_path, tensors, message):
    with pytest.raises(UsageError, match=message) as error:
        open_peft(small(tmp_path / "a", tensors))
    assert "\n" not in str(error.value)


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(UsageError, match="folder with adapter_config.json"):
        open_peft(tmp_path)
    folder = small(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UsageError, match="weights beside its config. Got no adapter_model.safetensors"):
        open_peft(folder)
    for text, message in (("[1, 2]", "be a JSON object. Got list"), ("{", "readable JSON"), ("\x00", "readable JSON"),
                          ("[" * 100_000, "readable JSON")):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(UsageError, match=message):
            open_peft(folder)
    (folder / "adapter_config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="readable JSON"):
        open_peft(folder)


def test_factors_with_nan_name_the_tensor(tmp_path):
    nan = torch.full((2, 6), float("nan"))
    folder = small(tmp_path / "a", {KEY.format("A"): nan, KEY.format("B"): torch.ones(4, 2)})
    with pytest.raises(UsageError, match="layers.0.q_proj.lora_A.weight in a must be finite"):
        open_peft(folder).factors("layers.0.q_proj")
