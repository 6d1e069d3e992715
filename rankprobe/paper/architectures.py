"""The paper's models as configurations alone: enough to count parameters on the meta device, without any weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankprobe.errors import UsageError, must

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Sizes as in the models' published config.json; the rest are the classes' defaults, which are these models' own.
_ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
_SIZES = {
    "roberta-base": (
        "RobertaConfig",
        {**_ROBERTA, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    ),
    "roberta-large": (
        "RobertaConfig",
        {
            **_ROBERTA,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
    # As github.com/microsoft/DeBERTa has it: experiments/language_model/xxlarge.json.
    "deberta-v2-xxlarge": (
        "DebertaV2Config",
        {
            "vocab_size": 128100,
            "hidden_size": 1536,
            "num_hidden_layers": 48,
            "num_attention_heads": 24,
            "attention_head_size": 64,
            "intermediate_size": 6144,
            "max_position_embeddings": 512,
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_buckets": 256,
            "max_relative_positions": -1,
            "position_biased_input": False,
            "pos_att_type": "p2c|c2p",
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "conv_kernel_size": 3,
            "conv_act": "gelu",
        },
    ),
    "gpt2-medium": ("GPT2Config", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "gpt2-large": ("GPT2Config", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    # Brown et al. 2020 (arXiv:2005.14165), Table 2.1. Its attention is sparse in every other block, and its weights
    # have the shapes of GPT-2's all the same.
    "gpt3-175b": ("GPT2Config", {"n_embd": 12288, "n_layer": 96, "n_head": 96, "n_positions": 2048}),
}
PAPER_MODELS = tuple(_SIZES)


def paper_config(name: str) -> PretrainedConfig:
    """Configuration of one of the paper's models, by its short name or the end of its hub name.

    Raises
    ------
    UsageError
        If it is none of them.
    """
    import transformers

    short = name.rsplit("/", 1)[-1]
    if short not in _SIZES:
        raise UsageError(must("model", f"be one of {', '.join(_SIZES)}", name, "Pass one of those"))
    class_name, sizes = _SIZES[short]
    return getattr(transformers, class_name)(**sizes)


def paper_problem(name: str) -> str:
    """What the paper trains one of its models for: ``language_modelling`` for the GPTs, else ``classification``.

    >>> paper_problem("gpt3-175b"), paper_problem("microsoft/deberta-v2-xxlarge")
    ('language_modelling', 'classification')
    """
    return "language_modelling" if name.rsplit("/", 1)[-1].startswith("gpt") else "classification"
