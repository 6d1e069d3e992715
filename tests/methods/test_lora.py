"""LoRA against the closed form and against peft, on every architecture we name targets for."""

import json

import peft
import pytest
import torch
import transformers

from rankprobe.errors import UsageError
from rankprobe.methods.head import freeze_all_but, head_parameters
from rankprobe.methods.lora import apply_lora, load_lora, lora_deltas, lora_layers, save_lora, unload_lora
from rankprobe.weights.adapter import load_adapter
from rankprobe.weights.architecture import model_shapes
from rankprobe.weights.pretrained import find_model, load_classifier
from rankprobe.weights.targets import target_sites
from tests.tiny_models import KINDS, make_tiny

TEXTS = ["the cat sat", "a dog ran over the hill", "one"]


@pytest.fixture(params=KINDS)
def tiny(request, tmp_path):
    """A tiny classifier of each architecture, its head's names, its folder and a padded batch."""
    folder = make_tiny(request.param, tmp_path / "base")
    model, tokenizer, missing = load_classifier(find_model(folder), 3, seed=1)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    return model, head_parameters(model, missing), folder, batch


def perturb(layers, seed=0):
    """Trained-looking factors: B is zero at start, which would hide every mistake."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        for part in (*layer.A, *layer.B):
            part.data.normal_(0, 0.3, generator=generator)


def with_lora(model, targets="q,v", **settings):
    layers = apply_lora(model, target_sites(model_shapes(model), targets), **{"r": 2, "alpha": 6.0, **settings})
    perturb(layers)
    return layers


@torch.no_grad()
def logits(model, batch):
    return model.eval()(**batch).logits


def test_starts_as_the_base(tiny):
    model, _, _, batch = tiny
    before = logits(model, batch)
    apply_lora(model, target_sites(model_shapes(model), "all"), 2, 4.0)
    torch.testing.assert_close(logits(model, batch), before, rtol=0, atol=0)


def test_forward_is_the_base_with_W0_plus_scaled_BA(tiny):
    model, _, _, batch = tiny
    base = {n: p.detach().clone() for n, p in model.named_parameters()}
    layers = with_lora(model, "q,v,down")
    adapted = logits(model, batch)
    deltas = {d.name: d for d in lora_deltas(layers)}
    sites = {s.name: s for s in target_sites({n: t.shape for n, t in base.items()}, "q,v,down")}
    assert deltas.keys() == sites.keys()
    unload_lora(model)
    for name, site in sites.items():
        d = deltas[name]
        stored = dict(model.named_parameters())[site.parameter].data
        site.set_(stored, site.get(base[site.parameter]) + 3.0 * d.B @ d.A)
    torch.testing.assert_close(adapted, logits(model, batch), rtol=1e-5, atol=1e-5)


def test_merge_gives_the_same_logits_and_unmerge_the_same_bits(tiny):
    model, _, _, batch = tiny
    layers = with_lora(model)
    before = {path: layer.base.weight.detach().clone() for path, layer in layers.items()}
    adapted = logits(model, batch)
    for layer in layers.values():
        layer.merge()
        layer.merge()  # twice must not add dW twice
    torch.testing.assert_close(logits(model, batch), adapted, rtol=1e-5, atol=1e-5)
    assert any(not torch.equal(layer.base.weight, before[path]) for path, layer in layers.items())
    for path, layer in layers.items():
        layer.unmerge()
        assert torch.equal(layer.base.weight, before[path])


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", ["q,v", "all"])
def test_peft_loads_what_we_save_and_gives_the_same_logits(tiny, tmp_path, rslora, targets):
    model, head, folder, batch = tiny
    layers = with_lora(model, targets, rslora=rslora)
    for name, p in model.named_parameters():
        if name in head:
            p.data.add_(0.1)
    ours = logits(model, batch)
    save_lora(tmp_path / "adapter", model, layers, head, rslora=rslora, base_model="tiny")
    base, _, _ = load_classifier(find_model(folder), 3, seed=99)  # another head: the adapter must carry ours
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    again, _, _ = load_classifier(find_model(folder), 3, seed=99)
    load_lora(again, load_adapter(tmp_path / "adapter"))
    # A fused matrix has the factors of its parts together there, B with zeros where a part has none.
    stored = sum(f.A.numel() + f.B.numel() for f in (layer.factors() for layer in layers.values()))
    assert stored == sum(p.numel() for name, p in theirs.named_parameters() if "lora_" in name)
    if all(site.rows is None for layer in layers.values() for site in layer.sites):
        assert stored == sum(p.numel() for layer in layers.values() for p in (*layer.A, *layer.B))
    torch.testing.assert_close(logits(again, batch), ours, rtol=1e-5, atol=1e-5)
    # In float64, where what two ways of summing round differently is far below any mistake.
    torch.testing.assert_close(logits(theirs.double(), batch), logits(model.double(), batch), rtol=1e-10, atol=1e-10)


def test_we_load_what_peft_saves(tiny, tmp_path):
    model, _, folder, batch = tiny
    modules = sorted({s.module for s in target_sites(model_shapes(model), "q,v")})
    first, second = modules[0], modules[-1]
    config = peft.LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=5, target_modules=modules, use_rslora=True,
                             rank_pattern={first.replace(".", r"\."): 2}, alpha_pattern={second.replace(".", r"\."): 7})
    theirs = peft.get_peft_model(model, config)
    for name, p in theirs.named_parameters():
        if "lora_" in name:
            p.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    theirs.save_pretrained(tmp_path / "adapter")
    base, _, _ = load_classifier(find_model(folder), 3, seed=1)
    layers = load_lora(base, load_adapter(tmp_path / "adapter"))
    assert layers[first].r == 2 and (second == first or layers[second].alpha == 7)
    torch.testing.assert_close(logits(base, batch), logits(theirs, batch), rtol=1e-5, atol=1e-5)


def test_only_factors_and_head_get_a_gradient(tiny):
    model, head, _, batch = tiny
    freeze_all_but(model, head)
    layers = with_lora(model)
    model.train()(**batch).logits.square().sum().backward()
    expected = {id(p) for layer in layers.values() for p in (*layer.A, *layer.B)}
    expected |= {id(p) for n, p in model.named_parameters() if n in head}
    got = {id(p) for p in model.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert got <= expected
    assert all(part.grad is not None for layer in layers.values() for part in (*layer.A, *layer.B))


def test_a_regex_takes_a_fused_matrix_whole_and_its_deltas_are_q_k_v(tmp_path):
    model, _, _ = load_classifier(find_model(make_tiny("gpt2", tmp_path / "base")), 2, seed=0)
    layers = with_lora(model, "c_attn$")
    assert all(len(layer.sites) == 1 and layer.B[0].shape[0] == 3 * layer.A[0].shape[1] for layer in layers.values())
    deltas = list(lora_deltas(layers))
    assert [d.kind for d in deltas[:3]] == ["q", "k", "v"]
    layer = next(iter(layers.values()))
    torch.testing.assert_close(torch.cat([d.B @ d.A for d in deltas[:3]]), layer.B[0].data @ layer.A[0].data)


@pytest.mark.parametrize("r", [0, -1, 33])
def test_r_out_of_range_is_refused_with_the_limit(tiny, r):
    model, _, _, _ = tiny
    with pytest.raises(UsageError, match=rf"r must be from 1 to min\(m, n\) = \d+ .*Got {r}\."):
        apply_lora(model, target_sites(model_shapes(model), "q"), r, 1.0)
    assert not lora_layers(model)


@pytest.mark.parametrize("targets", ["nothing_like_it", "q,x", "(", "gate"])
def test_targets_that_match_nothing_are_refused(tmp_path, targets):
    model, _, _ = load_classifier(find_model(make_tiny("bert", tmp_path / "base")), 2, seed=0)
    with pytest.raises(UsageError, match="targets must .* Got"):
        target_sites(model_shapes(model), targets)


@pytest.mark.parametrize("change, message", [
    ({"peft_type": "IA3"}, "peft_type LORA"), ({"use_dora": True}, "use_dora"), ({"lora_bias": True}, "lora_bias"),
])
def test_adapters_that_are_not_plain_lora_are_refused(tmp_path, change, message):
    model, _, _ = load_classifier(find_model(make_tiny("bert", tmp_path / "base")), 2, seed=0)
    save_lora(tmp_path / "a", model, with_lora(model), head_parameters(model), rslora=False, base_model="")
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UsageError, match=message):
        load_adapter(tmp_path / "a")


def test_a_damaged_adapter_is_refused(tmp_path):
    model, _, _ = load_classifier(find_model(make_tiny("bert", tmp_path / "base")), 2, seed=0)
    save_lora(tmp_path / "a", model, with_lora(model), head_parameters(model), rslora=False, base_model="")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UsageError, match="adapter_model.safetensors must be a whole safetensors file"):
        load_adapter(tmp_path / "a")


@pytest.mark.parametrize("config", [
    transformers.T5Config(num_layers=2, d_model=16, d_ff=24, d_kv=4, num_heads=4, vocab_size=40,
                          decoder_start_token_id=0),
    transformers.BartConfig(encoder_layers=2, decoder_layers=1, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24,
                            encoder_attention_heads=2, decoder_attention_heads=2, vocab_size=40),
    transformers.BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=40, pad_token_id=3, slow_but_exact=True),
], ids=lambda config: config.model_type)  # fmt: skip
def test_models_that_ask_an_adapted_layer_for_its_weight(config):
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.tensor([[5, 6, 7, config.eos_token_id], [8, 9, 10, config.eos_token_id]])
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    before = model(input_ids=ids).logits
    names = {name for name, _ in model.named_parameters()}
    layers = with_lora(model, "all")
    adapted = model(input_ids=ids).logits
    assert not torch.allclose(adapted, before)
    # The property is no second name of a parameter.
    assert {name.replace(".base.", ".") for name, _ in model.named_parameters() if ".A." not in name
            and ".B." not in name} == names  # fmt: skip
    for layer in layers.values():
        assert layer.weight is layer.base.weight
        layer.merge()
    torch.testing.assert_close(model(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-5)
    for layer in layers.values():
        layer.unmerge()
    unload_lora(model)
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters())
