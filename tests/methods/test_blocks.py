"""Where the blocks are, and what has none or several lists of them."""

import pytest
import torch
import transformers

from rankprobe.errors import UsageError
from rankprobe.methods.blocks import transformer_blocks
from tests.methods.tiny import MODELS, load_tiny, with_names

LISTS = {"bert": "bert.encoder.layer", "roberta": "roberta.encoder.layer", "distilbert": "distilbert.transformer.layer",
         "deberta-v2": "deberta.encoder.layer", "electra": "electra.encoder.layer", "gpt2": "transformer.h",
         "llama": "model.layers"}  # fmt: skip


@pytest.mark.parametrize("kind, task", with_names(MODELS))
def test_the_blocks_in_order_with_their_paths(kind, task):
    model = load_tiny(kind, task).model
    found = transformer_blocks(model)
    assert [path for path, _ in found] == [f"{LISTS[kind]}.0", f"{LISTS[kind]}.1"]
    assert all(model.get_submodule(path) is block for path, block in found)


def test_lists_inside_a_block_are_passed_over():
    """As many experts as blocks, and one block alone."""
    for count in (1, 2):
        config = transformers.BertConfig(num_hidden_layers=count, hidden_size=8, num_attention_heads=2, vocab_size=9)
        with torch.device("meta"):
            model = transformers.AutoModelForSequenceClassification.from_config(config)
        for block in model.bert.encoder.layer:
            block.experts = torch.nn.ModuleList(torch.nn.Identity() for _ in range(count))
        assert [path for path, _ in transformer_blocks(model)] == [f"bert.encoder.layer.{i}" for i in range(count)]


def test_a_list_of_another_length_beside_the_blocks_is_passed_over():
    model = load_tiny("gpt2").model
    model.others = torch.nn.ModuleList(torch.nn.Identity() for _ in range(3))
    assert [path for path, _ in transformer_blocks(model)] == ["transformer.h.0", "transformer.h.1"]


@pytest.mark.parametrize("config, got", [
    (transformers.T5Config(num_layers=2, d_model=8, d_ff=8, d_kv=4, num_heads=2, vocab_size=9),
     "t5, an encoder with a decoder"),
    (transformers.AlbertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, embedding_size=4,
                               intermediate_size=8, vocab_size=9), "albert with no lists of 2 modules"),
    (transformers.XLMConfig(vocab_size=9, emb_dim=8, n_layers=2, n_heads=2), "xlm with 4 lists of 2 modules"),
], ids=lambda x: getattr(x, "model_type", ""))  # fmt: skip
def test_others_are_refused(config, got):
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(UsageError, match=f"The model must be one stack of transformer blocks. Got {got}. Choose"):
        transformer_blocks(model)
