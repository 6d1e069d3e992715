"""Where a model's transformer blocks are."""

from __future__ import annotations

from torch import nn

from rankprobe.errors import UsageError, must


def transformer_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks in order, each with its module path.

    Parameters
    ----------
    model : PreTrainedModel
        With one stack of ``config.num_hidden_layers`` blocks in a ModuleList: BERT and its relatives, GPT-2, Llama.

    Raises
    ------
    UsageError
        If there is no such list, as in models with an encoder and a decoder.

    Notes
    -----
    The outermost list of that length is taken: a block's own lists (experts, heads) lie inside it.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return [(f"{path}.{i}", block) for i, block in enumerate(module)]
    got = f"{model.config.model_type} without a list of {count} blocks"
    raise UsageError(must("The model", "be one stack of transformer blocks", got, "Choose another method or model"))
