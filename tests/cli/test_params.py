"""``rankprobe params``: every method on any model, the paper's own counts, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import peft
import pytest
import transformers

from rankprobe.cli.options import METHODS
from rankprobe.experiment.parameters import meta_language_model
from tests.cli.lab import rankprobe, refused
from tests.tiny_models import make_tiny


def table(*arguments):
    result = rankprobe("params", *arguments, "--format", "csv")
    assert result.exit_code == 0, result.stderr
    return pd.read_csv(io.StringIO(result.stdout)), result.stderr


def test_a_gpt_of_the_paper_is_counted_as_a_language_model():
    rows, said = table("--model", "gpt2-medium", "--method", "full", "--method", "lora", "--r", "4")
    assert rows["method_params"].tolist() == [354_823_168, 393_216] and (rows["head_params"] == 0).all()
    assert said == ""


def test_its_classification_head_is_counted_when_asked_for():
    rows, _ = table("--model", "gpt2-medium", "--method", "lora", "--r", "4", "--task-type", "classification")
    assert rows[["method_params", "head_params"]].values.tolist() == [[393_216, 2048]]


def test_an_encoders_head_has_a_column_of_its_own():
    rows, _ = table("--model", "roberta-base", "--method", "lora", "--r", "8", "--targets", "q,v", "--targets", "qkvo")
    assert rows["method_params"].tolist() == [294_912, 589_824] and set(rows["head_params"]) == {592_130}


def test_gpt3_with_the_sizes_of_table_4():
    rows, _ = table("--model", "gpt3-175b", "--method", "lora", "--method", "prompt", "--method", "prefix",
                    "--r", "1,8", "--prefix-length", "16,264")  # fmt: skip
    params = {method: of["method_params"].tolist() for method, of in rows.groupby("method")}
    assert params == {
        "lora": [4_718_592, 37_748_736],
        "prompt": [16 * 12288, 3_244_032],
        "prefix": [18_874_368, 96 * 3_244_032],
    }


def test_every_method_that_fits_is_there_by_default(bench):
    rows, said = table("--model", "base")
    assert set(rows["method"]) == set(METHODS)
    # r = 64 is above the model's width, and nobody asked for it.
    assert rows.loc[rows["method"] == "lora", "r"].tolist() == [1, 2, 4, 8]
    assert said.startswith("rankprobe: left out: lora: r must be from 1 to")
    sizes = rows.dropna(subset=["size"]).set_index("method")["size"]
    assert sizes["adapter_h"] == 16 and sizes["did"] == 1000 and sizes["top_layers"] == 2


def test_methods_that_do_not_fit_are_named(tmp_path, monkeypatch):
    make_tiny("llama", tmp_path / "llama")
    monkeypatch.chdir(tmp_path)
    rows, said = table("--model", "llama", "--task-type", "lm", "--r", "2")
    assert "bitfit" not in set(rows["method"]) and "left out: bitfit: " in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--r", "1,99"], "r must be from 1 to"),
        (["--bottleneck", "0"], "bottleneck.* must be .* Got 0"),
        (["--prefix-length", "0"], r"length.* must be .* Got 0"),
        (["--layers", "3"], "layers.* must be .* Got 3"),
        (["--method", "did", "--d", "10000000"], r"\bd must be .* Got 10000000"),
        (["--method", "said", "--d", "3"], "d must be above the number of layers, 3"),
        (["--targets", "gate"], "targets must name matrices"),
        (["--paper"], "--paper must be given without options that choose what is counted. Got --model"),
    ],
)
def test_refuses(bench, arguments, message):
    refused(rankprobe("params", "--model", "base", *arguments), 2, message)


def test_a_method_that_is_asked_for_and_does_not_fit_is_refused(tmp_path, monkeypatch):
    make_tiny("gpt2", tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    arguments = ("params", "--model", "gpt2", "--task-type", "lm", "--method")
    refused(rankprobe(*arguments, "head"), 2, "The method head must be of a model that has a head of its own")
    assert "Invalid value for '--method'" in rankprobe(*arguments, "adapter_x").stderr


def test_the_papers_counts_beside_ours():
    rows, _ = table("--paper")
    assert len(rows) == 88 and {"printed", "ours", "verdict", "fits", "formula", "note"} <= set(rows.columns)
    shown = rankprobe("params", "--paper").stdout
    lines = [line for line in shown.splitlines() if "393,216" in line]
    assert lines and all("0.35M" in line and "differs" in line for line in lines)
    assert "bottleneck 7 with layer" in shown and "equal in 2^20" in shown


def test_the_table_on_a_terminal_has_every_size(bench):
    shown = rankprobe("params", "--model", "base", "--method", "adapter_l", "--bottleneck", "2,3").stdout
    rows = [line.split()[:2] for line in shown.splitlines() if line.strip().startswith("adapter_l")]
    assert rows == [["adapter_l", "2"], ["adapter_l", "3"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "distil", "--task-type", "lm"], "model must have a language-model head. Got distilbert"),
        (["--model", "base", "--bottleneck", "99999999999999999999"], "bottleneck must be at most"),
        (["--model", "words"], "config.json must have fields of the right type. Got .*num_hidden_layers"),
        (["--model", "odd"], "config.json must make a bert with its sizes. Got"),
        (["--model", "act"], "config.json must make a bert with its sizes. Got"),
    ],
)
def test_what_makes_no_model_is_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    make_tiny("distilbert", "distil")
    for name, change in (("base", {}), ("words", {"num_hidden_layers": "abc"}), ("odd", {"hidden_size": 33}),
                         ("act", {"hidden_act": "nope"})):  # fmt: skip
        config = json.loads((make_tiny("bert", name) / "config.json").read_text()) | change
        Path(name, "config.json").write_text(json.dumps(config))
    refused(rankprobe("params", *arguments), 2, message)


def test_too_many_classes_are_refused_before_memory_is_full(bench):
    result = rankprobe("params", "--model", "base", "--labels", "99999999999999999999")
    assert result.exit_code == 2 and "Invalid value for '--labels'" in result.stderr


def test_a_config_without_special_tokens_can_have_a_prefix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32,
             "embedding_size": 16, "vocab_size": 40, "intra_bottleneck_size": 16}  # fmt: skip
    transformers.MobileBertConfig(**sizes).save_pretrained("mobile")
    rows, _ = table("--model", "mobile", "--method", "prompt", "--prefix-length", "4")
    assert rows["method_params"].tolist() == [64]


def test_weights_that_cannot_be_read_are_said_and_counted_as_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(make_tiny("bert", "base"), "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    rows, said = table("--model", "base", "--method", "lora", "--r", "4")
    assert rows["method_params"].tolist() == [4 * 2 * 2 * 64] and "counted as if the weights were whole" in said


def test_experts_that_no_lora_adapts_are_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "num_local_experts": 4, "vocab_size": 40}  # fmt: skip
    config = transformers.MixtralConfig(**sizes)
    config.save_pretrained("mixtral")
    rows, said = table("--model", "mixtral", "--task-type", "lm", "--method", "lora", "--targets", "all", "--r", "2")
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = peft.LoraConfig(r=2, target_modules=modules, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(meta_language_model(config), lora)
    assert rows["method_params"].tolist() == [sum(p.numel() for p in adapted.parameters() if p.requires_grad)]
    assert "mlp.experts.gate_up_proj" in said and "three dimensions or more" in said and said.count("warning") == 1
    make_tiny("llama", "llama")
    assert "dimensions" not in table("--model", "llama", "--method", "lora", "--r", "2")[1]
