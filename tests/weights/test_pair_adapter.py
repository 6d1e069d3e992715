"""Pairs of an adapter and its base, or an adapter alone; peft's own delta weights are the oracle."""

import math
import warnings

import peft
import pytest
import torch
import transformers

from rankprobe.errors import UsageError
from rankprobe.weights.adapter import open_loralib, open_peft
from rankprobe.weights.pair import pair
from tests.tiny_models import make_tiny
from tests.weights.memory import Memory, adapter_of, bert_like, by_name, random

QUERY = "encoder.layer.0.attention.self.query"


def test_an_adapter_alone(tmp_path):
    source = open_peft(adapter_of(tmp_path, {QUERY: (8, 8)}, {"classifier.weight": random(2, 8)}))
    pairing = pair(None, source)
    (m,) = pairing.matrices
    d = m.delta()
    assert (m.name, m.kind, m.layer, m.source) == (f"{QUERY}.weight", "q", 0, "factored") and m.parameter == m.name
    assert math.isnan(d.base_norm) and d.W0 is None and d.scaling == 2 and d.dtype_tuned == "float32"
    assert torch.equal(d.B, source.factors(QUERY).B) and pairing.saved == ["classifier.weight"]


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_an_adapter_with_its_base(tmp_path, prefix):
    W0 = bert_like()
    norm, other = "embeddings.LayerNorm.weight", "encoder.layer.1.attention.self.key.weight"
    extra = {f"{prefix}{norm}": W0[norm] + 1, "classifier.weight": random(2, 8), f"{prefix}{other}": W0[other] * 2}
    source = open_peft(adapter_of(tmp_path, {QUERY: (8, 8)}, extra, prefix=prefix))
    pairing = pair(Memory(W0), source)
    query, key = pairing.matrices
    assert (query.name, query.parameter) == (f"{prefix}{QUERY}.weight", f"{QUERY}.weight")
    d = query.delta()
    before = W0[f"{QUERY}.weight"]
    assert d.base_norm == pytest.approx(float(before.norm())) and torch.equal(d.W0, before)
    assert d.dtype_base == "float32" and d.source == "factored"
    d = key.delta()
    assert key.source == d.source == "dense" and torch.equal(d.dW, W0[other].double())
    (v,) = pairing.vectors()
    assert v.change_norm == pytest.approx(math.sqrt(8), rel=1e-5)
    assert pairing.saved == ["classifier.weight"] and pairing.only_base == [] and pairing.only_tuned == []


def test_an_adapter_for_another_base_is_refused(tmp_path):
    missing = {"encoder.layer.7.attention.self.query": (8, 8)}
    source = open_peft(adapter_of(tmp_path, {QUERY: (8, 8)} | missing, base_model_name_or_path="org/bert"))
    message = (r"BASE must have the modules of the adapter a. Got no encoder.layer.7.attention.self.query in m. "
               r"Pass the adapter's own base, org/bert\.")
    with pytest.raises(UsageError, match=message):
        pair(Memory(bert_like(), "m"), source)
    source = open_peft(adapter_of(tmp_path, {QUERY: (8, 12)}))
    with pytest.raises(UsageError, match=rf"Got {QUERY} of shape \(8, 8\) in m and \(8, 12\) in the adapter"):
        pair(Memory(bert_like(), "m"), source)


def test_an_adapted_head_that_the_base_lacks_stands_alone(tmp_path):
    source = open_peft(adapter_of(tmp_path, {QUERY: (8, 8), "classifier.dense": (8, 8)}))
    pairing = pair(Memory(bert_like(), "m"), source)
    assert math.isnan(by_name(pairing)["classifier.dense.weight"].delta().base_norm)
    assert pairing.notes == ["m has no classifier.dense: its update stands without W0"]


def merged(model, path):
    """W0 + dW and W0 of one layer, as peft merges it."""
    layer = model.get_submodule(f"base_model.model.{path}")
    return layer.get_delta_weight("default").double(), layer.get_base_layer().weight.data.double()


