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
        If there is no such list (ALBERT has one block that it goes through again and again), or more than one, as in
        models with an encoder and a decoder (T5) or with a list for every part of a block (XLM); or if blocks are not
        called as modules are (SqueezeBERT), so that what a method adds to their output would never be reached.

    Notes
    -----
    Lists inside another list are passed over: a block's own (experts, heads) may be as long.
    """
    kind, count = model.config.model_type, getattr(model.config, "num_hidden_layers", None)
    lists = {path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = {p: m for p, m in lists.items() if not any(p.startswith(f"{other}.") for other in lists)}
    found = [path for path, module in outer.items() if len(module) == count]
    if getattr(model.config, "is_encoder_decoder", False):
        got = f"{kind}, an encoder with a decoder"
    elif kind == "squeezebert":
        got = f"{kind}, whose blocks are called past their hooks"
    elif len(found) == 1:
        return [(f"{found[0]}.{i}", block) for i, block in enumerate(outer[found[0]])]
    else:
        got = f"{kind} with {len(found) or 'no'} lists of {count} modules"
    raise UsageError(must("The model", "be one stack of transformer blocks", got, "Choose another method or model"))
