"""Small bases and tunings of them, dense and as adapters, for tests of what two tunings share."""

from __future__ import annotations

import torch

from rankprobe.weights.adapter import Factors, save_adapter

KINDS = {"q": "self_attn.q_proj", "v": "self_attn.v_proj", "up": "mlp.up_proj"}


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def name_of(layer, kind="q", prefix="model."):
    return f"{prefix}layers.{layer}.{KINDS[kind]}.weight"


def weights(layers=2, kinds=("q", "v"), n=24, seed=100, prefix="model."):
    """A base with singular values that are apart, so that its singular vectors mean something."""
    W = {}
    for layer in range(layers):
        for i, kind in enumerate(kinds):
            m = 2 * n if kind == "up" else n
            U, _, Vh = torch.linalg.svd(gaussian(m, n, seed=seed + 10 * layer + i), full_matrices=False)
            W[name_of(layer, kind, prefix)] = U * torch.linspace(6, 1, n, dtype=torch.float64) @ Vh
    return W


def tuned(W0, change):
    """W0 plus ``change(name, W, i)`` of each matrix."""
    return {name: W + change(name, W, i) for i, (name, W) in enumerate(W0.items())}


def noise(seed, size=0.1):
    return lambda name, W, i: size * gaussian(*W.shape, seed=seed + 31 * i)


def adapter(folder, shapes, r, seed=0, alpha=None, factors=None, whole=None):
    """A PEFT adapter of Gaussian factors on disk; ``whole``: matrices that it holds whole, by name."""
    made = {}
    for i, (name, (m, n)) in enumerate(shapes.items()):
        B, A = gaussian(m, r, seed=seed + i), gaussian(r, n, seed=seed + 1000 + i)
        if factors is not None:
            B, A = factors(name, B, A)
        made[name.removesuffix(".weight")] = Factors(B.float(), A.float(), alpha or r, (alpha or r) / r)
    modules = [name.removesuffix(".weight") for name in whole or {}]
    save_adapter(folder, made, whole or {}, rslora=False, dropout=0.0, fan_in_fan_out=False, modules_to_save=modules)
    return folder


def shapes_of(W):
    return {name: tuple(t.shape) for name, t in W.items()}