@pytest.mark.parametrize("kind, targets", [
    ("bert", ["query", "word_embeddings"]), ("llama", ["q_proj", "embed_tokens"]),
    ("gpt2", ["c_attn", "mlp.c_fc", "wte"]),
])
def test_a_pairs_updates_are_what_peft_adds(tmp_path, kind, targets):
    folder = make_tiny(kind, tmp_path / "base")
    model = transformers.AutoModel.from_pretrained(folder)
    W0 = {n: p.data.clone() for n, p in model.named_parameters()}
    config = model.config.to_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets))
        for i, p in enumerate(p for p in model.parameters() if p.requires_grad):
            p.data = random(*p.shape, seed=i)
        model.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    pairing = pair(Memory(W0, config=config), open_peft(tmp_path / "a"))
    assert not pairing.notes and not pairing.skipped
    for m in pairing.matrices:
        d = m.delta()
        added, before = merged(model, m.parameter.removesuffix(".weight"))
        if m.transposed:
            added, before = added.T, before.T
        if m.name.endswith("]"):
            third = "qkv".index(m.kind)
            added, before = added.chunk(3)[third], before.chunk(3)[third]
        torch.testing.assert_close(d.scaling * d.B.double() @ d.A.double(), added, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(d.W0.double(), before, rtol=0, atol=0)
    whole = pair(Memory(W0, config=config), open_peft(tmp_path / "a"), fused=True)
    assert len(whole.matrices) == (5 if kind == "gpt2" else 3)
    assert len(pairing.matrices) == (9 if kind == "gpt2" else 3)


def test_a_bias_on_B_is_a_vector(tmp_path):
    extra = {f"{QUERY}.lora_B.bias": torch.full((8,), 0.5)}
    source = open_peft(adapter_of(tmp_path, {QUERY: (8, 8)}, extra, lora_bias=True))
    W0 = bert_like()
    (with_base,) = pair(Memory(W0), source).vectors()
    assert with_base.norm == pytest.approx(float(W0[f"{QUERY}.bias"].norm()), rel=1e-5)
    (alone,) = pair(None, source).vectors()
    assert math.isnan(alone.norm) and with_base.change_norm == alone.change_norm == pytest.approx(math.sqrt(8))


def test_factors_stacked_for_q_and_v_are_taken_apart_again(tmp_path):
    """As rankprobe's own LoRA saves a fused matrix: zero rows of B for k, zero columns for the other part."""
    path, d = "transformer.h.0.attn.c_attn", 6
    B = torch.zeros(3 * d, 4)
    B[:d, :2], B[2 * d :, 2:] = random(d, 2), random(d, 2, seed=1)
    tensors = {f"{path}.lora_A.weight": random(4, d, seed=2), f"{path}.lora_B.weight": B}
    source = open_peft(adapter_of(tmp_path, {}, tensors, fan_in_fan_out=True))
    alone, based = pair(None, source), pair(Memory({f"{path[12:]}.weight": random(d, 3 * d)}), source)
    for pairing in (alone, based):
        assert [m.name for m in pairing.matrices] == [f"{path}.weight[q]", f"{path}.weight[v]"]
        assert [m.transposed for m in pairing.matrices] == [True, True]
        q, v = (m.delta() for m in pairing.matrices)
        assert q.B.shape == v.B.shape == (d, 2) and torch.equal(v.A, tensors[f"{path}.lora_A.weight"][2:])
        assert torch.equal(q.B, B[:d, :2])
    zero = {f"{path}.lora_A.weight": random(4, d), f"{path}.lora_B.weight": torch.zeros(3 * d, 4)}
    pairing = pair(None, open_peft(adapter_of(tmp_path, {}, zero)))
    assert [m.delta().B.shape for m in pairing.matrices] == [(d, 1)] * 3


def test_loralibs_groups_are_parts(tmp_path):
    d, r = 6, 2
    A, B = random(2 * r, d), random(2 * d, r, seed=1)
    torch.save({"transformer.h.0.attn.c_attn.lora_A": A, "transformer.h.0.attn.c_attn.lora_B": B}, tmp_path / "l.pt")
    source = open_loralib(tmp_path / "l.pt", 4)
    W0 = random(d, 3 * d)
    for base in (None, Memory({"h.0.attn.c_attn.weight": W0})):
        q, v = pair(base, source).matrices
        assert (q.kind, v.kind, q.shape) == ("q", "v", (d, d))
        assert torch.equal(v.delta().B, B[d:]) and torch.equal(v.delta().A, A[r:])
    assert torch.equal(v.delta().W0, W0.T[2 * d :])
    (whole,) = pair(base, source, fused=True).matrices
    f = whole.delta()
    assert (whole.kind, whole.shape) == ("qkv", (3 * d, d)) and not (f.B @ f.A)[d : 2 * d].any()


def test_an_adapted_embedding_may_have_more_tokens_than_the_base(tmp_path):
    extra = {"embeddings.word_embeddings.lora_embedding_A": random(2, 12),
             "embeddings.word_embeddings.lora_embedding_B": random(8, 2)}
    source = open_peft(adapter_of(tmp_path, {QUERY: (8, 8)}, extra))
    pairing = pair(Memory(bert_like(tokens=10)), source)
    m = by_name(pairing)["embeddings.word_embeddings.weight"]
    assert pairing.added_rows == {m.name: 2} and m.kind == "embed" and m.shape == m.delta().shape == (12, 8)
    assert m.delta().base_norm == pytest.approx(float(bert_like(tokens=10)["embeddings.word_embeddings.weight"].norm()))


def test_an_embedding_saved_whole_beside_its_factors_is_measured_once(tmp_path):
    folder = make_tiny("llama", tmp_path / "base")
    model = transformers.AutoModel.from_pretrained(folder)
    W0 = {n: p.data.clone() for n, p in model.named_parameters()}
    model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=["q_proj", "embed_tokens"]))
    model.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    for base in (None, Memory(W0)):
        pairing = pair(base, open_peft(tmp_path / "a"))
        names = [m.name for m in pairing.matrices]
        assert names.count("embed_tokens.weight") == 1 and by_name(pairing)["embed_tokens.weight"].source == "factored"
        assert pairing.saved == [] and "beside its factors" in pairing.skipped["embed_tokens.weight"]


