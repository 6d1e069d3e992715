"""What is said of rows before training: cut texts, labels far from 0 and 1."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rankprobe.experiment.data_notes import data_notes
from rankprobe.tasks.task import Example, Task
from rankprobe.training.batches import encode_completions
from rankprobe.weights.pretrained import load_tokenizer
from rankprobe.weights.source import find_model
from tests.tiny_models import make_tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return find_model(make_tiny("bert", tmp_path_factory.mktemp("notes") / "base"))


def task_of(texts, labels, *, problem="classification", pairs=None):
    rows = tuple(Example(str(i), text, pairs and pairs[i], label)
                 for i, (text, label) in enumerate(zip(texts, labels, strict=True)))  # fmt: skip
    metric = {"classification": "accuracy", "regression": "pearson", "language_modelling": "perplexity"}[problem]
    return Task("files", "eval", rows, rows, ("0", "1") if metric == "accuracy" else (), (metric,), "a", "b")


def test_texts_that_are_cut_are_counted_with_their_special_tokens(source):
    texts = ["good film"] * 3 + ["good " * 9]  # 4 and 11 tokens with [CLS] and [SEP]
    assert data_notes(source, task_of(texts, [0, 1, 0, 1]), 11) == []
    (note,) = data_notes(source, task_of(texts, [0, 1, 0, 1]), 10)
    assert note == ("Of files's training texts 25 % are longer than 10 tokens and are cut (the longest of 4 has 11); "
                    "--max-length reads more, up to the model's positions")  # fmt: skip
    (pairs,) = data_notes(source, task_of(texts, [0, 1, 0, 1], pairs=["the plot"] * 4), 8)
    assert "25 % are longer than 8 tokens" in pairs and "has 14)" in pairs


def test_of_many_rows_some_are_looked_at(source):
    texts = ["good"] * 3000 + ["good " * 40] * 1000
    (note,) = data_notes(source, task_of(texts, [0] * 4000), 20)
    assert "about 25 % are longer than 20 tokens" in note and "of 500 has 42)" in note


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_a_language_models_rows_are_as_long_as_its_training_has_them(tmp_path, kind):
    source = find_model(make_tiny(kind, tmp_path / "base"))
    task = task_of(["good film", "good " * 5], [0, 0], problem="language_modelling", pairs=["the plot", "the plot"])
    lengths = [len(row["input_ids"]) for row in encode_completions(load_tokenizer(source), task.train, 10**6)]
    assert data_notes(source, task, max(lengths)) == []
    (note,) = data_notes(source, task, max(lengths) - 1)
    assert f"50 % are longer than {max(lengths) - 1} tokens" in note and f"of 2 has {max(lengths)})" in note


@pytest.mark.parametrize(("shift", "scale", "told"), [(0, 1, False), (0.5, 2, False), (3, 1, True), (1980, 10, True),
                                                      (0, 0.01, True), (0, 50, True)])  # fmt: skip
def test_labels_far_from_what_a_squared_error_learns_are_told(source, shift, scale, told):
    values = np.random.default_rng(0).normal(0, 1, 400)
    labels = (shift + scale * (values - values.mean()) / values.std()).tolist()
    notes = data_notes(source, task_of(["good"] * 400, labels, problem="regression"), 16)
    assert bool(notes) is told
    if told:
        assert f"a standard deviation of {scale:g}" in notes[0]
        assert f"/ {scale:g}, which no correlation minds" in notes[0]


def test_a_benchmarks_scores_are_as_they_are(source):
    task = task_of(["good"] * 40, [2.7 + i % 2 for i in range(40)], problem="regression")
    assert data_notes(source, task, 16)
    assert data_notes(source, replace(task, name="stsb"), 16) == []
