"""BitFit: only biases are trained (Zaken, Ravfogel & Goldberg 2021, arXiv:2106.10199)."""

from __future__ import annotations

from torch import nn

from rankprobe.errors import UsageError, must


def apply_bitfit(model: nn.Module) -> None:
    """Let every bias of the base require a gradient, those of norms and of embeddings' norms too.

    Parameters
    ----------
    model : PreTrainedModel
        With all but the head frozen.

    Raises
    ------
    UsageError
        If the base has no biases (Llama).

    Notes
    -----
    The source's definition, "all the bias-terms". A GPT-2 block has 11 d of them, one in each linear output (3 d, d,
    4 d, d) and two norms; with the final norm's that makes 11 L d + d, where Hu et al. (2021) print more for GPT-3.

    Without rotary or relative positions the keys' bias has no effect: it adds the same to a query's score for every
    token, and the softmax takes that out. It is counted all the same, as in the source.
    """
    prefix = f"{model.base_model_prefix}."
    biases = [p for name, p in model.named_parameters() if name.startswith(prefix) and name.endswith("bias")]
    if not biases:
        got = f"{model.config.model_type}, which has none"
        raise UsageError(must("bitfit", "be of a model with biases", got, "Choose another method"))
    for bias in biases:
        bias.requires_grad_(True)
