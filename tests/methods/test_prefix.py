"""Trained tokens against peft, against the base given real tokens, through generation, and where they do not fit."""

import copy

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers

from rankprobe.errors import UsageError
from rankprobe.methods.prefix import apply_prefix, apply_prompt, check_prefix
from tests.methods.tiny import MODELS, TEXTS, D, E, L, load_tiny, logits, perturb, row_of, trained, with_names
from tests.tiny_models import KINDS

LENGTH = 4
DECODERS = ("gpt2", "llama")
LM = [(kind, "language_model") for kind in DECODERS]
BOTH = pytest.mark.parametrize("method", [apply_prompt, apply_prefix], ids=["prompt", "prefix"])


def models(cases=tuple(MODELS)):
    return pytest.mark.parametrize("kind, task", with_names(cases))


def with_tokens(method, kind, task="classifier", *, length=LENGTH, loud=False):
    tiny = load_tiny(kind, task, loud=loud)
    method(tiny.model, length, seed=1)
    perturb(tiny.model)
    return tiny


def values(model):
    """The trained vectors, in the order of the blocks."""
    return [p.detach() for name, p in model.named_parameters() if name.endswith("trained.values")]


def words(model, length=LENGTH, seed=1):
    """The tokens that the vectors start from: those whose embeddings PreEmbed starts with."""
    tiny = copy.deepcopy(model)
    apply_prompt(tiny, length, seed=seed)
    table = model.get_input_embeddings().weight.detach()
    return torch.cdist(values(tiny)[0], table).argmin(1)


def written_out(batch, tokens, at):
    """A batch with real tokens where the trained ones go."""
    fills = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "token_type_ids": torch.zeros_like(tokens)}
    return {key: torch.cat([x[:, :at], fills[key].expand(len(x), -1), x[:, at:]], 1) for key, x in batch.items()}


# Against peft


@models(LM)
def test_prompt_tuning_of_peft_gives_the_same_logits_of_a_language_model(kind, task):
    tiny = with_tokens(apply_prompt, kind, task)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    theirs = peft.get_peft_model(load_tiny(kind, task).model, config)
    theirs.prompt_encoder["default"].embedding.weight.data.copy_(values(tiny.model)[0])
    assert sum(p.numel() for p in trained(theirs).values()) == LENGTH * D == values(tiny.model)[0].numel()
    expected = logits(theirs.double().eval(), tiny.batch)[:, LENGTH:]
    torch.testing.assert_close(logits(tiny.model.double(), tiny.batch), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_tuning_of_peft_gives_the_same_logits_of_a_classifier(kind):
    """One text at a time: given embeddings, decoders in transformers cannot tell padding.

    peft puts its tokens before [CLS], so that a pooler reads the first of them; to compare, so do ours here.
    """
    tiny = with_tokens(apply_prompt, kind)
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=LENGTH, num_layers=L,
                                     num_attention_heads=4, token_dim=E if kind == "electra" else D)  # fmt: skip
    theirs = peft.get_peft_model(load_tiny(kind).model, config)
    theirs.prompt_encoder["default"].embedding.weight.data.copy_(values(tiny.model)[0])
    ours = dict(tiny.model.named_parameters())
    for name, p in theirs.named_parameters():  # the head, which peft keeps twice
        name = name.removeprefix("base_model.").replace("modules_to_save.default.", "").replace("original_module.", "")
        if name in ours:
            p.data.copy_(ours[name])
    tiny.model.double().trained_places.at = 0
    for i in range(len(TEXTS)):
        row = row_of(tiny.batch, i)
        expected = logits(theirs.double().eval(), row)
        torch.testing.assert_close(logits(tiny.model, row), expected, rtol=1e-10, atol=1e-10)


