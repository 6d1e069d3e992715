"""BitFit: which biases, against peft, the closed form 11 d a block, and the one bias that cannot matter."""

import peft
import pytest
import torch
import transformers

from rankprobe.errors import UsageError
from rankprobe.methods.bitfit import apply_bitfit
from rankprobe.methods.head import freeze_all_but, head_parameters
from tests.methods.tiny import load_tiny, logits, perturb, trained
from tests.tiny_models import KINDS

WITH_BIASES = [kind for kind in KINDS if kind != "llama"]


def on_meta(kind, config):
    with torch.device("meta"):
        model = getattr(transformers, kind).from_config(config)
    freeze_all_but(model, head_parameters(model))
    return model


def trained_besides_the_head(model):
    return {n: p.numel() for n, p in trained(model).items() if n not in head_parameters(model)}


@pytest.mark.parametrize("layers, d", [(1, 16), (3, 64)])
def test_gpt2_has_11_d_a_block_and_d_of_the_final_norm(layers, d):
    config = transformers.GPT2Config(n_layer=layers, n_embd=d, n_head=4, vocab_size=10, n_positions=8)
    model = on_meta("AutoModelForCausalLM", config)
    apply_bitfit(model)
    counts = trained_besides_the_head(model)
    assert sum(counts.values()) == 11 * layers * d + d
    assert sum(c for n, c in counts.items() if ".h.0." in n) == 11 * d


@pytest.mark.parametrize("layers, d", [(1, 16), (3, 64)])
def test_bert_has_11_d_a_block_and_2_d_of_the_embeddings_norm_and_the_pooler(layers, d):
    config = transformers.BertConfig(num_hidden_layers=layers, hidden_size=d, num_attention_heads=4, vocab_size=10,
                                     intermediate_size=4 * d)  # fmt: skip
    model = on_meta("AutoModelForSequenceClassification", config)
    apply_bitfit(model)
    counts = trained_besides_the_head(model)
    assert sum(counts.values()) == 11 * layers * d + 2 * d
    assert sum(c for n, c in counts.items() if ".layer.0." in n) == 11 * d


def _name(of_peft):
    return of_peft.removeprefix("base_model.model.").replace(".base_layer.", ".")


@pytest.mark.parametrize("kind", WITH_BIASES)
def test_the_biases_are_those_that_peft_trains_and_do_what_they_do_there(kind):
    tiny = load_tiny(kind)
    apply_bitfit(tiny.model)
    ours = trained(tiny.model).keys() - tiny.head
    config = peft.LoraConfig(r=1, bias="all", target_modules=r".*\.(query|query_proj|q_lin|c_attn)")
    theirs = peft.get_peft_model(load_tiny(kind).model, config)
    biases = {n for n in trained(theirs) if "lora_" not in n}
    names = {_name(n) for n in biases}
    # peft, which knows no head, trains the biases of that too.
    assert ours == names - tiny.head and len(ours) > 0
    assert sum(trained(tiny.model)[n].numel() for n in ours) == sum(
        p.numel() for n, p in theirs.named_parameters() if n in biases and _name(n) not in tiny.head
    )
    generator = torch.Generator().manual_seed(0)
    same = {_name(n): p for n, p in theirs.named_parameters() if n in biases}
    with torch.no_grad():
        before = logits(theirs, tiny.batch)
        for name in sorted(ours):
            change = 0.3 * torch.randn(same[name].shape, generator=generator)
            trained(tiny.model)[name].add_(change)
            same[name].add_(change)
    torch.testing.assert_close(logits(theirs, tiny.batch), logits(tiny.model, tiny.batch), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(logits(theirs, tiny.batch), before, atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "gpt2"])
def test_a_keys_bias_has_no_effect_and_those_of_queries_and_values_have(kind):
    """Why tests of gradients leave it out: q · (k + b) adds the same to every token's score."""
    tiny = load_tiny(kind)
    model = tiny.model.double().requires_grad_(True)
    perturb(model)  # all of it: fresh weights are small, and so is what a bias does through them
    freeze_all_but(model, tiny.head)
    apply_bitfit(model)
    before = logits(model, tiny.batch)
    generator = torch.Generator().manual_seed(0)

    def moves(change):
        """The largest change of a logit when ``change(name)`` says which rows of a bias move."""
        moved = {}
        for name, p in trained(model).items():
            rows = change(name, len(p)) if name not in tiny.head else None
            if rows is not None:
                moved[name] = p.detach().clone()
                p.data[rows] += torch.randn(p[rows].shape, generator=generator, dtype=p.dtype)
        after = logits(model, tiny.batch)
        for name, value in moved.items():
            dict(model.named_parameters())[name].data.copy_(value)
        assert moved
        return float((after - before).abs().max())

    def part(i, leaf):
        """Rows of q, k or v: a third of GPT-2's c_attn, all of the others' own."""
        def rows(name, n):
            if name.endswith("attn.c_attn.bias"):
                return slice(i * n // 3, (i + 1) * n // 3)
            return slice(None) if name.endswith(leaf) else None

        return rows

    assert moves(part(1, ("key.bias", "k_lin.bias"))) < 1e-10
    assert moves(part(0, ("query.bias", "q_lin.bias"))) > 1e-3
    assert moves(part(2, ("value.bias", "v_lin.bias"))) > 1e-2


def test_a_model_without_biases_is_refused():
    tiny = load_tiny("llama")
    message = r"bitfit must be of a model with biases\. Got llama, which has none\. Choose another method\."
    with pytest.raises(UsageError, match=message):
        apply_bitfit(tiny.model)
    assert trained(tiny.model).keys() == tiny.head


def test_a_decoder_with_biases_in_attention_alone_has_those():
    """As Qwen-2 has them: a Llama with attention_bias."""
    config = transformers.LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                                      vocab_size=20, attention_bias=True)  # fmt: skip
    model = on_meta("AutoModelForCausalLM", config)
    apply_bitfit(model)
    assert sum(trained_besides_the_head(model).values()) == 2 * 4 * 32
