"""Fused matrices: which rows of one stored matrix are q, k and v, or gate and up.

Models fuse in several ways under the same few names. Where shapes and config.json do not settle which way, the matrix
is kept whole and the reason is said: a wrong split would still give plausible numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Of each fused kind, what is in it.
PARTS = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "gate_up": ("gate", "up")}
FUSED_KINDS = tuple(PARTS)

# One head after the other, each with its rows of q, k and v (heads, 3, head_dim).
_INTERLEAVED = ("gpt_neox", "gpt_neox_japanese", "bloom", "persimmon", "deberta")
# All of q, then k, then v, with heads of k and v that may be fewer than q's.
_GROUPED = ("phi3", "phi4_multimodal", "phi4mm")


@dataclass(frozen=True)
class Rows:
    """Some rows of a matrix: ``first`` to ``last - 1``, or those of every block of ``stride`` rows.

    Attributes
    ----------
    first, last : int
    stride : int or None
        None for one run of rows.
    """

    first: int
    last: int
    stride: int | None = None

    def view(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The rows along ``dim`` as a view; with a stride that dimension becomes two, (blocks, last - first)."""
        if self.stride is None:
            return tensor.narrow(dim, self.first, self.last - self.first)
        dim %= tensor.ndim
        return tensor.unflatten(dim, (-1, self.stride)).narrow(dim + 1, self.first, self.last - self.first)

    def shaped(self, part: Tensor, dim: int = 0) -> Tensor:
        """The rows' own values, shaped like :meth:`view` of what they come from."""
        return part if self.stride is None else part.unflatten(dim, (-1, self.last - self.first))

    def get(self, matrix: Tensor) -> Tensor:
        """The rows as one matrix: a view where they are one run, else a copy."""
        view = self.view(matrix)
        return view if self.stride is None else view.flatten(0, 1)


def split_rows(
    module: str, kind: str, shape: tuple[int, int], config: Mapping, *, transposed: bool
) -> dict[str, Rows] | str:
    """Rows of each part of a fused matrix.

    Parameters
    ----------
    module : str
        Module path, ``h.0.attn.c_attn``.
    kind : str
        One of :data:`FUSED_KINDS`.
    shape : (int, int)
        ``(m, n)``, (out_features, in_features).
    config : mapping
        config.json, or an empty one.
    transposed : bool
        Whether the matrix is stored as (in, out), by transformers' Conv1D.

    Returns
    -------
    dict of str to Rows, or str
        By kind; or why the matrix has to stay whole.

    Notes
    -----
    Layouts as transformers 5 computes with them. In a fused gate and up, the half that passes through the activation
    is the gate, which for ModernBERT's ``Wi`` is the half that its code calls input.
    """
    m, n = shape
    leaf = module.rpartition(".")[2]
    model_type = setting(config, "model_type")
    if kind == "gate_up":
        return _equal(("gate", "up"), m) or f"its {m} rows are no two halves"
    if kind == "kv":
        return (_equal(("k", "v"), m) if transposed else None) or "how it holds k and v is not known"
    if leaf == "c_attn":
        return _c_attn(m, n, config, transposed)
    if leaf == "in_proj" or (leaf == "query_key_value" and model_type != "chatglm"):
        return _per_head(m, model_type, config)
    if leaf == "query_key_value" and setting(config, "multi_query_attention"):
        head_dim = setting(config, "kv_channels")
        return _q_then_kv(m, setting(config, "num_attention_heads"), setting(config, "multi_query_group_num"), head_dim)
    if leaf == "qkv_proj" and model_type in _GROUPED:
        heads = setting(config, "num_attention_heads")
        head_dim = setting(config, "head_dim") or (n // heads if _positive(heads) else None)
        return _q_then_kv(m, heads, setting(config, "num_key_value_heads") or heads, head_dim)
    if leaf == "Wqkv" and model_type == "dbrx":
        heads, attention = setting(config, "n_heads"), setting(config, "attn_config") or {}
        kv_heads = attention.get("kv_n_heads") if isinstance(attention, Mapping) else None
        return _q_then_kv(m, heads, kv_heads, n // heads if _positive(heads) else None)
    if leaf in ("Wqkv", "qkv", "in_proj_weight") and m == 3 * n:
        return _equal(("q", "k", "v"), m)
    return f"how {leaf} holds q, k and v " + (f"in a {model_type} is not known" if model_type else "is in config.json")


def setting(config: Mapping, *names: str):
    """The first of some settings that a config.json has, its ``text_config`` looked into last; None without any."""
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, Mapping) else {}):
        for name in names:
            if place.get(name) is not None:
                return place[name]
    return None


def _c_attn(m: int, n: int, config: Mapping, transposed: bool) -> dict[str, Rows] | str:
    if transposed:
        return _equal(("q", "k", "v"), m) or f"its {m} rows are no three parts"
    bigcode = setting(config, "model_type") == "gpt_bigcode"
    if bigcode and setting(config, "multi_query") is False:
        return _interleaved(m, setting(config, "n_head", "num_attention_heads"))
    if m == 3 * n and not bigcode:
        return _equal(("q", "k", "v"), m)
    if n < m < 3 * n and (m - n) % 2 == 0:  # GPT-BigCode's multi-query attention: one head of k, one of v
        width = (m - n) // 2
        return {"q": Rows(0, n), "k": Rows(n, n + width), "v": Rows(n + width, m)}
    return f"its {m} rows are no q, k and v over {n} columns"


def _per_head(m: int, model_type: object, config: Mapping) -> dict[str, Rows] | str:
    if model_type in _INTERLEAVED:
        return _interleaved(m, setting(config, "num_attention_heads", "n_head"))
    if model_type == "falcon" or str(model_type).startswith("RefinedWeb"):
        return "Falcons hold q, k and v in several ways"
    if model_type is None:
        return "its rows are ordered by head, and config.json with num_attention_heads is not at hand"
    return f"how a {model_type} orders q, k and v in it is not known"


def _interleaved(m: int, heads: object) -> dict[str, Rows] | str:
    if not _positive(heads) or m % (3 * heads):
        return f"its rows are ordered by head, and {m} rows are not 3 for each of {heads} heads"
    width = m // (3 * heads)
    return {kind: Rows(i * width, (i + 1) * width, 3 * width) for i, kind in enumerate("qkv")}


def _q_then_kv(m: int, heads: object, kv_heads: object, head_dim: object) -> dict[str, Rows] | str:
    if not all(map(_positive, (heads, kv_heads, head_dim))) or (heads + 2 * kv_heads) * head_dim != m:
        return f"{m} rows are not {heads} + 2 x {kv_heads} heads of {head_dim}, as config.json says"
    q, kv = heads * head_dim, kv_heads * head_dim
    return {"q": Rows(0, q), "k": Rows(q, q + kv), "v": Rows(q + kv, m)}


def _equal(kinds: tuple[str, ...], m: int) -> dict[str, Rows] | None:
    width, rest = divmod(m, len(kinds))
    return None if rest else {kind: Rows(i * width, (i + 1) * width) for i, kind in enumerate(kinds)}


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
