"""Full fine-tuning: every parameter is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from rankprobe.weights.architecture import weight_sites
from rankprobe.weights.delta import Delta


def unfreeze(model: nn.Module) -> None:
    """Let every parameter require a gradient."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def full_deltas(
    W0: Mapping[str, Tensor], W1: Mapping[str, Tensor], *, config: Mapping | None = None
) -> Iterator[Delta]:
    """The dense update of every matrix, one at a time.

    Parameters
    ----------
    W0, W1 : mapping of str to Tensor
        Parameters before and after, of the same names and shapes, any float dtype; both are upcast to float64 before
        the subtraction.
    config : mapping, optional
        config.json, from :func:`rankprobe.weights.architecture.model_config`: some fused matrices are split by it.

    Yields
    ------
    Delta
        ``dW`` in float64, and both sides as they are. A fused qkv matrix yields three.
    """
    for site in weight_sites({name: tensor.shape for name, tensor in W0.items()}, config=config):
        before, after = site.get(W0[site.parameter]), site.get(W1[site.parameter])
        yield Delta(site.name, site.layer, site.kind, site.shape, dtype_name(before), dtype_name(after),
                    float(before.double().norm()), dW=after.double() - before.double(), W0=before, W1=after)


def dtype_name(tensor: Tensor) -> str:
    """``"float32"`` for ``torch.float32``."""
    return str(tensor.dtype).removeprefix("torch.")
