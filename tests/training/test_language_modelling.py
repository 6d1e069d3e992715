"""A language model in the loop: which tokens are predicted, transformers' own loss as oracle, learning, divergence."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from rankprobe.errors import UsageError
from rankprobe.experiment.models import set_dropout
from rankprobe.methods.apply import apply_method
from rankprobe.tasks.metrics import score
from rankprobe.tasks.task import Example
from rankprobe.training.batches import IGNORED, collate, encode, epoch_batches
from rankprobe.training.evaluate import predict
from rankprobe.training.loss import next_token_loss
from rankprobe.training.train import train
from rankprobe.weights.pretrained import find_model, load_causal_lm
from tests.tiny_models import make_tiny

KINDS = ("gpt2", "llama")
LM = {"problem": "language_modelling"}
TEXTS = (
    ("sort array:", " return the sorted values of array"),
    ("", "a great movie with a long story"),
    ("remove from list (index, name):", " remove"),
    ("find:", " find the name of each column in the data set and return as a list of string"),
    ("the film", " is not bad"),
)
EXAMPLES = tuple(Example(str(i), *texts, 0) for i, texts in enumerate(TEXTS))


@pytest.fixture(scope="module", params=KINDS)
def tiny(request, tmp_path_factory):
    source = find_model(make_tiny(request.param, tmp_path_factory.mktemp(request.param)))
    return lambda: load_causal_lm(source, seed=0)[:2]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    source = find_model(make_tiny("gpt2", tmp_path_factory.mktemp("gpt2")))
    return load_causal_lm(source, seed=0)[:2]


def rows_of(tokenizer, examples=EXAMPLES, max_length=64):
    return encode(tokenizer, examples, max_length, **LM)


def labels_of(row) -> list[int]:
    """A row's labels as transformers wants them: at each token itself where it is predicted."""
    return [IGNORED, *row["targets"][:-1]]


# Which tokens


def test_completion_and_end_are_predicted_and_the_prompt_is_not(tiny):
    _, tokenizer = tiny()
    begin = tokenizer("")["input_ids"]
    # Llama's tokenizer puts its begin token there; GPT-2's has one, the end token too, and does not.
    assert begin == ([] if tokenizer.bos_token == tokenizer.eos_token else [tokenizer.bos_token_id])
    for row, (prompt, completion) in zip(rows_of(tokenizer), TEXTS, strict=True):
        before = begin + tokenizer(prompt, add_special_tokens=False)["input_ids"]
        after = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        assert row["input_ids"] == before + after and row["attention_mask"] == [1] * len(before + after)
        first = max(1, len(before))
        assert labels_of(row) == [IGNORED] * first + (before + after)[first:]


def test_an_empty_prompt_has_every_token_after_the_first_predicted(tiny):
    _, tokenizer = tiny()
    row = rows_of(tokenizer)[1]
    assert row["targets"] == [*row["input_ids"][1:], IGNORED]


@pytest.mark.parametrize("max_length", [2, 3, 5, 8, 12, 20, 64])
def test_a_long_row_loses_its_prompts_beginning_first_then_the_completions_end(tiny, max_length):
    _, tokenizer = tiny()
    begin = len(tokenizer("")["input_ids"])
    cut = rows_of(tokenizer, max_length=max_length)
    for whole, row, (prompt, _) in zip(rows_of(tokenizer), cut, TEXTS, strict=True):
        asked = len(whole["input_ids"]) - begin - len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        keep = min(max_length, len(whole["input_ids"]))
        assert len(row["input_ids"]) == len(row["targets"]) == len(row["attention_mask"]) == keep
        start = len(whole["input_ids"]) - asked  # of the completion
        completion = whole["input_ids"][start:][: keep - begin]
        prompt_left = keep - begin - len(completion)
        kept = whole["input_ids"][:begin] + whole["input_ids"][start - prompt_left : start] + completion
        assert row["input_ids"] == kept
        assert sum(target != IGNORED for target in row["targets"]) == len(completion) - (begin + prompt_left == 0)


def test_no_encoding_warning_about_length(tiny, caplog):
    _, tokenizer = tiny()
    with caplog.at_level("WARNING"):
        assert len(rows_of(tokenizer, (Example("0", "a " * 300, " good", 0),))[0]["input_ids"]) == 64
    assert not caplog.records


