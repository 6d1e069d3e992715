"""What two matched sides of a fine-tuning hold: matrices read one at a time, vectors, and what is left over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rankprobe.weights.delta import Delta
from rankprobe.weights.factors import AdapterSource

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
        Index of the block; None outside the blocks.
    kind : str
        Of :data:`rankprobe.weights.architecture.KINDS`, or of :data:`rankprobe.weights.fused.FUSED_KINDS` for a fused
        matrix that is kept whole.
    shape : (int, int)
        ``(m, n) = (out_features, in_features)``; of an embedding (tokens, dimensions), the rows that both sides have.
    parameter : str
        Full parameter name: TUNED's, or the base's for an adapter.
    transposed : bool
        Whether the parameter is stored as (in, out).
    source : str
        ``dense`` or ``factored``.
    read : callable
        What :meth:`delta` calls.
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
        """What a dense decomposition costs, up to a factor: ``m * n * min(m, n)``."""
        m, n = self.shape
        return float(m) * n * min(m, n)

    def delta(self) -> Delta:
        """Read both sides, upcast them to float64 and subtract; an adapter's factors stay factors.

        Raises
        ------
        UsageError
            If a side holds NaN or infinity, with the matrix's name, or a file cannot be read any more.
        """
        return self.read()


@dataclass(frozen=True)
class Vector:
    """The change of a norm's weight or of a bias.

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
    """What :func:`rankprobe.weights.pair.pair` found.

    Attributes
    ----------
    matrices : list of Matrix
        In TUNED's order.
    only_base, only_tuned : list of str
        Parameters on one side only.
    added_rows : dict of str to int
        Rows (tokens, positions) that TUNED has and the base has not, negative where it has fewer; the others are
        compared.
    skipped : dict of str to str
        Parameters that are not compared, each with the reason.
    saved : list of str
        Whole tensors of an adapter that there is no base's tensor to compare with.
    notes : list of str
        One line each, for people.
    base : Checkpoint or None
    tuned : Checkpoint or AdapterSource
    renamed : (str, str)
        Prefixes taken off the base's and TUNED's names to match them.
    vector_readers : dict of str to callable
        What :meth:`vectors` calls, by name.
    """

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
    vector_readers: Mapping[str, Callable[[], Vector]] = field(default_factory=dict, repr=False, compare=False)

    def vectors(self) -> Iterator[Vector]:
        """Norms and biases, read one by one.

        Raises
        ------
        UsageError
            If one holds NaN or infinity.
        """
        for read in self.vector_readers.values():
            yield read()
