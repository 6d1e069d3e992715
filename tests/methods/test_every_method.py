"""What every method must do, on every architecture: start at the base, train its own, be saved, ignore padding."""

import copy

import pytest
import torch
import transformers

from rankprobe.errors import UsageError
from rankprobe.methods.bitfit import apply_bitfit
from rankprobe.methods.bottleneck import apply_bottleneck
from rankprobe.methods.prefix import apply_prefix, apply_prompt
from rankprobe.methods.top_layers import apply_top_layers
from tests.methods.tiny import MODELS, D, E, L, count, load_tiny, logits, perturb, row_of, trained, with_names

M = 2 * D  # width inside the tiny models' MLPs; GPT-2's is 4 D
KV = 16  # width of keys and values of the tiny Llama
B, LENGTH = 5, 4
METHODS = {
    "bitfit": lambda model, seed: apply_bitfit(model),
    "top_layers": lambda model, seed: apply_top_layers(model, 1),
    "houlsby": lambda model, seed: apply_bottleneck(model, B, "houlsby", seed=seed),
    "lin": lambda model, seed: apply_bottleneck(model, B, "lin", seed=seed),
    "prompt": lambda model, seed: apply_prompt(model, LENGTH, seed=seed),
    "prefix": lambda model, seed: apply_prefix(model, LENGTH, seed=seed),
}
DRAWN = ("houlsby", "lin", "prompt", "prefix")
STARTS_AS_THE_BASE = ("bitfit", "top_layers", "houlsby", "lin")


def cases(methods=tuple(METHODS), models=MODELS):
    """Llama has no biases, and bitfit's own tests say what becomes of it."""
    pairs = [(m, *model) for m in methods for model in models if (m, model[0]) != ("bitfit", "llama")]
    return pytest.mark.parametrize("method, kind, task", with_names(pairs))


def applied(method, kind, task="classifier", *, seed=1, moved=True):
    tiny = load_tiny(kind, task, seed)
    METHODS[method](tiny.model, seed)
    if moved:
        perturb(tiny.model, seed)
    return tiny


def biases_outside_the_blocks(kind, task):
    if kind == "gpt2":
        return D
    norm = {"electra": E + D, "deberta-v2": 2 * D}.get(kind, D)  # ELECTRA's projection, DeBERTa's relative positions
    return norm + (D if kind == "bert" else 0)  # the pooler


def closed_form(method, kind, task):
    """Parameters besides the head, by the tiny models' sizes."""
    adapter = 2 * D * B + B + D
    norm = D if kind == "llama" else 2 * D  # RMSNorm has no bias
    block = {"gpt2": 12 * D**2 + 13 * D, "llama": 2 * D**2 + 2 * D * KV + 3 * D * M + 2 * D}
    return {
        "bitfit": L * (11 * D if kind == "gpt2" else 7 * D + M) + biases_outside_the_blocks(kind, task),
        "top_layers": block.get(kind, 4 * D**2 + 2 * D * M + M + 5 * D + 4 * D),
        "houlsby": 2 * L * adapter + 2 * L * norm,
        "lin": L * adapter + L * 2 * D,
        "prompt": LENGTH * (E if kind == "electra" else D),
        "prefix": L * LENGTH * D,
    }[method]


def is_the_methods(method, name):
    """Whether a method trains a parameter of this name, by what the names say."""
    if method == "bitfit":
        return name.endswith("bias")
    if method == "top_layers":
        return any(part in name for part in (".layer.1.", ".h.1.", ".layers.1."))
    if method in ("houlsby", "lin"):
        norms = ("LayerNorm", "layer_norm", "layernorm", "ln_1", "ln_2")
        in_block = any(part in name for part in (".layer.", ".h.", ".layers."))
        own_norm = method == "houlsby" and in_block and name.split(".")[-2].endswith(norms)
        return ".adapter." in name or own_norm
    return name.endswith("trained.values")


@cases(STARTS_AS_THE_BASE)
def test_starts_as_the_base(method, kind, task):
    tiny = load_tiny(kind, task)
    before = logits(tiny.model, tiny.batch)
    METHODS[method](tiny.model, 0)
    torch.testing.assert_close(logits(tiny.model, tiny.batch), before, rtol=0, atol=0)
    perturb(tiny.model)
    assert (logits(tiny.model, tiny.batch) - before).abs().max() > 1e-3


@cases()
def test_its_parameters_and_the_head_require_a_gradient_and_no_others(method, kind, task):
    tiny = applied(method, kind, task, moved=False)
    expected = {n for n, _ in tiny.model.named_parameters() if is_the_methods(method, n) or n in tiny.head}
    assert trained(tiny.model).keys() == expected
    assert count(tiny) == closed_form(method, kind, task)


@cases()
def test_all_of_them_get_a_gradient(method, kind, task):
    tiny = applied(method, kind, task)
    tiny.model(**tiny.batch).logits.square().sum().backward()
    got = {n for n, p in tiny.model.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-6}
    # A key's bias has none: it adds the same to every token's score (tests of bitfit). GPT-2's is part of c_attn's, and
    # DeBERTa's meets relative positions.
    without = {n for n in trained(tiny.model) if n.endswith(("attention.self.key.bias", "k_lin.bias"))}
    assert got - without == trained(tiny.model).keys() - without
    assert all(p.grad is None for p in tiny.model.parameters() if not p.requires_grad)


