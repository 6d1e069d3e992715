"""A model's modules without its weights: which parameter belongs to a layer that LoRA can adapt, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from rankprobe.weights.architecture import kind_of, weight_sites
from rankprobe.weights.fused import setting
from rankprobe.weights.names import modern, unwrapped

# DeBERTa reads these embeddings by attribute instead of calling the module: factors beside them would not be seen.
_READ_BY_ATTRIBUTE = ("rel_embeddings",)
# Known by name alone, these shift or clip the positions before they look them up.
_NO_PLAIN_LOOKUP = ("embed_positions",)
_KNOWN = 0.5  # share of a checkpoint's parameters that the class in config.json has to have


@dataclass(frozen=True)
class Part:
    """One module.

    Attributes
    ----------
    kind : str
        ``linear``, ``conv1d`` (transformers' Conv1D), ``embedding``, ``convolution``, ``other`` for a norm and the
        like, or ``container`` for a module without parameters of its own.
    leaf : bool
        Whether it has no modules inside.
    adaptable : bool
        Whether LoRA factors beside it take effect: a linear layer or an embedding that is called as one.
    tensors : tuple of str
        What a state dict has of it and of all inside, by names relative to it; empty where only names are known.
    """

    kind: str
    leaf: bool
    adaptable: bool
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skeleton:
    """A model's modules by path.

    Attributes
    ----------
    architecture : str
        The class that was built; empty where the modules are taken from parameter names alone.
    parts : dict of str to Part
    tied : dict of str to str
        Tied parameters: the name that files leave out to the one they keep.
    encoder_decoder : bool
    prefix : str
        Name of the attribute that holds the headless model.
    loaded : callable
        Name that transformers loads a stored parameter under, and whether it is split or put together with others on
        the way.
    """

    architecture: str
    parts: Mapping[str, Part]
    tied: Mapping[str, str] = field(default_factory=dict)
    encoder_decoder: bool = False
    prefix: str = ""
    loaded: Callable[[str], tuple[str, bool]] = field(default=lambda name: (name, False), repr=False, compare=False)

    def canonical(self, name: str) -> str:
        """A stored parameter's name as the built model has it; the stored one where the model has none such."""
        name = modern(unwrapped(name))
        if self.architecture and name.rpartition(".")[0] not in self.parts and self.prefix:
            other = name.removeprefix(f"{self.prefix}.") if name.startswith(f"{self.prefix}.") \
                else f"{self.prefix}.{name}"
            if other.rpartition(".")[0] in self.parts:
                return other
        if self.architecture and name.rpartition(".")[0] not in self.parts:
            # Files keep names that the class has no more: GPT-NeoX's embed_out, ViT's encoder.layer.
            renamed, converted = self.loaded(name)
            if not converted and renamed.rpartition(".")[0] in self.parts:
                return renamed
        return name

    def has(self, name: str) -> bool:
        """Whether a stored parameter goes into the built model: as it is, or as part of another (stacked experts)."""
        name = self.canonical(name)
        return any(of.rpartition(".")[0] in self.parts for of in (name, self.loaded(name)[0]))


def skeleton_of(config: Mapping, shapes: Mapping[str, tuple[int, ...]], tied: Mapping[str, str]) -> Skeleton:
    """The modules of the model that a checkpoint holds.

    Parameters
    ----------
    config : mapping
        config.json. Its ``architectures`` name the class, which is built without weights (on torch's meta device).
    shapes : mapping of str to shape
        The checkpoint's parameters.
    tied : mapping of str to str
        Tied parameters that the checkpoint itself tells of.

    Returns
    -------
    Skeleton
        Of transformers' class where that can be built and has at least half of the parameters; else of the names.
    """
    layers = setting(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    # A config.json that asks for more layers than there are tensors is none of this checkpoint's, and costs hours.
    built = None if isinstance(layers, int) and layers > len(shapes) else _build(config)
    if built is not None:
        known = sum(map(built.has, shapes))
        if known >= _KNOWN * len(shapes):
            return built
    return by_names(shapes, tied, config)


def by_names(shapes: Mapping[str, tuple[int, ...]], tied: Mapping[str, str], config: Mapping) -> Skeleton:
    """Modules as far as parameters' names and shapes tell them."""
    shapes = {unwrapped(name): tuple(shape) for name, shape in shapes.items()}
    tied = {unwrapped(alias): unwrapped(kept) for alias, kept in tied.items()}
    shapes |= {alias: shapes[kept] for alias, kept in tied.items() if kept in shapes}
    transposed = {site.parameter: site.transposed for site in weight_sites(shapes, fused=True, config=config)}
    modules: dict[str, list[str]] = {}
    for name in shapes:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    parents = {path for module in modules for path in _ancestors(module)}
    parts = {path: Part("container", False, False) for path in parents - modules.keys()}
    for path, names in modules.items():
        kind = _kind(path, names, shapes, transposed)
        leaf, last = path not in parents, path.rpartition(".")[2]
        awkward = last in (*_READ_BY_ATTRIBUTE, *_NO_PLAIN_LOOKUP)
        parts[path] = Part(kind, leaf, leaf and kind in ("linear", "conv1d", "embedding") and not awkward)
    return Skeleton("", parts, tied)


def _kind(
    path: str, names: Iterable[str], shapes: Mapping[str, tuple[int, ...]], transposed: Mapping[str, bool]
) -> str:
    weight = f"{path}.weight"
    if weight not in names or set(names) - {weight, f"{path}.bias"}:
        return "other"
    if len(shapes[weight]) in (3, 4, 5):
        return "convolution" if len(shapes[weight]) == 4 else "other"
    if len(shapes[weight]) != 2:
        return "other"
    if transposed.get(weight):
        return "conv1d"
    return "embedding" if kind_of(path) == "embed" else "linear"


def _ancestors(path: str) -> Iterable[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _build(config: Mapping) -> Skeleton | None:
    """The modules of the class that config.json names; None where transformers cannot build it."""
    names = config.get("architectures")
    model_type = config.get("model_type")
    if not isinstance(names, list) or not names or not isinstance(names[0], str) or not isinstance(model_type, str):
        return None
    import torch
    import transformers

    from rankprobe.weights.pretrained import quiet_transformers

    model_class = getattr(transformers, names[0], None)
    try:
        with quiet_transformers(), torch.device("meta"):
            settings = transformers.AutoConfig.for_model(**{k: v for k, v in config.items() if k != "auto_map"})
            model = model_class(settings)
    except Exception:  # whatever a config.json can break in a model's constructor: names have to do then
        return None
    return Skeleton(
        names[0],
        {path: _part(path, module, model) for path, module in model.named_modules() if path},
        dict(getattr(model, "all_tied_weights_keys", None) or {}),
        bool(getattr(settings, "is_encoder_decoder", False)),
        model.base_model_prefix or "",
        _loading(model),
    )


def _loading(model) -> Callable[[str], tuple[str, bool]]:
    """How transformers renames what it loads into a model; names as they are where it cannot be asked."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        conversions = get_model_conversion_mapping(model)
    except Exception:  # another transformers: these are no part of its documented interface
        return lambda name: (name, False)
    renamings = [of for of in conversions if isinstance(of, WeightRenaming)]
    converters = [of for of in conversions if isinstance(of, WeightConverter)]
    names = model.state_dict()

    def loaded(name: str) -> tuple[str, bool]:
        try:
            renamed, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, names)
        except Exception:  # as above, and a name may be anything
            return name, False
        return renamed, converter is not None

    return loaded


def _part(path: str, module, model) -> Part:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    leaf = not any(True for _ in module.children())
    tensors = tuple(module.state_dict())
    own = any(True for _ in module.parameters(recurse=False))
    inside_attention = isinstance(model.get_submodule(path.rpartition(".")[0]), nn.MultiheadAttention)
    if isinstance(module, nn.Linear):
        return Part("linear", leaf, leaf and not inside_attention, tensors)
    if isinstance(module, Conv1D):
        return Part("conv1d", leaf, leaf, tensors)
    if isinstance(module, nn.Embedding):
        plain = type(module).forward is nn.Embedding.forward
        seen = path.rpartition(".")[2] not in _READ_BY_ATTRIBUTE
        return Part("embedding", leaf, leaf and plain and seen, tensors)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return Part("convolution", leaf, False, tensors)
    return Part("other" if own else "container", leaf, False, tensors)