def test_classification_rows_are_what_they_were(gpt2):
    _, tokenizer = gpt2
    pairs = [Example("0", "good", "film", 1)]
    assert encode(tokenizer, pairs, 64) == encode(tokenizer, pairs, 64, problem="classification")
    assert set(encode(tokenizer, pairs, 64)[0]) == {"input_ids", "attention_mask"}


def test_rows_without_a_token_to_predict_are_counted_in_one_line(gpt2):
    _, tokenizer = gpt2
    empty = [Example("ok", "good", " film", 0), Example("e1", "", "", 0), Example("e2", "", "", 0)]
    with pytest.raises(UsageError, match="Rows must have a token to predict. Got 2 of 3 without, the first of them e1"):
        rows_of(tokenizer, empty)
    # With something before it the end is predicted, even of an empty completion.
    assert rows_of(tokenizer, [Example("0", "good", "", 0)])[0]["targets"][-2:] == [tokenizer.eos_token_id, IGNORED]
    with pytest.raises(UsageError, match="max_length must be at least 2"):
        rows_of(tokenizer, max_length=1)


def test_collate_asks_for_nothing_after_a_row(gpt2):
    rows = rows_of(gpt2[1])
    batch = collate(rows, 9)
    for row, targets, ids in zip(rows, batch["targets"].tolist(), batch["input_ids"].tolist(), strict=True):
        n = len(row["input_ids"])
        assert targets == row["targets"] + [IGNORED] * (len(ids) - n) and ids == row["input_ids"] + [9] * (len(ids) - n)


# Values


def test_each_rows_likelihood_is_transformers_own_loss(tiny):
    model, tokenizer = tiny()
    rows = rows_of(tokenizer)
    found = predict(model, rows, [0] * len(rows), tokenizer.pad_token_id, **LM)
    for row, tokens, right, nll in zip(rows, found.labels, found.predictions, found.scores, strict=True):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([labels_of(row)])
        with torch.inference_mode():
            out = model(input_ids=ids, labels=labels)
        assert tokens == (labels != IGNORED).sum()
        assert nll / tokens == pytest.approx(out.loss.item(), rel=1e-6)
        assert right == (out.logits[0, :-1].argmax(-1) == labels[0, 1:]).sum()
    assert found.loss == pytest.approx(found.scores.sum() / found.labels.sum())
    assert {found.labels.dtype, found.predictions.dtype} == {np.dtype("int64")} and found.scores.dtype == np.float64


def test_perplexity_of_all_rows_is_that_of_transformers_loss_on_a_padded_batch(tiny):
    model, tokenizer = tiny()
    rows = rows_of(tokenizer)
    batch = collate(rows, tokenizer.pad_token_id)
    targets = batch.pop("targets")
    labels = torch.cat([torch.full((len(rows), 1), IGNORED), targets[:, :-1]], dim=1)
    with torch.inference_mode():
        out = model(**batch, labels=labels)
    found = predict(model, rows, [0] * len(rows), tokenizer.pad_token_id, **LM)
    perplexity = score(("perplexity",), found.labels, found.predictions, found.scores)["perplexity"]
    assert perplexity == pytest.approx(out.loss.exp().item(), rel=1e-6)
    assert next_token_loss(out.logits, targets).item() == pytest.approx(out.loss.item(), rel=1e-6)


def test_a_row_alone_has_the_likelihood_that_it_has_in_a_padded_batch(tiny):
    model, tokenizer = tiny()
    rows = rows_of(tokenizer)
    together = predict(model, rows, [0] * 5, tokenizer.pad_token_id, **LM)
    for other in (
        predict(model, rows, [0] * 5, tokenizer.pad_token_id, batch_size=1, **LM),
        predict(model, rows, [0] * 5, 7, batch_size=3, **LM),  # any token pads
    ):
        np.testing.assert_allclose(other.scores, together.scores, rtol=2e-6)
        assert other.labels.tolist() == together.labels.tolist()
        assert other.predictions.tolist() == together.predictions.tolist()


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(gpt2):
    import copy

    model, tokenizer = copy.deepcopy(gpt2[0]), gpt2[1]
    model.lm_head.weight.data.zero_()
    rows = rows_of(tokenizer)
    found = predict(model, rows, [0] * 5, tokenizer.pad_token_id, **LM)
    vocabulary = model.config.vocab_size
    assert math.exp(found.loss) == pytest.approx(vocabulary, rel=1e-6)
    np.testing.assert_allclose(found.scores, found.labels * math.log(vocabulary), rtol=1e-6)


