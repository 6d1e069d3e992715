"""Which weight matrix is which: the kind (q k v o up down gate embed other) and layer of every parameter.

Works on names and shapes alone, so that it serves a model in memory and a checkpoint on disk alike. Covers BERT,
RoBERTa, DistilBERT, DeBERTa-v2, ELECTRA, GPT-2 and Llama, and every architecture that uses the same leaf names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rankprobe.errors import UsageError, must

BLOCK_KINDS = ("q", "k", "v", "o", "up", "down", "gate")
KINDS = (*BLOCK_KINDS, "embed", "other")

# Ends of module paths, most specific first: BERT's `attention.output.dense` must not be read as its `output.dense`.
_LEAVES = (
    ("o", r"attention\.output\.dense|self_attn\.(o_proj|out_proj)|attention\.(out_lin|o_proj|out_proj)|attn\.c_proj"),
    ("q", r"query|query_proj|q_proj|q_lin"),
    ("k", r"key|key_proj|k_proj|k_lin"),
    ("v", r"value|value_proj|v_proj|v_lin"),
    ("up", r"intermediate\.dense|ffn\.lin1|up_proj|mlp\.c_fc|fc1"),
    ("gate", r"gate_proj"),
    ("down", r"(?<!attention\.)output\.dense|ffn\.lin2|down_proj|mlp\.c_proj|fc2"),
    ("qkv", r"attn\.c_attn"),
    ("embed", r"\w*embeddings?|wte|wpe|embed_tokens|embed_positions"),
)
_KIND_OF_LEAF = tuple((kind, re.compile(rf"(^|\.)({leaf})$")) for kind, leaf in _LEAVES)
_LAYER = re.compile(r"\.(\d+)\.")
# transformers' Conv1D stores (in, out); only the GPT-2 family uses it.
_CONV1D = re.compile(r"(^|\.)(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)$")


@dataclass(frozen=True)
class WeightSite:
    """Where one (out, in) weight matrix lives inside a model's parameters.

    Attributes
    ----------
    parameter : str
        Full parameter name, ``encoder.layer.0.attention.self.query.weight``.
    layer : int or None
        Index of the block; None outside the blocks.
    kind : str
        One of :data:`KINDS`, or ``qkv`` for a fused matrix taken whole.
    shape : (int, int)
        ``(m, n) = (out_features, in_features)`` of this site.
    transposed : bool
        Whether the parameter is stored as (in, out).
    rows : (int, int) or None
        First row and the one past the last, of the (out, in) matrix; None for all of it.
    """

    parameter: str
    layer: int | None
    kind: str
    shape: tuple[int, int]
    transposed: bool = False
    rows: tuple[int, int] | None = None

    @property
    def module(self) -> str:
        """Path of the module that holds the parameter."""
        return self.parameter.removesuffix(".weight")

    @property
    def name(self) -> str:
        """The parameter's name, with the kind in brackets for a part of a fused matrix."""
        return self.parameter if self.rows is None else f"{self.parameter}[{self.kind}]"

    def get(self, stored: Tensor) -> Tensor:
        """The site's (m, n) matrix, as a view of the stored parameter."""
        matrix = stored.T if self.transposed else stored
        return matrix if self.rows is None else matrix[slice(*self.rows)]

    def set_(self, stored: Tensor, matrix: Tensor) -> None:
        """Write an (m, n) matrix into the stored parameter, in place, cast to its dtype."""
        self.get(stored).copy_(matrix)


def layer_of(name: str) -> int | None:
    """Block index in a parameter's name: its first path component that is a number.

    >>> layer_of("bert.encoder.layer.11.output.dense.weight")
    11
    """
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def kind_of(module: str) -> str:
    """Kind of a module by the end of its path; ``qkv`` for a fused matrix, ``other`` where nothing matches.

    >>> kind_of("bert.encoder.layer.0.attention.output.dense"), kind_of("bert.encoder.layer.0.output.dense")
    ('o', 'down')
    """
    for kind, pattern in _KIND_OF_LEAF:
        if pattern.search(module):
            return kind
    return "other"


def weight_sites(shapes: Mapping[str, Iterable[int]], *, fused: bool = False) -> list[WeightSite]:
    """Every matrix among named parameters, as sites in the order given.

    Parameters
    ----------
    shapes : mapping of str to shape
        Parameter names (ending in ``.weight``) and their stored shapes. Others than matrices are passed over.
    fused : bool
        Keep a fused qkv matrix as one site of kind ``qkv`` instead of three.

    Returns
    -------
    list of WeightSite
    """
    sites = []
    for name, shape in shapes.items():
        shape = tuple(shape)
        if len(shape) != 2 or not name.endswith(".weight"):
            continue
        module = name.removesuffix(".weight")
        transposed = bool(_CONV1D.search(module))
        m, n = reversed(shape) if transposed else shape
        kind, layer = kind_of(module), layer_of(name)
        if kind == "qkv" and not fused:
            third = m // 3
            for i, part in enumerate("qkv"):
                sites.append(WeightSite(name, layer, part, (third, n), transposed, (i * third, (i + 1) * third)))
        else:
            sites.append(WeightSite(name, layer, kind, (m, n), transposed))
    return sites


