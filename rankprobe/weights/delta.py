"""One weight update, dense or as LoRA factors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rankprobe.errors import UsageError, must


@dataclass(frozen=True)
class Delta:
    """The update of one weight matrix, ``dW = W1 - W0 = scaling * B @ A``.

    Exactly one of ``dW`` and the pair ``(B, A)`` is set: factors stay factors, nothing multiplies them out to take
    an SVD. Every matrix is ``(out_features, in_features) = (m, n)``, also where the model stores its transpose.

    Attributes
    ----------
    name : str
        Full parameter name, ``encoder.layer.0.attention.self.query.weight``; a part of a fused matrix gets the
        part's kind in brackets, ``h.0.attn.c_attn.weight[q]``.
    layer : int or None
        Index of the block; None outside the blocks.
    kind : str
        One of q, k, v, o, up, down, gate, embed, other.
    shape : (int, int)
        ``(m, n)``.
    dtype_base, dtype_tuned : str
        Storage dtypes of W0 and W1 (of the factors), as ``"float32"``.
    base_norm : float
        ``||W0||_F``; NaN where W0 is not at hand (an adapter alone).
    dW : Tensor, shape (m, n), optional
        float32 or float64.
    B, A : Tensor, shapes (m, r) and (r, n), optional
    scaling : float
        ``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA; 1 for a dense update.
    W0, W1 : Tensor, shape (m, n), optional
        Both sides of a dense update as stored, in their storage dtypes: what storing them rounded can only be seen
        there. W0 of factors where the base is at hand. None where not at hand.
    """

    name: str
    layer: int | None
    kind: str
    shape: tuple[int, int]
    dtype_base: str
    dtype_tuned: str
    base_norm: float = float("nan")
    dW: Tensor | None = None
    B: Tensor | None = None
    A: Tensor | None = None
    scaling: float = 1.0
    W0: Tensor | None = None
    W1: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.dW is None) == (self.B is None or self.A is None):
            raise UsageError(must(f"{self.name}", "have either dW or both B and A", "neither or both", "Pass one form"))
        held = tuple(self.dW.shape) if self.dW is not None else (self.B.shape[0], self.A.shape[1])
        if held != tuple(self.shape):
            raise UsageError(
                must(f"{self.name}", f"have the shape {tuple(self.shape)}", held, "Pass (out, in) matrices")
            )
        for side, W in (("W0", self.W0), ("W1", self.W1)):
            if W is not None and tuple(W.shape) != tuple(self.shape):
                rule = f"have the shape {tuple(self.shape)}"
                raise UsageError(must(f"{side} of {self.name}", rule, tuple(W.shape), "Pass (out, in) matrices"))

    @property
    def source(self) -> str:
        """``"dense"`` or ``"factored"``."""
        return "dense" if self.dW is not None else "factored"
