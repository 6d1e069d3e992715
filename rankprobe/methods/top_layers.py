"""FT-Top2 and its like: the last blocks are trained whole, the rest stays frozen."""

from __future__ import annotations

from torch import nn

from rankprobe.errors import UsageError, must
from rankprobe.methods.blocks import transformer_blocks


def apply_top_layers(model: nn.Module, layers: int) -> None:
    """Let every parameter of the last blocks require a gradient.

    Parameters
    ----------
    model : PreTrainedModel
        With all but the head frozen.
    layers : int
        How many blocks, from the last.

    Raises
    ------
    UsageError
        If there are not so many.

    Notes
    -----
    A final norm behind the blocks stays frozen: two blocks of GPT-2 medium are 2 (12 d² + 13 d) = 25.19M parameters,
    as the table prints.

    References
    ----------
    Hu et al. (2021), arXiv:2106.09685, Table 3 (FT-Top2, from Li & Liang 2021, arXiv:2101.00190).
    """
    blocks = transformer_blocks(model)
    if not 1 <= layers <= len(blocks):
        rule = f"be from 1 to the model's {len(blocks)} blocks"
        raise UsageError(must("layers", rule, layers, "Pass another --layers"))
    for _, block in blocks[-layers:]:
        block.requires_grad_(True)