def test_notes_and_skipped_of_an_adapter_are_passed_on(tmp_path):
    extra = {"conv.lora_A.weight": random(2, 3, 3, 3), "conv.lora_B.weight": random(4, 2, 1, 1)}
    pairing = pair(None, open_peft(adapter_of(tmp_path, {QUERY: (8, 8)}, extra, init_lora_weights="pissa")))
    assert pairing.skipped == {"conv": "adapts a convolution (4-d factors)"} and "pissa" in pairing.notes[0]


def test_a_base_with_nan_under_an_adapter_names_the_matrix(tmp_path):
    W0 = bert_like()
    W0[f"{QUERY}.weight"][0, 0] = math.nan
    source = open_peft(adapter_of(tmp_path, {QUERY: (8, 8)}))
    with pytest.raises(UsageError, match=f"{QUERY}.weight must be finite on both sides. Got NaN or infinity in m"):
        pair(Memory(W0, "m"), source).matrices[0].delta()


def test_the_paper_authors_adapter_has_24_updates(shared):
    file = shared / "adapters" / "roberta_base_lora_mnli" / "roberta_base_lora_mnli.bin"
    pairing = pair(None, open_loralib(file, 16))
    assert [m.kind for m in pairing.matrices] == ["q", "v"] * 12
    assert [m.layer for m in pairing.matrices[::2]] == list(range(12))
    assert len(pairing.saved) == 4 and all(m.delta().B.shape == (768, 8) for m in pairing.matrices)
