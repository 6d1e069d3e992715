"""Pairs of two models: what is compared with what, for every way in which two sides of one tuning differ."""

import math
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file

from rankprobe import extract
from rankprobe.errors import UsageError
from rankprobe.methods.full import full_deltas
from rankprobe.weights.adapter import open_peft
from rankprobe.weights.matching import match
from rankprobe.weights.pair import pair
from tests.tiny_models import make_tiny
from tests.weights.memory import Memory, adapter_of, bert_like, by_name, nudged, random


def test_equal_names_give_the_differences_of_full_deltas():
    W0 = bert_like()
    W1 = nudged(W0)
    pairing = pair(Memory(W0), Memory(W1))
    expected = {d.name: d for d in full_deltas(W0, W1)}
    assert by_name(pairing).keys() == expected.keys() and pairing.renamed == ("", "")
    for m in pairing.matrices:
        d, e = m.delta(), expected[m.name]
        assert (d.name, d.layer, d.kind, d.shape, d.dtype_base, d.dtype_tuned) == (
            e.name, e.layer, e.kind, e.shape, e.dtype_base, e.dtype_tuned)
        assert d.dW.dtype == torch.float64 and torch.equal(d.dW, e.dW) and d.base_norm == pytest.approx(e.base_norm)
        assert torch.equal(d.W0, W0[m.parameter]) and torch.equal(d.W1, W1[m.parameter])
        assert m.cost == d.shape[0] * d.shape[1] * min(d.shape) and m.source == d.source == "dense"
    vectors = {v.name: v for v in pairing.vectors()}
    assert vectors.keys() == {n for n, t in W0.items() if t.ndim == 1}
    name = "encoder.layer.0.attention.self.query.bias"
    assert vectors[name].norm == pytest.approx(float(W0[name].norm()))
    assert vectors[name].change_norm == pytest.approx(float((W1[name] - W0[name]).norm()), rel=1e-5)
    assert pairing.only_base == pairing.only_tuned == pairing.notes == [] and not pairing.skipped


def test_nothing_is_read_until_it_is_asked_for_and_then_one_matrix():
    base, tuned = Memory(bert_like()), Memory(bert_like(seed=1))
    pairing = pair(base, tuned)
    assert base.reads == tuned.reads == []
    pairing.matrices[1].delta()
    assert base.reads == tuned.reads == [pairing.matrices[1].parameter]


def test_a_pair_of_equal_weights_is_a_zero_update_and_the_same_files_are_said():
    W = bert_like()
    pairing = pair(Memory(W, fingerprint="f", label="m"), Memory(dict(W), fingerprint="f"))
    assert all(not m.delta().dW.any() for m in pairing.matrices)
    assert {v.unchanged_fraction for v in pairing.vectors()} == {1.0}
    assert pairing.notes == ["BASE and TUNED are the same files (m)"]


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16),
                                    (torch.float64, torch.float16)])
def test_both_sides_are_upcast_before_they_are_subtracted(dtypes):
    W0, W1 = random(4, 6, dtype=dtypes[0]), random(4, 6, seed=1, dtype=dtypes[1])
    name = "layers.0.q_proj.weight"
    delta = pair(Memory({name: W0}), Memory({name: W1})).matrices[0].delta()
    assert torch.equal(delta.dW, W1.double() - W0.double())
    assert (delta.W0.dtype, delta.W1.dtype) == dtypes
    assert (delta.dtype_base, delta.dtype_tuned) == tuple(str(d).removeprefix("torch.") for d in dtypes)
    assert torch.equal(W1, random(4, 6, seed=1, dtype=dtypes[1]))  # the tuned side's own numbers are left alone


