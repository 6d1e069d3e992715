"""LoRA on q and v inside fused matrices whose layout only config.json tells: rows by head, and grouped queries."""

import copy

import peft
import pytest
import torch
import transformers

from rankprobe.errors import UsageError
from rankprobe.methods.apply import apply_method
from rankprobe.methods.full import full_deltas
from rankprobe.methods.lora import load_lora, lora_deltas, save_lora
from rankprobe.weights.adapter import load_adapter
from rankprobe.weights.architecture import model_config, model_shapes
from rankprobe.weights.targets import target_sites

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 2}  # fmt: skip
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
# Width of k and v.
SPLIT = {"gpt_neox": 32, "bloom": 32, "phi3": 16}


def make(kind: str) -> torch.nn.Module:
    config = {
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**SIZES),
        "bloom": lambda: transformers.BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4),
        "phi3": lambda: transformers.Phi3Config(**SIZES, num_key_value_heads=2),
        "falcon": lambda: transformers.FalconConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2,
                                                    num_attention_heads=4),
    }[kind]()  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)  # those of a fresh model hardly depend on their input
    return model


def with_lora(model, targets, r=2):
    layers = apply_method(model, set(), "lora", r=r, alpha=6.0, targets=targets).layers
    generator = torch.Generator().manual_seed(0)
    for layer in layers.values():
        for part in (*layer.A, *layer.B):
            part.data = torch.empty(part.shape).normal_(0, 0.3, generator=generator).double()
    return layers


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@pytest.mark.parametrize("kind", SPLIT)
def test_q_and_v_are_adapted_and_k_is_not(kind):
    model = make(kind)
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain, config = copy.deepcopy(model), model_config(model)
    layers = with_lora(model, "q,v")
    deltas = {d.name: d for d in lora_deltas(layers, config=config)}
    assert sorted(d.kind for d in deltas.values()) == ["q", "q", "v", "v"]
    # The base with W0 + scaling B A at the sites that a closed reading of the layout gives.
    parameters = dict(plain.named_parameters())
    for site in target_sites(model_shapes(plain), "q,v", config=config):
        d = deltas[site.name]
        site.set_(parameters[site.parameter].data, site.get(base[site.parameter]) + d.scaling * d.B @ d.A)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-10, atol=1e-10)
    W1 = {name: p.detach() for name, p in plain.named_parameters()}
    moved = {d.name: float(d.dW.abs().max()) > 0 for d in full_deltas(base, W1, config=config)}
    assert {name for name, yes in moved.items() if yes} == set(deltas)
    assert any(name.endswith("[k]") for name in moved)


@pytest.mark.parametrize("kind", SPLIT)
def test_all_has_q_k_v_too(kind):
    r, d, kv = 2, 32, SPLIT[kind]
    model = make(kind)
    layers = with_lora(model, "all", r)
    count = sum(p.numel() for layer in layers.values() for p in (*layer.A, *layer.B))
    up = {"gpt_neox": [(32, 64), (64, 32)], "bloom": [(32, 128), (128, 32)], "phi3": 2 * [(32, 64)] + [(64, 32)]}[kind]
    shapes = [(d, d), (d, kv), (d, kv), (d, d), *up]
    assert count == 2 * r * sum(map(sum, shapes))


@pytest.mark.parametrize("kind", SPLIT)
def test_peft_computes_the_same_from_what_is_saved_and_it_is_read_back(kind, tmp_path):
    model = make(kind)
    base, again, config = copy.deepcopy(model), copy.deepcopy(model), model_config(model)
    layers = with_lora(model, "q,v")
    save_lora(tmp_path / "adapter", model, layers, set(), rslora=False, base_model="tiny")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").double()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-4, atol=1e-5)
    read = load_lora(again, load_adapter(tmp_path / "adapter"))
    ours = {d.name: d for d in lora_deltas(layers, config=config)}
    for d in lora_deltas(read, config=config):
        dW = d.scaling * (d.B @ d.A).double()
        expected = ours[d.name].scaling * ours[d.name].B @ ours[d.name].A if d.name in ours else torch.zeros_like(dW)
        torch.testing.assert_close(dW, expected, rtol=1e-5, atol=1e-6)


def test_where_the_layout_is_not_known_all_takes_the_fused_matrix_whole_and_q_is_refused_with_the_reason():
    model = make("falcon")
    layers = with_lora(model, "all")
    assert sorted({layer.sites[0].kind for layer in layers.values()}) == ["down", "o", "qkv", "up"]
    with pytest.raises(UsageError, match="fused matrix: Falcons hold"):
        with_lora(make("falcon"), "q,v")
    with pytest.raises(UsageError, match=r"Got gate\. Pass"):
        with_lora(make("falcon"), "gate")


def test_all_of_a_model_without_known_names_is_refused():
    with pytest.raises(UsageError, match="none of them"):
        target_sites({"blocks.0.strange.weight": (4, 4)}, "all")