def test_prefix_tuning_of_peft_gives_the_same_logits_from_the_keys_and_values_of_our_activations():
    tiny = with_tokens(apply_prefix, "gpt2", "language_model")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    base = load_tiny("gpt2", "language_model").model.double()
    theirs = peft.get_peft_model(base, config).double()
    vectors = []
    for block, h in zip(base.transformer.h, values(tiny.model), strict=True):
        vectors += block.attn.c_attn(block.ln_1(h.double())).detach().chunk(3, -1)[1:]
    # Theirs are one row a token: k and v of the first block, of the second, and so on.
    theirs.prompt_encoder["default"].embedding.weight.data.copy_(torch.cat(vectors, dim=1))
    expected = logits(theirs.eval(), tiny.batch)
    torch.testing.assert_close(logits(tiny.model.double(), tiny.batch), expected, rtol=1e-10, atol=1e-10)
    # Keys and values of their own are twice as many parameters as activations.
    assert sum(p.numel() for p in trained(theirs).values()) == 2 * sum(p.numel() for p in trained(tiny.model).values())


# Against the base given real tokens


@models()
def test_prompt_starts_as_the_base_with_random_words_in_the_text(kind, task):
    tiny = load_tiny(kind, task)
    at = 0 if kind in DECODERS else 1
    batch = written_out(tiny.batch, words(tiny.model), at)
    expected = logits(tiny.model, batch)
    apply_prompt(tiny.model, LENGTH, seed=1)
    expected = expected[:, LENGTH:] if task == "language_model" else expected
    torch.testing.assert_close(logits(tiny.model, tiny.batch), expected, rtol=1e-5, atol=1e-6)


@models([case for case in MODELS if case[0] in DECODERS])
def test_prefix_starts_there_too_where_no_token_sees_a_later_one(kind, task):
    tiny = load_tiny(kind, task)
    expected = logits(tiny.model, written_out(tiny.batch, words(tiny.model), 0))
    apply_prefix(tiny.model, LENGTH, seed=1)
    expected = expected[:, LENGTH:] if task == "language_model" else expected
    torch.testing.assert_close(logits(tiny.model, tiny.batch), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in DECODERS])
def test_an_encoders_prefix_starts_at_its_own_activations_and_they_stay_in_every_block(kind):
    """The input of block i at the new tokens is what was trained for it, whatever the block before gave."""
    tiny = load_tiny(kind)
    blocks = next(m for m in tiny.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == L)
    seen = []
    hook = {"hook": lambda module, args, kwargs: seen.append(args[0].detach()), "with_kwargs": True}
    handles = [block.register_forward_pre_hook(**hook) for block in blocks]
    ids = words(tiny.model)[None]
    tiny.model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids))
    alone = seen.copy()
    for handle in handles:
        handle.remove()
    apply_prefix(tiny.model, LENGTH, seed=1)
    for vectors, h in zip(values(tiny.model), alone, strict=True):
        torch.testing.assert_close(vectors, h[0], rtol=1e-5, atol=1e-6)
    perturb(tiny.model)
    seen.clear()
    for block in blocks:
        block.register_forward_pre_hook(**hook)
    logits(tiny.model, tiny.batch)
    for vectors, h in zip(values(tiny.model), seen, strict=True):
        assert torch.equal(h[:, 1 : 1 + LENGTH], vectors.expand(len(TEXTS), -1, -1))


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_where_a_prefix_starts_does_not_depend_on_dropout_and_training_goes_on(kind):
    one, other = load_tiny(kind).model.train(), load_tiny(kind).model
    assert any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in one.modules())
    for model in (one, other):
        apply_prefix(model, LENGTH, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(values(one), values(other), strict=True))
    assert one.training and not other.training


@BOTH
@models()
def test_the_token_that_stands_in_does_not_matter(method, kind, task):
    tiny = with_tokens(method, kind, task)
    places, before = tiny.model.trained_places, logits(tiny.model, tiny.batch)
    assert places.token not in (tiny.pad_id, tiny.model.config.eos_token_id, tiny.model.config.bos_token_id)
    places.token += 20
    torch.testing.assert_close(logits(tiny.model, tiny.batch), before, rtol=0, atol=0)