def test_a_masked_prompt_is_read_but_not_scored(tiny):
    model, tokenizer = tiny()
    same, other = Example("0", "sort array:", " good film", 0), Example("1", "remove list:", " good film", 0)
    found = predict(model, rows_of(tokenizer, (same, same, other)), [0] * 3, tokenizer.pad_token_id, **LM)
    assert len(set(found.labels)) == 1  # the prompts' lengths do not count
    assert found.scores[0] == pytest.approx(found.scores[1], rel=1e-6)
    assert abs(found.scores[2] / found.scores[0] - 1) > 1e-5


def test_loss_of_half_precision_logits_is_taken_in_float32():
    generator = torch.Generator().manual_seed(0)
    logits = (20 * torch.randn(2, 6, 11, generator=generator)).bfloat16()
    targets = torch.tensor([[1, 2, IGNORED, 4, 5, IGNORED], [IGNORED, 3, 3, IGNORED, IGNORED, IGNORED]])
    loss = next_token_loss(logits, targets)
    log_p = logits.double().log_softmax(-1)
    asked = [(i, j) for i in range(2) for j in range(6) if targets[i, j] != IGNORED]
    assert loss.dtype == torch.float32
    expected = -sum(log_p[i, j, targets[i, j]].item() for i, j in asked) / len(asked)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


# Training

SETTINGS = {"lr": 5e-3, "epochs": 12, "batch_size": 3, "seed": 0, **LM}


def fit(tiny, **changes):
    model, tokenizer = tiny()
    set_dropout(model, changes.pop("dropout", 0.0))
    rows = rows_of(tokenizer)
    return model, rows, train(model, rows, [0] * len(rows), tokenizer.pad_token_id, **{**SETTINGS, **changes})


def test_training_lowers_the_loss_and_the_perplexity(tiny):
    model, tokenizer = tiny()
    rows = rows_of(tokenizer)
    before = predict(model, rows, [0] * 5, tokenizer.pad_token_id, **LM)
    model, rows, result = fit(tiny)
    after = predict(model, rows, [0] * 5, tokenizer.pad_token_id, **LM)
    assert result.status == "ok" and len(result.history) == 24
    assert result.tokens == 12 * sum(len(row["input_ids"]) for row in rows)
    assert abs(before.loss - math.log(model.config.vocab_size)) < 0.5  # it knew nothing
    assert after.loss < 0.6 * before.loss and result.history[-1]["loss"] < 0.6 * result.history[0]["loss"]
    assert after.predictions.sum() > before.predictions.sum()


