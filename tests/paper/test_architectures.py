"""The paper's models: their sizes follow from their published configurations."""

from __future__ import annotations

import pytest
import torch

from rankprobe.errors import UsageError
from rankprobe.experiment.parameters import meta_classifier, meta_language_model
from rankprobe.paper.architectures import PAPER_MODELS, paper_config, paper_problem


def block(d):
    """A block's weights: four d × d and two d × 4d matrices with their biases, two norms."""
    return 12 * d * d + 13 * d


# What lies outside the blocks, without a task's head: embeddings and norms; DeBERTa has relative positions and a
# convolution too.
OUTSIDE = {
    "roberta-base": (50265 + 514 + 1 + 2) * 768,
    "roberta-large": (50265 + 514 + 1 + 2) * 1024,
    "deberta-v2-xxlarge": (128100 + 2) * 1536 + (512 + 2) * 1536 + 3 * 1536**2 + 3 * 1536,
    "gpt2-medium": (50257 + 1024 + 2) * 1024,
    "gpt2-large": (50257 + 1024 + 2) * 1280,
    "gpt3-175b": (50257 + 2048 + 2) * 12288,
}


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_sizes_are_the_closed_form(name):
    config = paper_config(name)
    model = meta_language_model(config) if paper_problem(name) == "language_modelling" else meta_classifier(config)
    size = sum(p.numel() for p in model.base_model.parameters())
    assert size == OUTSIDE[name] + config.num_hidden_layers * block(config.hidden_size)
    assert {p.device for p in model.parameters()} == {torch.device("meta")}


def test_a_language_model_counts_its_tied_embedding_once():
    model = meta_language_model(paper_config("gpt2-medium"))
    assert sum(p.numel() for p in model.parameters()) == 354_823_168


def test_gpt3_has_the_size_of_its_name():
    model = meta_language_model(paper_config("gpt3-175b"))
    assert sum(p.numel() for p in model.parameters()) == 174_604_259_328


@pytest.mark.parametrize("name", ["microsoft/deberta-v2-xxlarge", "FacebookAI/roberta-base"])
def test_hub_names_work_too(name):
    assert paper_config(name).hidden_size == {"d": 1536, "r": 768}[name.split("/")[1][0]]


def test_another_model_is_refused():
    with pytest.raises(UsageError, match="model must be one of roberta-base, .*gpt3-175b. Got bert-base"):
        paper_config("bert-base")