@cases()
def test_saved_and_loaded_by_name(method, kind, task):
    tiny = applied(method, kind, task)
    saved = {name: p.detach().clone() for name, p in trained(tiny.model).items()}
    fresh = applied(method, kind, task, seed=99, moved=False)
    parameters = dict(fresh.model.named_parameters())
    ours = logits(tiny.model, tiny.batch)
    assert not torch.allclose(logits(fresh.model, tiny.batch), ours, atol=1e-4)
    for name, tensor in saved.items():
        parameters[name].data.copy_(tensor)
    torch.testing.assert_close(logits(fresh.model, tiny.batch), ours, rtol=0, atol=0)


@cases()
def test_padding_does_not_matter(method, kind, task):
    tiny = applied(method, kind, task)
    together = logits(tiny.model, tiny.batch)
    assert not tiny.batch["attention_mask"].all()
    for i in range(len(together)):
        row = row_of(tiny.batch, i)
        alone = logits(tiny.model, row)[0]
        here = together[i][: len(row["input_ids"][0])] if task == "language_model" else together[i]
        torch.testing.assert_close(alone, here, rtol=1e-5, atol=1e-5)


@cases()
def test_a_deep_copy_is_the_same_and_on_its_own(method, kind, task):
    tiny = applied(method, kind, task)
    other = copy.deepcopy(tiny.model)
    before = logits(tiny.model, tiny.batch)
    torch.testing.assert_close(logits(other, tiny.batch), before, rtol=0, atol=0)
    perturb(other, seed=5)
    torch.testing.assert_close(logits(tiny.model, tiny.batch), before, rtol=0, atol=0)
    moved = logits(other, tiny.batch)
    assert (moved - before).abs().max() > 1e-3
    perturb(tiny.model, seed=6)
    torch.testing.assert_close(logits(other, tiny.batch), moved, rtol=0, atol=0)


@cases()
def test_on_the_meta_device_the_same_parameters_without_storage(method, kind, task):
    real = applied(method, kind, task, moved=False)
    with torch.device("meta"):
        model = type(real.model)(real.model.config)
    for name, p in model.named_parameters():
        p.requires_grad_(name in real.head)
    METHODS[method](model, 0)
    assert {n: p.shape for n, p in trained(model).items()} == {n: p.shape for n, p in trained(real.model).items()}
    assert {p.device.type for p in model.parameters()} == {"meta"}


@cases(DRAWN, [("bert", "classifier"), ("gpt2", "language_model")])
def test_the_seed_alone_decides_the_start(method, kind, task):
    def start(seed):
        tiny = load_tiny(kind, task)
        METHODS[method](tiny.model, seed)
        return torch.cat([p.detach().flatten() for n, p in trained(tiny.model).items() if n not in tiny.head])

    torch.manual_seed(3)
    first, state = start(1), torch.get_rng_state()
    torch.manual_seed(4)
    assert torch.equal(start(1), first)
    assert not torch.equal(start(2), first)
    torch.manual_seed(3)
    assert torch.equal(state, torch.get_rng_state()), "the global random state must be left as it was"


@cases(DRAWN, [("bert", "classifier"), ("llama", "classifier"), ("gpt2", "language_model")])
def test_new_parameters_of_a_half_precision_base_are_float32(method, kind, task):
    tiny = load_tiny(kind, task)
    model = tiny.model.to(torch.bfloat16)
    before = logits(model, tiny.batch)
    names = {n for n, _ in model.named_parameters()}
    METHODS[method](model, 0)
    assert {p.dtype for n, p in model.named_parameters() if n not in names} == {torch.float32}
    after = logits(model, tiny.batch)
    assert after.dtype == torch.bfloat16
    if method in STARTS_AS_THE_BASE:
        assert torch.equal(after, before)
    with torch.autocast("cpu", torch.bfloat16):
        assert logits(tiny.model.float(), tiny.batch).isfinite().all()


@cases()
def test_autocast_changes_a_little(method, kind, task):
    tiny = applied(method, kind, task)
    exact = logits(tiny.model, tiny.batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = logits(tiny.model, tiny.batch).float()
        loss = tiny.model(**tiny.batch).logits.float().square().sum()
    loss.backward()
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.1
    assert all(p.grad.dtype == torch.float32 for p in trained(tiny.model).values() if p.grad is not None)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "bitfit"])
@pytest.mark.parametrize("config", [
    transformers.T5Config(num_layers=2, d_model=16, d_ff=16, d_kv=4, num_heads=4, vocab_size=20),
    transformers.BartConfig(encoder_layers=2, decoder_layers=1, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16,
                            encoder_attention_heads=2, decoder_attention_heads=2, vocab_size=20),
    transformers.AlbertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
                              embedding_size=8, vocab_size=20),
    transformers.XLMConfig(vocab_size=20, emb_dim=16, n_layers=2, n_heads=2),
    transformers.SqueezeBertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
                                   intermediate_size=16, embedding_size=16),
], ids=lambda c: c.model_type)  # fmt: skip
def test_what_is_no_single_stack_of_blocks_is_refused(method, config):
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(UsageError, match=f"The model must be one stack of transformer blocks. Got {config.model_type}"):
        METHODS[method](model, 0)
