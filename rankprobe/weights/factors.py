"""LoRA factors of one module, and an adapter on disk that is read one module at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rankprobe.errors import UsageError, must

# In a fused qkv matrix every part has as many rows as the next: stacked factors of q and v alone skip the middle third.
_THIRDS = {"q": 0, "k": 1, "v": 2}


class Reader(Protocol):
    """What an adapter's tensors are read with; :class:`rankprobe.weights.tensors.TensorFiles` is one."""

    stored: Mapping

    def read(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Factors:
    """LoRA factors of one module: ``dW = scaling * B @ A``.

    Attributes
    ----------
    B : Tensor, shape (out_features, r)
    A : Tensor, shape (r, in_features)
    alpha : float
        ``lora_alpha`` as the file means it for this module.
    scaling : float
        ``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA.
    """

    B: Tensor
    A: Tensor
    alpha: float
    scaling: float


@dataclass(frozen=True)
class AdapterModule:
    """What an adapter holds for one module; the factors themselves stay on disk.

    Attributes
    ----------
    shape : (int, int)
        ``(m, n)`` of the update, (out_features, in_features); of an embedding (tokens, dimensions), as it is stored.
    r : int
        Of one pair of factors.
    alpha, scaling : float
    A, B : str
        Names of the factors' tensors in the file.
    dtype : str
        Storage dtype of B.
    groups : tuple of str
        Parts of a fused matrix, ``("q", "v")``, whose factors are stacked in A (groups * r, n) and
        B (groups * rows, r), as loralib's MergedLinear does; empty for one pair of factors.
    embedding : bool
        Whether A (r, tokens) and B (dimensions, r) are an embedding's, whose update is ``scaling * (B @ A).T``.
    bias : str or None
        Name of the tensor of lora_B's own bias, where there is one.
    """

    shape: tuple[int, int]
    r: int
    alpha: float
    scaling: float
    A: str
    B: str
    dtype: str
    groups: tuple[str, ...] = ()
    embedding: bool = False
    bias: str | None = None


@dataclass(frozen=True)
class AdapterSource:
    """A LoRA adapter on disk.

    Attributes
    ----------
    label : str
        For tables: the folder's name, never a path.
    path : Path or None
    config : dict
        ``adapter_config.json``; empty for a loralib file.
    fingerprint : str
        Short hash that recognises the same files.
    base_name : str or None
        The base model that the config names, for people.
    modules : dict of str to AdapterModule
        By module path, ``bert.encoder.layer.0.attention.self.query``.
    saved : dict of str to shape
        Tensors saved whole (``modules_to_save``, biases), by parameter name.
    skipped : dict of str to str
        What the adapter holds and no low-rank update of one matrix is, each with the reason.
    notes : tuple of str
        One line each, for people.
    """

    label: str
    path: Path | None
    config: dict
    fingerprint: str
    base_name: str | None
    modules: Mapping[str, AdapterModule]
    saved: Mapping[str, tuple[int, ...]]
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    saved_keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    tensors: Reader | None = field(default=None, repr=False, compare=False)

    def factors(self, module: str, part: str | None = None) -> Factors:
        """Read one module's factors.

        Parameters
        ----------
        module : str
            A key of ``modules``.
        part : str, optional
            One of the module's ``groups``. None for the whole module: stacked factors are then put side by side, the
            rows of B that a part does not reach being zero.

        Returns
        -------
        Factors
            In their storage dtype.

        Raises
        ------
        UsageError
            If the factors hold NaN or infinity, or the files cannot be read any more.
        """
        of = self.modules[module]
        A, B = self._finite(of.A), self._finite(of.B)
        if of.embedding:
            return Factors(A.T, B.T, of.alpha, of.scaling)
        if not of.groups:
            return Factors(B, A, of.alpha, of.scaling)
        rows = B.shape[0] // len(of.groups)
        if part is not None:
            i = of.groups.index(part)
            return Factors(B[i * rows : (i + 1) * rows], A[i * of.r : (i + 1) * of.r], of.alpha, of.scaling)
        whole = torch.zeros(of.shape[0], len(of.groups) * of.r, dtype=B.dtype)
        for i, kind in enumerate(of.groups):
            first = _THIRDS[kind] * rows
            whole[first : first + rows, i * of.r : (i + 1) * of.r] = B[i * rows : (i + 1) * rows]
        return Factors(whole, A, of.alpha * len(of.groups), of.scaling)

    def bias_change(self, module: str) -> Tensor | None:
        """What lora_B's own bias adds to the module's bias, ``scaling * bias`` of shape (m,); None without one."""
        of = self.modules[module]
        return None if of.bias is None else of.scaling * self._finite(of.bias)

    def read_saved(self, name: str) -> Tensor:
        """A tensor that was saved whole, by its parameter name."""
        return self.tensors.read(self.saved_keys.get(name, name))

    def saved_dtype(self, name: str) -> str:
        """Storage dtype of a tensor that was saved whole."""
        return self.tensors.stored[self.saved_keys.get(name, name)].dtype

    def _finite(self, key: str) -> Tensor:
        tensor = self.tensors.read(key)
        if not math.isfinite(float(tensor.double().sum())) and not bool(torch.isfinite(tensor).all()):
            raise UsageError(must(f"{key} in {self.label}", "be finite", "NaN or infinity", "Train the adapter again"))
        return tensor


def scaling_of(alpha: float, r: int, rslora: bool) -> float:
    """LoRA's factor before ``B @ A``: ``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA (arXiv:2312.03732).

    >>> scaling_of(16, 8, False), scaling_of(16, 16, True)
    (2.0, 4.0)
    """
    return alpha / math.sqrt(r) if rslora else alpha / r
