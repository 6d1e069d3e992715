"""Which weight matrix is which: the kind (q k v o up down gate embed other) and layer of every parameter.

Works on names and shapes, and on config.json where it is at hand, so that it serves a model in memory and a checkpoint
on disk alike. Names are those that transformers 5 gives and that checkpoints on the hub have: BERT, RoBERTa,
DistilBERT, DeBERTa, ELECTRA, ALBERT, MPNet, ModernBERT, T5, BART, OPT, GPT-2, GPT-J, GPT-NeoX, BLOOM, Falcon, Llama
and its many relatives, Mixtral's experts, ViT and CLIP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from rankprobe.weights.fused import FUSED_KINDS, Rows, setting, split_rows

# Names and shapes are read without torch, which takes more than a second to import.
if TYPE_CHECKING:
    from torch import Tensor, nn

BLOCK_KINDS = ("q", "k", "v", "o", "up", "down", "gate")
KINDS = (*BLOCK_KINDS, "embed", "other")

_ATTENTION = r"\w*(?:attn|[aA]ttention|attentions\.\d+)"
# Ends of module paths, most specific first: BERT's `attention.output.dense` must not be read as its `output.dense`.
_LEAVES = (
    ("o", rf"attention\.output\.dense|{_ATTENTION}\.(out_proj|o_proj|out_lin|dense|o|wo|Wo|c_proj)"),
    ("q", rf"query|query_proj|q_proj|q_lin|wq|{_ATTENTION}\.q|q_attn"),
    ("k", rf"key|key_proj|k_proj|k_lin|wk|{_ATTENTION}\.k"),
    ("v", rf"value|value_proj|v_proj|v_lin|wv|{_ATTENTION}\.v"),
    ("qkv", r"attn\.c_attn|query_key_value|qkv_proj|Wqkv|wqkv|qkv|attention\.self\.in_proj|in_proj_weight"),
    ("kv", r"crossattention\.c_attn"),
    ("gate_up", r"gate_up_proj|mlp\.Wi"),
    # Qwen-1's mlp activates w2, the others' experts activate w1.
    ("gate", r"gate_proj|wi_0|(experts\.\d+|feed_forward)\.w1|mlp\.w2"),
    ("up", r"intermediate\.dense|lin1|up_proj|c_fc|fc1|fc_in|dense_h_to_4h|wi|wi_1|ffn|linear1|"
           r"(experts\.\d+|feed_forward)\.w3|mlp\.w1"),
    ("down", r"(?<!attention\.)output\.dense|lin2|down_proj|mlp\.c_proj|fc2|fc_out|dense_4h_to_h|wo|mlp\.Wo|"
             r"ffn_output|linear2|(experts\.\d+|feed_forward)\.w2"),
    ("embed", r"\w*embeddings?|wte|wpe|embed_tokens|embed_positions|embed_in|tokens_embed|positions_embed|shared|"
              r"relative_attention_bias"),
)
_KIND_OF_LEAF = tuple((kind, re.compile(rf"(^|\.)({leaf})$")) for kind, leaf in _LEAVES)
_LAYER = re.compile(r"\.(\d+)\.")
# These names are Conv1D in the GPT-2 family, which stores (in, out), and Linear elsewhere.
_CONV1D = re.compile(r"(^|\.)(\w*(attn|attention)\.(c_attn|q_attn|c_proj)|mlp\.(c_fc|c_proj))$")
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder")
_LINEAR_MODELS = ("gpt_bigcode", "gpt_neo", "qwen", "starcoder2")


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
        One of :data:`KINDS`, or of :data:`rankprobe.weights.fused.FUSED_KINDS` for a fused matrix taken whole.
    shape : (int, int)
        ``(m, n) = (out_features, in_features)`` of this site.
    transposed : bool
        Whether the parameter is stored as (in, out).
    rows : Rows or None
        Of the (out, in) matrix; None for all of it.
    """

    parameter: str
    layer: int | None
    kind: str
    shape: tuple[int, int]
    transposed: bool = False
    rows: Rows | None = None

    @property
    def module(self) -> str:
        """Path of the module that holds the parameter."""
        return self.parameter.removesuffix(".weight")

    @property
    def name(self) -> str:
        """The parameter's name, with the kind in brackets for a part of a fused matrix."""
        return self.parameter if self.rows is None else f"{self.parameter}[{self.kind}]"

    def get(self, stored: Tensor) -> Tensor:
        """The site's (m, n) matrix: a view of the stored parameter, but a copy where its rows are not one run."""
        matrix = stored.T if self.transposed else stored
        return matrix if self.rows is None else self.rows.get(matrix)

    def set_(self, stored: Tensor, matrix: Tensor) -> None:
        """Write an (m, n) matrix into the stored parameter, in place, cast to its dtype."""
        whole = stored.T if self.transposed else stored
        if self.rows is None:
            whole.copy_(matrix)
        else:
            self.rows.view(whole).copy_(self.rows.shaped(matrix))


def layer_of(name: str) -> int | None:
    """Block index in a parameter's name: its first path component that is a number and has something before it.

    >>> layer_of("bert.encoder.layer.11.output.dense.weight")
    11
    """
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def kind_of(module: str) -> str:
    """Kind of a module by the end of its path; of FUSED_KINDS for a fused matrix, ``other`` where nothing matches.

    >>> kind_of("bert.encoder.layer.0.attention.output.dense"), kind_of("bert.encoder.layer.0.output.dense")
    ('o', 'down')
    """
    for kind, pattern in _KIND_OF_LEAF:
        if pattern.search(module):
            return kind
    return "other"


