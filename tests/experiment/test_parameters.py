"""Counts on the meta device: those of the closed forms, of the same method on a real model, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers

from rankprobe.errors import UsageError
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.fit import check_fit, parameter_counts
from rankprobe.experiment.parameters import (
    DEFAULT_SIZES,
    Setting,
    count,
    meta_classifier,
    meta_language_model,
    meta_model,
    parameter_table,
)
from rankprobe.experiment.spec import METHODS, SIZE_FIELD
from rankprobe.experiment.study import Study
from rankprobe.methods.apply import apply_method
from rankprobe.methods.head import head_parameters
from rankprobe.paper.architectures import paper_config
from rankprobe.weights.lacking import stored_names
from rankprobe.weights.pretrained import load_config
from rankprobe.weights.source import find_model
from tests.tiny_models import KINDS, make_tiny

# All tiny models: L blocks of width d.
L, D = 2, 32
SIZED = [Setting("lora", "q,v", 3), *(Setting(m, size=4 if f == "d" else 1) for m, f in SIZE_FIELD.items())]
SETTINGS = [Setting("full"), Setting("head"), Setting("bitfit"), *SIZED]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {kind: make_tiny(kind, folder / kind) for kind in KINDS}


def config_of(tiny, kind):
    return load_config(str(tiny[kind]))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.method)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_counted_is_what_a_real_model_would_train(tiny, kind, setting):
    if (kind, setting.method) == ("llama", "bitfit"):
        pytest.skip("has no biases; refused below")
    counted = count(config_of(tiny, kind), setting, num_labels=3)
    config = config_of(tiny, kind)
    config.num_labels = 3
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    head, total = head_parameters(model), sum(p.numel() for p in model.parameters())
    applied = apply_method(
        model, head, setting.method, r=setting.r, alpha=6.0, targets=setting.targets, size=setting.size
    )
    trained = sum(p.numel() for p in applied.trainee.parameters() if p.requires_grad)
    assert counted.method + counted.head == trained and counted.total == total
    assert counted.head == sum(p.numel() for n, p in model.named_parameters() if n in head)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (Setting("lora", "q,v", 3), 2 * L * 3 * (D + D)),
        (Setting("head"), 0),
        (Setting("adapter_h", size=5), 2 * L * (2 * D * 5 + 5 + D) + 2 * (2 * L) * D),
        (Setting("adapter_l", size=5), L * (2 * D * 5 + 5 + D) + 2 * L * D),
        (Setting("prompt", size=7), 7 * D),
        (Setting("prefix", size=7), L * 7 * D),
        (Setting("did", size=50), 50),
        (Setting("said", size=50), 50),
        # The MLP of the tiny models widens by two, not four: 4 d² + 2 · 2 d², with biases and two norms.
        (Setting("top_layers", size=1), 8 * D * D + 4 * D + 2 * D + D + 4 * D),
        (Setting("bitfit"), L * (4 * D + 2 * D + D + 2 * D) + D),
    ],
    ids=lambda x: x.method if isinstance(x, Setting) else "",
)
def test_closed_forms(tiny, setting, expected):
    # RoBERTa has no pooler under its classifier.
    assert count(config_of(tiny, "roberta"), setting).method == expected


@pytest.mark.parametrize(("method", "modules"), [("adapter_h", 2 * L), ("adapter_l", L)])
def test_an_adapters_layer_norms_are_counted_apart(tiny, method, modules):
    counted = count(config_of(tiny, "roberta"), Setting(method, size=5))
    assert counted.norms == 2 * modules * D
    assert count(config_of(tiny, "roberta"), Setting("lora", "q,v", 3)).norms == 0


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_language_models_output_layer_is_counted_once_and_is_no_head(tiny, kind):
    config = config_of(tiny, kind)
    counted = count(config, Setting("lora", "q,v", 3), problem="language_modelling")
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert counted.total == sum(p.numel() for p in model.parameters())
    assert counted.head == 0


def test_nothing_is_stored_and_nothing_drawn(monkeypatch):
    model = meta_language_model(paper_config("gpt3-175b"))
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda *args, **kwargs: pytest.fail("drew initial values"))
    apply_method(model, set(), "lora", r=1, alpha=1.0, targets="q,v")
    assert {p.device for p in model.parameters()} == {torch.device("meta")}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4_718_592


def test_heads_that_an_architecture_lacks_are_refused():
    with pytest.raises(UsageError, match="model must have a sequence-classification head. Got vit"):
        meta_classifier(transformers.ViTMAEConfig())
    with pytest.raises(UsageError, match="model must have a language-model head. Got distilbert"):
        meta_model(transformers.DistilBertConfig(), "language_modelling")


def test_the_table_has_a_row_for_every_choice(tiny):
    table = parameter_table(
        config_of(tiny, "bert"),
        num_labels=2,
        targets=["q,v", "v , q", "qkvo"],
        rs=[1, 4],
        methods=METHODS,
        sizes={"bottleneck": [2, 3], "d": [10, 20], "layers": [1]},
    )
    assert list(table.columns) == [
        "method", "targets", "r", "method_params", "head_params", "trainable_params", "total_params", "trainable_pct",
        "method_pct", "size",
    ]  # fmt: skip
    sizes = {method: table.loc[table["method"] == method, "size"].tolist() for method in SIZE_FIELD}
    assert sizes["adapter_h"] == sizes["adapter_l"] == [2, 3] and sizes["did"] == sizes["said"] == [10, 20]
    assert sizes["prefix"] == sizes["prompt"] == list(DEFAULT_SIZES["prefix_length"]) and sizes["top_layers"] == [1]
    lora = table[table["method"] == "lora"]
    assert lora["targets"].tolist() == ["q,v"] * 2 + ["q,k,v,o"] * 2 and lora["r"].tolist() == [1, 4] * 2
    assert (table["trainable_params"] == table["method_params"] + table["head_params"]).all()
    full, head = table.set_index("method").loc["full"], table.set_index("method").loc["head"]
    assert full["trainable_params"] == full["total_params"] and full["trainable_pct"] == full["method_pct"] == 100
    assert head["method_params"] == 0 and table["head_params"].nunique() == 1
    assert table.attrs["left_out"] == []


def test_what_is_optional_and_does_not_fit_is_left_out_with_its_reason(tiny):
    config = config_of(tiny, "llama")
    methods = ("full", "bitfit", "lora")
    with pytest.raises(UsageError, match="bias"):
        parameter_table(config, methods=methods, rs=[2], problem="language_modelling")
    table = parameter_table(config, methods=methods, rs=[2, 999], problem="language_modelling", optional=methods)
    assert table["method"].tolist() == ["full", "lora"]
    assert [reason.split(":")[0] for reason in table.attrs["left_out"]] == ["bitfit", "lora"]


def specs(model, max_length=16, **configuration):
    study = Study("t", (Configuration(lr=1e-3, **configuration),), model=str(model), max_length=max_length)
    return study.specs(dtype="float32", device="cpu", threads=1)


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"method": "full", "max_length": 131}, "max_length must be at most 130.*Got 131"),
        ({"method": "prefix", "prefix_length": 115}, "prefix_length must be at most 114, .* texts of 16 tokens"),
        ({"method": "prompt", "prefix_length": 115}, "prefix_length must be at most 114, .* texts of 16 tokens"),
        ({"method": "top_layers", "layers": 3}, r"layers.* must be .*2.* Got 3"),
        ({"method": "did", "d": 10**7}, r"\bd must be .* Got 10000000"),
        ({"method": "said", "d": 3}, "d must be above the number of layers, 3.* Got 3"),
        ({"method": "lora", "r": 33}, "r must be from 1 to"),
        ({"method": "lora", "r": 1, "targets": "gate"}, "targets must name matrices that the model has"),
    ],
    ids=lambda x: "" if isinstance(x, str) else "-".join(map(str, x.values())),
)
def test_what_does_not_fit_is_refused_in_one_line(tiny, configuration, message):
    with pytest.raises(UsageError, match=message) as error:
        check_fit(specs(tiny["bert"], **configuration), find_model(str(tiny["bert"])))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["bottleneck", "prefix_length", "layers", "d"])
def test_a_size_of_0_is_refused_even_past_the_study(tiny, name):
    method = next(m for m, field in SIZE_FIELD.items() if field == name)
    (good,) = specs(tiny["bert"], method=method, **{name: 4 if name == "d" else 1})
    with pytest.raises(UsageError, match=r"must be .* Got 0"):
        check_fit([replace(good, **{name: 0})], find_model(str(tiny["bert"])))


def test_what_fits_exactly_is_let_through(tiny):
    source = find_model(str(tiny["bert"]))
    for configuration in (
        {"method": "prefix", "prefix_length": 114},
        {"method": "top_layers", "layers": 2},
        {"method": "said", "d": 4},
        {"method": "lora", "r": 32},
        {"method": "adapter_h", "bottleneck": 1},
    ):
        check_fit(specs(tiny["bert"], **configuration), source)


def test_a_method_that_the_architecture_has_nothing_for_is_refused(tiny):
    with pytest.raises(UsageError, match="bias"):
        check_fit(specs(tiny["llama"], method="bitfit"), find_model(str(tiny["llama"])), problem="language_modelling")
    with pytest.raises(UsageError, match="The method head must be"):
        check_fit(specs(tiny["gpt2"], method="head"), find_model(str(tiny["gpt2"])), problem="language_modelling")


def test_planned_runs_are_counted_once_a_setting(tiny, monkeypatch):
    import rankprobe.experiment.fit as module

    calls = []
    monkeypatch.setattr(module, "count", lambda *args, **kwargs: (calls.append(args[1]), count(*args, **kwargs))[1])
    study = Study(
        "t",
        (Configuration("lora", r=2, lr=1e-3, seeds=2), Configuration("adapter_l", bottleneck=3, lr=1e-3)),
        model=str(tiny["roberta"]),
    )
    task = SimpleNamespace(labels=("a", "b", "c"), problem="classification")
    runs = [
        SimpleNamespace(spec=spec, task=task, source=find_model(str(tiny["roberta"])), run_id=f"{spec.label}")
        for spec in study.specs(dtype="float32", device="cpu", threads=1)
    ]
    head = D * D + D + 3 * D + 3
    assert parameter_counts(runs) == {
        "LoRA r=2 q,v seed 0": 2 * L * 2 * (D + D) + head,
        "LoRA r=2 q,v seed 1": 2 * L * 2 * (D + D) + head,
        "adapter_l bottleneck=3 seed 0": L * (2 * D * 3 + 3 + D + 2 * D) + head,
    }
    assert len(calls) == 2


def test_a_pooler_that_the_weights_lack_is_the_heads(tmp_path):
    make_tiny("bert", tmp_path / "whole")
    config = load_config(str(tmp_path / "whole"))
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
    head, pooler = 2 * D + 2, D * D + D
    for folder, expected in (("whole", head), ("mlm", head + pooler)):
        stored = stored_names(tmp_path / folder)
        counted = count(load_config(str(tmp_path / folder)), Setting("lora", "q,v", 4), stored=stored)
        assert counted.head == expected and counted.method == 4 * L * 2 * 2 * D
    assert count(config, Setting("head"), stored=None).head == head, "weights that are not at hand count as whole"


def test_an_output_layer_that_the_weights_lack_is_the_heads(tmp_path):
    make_tiny("llama", tmp_path / "bare")  # saved without its output layer
    config = load_config(str(tmp_path / "bare"))
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "whole")
    for folder, expected in (("bare", config.vocab_size * D), ("whole", 0)):
        stored = stored_names(tmp_path / folder)
        assert count(config, Setting("lora", "q,v", 4), problem="language_modelling", stored=stored).head == expected


@pytest.mark.parametrize("change", [{"hidden_size": 33}, {"hidden_act": "nope"}, {"pad_token_id": 10_000}])
def test_sizes_that_make_no_model_are_told_from_a_head_that_is_not_there(change):
    config = transformers.BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(UsageError, match=r"config\.json must make a bert with its sizes\. Got \S"):
        meta_classifier(config)
    with pytest.raises(UsageError, match="model must have a sequence-classification head"):
        meta_classifier(transformers.ViTConfig())


@pytest.mark.parametrize(("method", "said"), [("full", 1), ("lora", 1), ("head", 0)])
def test_that_the_sides_of_a_comparison_train_different_parts_is_said_once(tmp_path, recwarn, method, said):
    config = transformers.MixtralConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, vocab_size=20,
                                        num_attention_heads=2, num_key_value_heads=1, num_local_experts=2)  # fmt: skip
    transformers.MixtralForSequenceClassification(config).save_pretrained(tmp_path)
    planned = specs(tmp_path, method=method, **({"r": 1, "targets": "all"} if method == "lora" else {}))
    check_fit([*planned, *planned], SimpleNamespace(path=tmp_path))
    assert sum("experts.gate_up_proj" in str(w.message) for w in recwarn) == said
