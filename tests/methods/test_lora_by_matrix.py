"""LoRA with an r of its own for each matrix: one scaling for all, the same model in peft, nothing where r is 0."""

import json
import math

import peft
import pytest
import torch

from rankprobe.errors import UsageError
from rankprobe.methods.head import freeze_all_but
from rankprobe.methods.lora import apply_lora, load_lora, lora_deltas, save_lora
from rankprobe.weights.adapter import load_adapter
from rankprobe.weights.architecture import model_shapes
from rankprobe.weights.pretrained import find_model, load_classifier
from rankprobe.weights.rank_pattern import canonical_pattern, ranks_by_site, site_path
from rankprobe.weights.targets import target_sites
from tests.methods.test_lora import logits, perturb, tiny  # noqa: F401

ALPHA, R = 6.0, 4


def uneven(sites):
    """r = 1, 5, 0, 3, 1, 5, … by site."""
    return {site.name: (1, 5, 0, 3)[i % 4] for i, site in enumerate(sites)}


def with_lora(model, targets="q,v", **settings):
    sites = target_sites(model_shapes(model), targets)
    layers = apply_lora(model, sites, R, ALPHA, ranks=uneven(sites), **settings)
    perturb(layers)
    return sites, layers


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", ["q,v", "all"])
def test_peft_loads_what_we_save_and_gives_the_same_logits(tiny, tmp_path, rslora, targets):  # noqa: F811
    model, head, folder, batch = tiny
    _, layers = with_lora(model, targets, rslora=rslora)
    ours = logits(model, batch)
    save_lora(tmp_path / "adapter", model, layers, head, rslora=rslora, base_model="tiny")
    base, _, _ = load_classifier(find_model(folder), 3, seed=99)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    again, _, _ = load_classifier(find_model(folder), 3, seed=99)
    load_lora(again, load_adapter(tmp_path / "adapter"))
    torch.testing.assert_close(logits(again, batch), ours, rtol=1e-5, atol=1e-5)
    # Parts of a fused matrix with scalings of their own are stacked with B rescaled, in float32.
    tolerance = 1e-8 if rslora else 1e-10
    double = logits(theirs.double(), batch), logits(model.double(), batch)
    torch.testing.assert_close(*double, rtol=tolerance, atol=tolerance)


def test_each_delta_has_its_r_and_alpha_over_r_is_one_for_all(tiny):  # noqa: F811
    model, _, _, _ = tiny
    sites, layers = with_lora(model)
    wanted = {name: r for name, r in uneven(sites).items() if r}
    deltas = {delta.name: delta for delta in lora_deltas(layers)}
    assert {name: delta.A.shape[0] for name, delta in deltas.items()} == wanted
    assert all(delta.scaling == pytest.approx(ALPHA / R, rel=1e-15) for delta in deltas.values())


def test_rslora_scales_by_the_root_of_each_r(tiny):  # noqa: F811
    model, _, _, _ = tiny
    _, layers = with_lora(model, rslora=True)
    for delta in lora_deltas(layers):
        r = delta.A.shape[0]
        assert delta.scaling == pytest.approx(ALPHA * r / R / math.sqrt(r), rel=1e-14)


def test_merging_gives_the_same_logits(tiny):  # noqa: F811
    model, _, _, batch = tiny
    _, layers = with_lora(model, "all")
    before = logits(model, batch)
    for layer in layers.values():
        layer.merge()
    torch.testing.assert_close(logits(model, batch), before, rtol=1e-5, atol=1e-5)


def test_what_has_r_0_keeps_its_layer_and_the_rest_is_trained(tiny):  # noqa: F811
    model, head, _, batch = tiny
    freeze_all_but(model, head)
    sites, layers = with_lora(model)
    spared = {s.module for s in sites} - {s.module for s in sites if uneven(sites)[s.name]}
    assert layers.keys() == {s.module for s in sites} - spared
    model.train()(**batch).logits.square().sum().backward()
    assert all(part.grad is not None for layer in layers.values() for part in (*layer.A, *layer.B))
    trained = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and n not in head)
    assert trained == sum(uneven(sites)[site.name] * sum(site.shape) for site in sites)


def test_the_saved_config_has_both_patterns_and_peft_takes_it(tmp_path, tiny):  # noqa: F811
    model, head, _, _ = tiny
    _, layers = with_lora(model)
    save_lora(tmp_path / "adapter", model, layers, head, rslora=False, base_model="")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["rank_pattern"] and config["rank_pattern"].keys() == config["alpha_pattern"].keys()
    assert peft.LoraConfig.from_pretrained(tmp_path / "adapter").rank_pattern == config["rank_pattern"]


def test_one_r_for_all_is_plain_lora_bit_for_bit(tiny):  # noqa: F811
    model, _, folder, _ = tiny
    sites = target_sites(model_shapes(model), "q,v")
    plain = apply_lora(model, sites, 3, 5.7, seed=4)
    other, _, _ = load_classifier(find_model(folder), 3, seed=1)
    ranks = ranks_by_site(sites, 3, canonical_pattern({site_path(site): 3 for site in sites}))
    same = apply_lora(other, sites, 3, 5.7, seed=4, ranks=ranks)
    for path, layer in plain.items():
        assert layer.scaling == same[path].scaling and layer.alpha == same[path].alpha
        assert all(torch.equal(a, b) for a, b in zip(layer.A, same[path].A, strict=True))


def test_an_r_that_a_matrix_cannot_have_is_refused(tiny):  # noqa: F811
    model, _, _, _ = tiny
    sites = target_sites(model_shapes(model), "q,v")
    with pytest.raises(UsageError, match=r"r of .* must be from 0 to min\(m, n\) = \d+. Got 33. Correct rank_pattern"):
        apply_lora(model, sites, 4, 8.0, ranks={site.name: 33 for site in sites})
