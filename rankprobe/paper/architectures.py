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
    "gpt2-medium": ("GPT2Config", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "gpt2-large": ("GPT2Config", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
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
