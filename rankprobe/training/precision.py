"""Which dtype products run in: decided by what the hardware has, never by a timing, so that a plan is repeatable."""

from __future__ import annotations

import contextlib
import warnings

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

    On a CPU that means the AVX-512 or AMX bfloat16 instructions. Without them bfloat16 is emulated: asked for by name
    it is used all the same, with a warning (measured on a CPU with AVX2: 15 to 19 times as slow as float32).

    Raises
    ------
    UsageError
        If the name is unknown.
    """
    if dtype not in ("auto", *DTYPES):
        raise UsageError(must("dtype", f"be auto, {' or '.join(DTYPES)}", dtype, "Pass --dtype auto"))
    if dtype == "float32":
        return dtype
    native = torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else _cpu_has_bfloat16()
    if dtype == "auto":
        return "bfloat16" if native else "float32"
    if not native:
        warnings.warn(
            f"this {'GPU' if device == 'cuda' else 'CPU'} has no bfloat16 instructions and emulates them, which can "
            "take 15 times as long: pass --dtype auto unless that is what you want.",
            stacklevel=1,
        )
    return dtype


def autocast(device: str, dtype: str):
    """The context that runs products in ``dtype``; parameters and their updates stay float32."""
    return torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()


def _cpu_has_bfloat16() -> bool:
    # Private names, but stable since torch 2.4, and torch's own tests ask the same way.
    cpu = torch.cpu
    return bool(getattr(cpu, "_is_avx512_bf16_supported", bool)() or getattr(cpu, "_is_amx_tile_supported", bool)())
