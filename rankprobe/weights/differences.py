"""Read both sides of one parameter and take the difference, in little more memory than the difference itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.weights.architecture import WeightSite
from rankprobe.weights.delta import Delta
from rankprobe.weights.factors import AdapterSource
from rankprobe.weights.pairing import Vector

_BLOCK_ELEMENTS = 1 << 20


class Side(Protocol):
    """One side's tensors by name; :class:`rankprobe.weights.checkpoint.Checkpoint` is one."""

    label: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    def read(self, name: str) -> Tensor: ...


@torch.no_grad()
def dense_delta(base: Side, tuned: Side, base_name: str, site: WeightSite, name: str) -> Delta:
    """The dense update of one site.

    Parameters
    ----------
    base, tuned : Side
    base_name : str
        Parameter of the base that ``site.parameter`` of the tuned side is compared with. Where it has another number
        of rows, those that both have are compared.
    site : WeightSite
        Of the rows that both sides have.
    name : str
        For the Delta.

    Raises
    ------
    UsageError
        If a side holds NaN or infinity.
    """
    W0 = site.get(base.read(base_name))[: site.shape[0]]
    W1 = site.get(tuned.read(site.parameter))[: site.shape[0]]
    base_norm = _norm(W0)
    dW = W1.to(torch.float64, copy=True)
    for rows in _row_blocks(dW):  # else torch would upcast the whole of W0 beside dW
        dW[rows].sub_(W0[rows])
    if not all_finite(dW):
        side = tuned if not all_finite(W1) else base
        got = f"NaN or infinity in {side.label}"
        next_step = "Check how the model was trained and stored, or leave the matrix out with --exclude"
        raise UsageError(must(name, "be finite on both sides", got, next_step))
    return Delta(name, site.layer, site.kind, site.shape, base.dtypes[base_name], tuned.dtypes[site.parameter],
                 base_norm, dW=dW, W0=W0, W1=W1)


@torch.no_grad()
def factored_delta(
    base: Side | None, adapter: AdapterSource, module: str, base_name: str | None, site: WeightSite, name: str
) -> Delta:
    """The update of one site by an adapter, as factors; W0 and its norm where the base has the matrix.

    Columns of B that are zero in a part of a fused matrix are dropped with A's rows: they belong to other parts.

    Raises
    ------
    UsageError
        If the factors or W0 hold NaN or infinity.
    """
    of = adapter.modules[module]
    stacked = site.kind in of.groups
    factors = adapter.factors(module, site.kind if stacked else None)
    B, A = factors.B, factors.A
    if site.rows is not None and not stacked:
        B = site.rows.get(B)
        used = (B != 0).any(0)
        used[0] |= not bool(used.any())  # a zero update keeps one direction: factors of no columns are no factors
        B, A = B[:, used], A[used]
    W0, base_norm, dtype = None, math.nan, ""
    if base is not None and base_name is not None:
        W0 = site.get(base.read(base_name))[: site.shape[0]]
        base_norm, dtype = _norm(W0), base.dtypes[base_name]
        if not math.isfinite(base_norm):
            got = f"NaN or infinity in {base.label}"
            raise UsageError(must(name, "be finite on both sides", got, "Fetch the base model again"))
    whole = W0 if W0 is not None and tuple(W0.shape) == site.shape else None
    return Delta(name, site.layer, site.kind, site.shape, dtype, of.dtype, base_norm, B=B, A=A,
                 scaling=factors.scaling, W0=whole)


@torch.no_grad()
def vector_change(base: Side, tuned: Side, base_name: str, tuned_name: str) -> Vector:
    """Norms of a vector and of its change; where lengths differ, of the elements that both sides have.

    Raises
    ------
    UsageError
        If a side holds NaN or infinity.
    """
    before, after = base.read(base_name).double().flatten(), tuned.read(tuned_name).double().flatten()
    length = min(len(before), len(after))
    return _vector(tuned_name, after[:length] - before[:length], before[:length])


@torch.no_grad()
def added_vector(base: Side | None, adapter: AdapterSource, module: str, base_name: str | None) -> Vector:
    """What lora_B's own bias changes in the module's bias.

    Raises
    ------
    UsageError
        If a side holds NaN or infinity.
    """
    change = adapter.bias_change(module).double()
    before = base.read(base_name).double() if base is not None and base_name is not None else None
    return _vector(f"{module}.bias", change, before)


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity; asks every entry only where their sum is not finite."""
    return math.isfinite(float(tensor.sum(dtype=torch.float64))) or bool(torch.isfinite(tensor).all())


def _vector(name: str, change: Tensor, before: Tensor | None) -> Vector:
    norm = math.nan if before is None else float(before.norm())
    if not all_finite(change) or math.isinf(norm) or (before is not None and math.isnan(norm)):
        rule = "be finite on both sides"
        raise UsageError(must(name, rule, "NaN or infinity", "Check how the model was trained and stored"))
    return Vector(name, tuple(change.shape), norm, float(change.norm()), float((change == 0).double().mean()))


def _norm(W: Tensor) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(W[rows], dtype=torch.float64)) for rows in _row_blocks(W)))


def _row_blocks(W: Tensor) -> Iterator[slice]:
    """Slices of rows that together cover a matrix, of a few MiB each in float64."""
    step = max(1, _BLOCK_ELEMENTS // W.shape[1])
    return (slice(first, first + step) for first in range(0, W.shape[0], step))