@BOTH
@models([case for case in MODELS if case[1] == "classifier"])
def test_a_text_that_ends_in_its_stand_in_keeps_its_length(method, kind, task):
    """The last token that is not padding is found where the text has it; texts of one token too."""
    tiny = with_tokens(method, kind, loud=True)
    ids = torch.tensor([[7, tiny.model.trained_places.token], [7, tiny.pad_id]])
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1], [1, 0]])}
    both = logits(tiny.model, batch)
    torch.testing.assert_close(both[1:], logits(tiny.model, row_of(batch, 1)), rtol=1e-5, atol=1e-5)
    assert (both[0] - both[1]).abs().max() > 1e-3


# What goes in and comes out


@BOTH
@models(LM)
def test_a_language_models_logits_and_loss_are_those_of_the_text(method, kind, task):
    tiny = with_tokens(method, kind, task)
    labels = tiny.batch["input_ids"].masked_fill(tiny.batch["attention_mask"] == 0, -100)
    given = labels.clone()
    out = tiny.model(**tiny.batch, labels=labels)
    assert out.logits.shape[:2] == labels.shape and torch.equal(labels, given)
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)


@BOTH
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_classifiers_labels_are_left_alone(method, kind):
    tiny = with_tokens(method, kind)
    batch = {key: x[:, :3] for key, x in tiny.batch.items()}  # as many tokens as classes: one label a class looks alike
    labels = torch.eye(3)
    tiny.model.config.problem_type = "multi_label_classification"
    out = tiny.model(**batch, labels=labels)
    torch.testing.assert_close(out.loss, F.binary_cross_entropy_with_logits(out.logits, labels))


@BOTH
@models(LM)
def test_generation_with_a_cache_is_generation_without(method, kind, task):
    tiny = with_tokens(method, kind, task, loud=True)
    batch = {key: x.flip(1) for key, x in tiny.batch.items()}  # padding on the left, where text is continued
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": tiny.pad_id, "eos_token_id": None}
    with torch.no_grad():
        cached = tiny.model.generate(**batch, **settings, use_cache=True)
        whole = tiny.model.generate(**batch, **settings, use_cache=False)
        beams = tiny.model.generate(**batch, **settings, num_beams=2)
        plain = load_tiny(kind, task, loud=True).model.generate(**batch, **settings)
    assert torch.equal(cached, whole) and cached.shape == beams.shape == plain.shape
    assert not torch.equal(cached, plain)
    row = {key: x[:1, -int(batch["attention_mask"][0].sum()) :] for key, x in batch.items()}
    alone = tiny.model.generate(**row, **settings)
    assert torch.equal(alone[0, -6:], cached[0, -6:]), "padding does not matter"
    # The greedy choice is that of the logits that training sees.
    with torch.no_grad():
        first = tiny.model(**row).logits[0, -1].argmax()
    assert first == alone[0, -6]


@models(LM)
def test_a_cached_step_gives_the_logits_of_the_whole_text(kind, task):
    for method in (apply_prompt, apply_prefix):
        tiny = with_tokens(method, kind, task)
        row = row_of(tiny.batch, 1)
        whole = logits(tiny.model, row)
        start = {key: x[:, :-2] for key, x in row.items()}
        with torch.no_grad():
            out = tiny.model(**start, use_cache=True)
            rest = tiny.model(input_ids=row["input_ids"][:, -2:], attention_mask=row["attention_mask"],
                              past_key_values=out.past_key_values)  # fmt: skip
        torch.testing.assert_close(torch.cat([out.logits, rest.logits], 1), whole, rtol=1e-5, atol=1e-5)