@pytest.mark.parametrize("of_base, of_tuned", [
    ("", "bert."), ("bert.", ""), ("model.", "base_model.model.model."), ("roberta.", "_orig_mod.module."),
    ("transformer.", "module.transformer."),
])
def test_prefixes_are_taken_off(of_base, of_tuned):
    W0 = bert_like(of_base)
    W1 = {of_tuned + name.removeprefix(of_base): t for name, t in nudged(W0).items()}
    W1["classifier.weight"] = random(2, 8)
    pairing = pair(Memory(W0), Memory(W1))
    assert len(pairing.matrices) == 1 + 2 * 4 and len(list(pairing.vectors())) == 3
    assert pairing.only_tuned == ["classifier.weight"] and pairing.only_base == []
    for m in pairing.matrices:
        assert torch.equal(m.delta().W0, W0[of_base + m.parameter.removeprefix(of_tuned)])
    assert "Names matched after taking" in pairing.notes[0]


@pytest.mark.parametrize("wrapper", ["_checkpoint_wrapped_module", "_orig_mod", "_fsdp_wrapped_module"])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_what_wraps_single_blocks_is_taken_off(wrapper, side, tmp_path):
    W0 = bert_like()
    W1 = nudged(W0)
    plain = extract(W0, W1, rank=2)
    wrapped = [{re.sub(r"(layer\.\d+\.)", rf"\1{wrapper}.", name): t for name, t in W.items()} for W in (W0, W1)]
    pairing = pair(Memory(wrapped[0] if side == "base" else W0), Memory(wrapped[1] if side == "tuned" else W1))
    assert len(pairing.matrices) == 1 + 2 * 4 and pairing.only_base == pairing.only_tuned == []
    expected = pair(Memory(W0), Memory(W1)).matrices
    assert {(m.layer, m.kind) for m in pairing.matrices} == {(m.layer, m.kind) for m in expected}
    done = extract(W0, wrapped[1], tmp_path / "adapter", rank=2)
    assert done.summary["kept_energy"] == pytest.approx(plain.summary["kept_energy"])
    extract(W0, W1, tmp_path / "plain", rank=2)
    written, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "plain"))
    assert written.keys() == expected.keys() and written


def test_a_prefix_that_not_all_names_have():
    body = {f"layers.{i}.mlp.{p}_proj.weight": random(8, 8, seed=i) for i in range(4) for p in ("up", "down")}
    W1 = {f"model.{name}": t for name, t in body.items()} | {"lm_head.weight": random(9, 8)}
    pairing = pair(Memory(body | {"embed_tokens.weight": random(9, 8)}), Memory(W1))
    assert pairing.renamed == ("", "model.") and len(pairing.matrices) == 8
    assert pairing.only_base == ["embed_tokens.weight"] and pairing.only_tuned == ["lm_head.weight"]
    # The head is there on both sides: it has no prefix to take off.
    pairing = pair(Memory(body | {"lm_head.weight": random(9, 8)}), Memory(W1))
    assert len(pairing.matrices) == 9 and pairing.only_tuned == []


