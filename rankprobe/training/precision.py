"""Which dtype products run in: decided by what the hardware has, never by a timing, so that a plan is repeatable."""

from __future__ import annotations

import contextlib

import torch

from rankprobe.errors import UsageError, must

DTYPES = ("float32", "bfloat16")


def pick_device(device: str = "auto") -> str:
    """``"cuda"`` where there is a GPU, else ``"cpu"``; a name is checked.

    Raises
    ------
    UsageError
        If the device asked for is not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise UsageError(must("device", "be auto, cpu, or cuda where there is one", device, "Pass --device auto"))
    return device


def pick_dtype(device: str, dtype: str = "auto") -> str:
    """``"bfloat16"`` where the device multiplies it in hardware, else ``"float32"``; a name is checked.

    On a CPU that means the AVX-512 or AMX bfloat16 instructions: without them bfloat16 is emulated and slower.

    Raises
    ------
    UsageError
        If the name is unknown.
    """
    if dtype == "auto":
        native = torch.cuda.is_bf16_supported() if device == "cuda" else _cpu_has_bfloat16()
        return "bfloat16" if native else "float32"
    if dtype not in DTYPES:
        raise UsageError(must("dtype", f"be auto, {' or '.join(DTYPES)}", dtype, "Pass --dtype auto"))
    return dtype


def autocast(device: str, dtype: str):
    """The context that runs products in ``dtype``; parameters and their updates stay float32."""
    return torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()


def _cpu_has_bfloat16() -> bool:
    # Private names, but stable since torch 2.4, and torch's own tests ask the same way.
    cpu = torch.cpu
    return bool(getattr(cpu, "_is_avx512_bf16_supported", bool)() or getattr(cpu, "_is_amx_tile_supported", bool)())