def weight_sites(
    shapes: Mapping[str, Iterable[int]], *, fused: bool = False, config: Mapping | None = None
) -> list[WeightSite]:
    """Every matrix among named parameters, as sites in the order given.

    Parameters
    ----------
    shapes : mapping of str to shape
        Parameter names (ending in ``.weight``, or a fused ``in_proj_weight``) and their stored shapes. Others than
        matrices are passed over.
    fused : bool
        Keep a fused matrix as one site of its fused kind (``qkv``, ``kv``, ``gate_up``) instead of its parts.
    config : mapping, optional
        config.json. Without it a matrix whose parts only the config tells stays whole.

    Returns
    -------
    list of WeightSite
    """
    config = config or {}
    shapes = {name: tuple(shape) for name, shape in shapes.items()}
    conv1d = _stores_conv1d(shapes, config)
    sites = []
    for name, shape in shapes.items():
        if len(shape) != 2 or not name.endswith((".weight", "in_proj_weight")):
            continue
        module = name.removesuffix(".weight")
        transposed = conv1d and bool(_CONV1D.search(module))
        m, n = reversed(shape) if transposed else shape
        kind, layer = kind_of(module), layer_of(name)
        parts = {}
        if kind in FUSED_KINDS and not fused:
            parts = split_rows(module, kind, (m, n), config, transposed=transposed)
        if isinstance(parts, dict) and parts:
            for part, rows in parts.items():
                size = (rows.last - rows.first) * (m // rows.stride if rows.stride else 1)
                sites.append(WeightSite(name, layer, part, (size, n), transposed, rows))
        else:
            sites.append(WeightSite(name, layer, kind, (m, n), transposed))
    return sites


def beyond_matrices(shapes: Mapping[str, Iterable[int]]) -> str | None:
    """What the blocks hold in weights of three dimensions or more, which are no sites; None where nothing.

    Such are the experts of Mixtral and its like in transformers 5: one parameter (experts, out, in).

    Parameters
    ----------
    shapes : mapping of str to shape
        The model's parameters.

    Returns
    -------
    str or None
        ``model.layers.N.mlp.experts.down_proj, model.layers.N.mlp.experts.gate_up_proj (83 % of the weights in the
        blocks)``.
    """
    sizes = {name: tuple(shape) for name, shape in shapes.items() if layer_of(name) is not None}
    beyond = [name for name, shape in sizes.items() if len(shape) > 2]
    if not beyond:
        return None
    share = sum(prod(sizes[name]) for name in beyond) / sum(map(prod, sizes.values()))
    kinds = sorted({_LAYER.sub(".N.", name, count=1) for name in beyond})
    more = f" and {len(kinds) - 3} more" if len(kinds) > 3 else ""
    return f"{', '.join(kinds[:3])}{more} ({100 * share:.2g} % of the weights in the blocks)"


def why_whole(site: WeightSite, config: Mapping | None = None) -> str | None:
    """Why a fused matrix was not split; None for every other site."""
    if site.kind not in FUSED_KINDS:
        return None
    found = split_rows(site.module, site.kind, site.shape, config or {}, transposed=site.transposed)
    return found if isinstance(found, str) else None


def _stores_conv1d(shapes: Mapping[str, tuple[int, ...]], config: Mapping) -> bool:
    """Whether c_attn, c_proj and c_fc are stored as (in, out), for all of them in one model alike.

    config.json's model_type says it where it is known. Else shapes do, the surest leaf first: c_attn and c_fc have
    more outputs than inputs, the mlp's c_proj fewer. Square matrices tell nothing and follow their siblings.
    """
    model_type = setting(config, "model_type")
    if model_type in _CONV1D_MODELS + _LINEAR_MODELS:
        return model_type in _CONV1D_MODELS
    for leaf, widens in (("c_attn", True), ("c_fc", True), ("mlp.c_proj", False)):
        for name, shape in shapes.items():
            if name.endswith(f"{leaf}.weight") and len(shape) == 2 and shape[0] != shape[1]:
                return (shape[1] > shape[0]) == widens
    return True


def model_shapes(model) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters; tied ones once."""
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def model_config(model: nn.Module) -> dict:
    """A model's config as config.json has it; empty for a module without one.

    >>> import torch
    >>> model_config(torch.nn.Linear(2, 2))
    {}
    """
    config = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        return dict(config.to_dict())
    return dict(config) if isinstance(config, Mapping) else {}  # a model of one's own may keep anything there


def max_positions(model: nn.Module) -> int | None:
    """Tokens that a model has position embeddings for; None where positions are computed (rotary, relative).

    >>> from torch import nn
    >>> max_positions(nn.ModuleDict({"position_embeddings": nn.Embedding(514, 4, padding_idx=1)}))
    512
    """
    from torch import nn

    leaves = ("position_embeddings", "wpe", "embed_positions", "positions_embed")
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in leaves and isinstance(module, nn.Embedding):
            # RoBERTa counts from the row after its padding's, OPT and BART from an offset.
            unused = module.padding_idx + 1 if module.padding_idx is not None else getattr(module, "offset", 0)
            return module.num_embeddings - unused
    return None


def block_sites(
    shapes: Mapping[str, Iterable[int]], *, fused: bool = False, config: Mapping | None = None
) -> list[WeightSite]:
    """The linear weights inside the encoder or decoder blocks, which LoRA can target and functional rank truncates.

    Parameters are those of :func:`weight_sites`.
    """
    sites = weight_sites(shapes, fused=fused, config=config)
    return [s for s in sites if s.layer is not None and s.kind != "embed"]
