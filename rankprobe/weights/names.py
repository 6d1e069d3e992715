"""Parameter names without what a training loop or a conversion left in them."""

from __future__ import annotations

import re

# Compiling, activation checkpointing and FSDP wrap single blocks; no layer is called so.
_WRAPPER = r"(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\."
_INNER = re.compile(rf"(?<![^.]){_WRAPPER}")
# In front of all names DataParallel's and DDP's, which may be a layer's own name further inside.
_OUTER = re.compile(rf"^(?:module\.|{_WRAPPER})+")
# Checkpoints converted from TensorFlow name a LayerNorm's weight and bias so.
_OLD_NORM = re.compile(r"(LayerNorm|layer_norm)\.(gamma|beta)$")
_NEW_NORM = {"gamma": "weight", "beta": "bias"}


def without_inner_wrappers(name: str) -> str:
    """A name without what wraps single blocks.

    >>> without_inner_wrappers("module.layer.0._orig_mod.query.weight")
    'module.layer.0.query.weight'
    """
    return _INNER.sub("", name)


def unwrapped(name: str) -> str:
    """A name without wrappers of the whole model or of single blocks.

    >>> unwrapped("_fsdp_wrapped_module.module.layer.0._orig_mod.query.weight")
    'layer.0.query.weight'
    """
    return without_inner_wrappers(_OUTER.sub("", name))


def modern(name: str) -> str:
    """A name as PyTorch has it: ``weight`` and ``bias`` for TensorFlow's ``gamma`` and ``beta``.

    >>> modern("bert.embeddings.LayerNorm.gamma")
    'bert.embeddings.LayerNorm.weight'
    """
    return _OLD_NORM.sub(lambda found: f"{found[1]}.{_NEW_NORM[found[2]]}", name)