def model_shapes(model) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters; tied ones once."""
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def max_positions(model: nn.Module) -> int | None:
    """Tokens that a model has position embeddings for; None where positions are computed (rotary, relative).

    >>> max_positions(nn.ModuleDict({"position_embeddings": nn.Embedding(514, 4, padding_idx=1)}))
    512
    """
    leaves = ("position_embeddings", "wpe", "embed_positions")
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in leaves and isinstance(module, nn.Embedding):
            # RoBERTa counts from the row after its padding's, OPT and BART from an offset.
            unused = module.padding_idx + 1 if module.padding_idx is not None else getattr(module, "offset", 0)
            return module.num_embeddings - unused
    return None


def block_sites(shapes: Mapping[str, Iterable[int]], *, fused: bool = False) -> list[WeightSite]:
    """The linear weights inside the encoder or decoder blocks, which LoRA can target and functional rank truncates."""
    return [s for s in weight_sites(shapes, fused=fused) if s.layer is not None and s.kind != "embed"]


def parse_targets(targets: str) -> tuple[str, ...] | None:
    """Short kind names in a target string, in the order of :data:`BLOCK_KINDS`; None where it is a regex.

    >>> parse_targets("v,q"), parse_targets("qkvo"), parse_targets("all")[-1], parse_targets("query|value")
    (('q', 'v'), ('q', 'k', 'v', 'o'), 'gate', None)
    """
    text = targets.strip()
    names = {"all": set(BLOCK_KINDS)}.get(text) or {part.strip() for part in text.split(",")}
    if not names <= set(BLOCK_KINDS) and set(text) <= set("qkvo"):
        names = set(text)
    return tuple(k for k in BLOCK_KINDS if k in names) if names <= set(BLOCK_KINDS) else None


def canonical_targets(targets: str) -> str:
    """One spelling for each choice of targets, so that equal choices give equal run ids.

    >>> canonical_targets("v, q")
    'q,v'
    """
    kinds = parse_targets(targets)
    # "all" stays: which kinds that is depends on the model (Llama has a gate, BERT has none).
    return targets.strip() if kinds is None or targets.strip() == "all" else ",".join(kinds)


def target_sites(shapes: Mapping[str, Iterable[int]], targets: str) -> list[WeightSite]:
    """The sites that a target string names.

    Parameters
    ----------
    shapes : mapping of str to shape
        The model's parameters.
    targets : str
        Short names (``q,v``, ``qkvo``, ``all``) or a regular expression searched for in module paths. A short name
        takes its part of a fused matrix, a regex takes a fused matrix whole, as PEFT does.

    Raises
    ------
    UsageError
        If a short name or the regex matches nothing, or the regex does not compile.
    """
    if not targets.strip():
        raise UsageError(must("targets", "name something", repr(targets), "Pass q,v, say"))
    kinds = parse_targets(targets)
    if kinds is not None:
        sites = block_sites(shapes)
        there = {s.kind for s in sites}
        missing = [] if targets.strip() == "all" else [k for k in kinds if k not in there]
        if missing:
            has = ", ".join(k for k in BLOCK_KINDS if k in there) or "none of them"
            raise UsageError(
                must(
                    "targets",
                    f"name matrices that the model has ({has})",
                    ",".join(missing),
                    "Pass some of those or a regular expression on module paths",
                )
            )
        return [s for s in sites if s.kind in kinds]
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise UsageError(
            must(
                "targets",
                "be short names (q k v o up down gate) or a regular expression",
                f"{targets!r} ({error})",
                "Correct the expression",
            )
        ) from None
    sites = [s for s in block_sites(shapes, fused=True) if pattern.search(s.module)]
    if not sites:
        modules = sorted({re.sub(r"\.\d+\.", ".N.", s.module) for s in block_sites(shapes, fused=True)})
        near = difflib.get_close_matches(targets, modules + list(BLOCK_KINDS), n=1, cutoff=0.3)
        hint = f"Did you mean {near[0]!r}?" if near else "Pass q,v, say"
        raise UsageError(
            must("targets", f"match a linear weight of the model ({', '.join(modules[:8])})", repr(targets), hint)
        )
    return sites
