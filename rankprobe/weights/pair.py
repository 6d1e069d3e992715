"""Two sides of a fine-tuning, matched matrix by matrix: names, prefixes, tied weights, added rows, adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.weights.adapter import AdapterSource
from rankprobe.weights.architecture import WeightSite, weight_sites
from rankprobe.weights.delta import Delta

if TYPE_CHECKING:
    from rankprobe.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Matrix:
    """One weight matrix of a pair; nothing of it is read until :meth:`delta`.

    Attributes
    ----------
    name : str
        As tables show it: TUNED's parameter name, the kind in brackets for a part of a fused matrix.
    layer : int or None
    kind : str
    shape : (int, int)
        ``(m, n) = (out_features, in_features)``; of an embedding the common rows.
    parameter : str
        Full parameter name: TUNED's, or the base's for an adapter.
    transposed : bool
        Whether the parameter is stored as (in, out).
    source : str
        ``dense`` or ``factored``.
    """

    name: str
    layer: int | None
    kind: str
    shape: tuple[int, int]
    parameter: str
    transposed: bool
    source: str
    read: Callable[[], Delta] = field(repr=False, compare=False)

    @property
    def cost(self) -> float:
        """What a decomposition costs, up to a factor: ``m * n * min(m, n)``."""
        m, n = self.shape
        return float(m) * n * min(m, n)

    def delta(self) -> Delta:
        """Read both sides, upcast to float64, subtract.

        Raises
        ------
        UsageError
            If a side holds NaN or infinity; the message names the matrix.
        """
        return self.read()


@dataclass(frozen=True)
class Vector:
    """A norm's weight or a bias.

    Attributes
    ----------
    name : str
    shape : tuple of int
    norm : float
        ||W0||; NaN where W0 is not at hand.
    change_norm : float
        ||dW||.
    unchanged_fraction : float
        Share of the elements with dW = 0 exactly.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    change_norm: float
    unchanged_fraction: float


@dataclass(frozen=True)
class Pairing:
    """What :func:`pair` found."""

    matrices: list[Matrix]
    only_base: list[str]
    only_tuned: list[str]
    added_rows: dict[str, int]
    skipped: dict[str, str]
    saved: list[str]
    notes: list[str]
    base: Checkpoint | None
    tuned: Checkpoint | AdapterSource
    renamed: tuple[str, str] = ("", "")
    vector_readers: tuple[Callable[[], Vector], ...] = field(default=(), repr=False)

    def vectors(self) -> Iterator[Vector]:
        """Norms and biases, read one by one."""
        for read in self.vector_readers:
            yield read()


def pair(
    base: Checkpoint | None,
    tuned: Checkpoint | AdapterSource,
    *,
    include: str | None = None,
    exclude: str | None = None,
    fused: bool = False,
) -> Pairing:
    """Match two sides (first version: equal names and shapes)."""
    matrices, vectors = [], []
    if isinstance(tuned, AdapterSource):
        raise NotImplementedError("adapters come next")
    for site in weight_sites(tuned.shapes, fused=fused):
        if base.shapes.get(site.parameter) == tuned.shapes[site.parameter]:
            matrices.append(Matrix(site.name, site.layer, site.kind, site.shape, site.parameter, site.transposed,
                                   "dense", lambda site=site: _dense(base, tuned, site)))
    return Pairing(matrices, sorted(base.shapes.keys() - tuned.shapes), sorted(tuned.shapes.keys() - base.shapes), {},
                   {}, [], [], base, tuned, ("", ""), tuple(vectors))


def _dense(base: Checkpoint, tuned: Checkpoint, site: WeightSite) -> Delta:
    W0, W1 = site.get(base.read(site.parameter)), site.get(tuned.read(site.parameter))
    norm = float(torch.linalg.vector_norm(W0, dtype=torch.float64))
    dW = W1.double()
    dW = dW.clone() if dW is W1 else dW
    dW.sub_(W0)
    _check_finite(dW, site.name)
    return Delta(site.name, site.layer, site.kind, site.shape, base.dtypes[site.parameter],
                 tuned.dtypes[site.parameter], norm, dW=dW, W0=W0, W1=W1)


def _check_finite(dW: Tensor, name: str) -> None:
    # The sum costs no memory; only where it is not finite (NaN, infinity, or an overflow) is every entry asked.
    if not math.isfinite(float(dW.sum())) and not bool(torch.isfinite(dW).all()):
        raise UsageError(must(name, "be finite", "NaN or infinity", "Check the checkpoint"))