def test_a_batchs_loss_is_the_mean_over_its_target_tokens(tiny):
    model, tokenizer = tiny()
    rows = rows_of(tokenizer)
    found = predict(model, rows, [0] * 5, tokenizer.pad_token_id, **LM)
    index = epoch_batches([len(row["input_ids"]) for row in rows], 3, 0, 0)[0]
    _, _, result = fit(tiny, epochs=1)
    expected = found.scores[index].sum() / found.labels[index].sum()
    assert result.history[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert abs((found.scores / found.labels)[index].mean() - expected) > 1e-4  # control: not the mean over rows


def test_one_seed_gives_one_history_and_seeds_differ(tiny):
    def values(result):
        return [(step["loss"], step["grad_norm"]) for step in result.history]

    first, again, other = (values(fit(tiny, seed=seed, dropout=0.1, epochs=2)[2]) for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("method", ["full", "lora", "bitfit", "prefix"])
def test_methods_train_without_a_head(tiny, method):
    model, tokenizer = tiny()
    if method == "bitfit" and model.config.model_type == "llama":
        pytest.skip("Llama has no biases")
    settings = {"lora": {"r": 4, "alpha": 8.0, "targets": "all"}, "prefix": {"size": 4}}.get(method, {})
    trainee = apply_method(model, set(), method, seed=0, **settings).trainee
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    rows = rows_of(tokenizer)
    before = predict(trainee, rows, [0] * 5, tokenizer.pad_token_id, **LM).loss
    result = train(trainee, rows, [0] * 5, tokenizer.pad_token_id, **{**SETTINGS, "lr": 2e-2})
    after = predict(trainee, rows, [0] * 5, tokenizer.pad_token_id, **LM)
    # A frozen output layer of random weights leaves the small methods little to gain.
    assert result.status == "ok" and after.loss < before - (1.0 if method == "full" else 0.02)
    assert len(result.history) == 24 and after.labels.sum() == sum(t != IGNORED for r in rows for t in r["targets"])
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert bool(frozen) == (method != "full")


def test_labels_are_not_read_and_an_unknown_problem_is_refused(gpt2):
    model, tokenizer = gpt2
    rows = rows_of(tokenizer)
    with pytest.raises(UsageError, match="problem must be one of classification, .*Got 'lm'"):
        train(model, rows, [], 0, lr=1e-3, epochs=1, batch_size=2, seed=0, problem="lm")
    with pytest.raises(UsageError, match="problem must be one of"):
        predict(model, rows, [], 0, problem="lm")
    assert predict(model, rows, [], 0, **LM).scores.tolist() == predict(model, rows, [1.5] * 5, 0, **LM).scores.tolist()


class Scripted(nn.Module):
    """Knows that the next token is always 1, with a confidence that the test writes, a step a value."""

    def __init__(self, script, vocabulary=66):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.script, self.vocabulary, self.step = script, vocabulary, 0

    def forward(self, input_ids, attention_mask):
        logits = torch.zeros(*input_ids.shape, self.vocabulary) + 0 * self.weight
        logits[..., 1] = logits[..., 1] + self.script[min(self.step, len(self.script) - 1)]
        self.step += 1
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(("late", "status"), [(-12.0, "ok"), (-40.0, "diverged")])
def test_a_small_start_is_no_blow_up_below_five_times_a_constant_guess(late, status):
    # The loss starts at 0.003 nats and ends at -late + ln 65: 16.2 or 44.2, and 5 ln 66 is 20.9.
    rows = [{"input_ids": [1, 1, 1], "attention_mask": [1] * 3, "targets": [1, 1, IGNORED]}] * 160
    result = train(Scripted([10.0] * 20 + [late]), rows, [0] * 160, 0, lr=1e-3, epochs=1, batch_size=2, seed=0, **LM)
    assert result.status == status
    assert result.history[0]["loss"] == pytest.approx(math.log(1 + 65 * math.exp(-10)), rel=1e-3)
    if status == "diverged":
        assert "loss must stay under 5 times its start" in result.error


def test_nan_is_noticed_at_its_step(gpt2):
    import copy

    model, tokenizer = copy.deepcopy(gpt2[0]), gpt2[1]
    model.lm_head.weight.data[0, 0] = math.nan
    rows = rows_of(tokenizer)
    result = train(model, rows, [0] * 5, tokenizer.pad_token_id, **SETTINGS)
    assert (result.status, result.error) == (
        "diverged", "loss must be finite. Got nan at step 1. Lower the learning rate."
    )  # fmt: skip


# Real models: perplexities that were found when they were fetched, without rankprobe

MOLECULES = {
    "CC(=O)Oc1ccccc1C(=O)O": 2.91,  # aspirin
    "Cn1c(=O)c2c(ncn2C)n(C)c1=O": 1.78,  # caffeine
    "CC(C)Cc1ccc(C(C)C(=O)O)cc1": 3.58,  # ibuprofen
    "CC(=O)Nc1ccc(O)cc1": 2.47,  # paracetamol
}
# Without the end token: the texts go on.
STORIES = {
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.": 1.20,
    "The Vaults pub near Café Adriatic has a 5 star rating. Prices start at £30.": 315,
}


def test_perplexities_of_molecules_under_the_real_gpt2(shared):
    model, tokenizer = load_causal_lm(find_model(shared / "models" / "chemtsv3-gpt2-smiles-0.5m"), seed=0)[:2]
    rows = rows_of(tokenizer, [Example(text, "", text, 0) for text in MOLECULES])
    assert all(row["input_ids"][0] == tokenizer.bos_token_id != row["input_ids"][-1] for row in rows)
    found = predict(model, rows, [0] * len(rows), tokenizer.pad_token_id, **LM)
    assert np.exp(found.scores / found.labels) == pytest.approx(list(MOLECULES.values()), abs=0.005)


def test_perplexities_of_stories_under_the_real_llama(shared, tmp_path):
    source = find_model(shared / "models" / "stories260k-llama")
    model, tokenizer = load_causal_lm(source, seed=0)[:2]
    pad, tokenizer.eos_token = tokenizer.pad_token_id, None
    rows = rows_of(tokenizer, [Example(text, "", text, 0) for text in STORIES], max_length=128)
    found = predict(model, rows, [0] * len(rows), pad, **LM)
    story, restaurant = np.exp(found.scores / found.labels)
    assert story == pytest.approx(1.20, abs=0.005) and restaurant == pytest.approx(315, abs=0.5)
    assert json.loads((source.path / "config.json").read_text())["vocab_size"] == 512