@BOTH
@models([("bert", "classifier"), ("distilbert", "classifier"), ("gpt2", "classifier"), *LM])
def test_position_ids_that_are_given_move_with_the_text(method, kind, task):
    tiny = with_tokens(method, kind, task, loud=True)
    positions = torch.arange(tiny.batch["input_ids"].shape[1])[None]
    before = logits(tiny.model, tiny.batch)
    torch.testing.assert_close(logits(tiny.model, {**tiny.batch, "position_ids": positions}), before, rtol=0, atol=0)
    moved = logits(tiny.model, {**tiny.batch, "position_ids": positions + 2})
    assert (moved - before).abs().max() > 1e-2


@BOTH
def test_without_an_attention_mask_every_token_counts(method):
    for kind in ("bert", "gpt2", "llama"):
        tiny = with_tokens(method, kind)
        row = row_of(tiny.batch, 1)
        alone = logits(tiny.model, {"input_ids": row["input_ids"]})
        torch.testing.assert_close(alone, logits(tiny.model, row), rtol=1e-6, atol=1e-6)
        with torch.no_grad():
            positional = tiny.model(row["input_ids"]).logits
        torch.testing.assert_close(positional, alone, rtol=0, atol=0)


def test_token_types_that_gpt2_looks_up_among_its_words_are_not_trained_ones():
    tiny = with_tokens(apply_prompt, "gpt2")
    types = torch.full_like(tiny.batch["input_ids"], 9)
    ours = logits(tiny.model, {**tiny.batch, "token_type_ids": types})
    base = load_tiny("gpt2").model
    for name, p in base.named_parameters():
        p.data.copy_(dict(tiny.model.named_parameters())[name])
    table = base.transformer.wte.weight.detach()
    batch = written_out({**tiny.batch, "token_type_ids": types}, torch.full((LENGTH,), 1), 0)
    inputs = table[batch["input_ids"]] + table[batch["token_type_ids"]]
    inputs[:, :LENGTH] = values(tiny.model)[0] + table[0]
    hidden = base.transformer(inputs_embeds=inputs, attention_mask=batch["attention_mask"]).last_hidden_state
    last = hidden[torch.arange(len(hidden)), batch["attention_mask"].sum(1) - 1]
    torch.testing.assert_close(ours, base.score(last).detach(), rtol=1e-5, atol=1e-5)


@BOTH
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_outside_of_the_models_own_forward_nothing_is_replaced(method, kind):
    """The base called by itself, after a pass and after a failed one."""
    tiny, plain = with_tokens(method, kind), load_tiny(kind)
    batch = {key: x for key, x in tiny.batch.items() if key != "labels"}
    expected = plain.model.base_model(**batch).last_hidden_state
    logits(tiny.model, tiny.batch)
    assert torch.equal(tiny.model.base_model(**batch).last_hidden_state, expected)
    with pytest.raises(IndexError):
        logits(tiny.model, {"input_ids": torch.full((1, 4), 10**6)})
    assert torch.equal(tiny.model.base_model(**batch).last_hidden_state, expected)


@BOTH
def test_gradient_checkpointing_gives_the_same_gradients(method):
    gradients = []
    for checkpointed in (False, True):
        tiny = with_tokens(method, "gpt2", "language_model")
        for module in tiny.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        tiny.model.train()
        if checkpointed:
            tiny.model.gradient_checkpointing_enable({"use_reentrant": False})
        tiny.model(**tiny.batch, use_cache=False).logits.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trained(tiny.model).values()]))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    assert gradients[0].abs().max() > 0


# Where they do not fit: the tiny models have 130 positions, RoBERTa two fewer; Llama's and DeBERTa's are computed


@BOTH
@pytest.mark.parametrize("kind, most", [("bert", 129), ("roberta", 127), ("gpt2", 129), ("llama", 129),
                                        ("deberta-v2", 129)])  # fmt: skip
