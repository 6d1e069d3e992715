"""Cutting updates down to their best rank-k part: in the right place, exact at both ends, right in between."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from rankprobe.analysis.bootstrap import accuracy
from rankprobe.analysis.cut_updates import RULES, UpdateSVD, decompose_updates, most_directions, truncated_state
from rankprobe.analysis.truncation import truncation_curve, truncation_ks
from rankprobe.errors import UsageError
from rankprobe.methods.full import full_deltas
from rankprobe.methods.head import head_parameters
from rankprobe.methods.lora import apply_lora, lora_deltas, unload_lora
from rankprobe.weights.architecture import block_sites, model_shapes
from rankprobe.weights.delta import Delta
from rankprobe.weights.pretrained import find_model, load_classifier
from rankprobe.weights.targets import target_sites
from tests.tiny_models import make_tiny

HEAD = {"classifier.weight"}
SHAPES = {
    "embeddings.weight": (9, 6),
    "h.0.attn.c_attn.weight": (6, 18),  # GPT-2: q, k and v side by side, stored (in, out)
    "h.0.mlp.c_fc.weight": (6, 10),
    "h.0.ln_1.bias": (6,),
    "layer.1.output.dense.weight": (5, 7),
    "classifier.weight": (3, 5),
}


def states(seed=0, dtype=torch.float32, step=0.1):
    generator = torch.Generator().manual_seed(seed)
    W0 = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    W1 = {name: (W + step * torch.randn(W.shape, generator=generator)).to(dtype) for name, W in W0.items()}
    return W0, W1


def sites_of(W):
    return block_sites({name: tuple(t.shape) for name, t in W.items()})


def updates_of(W0, W1):
    return decompose_updates(W0, W1, full_deltas(W0, W1), sites_of(W0))


def best_part(M, k):
    """The slow oracle, in numpy."""
    U, S, Vh = np.linalg.svd(M, full_matrices=False)
    return U[:, :k] @ np.diag(S[:k]) @ Vh[:k]


@pytest.mark.parametrize(
    ("p", "ks"), [(1, (0, 1)), (2, (0, 1, 2)), (3, (0, 1, 2, 3)), (4, (0, 1, 2, 4)), (5, (0, 1, 2, 4, 5))]
)
def test_ks(p, ks):
    assert truncation_ks(p) == ks


def test_every_block_weight_has_an_update_and_nothing_else():
    updates = updates_of(*states())
    assert [u.site.name for u in updates] == [
        "h.0.attn.c_attn.weight[q]", "h.0.attn.c_attn.weight[k]", "h.0.attn.c_attn.weight[v]", "h.0.mlp.c_fc.weight",
        "layer.1.output.dense.weight"]
    assert [len(u.S) for u in updates] == [6, 6, 6, 6, 5] and most_directions(updates) == 6


@pytest.mark.parametrize("k", [1, 2, 5])
def test_parts_are_cut_and_put_back_where_they_belong(k):
    W0, W1 = states()
    state = truncated_state(W0, W1, updates_of(W0, W1), k, "rest_tuned", HEAD)
    fused0, fused1 = (W["h.0.attn.c_attn.weight"].numpy().astype(float) for W in (W0, W1))
    expected = np.concatenate(
        [fused0[:, c : c + 6] + best_part(fused1[:, c : c + 6] - fused0[:, c : c + 6], k) for c in (0, 6, 12)], axis=1)
    np.testing.assert_allclose(state["h.0.attn.c_attn.weight"], expected, atol=1e-6)
    for name in ("h.0.mlp.c_fc.weight", "layer.1.output.dense.weight"):
        W0_, W1_ = W0[name].numpy().astype(float), W1[name].numpy().astype(float)
        np.testing.assert_allclose(state[name], W0_ + best_part(W1_ - W0_, k), atol=1e-6)
        assert state[name].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_both_ends_are_bit_for_bit(dtype):
    W0, W1 = states(dtype=dtype)
    updates = updates_of(W0, W1)
    blocks = {u.site.parameter for u in updates}
    tuned = {"tuned": truncated_state(W0, W1, updates, 6, "rest_tuned", HEAD), "expected": W1}
    rest_tuned = {"tuned": truncated_state(W0, W1, updates, 0, "rest_tuned", HEAD),
                  "expected": {n: W0[n] if n in blocks else W1[n] for n in W0}}
    base = {"tuned": truncated_state(W0, W1, updates, 0, "rest_base", HEAD),
            "expected": {n: W1[n] if n in HEAD else W0[n] for n in W0}}
    full = {"tuned": truncated_state(W0, W1, updates, 99, "rest_base", HEAD),
            "expected": {n: W1[n] if n in HEAD | blocks else W0[n] for n in W0}}
    for case in (tuned, rest_tuned, base, full):
        assert case["tuned"].keys() == W1.keys()
        for name, W in case["tuned"].items():
            assert torch.equal(W, case["expected"][name]) and W.dtype == dtype


def test_the_error_shrinks_with_k_as_eckart_and_young_say():
    W0, W1 = states()
    updates = updates_of(W0, W1)
    name = "layer.1.output.dense.weight"
    S = np.linalg.svd((W1[name].double() - W0[name].double()).numpy(), compute_uv=False)
    for k in range(6):
        left = W1[name].double() - truncated_state(W0, W1, updates, k, "rest_tuned", HEAD)[name].double()
        assert float(left.norm()) == pytest.approx(math.sqrt(float((S[k:] ** 2).sum())), abs=1e-6)


def test_inputs_are_left_alone():
    W0, W1 = states()
    copies = [{n: t.clone() for n, t in W.items()} for W in (W0, W1)]
    for rule in RULES:
        for k in (0, 1, 6):
            truncated_state(W0, W1, updates_of(W0, W1), k, rule, HEAD)
    for W, copy in zip((W0, W1), copies, strict=True):
        assert all(torch.equal(W[n], copy[n]) for n in W)


def test_a_fused_part_outside_the_sites_is_part_of_the_rest():
    W0, W1 = states()
    sites = [s for s in sites_of(W0) if s.kind == "q"]
    updates = decompose_updates(W0, W1, full_deltas(W0, W1), sites)
    name = "h.0.attn.c_attn.weight"
    for rule, rest in (("rest_tuned", W1), ("rest_base", W0)):
        state = truncated_state(W0, W1, updates, 0, rule, HEAD)
        assert torch.equal(state[name][:, :6], W0[name][:, :6]) and torch.equal(state[name][:, 6:], rest[name][:, 6:])


def lora_run(r=2, scaling=1.5, merged_dtype=torch.float32):
    """q and v of a fused matrix adapted, as factors and merged."""
    W0, _ = states(dtype=merged_dtype)
    W1 = {n: t.clone() for n, t in W0.items()}
    deltas = []
    for i, site in enumerate(s for s in sites_of(W0) if s.kind in ("q", "v")):
        generator = torch.Generator().manual_seed(i)
        B, A = (torch.randn(s, generator=generator) * 0.3 for s in ((site.shape[0], r), (r, site.shape[1])))
        deltas.append(Delta(site.name, 0, site.kind, site.shape, "float32", "float32", 1.0, B=B, A=A, scaling=scaling))
        site.set_(W1[site.parameter], site.get(W0[site.parameter]).double() + scaling * B.double() @ A.double())
    return W0, W1, deltas


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_are_cut_as_their_product_would_be(dtype):
    W0, W1, deltas = lora_run(merged_dtype=dtype)
    updates = decompose_updates(W0, W1, deltas, sites_of(W0))
    assert most_directions(updates) == 2
    state = truncated_state(W0, W1, updates, 1, "rest_tuned", HEAD)
    name = "h.0.attn.c_attn.weight"
    for delta, columns in zip(deltas, (slice(0, 6), slice(12, 18)), strict=True):
        product = (delta.scaling * delta.B.double() @ delta.A.double()).numpy()
        expected = W0[name][:, columns].double().numpy() + best_part(product, 1).T
        np.testing.assert_allclose(state[name][:, columns].double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(state[name][:, 6:12], W0[name][:, 6:12])


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_models_own_lora(kind, tmp_path):
    """Parameters named and stored as transformers does it: what is cut gives the logits of cut factors."""
    model, tokenizer, missing = load_classifier(find_model(make_tiny(kind, tmp_path)), 2, seed=1)
    batch = tokenizer(["the cat sat", "a dog ran over the hill"], padding=True, return_tensors="pt")
    head = head_parameters(model, missing)
    W0 = {n: p.detach().clone() for n, p in model.named_parameters()}
    sites = block_sites(model_shapes(model))
    layers = apply_lora(model, target_sites(model_shapes(model), "q,v"), 3, 6.0)
    generator = torch.Generator().manual_seed(0)
    for layer in layers.values():
        for B in layer.B:
            B.data.normal_(0, 3, generator=generator)
    deltas = list(lora_deltas(layers))
    model.eval()
    with torch.no_grad():
        tuned = model(**batch).logits
        for layer in layers.values():
            for A, B in zip(layer.A, layer.B, strict=True):
                kept = best_part((B @ A).numpy(), 1)
                B.data, A.data = torch.from_numpy(kept).float(), torch.eye(kept.shape[1])
        cut = model(**batch).logits
    factors = {delta.name: delta for delta in deltas}
    for layer in layers.values():
        for site, A, B in zip(layer.sites, layer.A, layer.B, strict=True):
            B.data, A.data = factors[site.name].B, factors[site.name].A
        layer.merge()
    unload_lora(model)
    W1 = {n: p.detach().clone() for n, p in model.named_parameters()}
    updates = decompose_updates(W0, W1, deltas, sites)
    assert len(updates) == 4 and most_directions(updates) == 3
    with torch.no_grad():
        for k, expected in ((3, tuned), (1, cut)):
            model.load_state_dict(truncated_state(W0, W1, updates, k, "rest_tuned", head), strict=False)
            torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-4)
    assert float((tuned - cut).abs().max()) > 1e-3  # the two are told apart


def test_deltas_that_are_not_this_runs_are_refused():
    W0, W1, deltas = lora_run()
    wrong = [Delta(d.name, d.layer, d.kind, d.shape, "", "", B=d.B, A=d.A, scaling=1.0) for d in deltas]
    with pytest.raises(UsageError, match=r"dW of h.0.attn.c_attn.weight\[q\] must be W1 - W0. Got a difference of"):
        decompose_updates(W0, W1, wrong, sites_of(W0))
    with pytest.raises(UsageError, match=r"c_attn.weight\[v\] must have a delta, since W1 differs from W0 there"):
        decompose_updates(W0, W1, deltas[:1], sites_of(W0))
    with pytest.raises(UsageError, match="deltas must hold a linear weight of the blocks. Got none of 5 sites"):
        decompose_updates(W0, W1, [], sites_of(W0))
    short = Delta("h.0.mlp.c_fc.weight", 0, "up", (6, 10), "", "", dW=torch.zeros(6, 10))  # stored, not (out, in)
    with pytest.raises(UsageError, match=r"must have its site's shape \(10, 6\). Got \(6, 10\)"):
        decompose_updates(W0, W1, [short], sites_of(W0))


# A linear classifier whose curve is known. Example i is a unit vector e_i of class i; W0 sends it to class i + 1, the
# i-th direction of dW sends it to class i, and directions come with falling singular values 9, 8, .. 2.
COUNTS = (50, 20, 10, 5, 5, 4, 3, 3)
LABELS = np.repeat(np.arange(8), COUNTS)


def planted():
    roll = torch.zeros(8, 8)
    roll[(torch.arange(8) + 1) % 8, torch.arange(8)] = 1.0
    swapped = torch.eye(8)[[1, 0, 2, 3, 4, 5, 6, 7]]  # the base's embedding takes classes 0 and 1 for each other
    W0 = {"embeddings.weight": swapped, "layer.0.query.weight": roll, "classifier.weight": torch.zeros(8, 8)}
    W1 = {"embeddings.weight": torch.eye(8), "layer.0.query.weight": roll + torch.diag(torch.arange(9.0, 1.0, -1.0)),
          "classifier.weight": torch.eye(8)}
    return W0, W1


def evaluate(state):
    x = torch.eye(8)[torch.from_numpy(LABELS)] @ state["embeddings.weight"]
    logits = x @ state["layer.0.query.weight"].T @ state["classifier.weight"].T
    return LABELS, logits.argmax(-1).numpy()


def curve(**settings):
    W0, W1 = planted()
    return list(truncation_curve(W0, W1, updates_of(W0, W1), evaluate, head=HEAD, **settings))


def test_a_planted_curve_is_found():
    points = curve(ks=range(9))
    tuned = [p.score for p in points if p.rule == "rest_tuned"]
    assert tuned == pytest.approx([0, 0.5, 0.7, 0.8, 0.85, 0.9, 0.94, 0.97, 1.0])
    # With the base's embedding, classes 0 and 1 arrive as each other. W0 sends class 1, seen as 0, to 1 by accident,
    # until the first direction sends it to 0; class 0 is never right; the others are from their own direction on.
    base = [p.score for p in points if p.rule == "rest_base"]
    assert base == pytest.approx([0.2, 0, 0, 0.1, 0.15, 0.2, 0.24, 0.27, 0.3])


def test_default_ks_and_columns():
    points = curve()
    table = pd.DataFrame([p.row() for p in points])
    assert list(table.columns) == ["rule", "k", "accuracy", "ci_low", "ci_high", "n", "ci_method"]
    assert table.rule.tolist() == ["rest_tuned"] * 5 + ["rest_base"] * 5
    assert table.k.tolist() == [0, 1, 2, 4, 8] * 2 and (table.n == 100).all()
    assert (table.ci_low <= table.accuracy).all() and (table.accuracy <= table.ci_high).all()
    assert (table.ci_low < table.ci_high).all()  # also at 0 and 1, where every resample is the same


def test_rows_come_one_by_one():
    W0, W1 = planted()
    seen = []

    def watched(state):
        seen.append(len(seen))
        return evaluate(state)

    rows = truncation_curve(W0, W1, updates_of(W0, W1), watched, head=HEAD)
    next(rows)
    assert len(seen) == 1


def test_intervals_are_a_binomials_and_seeded():
    point = curve(ks=[2], rules=["rest_tuned"])[0]
    sd = math.sqrt(0.7 * 0.3 / 100)
    assert point.ci_low == pytest.approx(0.7 - 1.96 * sd, abs=0.015)
    assert point.ci_high == pytest.approx(0.7 + 1.96 * sd, abs=0.015)
    again = curve(ks=[2], rules=["rest_tuned"])[0]
    assert (point.ci_low, point.ci_high) == (again.ci_low, again.ci_high)


def test_any_score_will_do():
    def negative_error(labels, predictions):
        return -float(np.abs(labels - predictions).mean())

    W0, W1 = planted()
    for point in truncation_curve(W0, W1, updates_of(W0, W1), evaluate, negative_error, head=HEAD, ks=[0, 2, 8]):
        assert point.score == negative_error(point.labels, point.predictions)
        assert point.ci_low <= point.score <= point.ci_high
    same = list(truncation_curve(W0, W1, updates_of(W0, W1), evaluate, lambda y, p: accuracy(y, p), head=HEAD, ks=[2]))
    fast = curve(ks=[2])
    assert [p.score for p in same] == [p.score for p in fast]
    assert [p.ci_low for p in same] == pytest.approx([p.ci_low for p in fast], abs=0.02)  # other draws, same law


def test_error_text_of_the_curve():
    W0, W1 = planted()
    updates = updates_of(W0, W1)
    calls = []

    def shuffled(state):
        calls.append(None)
        return np.roll(LABELS, len(calls)), LABELS

    for settings, message in (
        ({"head": {"clasifier.weight"}}, "head must name parameters of the model. Got clasifier.weight."),
        ({"head": HEAD, "rules": ["rest"]}, "rules must be of rest_tuned, rest_base. Got rest."),
        ({"head": HEAD, "ks": [-1, 0]}, "ks must be at least 0. Got [-1, 0]."),
        ({"head": HEAD, "evaluate": shuffled}, "evaluate must return the same examples in the same order at every k"),
        ({"head": HEAD, "evaluate": lambda s: (LABELS, LABELS[:5])}, "Got predictions[0] of shape (5,) for 100 labels"),
        ({"head": HEAD, "evaluate": lambda s: (LABELS, LABELS * np.nan)}, "Labels and predictions must be finite"),
    ):
        with pytest.raises(UsageError) as caught:
            list(truncation_curve(W0, W1, updates, **({"evaluate": evaluate} | settings)))
        assert message in str(caught.value)
    with pytest.raises(UsageError, match="W0 and W1 must have the same parameters. Got extra in one only"):
        list(truncation_curve(W0 | {"extra": W0["classifier.weight"]}, W1, updates, evaluate, head=HEAD))
    with pytest.raises(UsageError, match="p must be at least 1. Got 0"):
        truncation_ks(0)


def test_best_part_of_a_cached_svd():
    M = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    update = UpdateSVD(None, *torch.linalg.svd(M, full_matrices=False))
    for k in range(6):
        np.testing.assert_allclose(update.best(k), best_part(M.numpy(), k), atol=1e-12)