def test_old_names_of_layer_norms_match():
    found = match({"LayerNorm.gamma": (4,), "LayerNorm.beta": (4,)}, {"LayerNorm.weight": (4,), "LayerNorm.bias": (4,)})
    assert found.pairs == [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")]


def test_a_prefix_that_makes_two_names_one_is_not_taken_off():
    found = match({"w": (2, 2)}, {"w": (3, 2), "a.w": (2, 2)})
    assert found.renamed == ("", "") and found.pairs == [("w", "w")]


def test_the_prefix_is_the_one_whose_shapes_are_equal():
    towers = {f"{tower}.{name}": (size, size) for tower, size in (("img", 3), ("text", 2)) for name in ("w", "v")}
    found = match({"w": (2, 2), "v": (2, 2)}, towers)
    assert found.renamed == ("", "text.") and found.only_tuned == ["img.w", "img.v"]


def test_real_models_and_their_classifiers_match(tmp_path):
    folder = make_tiny("roberta", tmp_path)
    plain = transformers.AutoModel.from_pretrained(folder)
    tuned = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    W0, W1 = ({n: p.data for n, p in m.named_parameters()} for m in (plain, tuned))
    pairing = pair(Memory(W0, config=plain.config.to_dict()), Memory(W1, config=tuned.config.to_dict()))
    assert pairing.renamed == ("", "roberta.") and all(not m.delta().dW.any() for m in pairing.matrices)
    assert {n.split(".")[0] for n in pairing.only_tuned} == {"classifier"}
    assert {n.split(".")[0] for n in pairing.only_base} == {"pooler"}


def test_tied_weights_are_compared_once_whichever_name_is_kept():
    E0, E1, q = random(9, 4), random(9, 4, seed=1), random(4, 4)
    block = {"model.layers.0.self_attn.q_proj.weight": q}
    head, embed = "lm_head.weight", "model.embed_tokens.weight"
    pairing = pair(Memory(block | {embed: E0}, tied={head: embed}), Memory(block | {embed: E1}, tied={head: embed}))
    assert [m.name for m in pairing.matrices][1:] == [embed] and pairing.notes == []
    pairing = pair(Memory(block | {head: E0}, tied={embed: head}), Memory(block | {embed: E1}, tied={head: embed}))
    assert torch.equal(by_name(pairing)[embed].delta().W0, E0) and not pairing.only_base and not pairing.only_tuned
    # Untied by the tuning: both are compared with the one that the base has.
    pairing = pair(Memory(block | {embed: E0}, tied={head: embed}), Memory(block | {embed: E1, head: 2 * E1}))
    assert torch.equal(by_name(pairing)[head].delta().dW, (2 * E1).double() - E0.double())
    assert "tied in the base and not in the tuned model" in pairing.notes[0]
    # Tied by the tuning, stored twice in the base.
    pairing = pair(Memory(block | {embed: E0, head: E0}), Memory(block | {embed: E1}, tied={head: embed}))
    assert len(pairing.matrices) == 2 and pairing.only_base == [] and "its change is not measured" in pairing.notes[0]


@pytest.mark.parametrize("added", [3, -2])
def test_added_tokens_leave_the_common_rows_to_compare(added):
    W0 = bert_like(tokens=10) | {"lm_head.weight": random(10, 8), "lm_head.bias": random(10)}
    W1 = nudged(W0)
    for name in ("embeddings.word_embeddings.weight", "lm_head.weight", "lm_head.bias"):
        t = W1[name]
        W1[name] = torch.cat([t, random(added, *t.shape[1:])]) if added > 0 else t[:added]
    pairing = pair(Memory(W0), Memory(W1))
    name = "embeddings.word_embeddings.weight"
    assert pairing.added_rows == {name: added, "lm_head.weight": added, "lm_head.bias": added}
    delta, rows = by_name(pairing)[name].delta(), min(10, 10 + added)
    assert delta.shape == by_name(pairing)[name].shape == (rows, 8)
    assert torch.equal(delta.dW, (W1[name][:rows].double() - W0[name][:rows].double()))
    assert delta.base_norm == pytest.approx(float(W0[name][:rows].norm()))
    assert next(v for v in pairing.vectors() if v.name == "lm_head.bias").shape == (rows,)


def test_a_head_of_another_shape_is_skipped_and_a_blocks_matrix_refused():
    W0 = bert_like() | {"classifier.weight": random(2, 8), "classifier.bias": random(2)}
    W1 = W0 | {"classifier.weight": random(3, 8), "classifier.bias": random(3)}
    pairing = pair(Memory(W0, "base"), Memory(W1, "tuned"))
    assert pairing.skipped == {"classifier.weight": "its shapes differ: (2, 8) in base, (3, 8) in tuned",
                               "classifier.bias": "its shapes differ: (2,) in base, (3,) in tuned"}
    name = "encoder.layer.1.intermediate.dense.weight"
    message = rf"{name} must have one shape on both sides. Got \(16, 8\) in base, \(12, 8\) in tuned. Pass the model"
    with pytest.raises(UsageError, match=message):
        pair(Memory(W0, "base"), Memory(W1 | {name: random(12, 8)}, "tuned"))
    assert pair(Memory(W0), Memory(W1 | {name: random(12, 8)}), exclude=name).matrices


def test_what_is_no_matrix_is_skipped_with_the_reason():
    odd = {"scale": random(()), "conv.weight": random(2, 3, 4), "patch.weight": random(2, 3, 4, 4),
           "none": random(0, 3), "ids": torch.arange(4), "mask": torch.ones(2, 2, dtype=torch.bool),
           "five": random(1, 1, 1, 1, 2)}
    pairing = pair(Memory(bert_like() | odd), Memory(bert_like() | odd))
    assert pairing.skipped == {
        "scale": "a single number (0-d)", "conv.weight": "a stack of matrices or a convolution (3-d)",
        "patch.weight": "a convolution (4-d)", "none": "empty", "ids": "whole numbers (int64)",
        "mask": "whole numbers (bool)", "five": "no matrix (5-d)"}
    assert not odd.keys() & by_name(pairing).keys()


def test_matrices_that_are_no_layers_weight_are_compared_too():
    W0 = {"blocks.0.attn.in_proj_weight": random(12, 4), "blocks.0.table": random(3, 4), "blocks.0.row": random(1, 4)}
    pairing = pair(Memory(W0), Memory(nudged(W0)))
    assert [(m.name, m.kind, m.shape) for m in pairing.matrices] == [
        *((f"blocks.0.attn.in_proj_weight[{k}]", k, (4, 4)) for k in "qkv"), ("blocks.0.table", "other", (3, 4))]
    assert [v.name for v in pairing.vectors()] == ["blocks.0.row"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_nan_and_infinity_name_the_matrix_and_the_side(value, side):
    sides = {"base": bert_like(), "tuned": bert_like()}
    name = "encoder.layer.1.attention.self.key.weight"
    sides[side][name][3, 4] = value
    sides[side]["embeddings.LayerNorm.weight"][0] = value
    pairing = pair(Memory(sides["base"], "base"), Memory(sides["tuned"], "tuned"))
    with pytest.raises(UsageError, match=rf"{name} must be finite on both sides. Got NaN or infinity in {side}\."):
        by_name(pairing)[name].delta()
    with pytest.raises(UsageError, match="LayerNorm.weight must be finite"):
        list(pairing.vectors())
    assert by_name(pairing)["encoder.layer.1.attention.self.value.weight"].delta()


def test_numbers_whose_sum_overflows_are_finite():
    W = {"layers.0.q_proj.weight": torch.full((4, 4), 1e308, dtype=torch.float64)}
    zero = {"layers.0.q_proj.weight": torch.zeros(4, 4)}
    assert pair(Memory(zero), Memory(W)).matrices[0].delta().dW.max() == 1e308


def test_other_architectures_are_refused_with_both_names():
    llama = {f"model.layers.{i}.self_attn.q_proj.weight": random(8, 8) for i in range(2)}
    message = (r"one architecture. Got b \(bert\) and l \(llama\) with 0 block matrices in common. Pass the model")
    with pytest.raises(UsageError, match=message):
        pair(Memory(bert_like(), "b", {"model_type": "bert"}), Memory(llama, "l", {"model_type": "llama"}))
    with pytest.raises(UsageError, match="model_type unknown"):
        pair(Memory(bert_like()), Memory({"w.weight": random(3, 3)}))
    with pytest.raises(UsageError, match="must have one shape on both sides"):
        pair(Memory(bert_like(d=8)), Memory(bert_like(d=12)))


def test_fewer_layers_are_still_the_same_architecture():
    pairing = pair(Memory(bert_like(layers=6)), Memory(bert_like(layers=3)))
    assert len(pairing.matrices) == 1 + 3 * 4 and len(pairing.only_base) == 3 * 5


def test_swapped_sides_are_noticed(tmp_path):
    head = {"classifier.weight": random(2, 8), "classifier.bias": random(2)}
    tuned, plain = Memory(bert_like(**head), "tuned"), Memory(bert_like(), "plain")
    assert pair(plain, tuned).only_tuned == list(head)
    message = r"BASE must have no task head that TUNED lacks. Got classifier.weight in tuned alone. Swap .*'classifier'"
    with pytest.raises(UsageError, match=message):
        pair(tuned, plain)
    assert pair(tuned, plain, exclude="classifier").matrices
    # A published base has what it was pretrained with in the head's place.
    for part in ("pooler.dense.weight", "lm_head.dense.weight", "cls.predictions.transform.dense.weight"):
        with pytest.raises(UsageError, match=message):
            pair(tuned, Memory(bert_like(**{part: random(8, 8)}), "plain"))
    # Another head in its place is a second tuning, not a swap.
    assert pair(tuned, Memory(bert_like(**{"score.weight": random(3, 8)}))).only_base == list(head)
    adapter = open_peft(adapter_of(tmp_path, {"layer.0.query": (8, 8)}))
    with pytest.raises(UsageError, match="BASE must be a whole model. Got the adapter a. Swap the two"):
        pair(adapter, plain)
    with pytest.raises(UsageError, match="Got the adapter a. Pass the model that TUNED"):
        pair(adapter, adapter)
    with pytest.raises(UsageError, match="TUNED must be an adapter or come with its base. Got the whole model plain"):
        pair(None, plain)


def test_a_model_with_an_adapter_in_its_state_is_refused():
    W = bert_like(prefix="base_model.model.") | {"base_model.model.x.lora_A.default.weight": random(2, 8)}
    with pytest.raises(UsageError, match="TUNED must be a whole model or an adapter. Got both in model"):
        pair(Memory(bert_like()), Memory(W))


def test_include_and_exclude_filter_everything():
    W0 = bert_like()
    W1 = nudged(W0) | {"classifier.weight": random(2, 8)}
    only = pair(Memory(W0), Memory(W1), include=r"layer\.0\.", exclude="query")
    assert [m.kind for m in only.matrices] == ["k", "v", "up"] and only.only_tuned == [] and not list(only.vectors())
    assert pair(Memory(W0), Memory(W1), include="classifier|key").only_tuned == ["classifier.weight"]
    for option, pattern, message in (("include", "(", "include must be a regular expression"),
                                     ("exclude", "[", "exclude must be a regular expression"),
                                     ("include", "nothing", "leave a matrix or a vector. Got include 'nothing'"),
                                     ("exclude", "nothing", "exclude must match a parameter's name"),
                                     ("exclude", ".", "leave a matrix or a vector. Got exclude '.'")):
        with pytest.raises(UsageError, match=message):
            pair(Memory(W0), Memory(W1), **{option: pattern})


def test_parts_of_a_fused_matrix_and_the_whole(tmp_path):
    folder = make_tiny("gpt2", tmp_path)
    model = transformers.AutoModel.from_pretrained(folder)
    W0 = {n: p.data for n, p in model.named_parameters()}
    W1 = nudged(W0)
    parts = by_name(pair(Memory(W0), Memory(W1)))
    whole = by_name(pair(Memory(W0), Memory(W1), fused=True))
    name = "h.0.attn.c_attn.weight"
    fused = whole[name]
    assert (fused.kind, fused.shape, fused.transposed) == ("qkv", (96, 32), True)
    stacked = torch.cat([parts[f"{name}[{k}]"].delta().dW for k in "qkv"])
    assert torch.equal(stacked, fused.delta().dW)
    assert torch.equal(fused.delta().dW.T, W1[name].double() - W0[name].double())
    only_q = pair(Memory(W0), Memory(W1), include=r"\[q\]")
    assert [m.name for m in only_q.matrices] == [f"h.{i}.attn.c_attn.weight[q]" for i in (0, 1)]


def test_a_fused_matrix_that_cannot_be_split_is_said():
    W = {f"layers.{i}.attention.query_key_value.weight": random(12, 4, seed=i) for i in (0, 1)}
    pairing = pair(Memory(W), Memory(nudged(W)))
    assert [m.kind for m in pairing.matrices] == ["qkv", "qkv"]
    (note,) = pairing.notes
    assert note.startswith("2 fused matrices such as layers.0.attention.query_key_value.weight stay whole: its rows")
    config = {"model_type": "gpt_neox", "num_attention_heads": 2}
    pairing = pair(Memory(W, config=config), Memory(nudged(W)))  # either side's config will do
    assert [m.kind for m in pairing.matrices] == list("qkvqkv") and pairing.notes == []
    rows = torch.tensor([0, 1, 6, 7])
    assert torch.equal(pairing.matrices[0].delta().W0, W["layers.0.attention.query_key_value.weight"][rows])