def test_more_than_the_context_is_refused_and_as_many_as_it_leaves_are_not(method, kind, most):
    for length in (most + 1, 10**9):
        tiny = load_tiny(kind)
        with pytest.raises(UsageError, match=rf"prefix_length must be at most {most}, .* Got {length}\. Lower it"):
            method(tiny.model, length, seed=0)
        assert trained(tiny.model).keys() == tiny.head and not hasattr(tiny.model, "trained_places")
    method(tiny.model, most, seed=0)
    assert logits(tiny.model, {"input_ids": torch.tensor([[7]])}).isfinite().all()


@BOTH
@pytest.mark.parametrize("kind, room", [("bert", 10), ("roberta", 8), ("gpt2", 10)])
def test_a_text_that_does_not_fit_with_them_is_refused_when_it_comes(method, kind, room):
    tiny = with_tokens(method, kind, length=120)
    fits = torch.full((2, room), 7)
    assert logits(tiny.model, {"input_ids": fits}).isfinite().all()
    message = (rf"A text's tokens must leave room for 120 trained ones in the model's {120 + room} positions\. "
               rf"Got {room + 1}\. Lower max_length or the prefix length\.")  # fmt: skip
    with pytest.raises(UsageError, match=message):
        logits(tiny.model, {"input_ids": torch.full((2, room + 1), 7)})


def test_a_cache_that_is_full_is_refused():
    tiny = with_tokens(apply_prefix, "gpt2", "language_model", length=120)
    with torch.no_grad():
        cache = tiny.model(input_ids=torch.full((1, 10), 7), use_cache=True).past_key_values
        with pytest.raises(UsageError, match=r"leave room for 120 trained ones .* Got 11\."):
            tiny.model(input_ids=torch.full((1, 1), 7), past_key_values=cache)


def test_a_model_without_a_last_position_takes_longer_texts():
    tiny = with_tokens(apply_prefix, "llama", length=100)
    assert logits(tiny.model, {"input_ids": torch.full((1, 60), 7)}).isfinite().all()


@BOTH
@pytest.mark.parametrize("length", [0, -1])
def test_less_than_one_token_is_refused(method, length):
    with pytest.raises(UsageError, match=rf"prefix_length must be at least 1\. Got {length}\. Pass 16, say\."):
        method(load_tiny("bert").model, length, seed=0)


def test_check_prefix_counts_the_text():
    model = load_tiny("roberta").model
    check_prefix(model, 28, 100)
    message = r"prefix_length must be at most 28, what texts of 100 tokens leave of 128 positions\. Got 29\. Lower it"
    with pytest.raises(UsageError, match=message):
        check_prefix(model, 29, 100)
    check_prefix(load_tiny("llama").model, 29, 1000)


@BOTH
def test_a_second_one_is_refused(method):
    tiny = with_tokens(method, "bert")
    with pytest.raises(UsageError, match="A model must have one prefix or prompt. Got a second one."):
        apply_prompt(tiny.model, 2, seed=0)
    with pytest.raises(UsageError, match="A model must have one prefix or prompt. Got a second one."):
        apply_prefix(tiny.model, 2, seed=0)


@BOTH
def test_inputs_that_it_cannot_take_are_refused(method):
    tiny = with_tokens(method, "bert")
    with pytest.raises(UsageError, match="must be given input_ids. Got inputs_embeds."):
        tiny.model(inputs_embeds=torch.zeros(1, 3, D))
    with pytest.raises(UsageError, match="must be called by keyword. Got 2 values without a name."):
        tiny.model(tiny.batch["input_ids"], tiny.batch["attention_mask"])


def test_a_prompt_starts_from_what_the_model_makes_of_words_not_from_its_table():
    """Gemma 2 multiplies what it looks up by the root of its width."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
             "head_dim": 16, "intermediate_size": 64, "vocab_size": 40}  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(transformers.Gemma2Config(**sizes)).eval()
    table = model.get_input_embeddings().weight.detach()
    apply_prompt(model, 3, seed=0)
    values = model.get_input_embeddings().trained.values
    nearest = (8.0 * table - values[:, None]).abs().amax(-1).min(1).values
    assert nearest.max() < 1e-5
