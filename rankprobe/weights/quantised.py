"""Weights stored in 8 bits with their scales: which can be read, and how; every other format is refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rankprobe.errors import UsageError, must

FLOATS = ("float64", "float32", "float16", "bfloat16")
# Methods whose 8-bit weights are read here, where the tensors are as expected.
_READ_HERE = ("fp8", "fbgemm_fp8", "compressed-tensors", "bitsandbytes", "modelopt", "quark")
# Ends of names that packed formats alone have, and whose they are.
_PACKED = (
    (re.compile(r"\.quant_state\.\w+$|\.weight\.(absmax|quant_map)$"), "bitsandbytes 4-bit"),
    (re.compile(r"\.qweight$"), "GPTQ or AWQ"),
    (re.compile(r"\.weight_packed$"), "compressed-tensors with packed weights"),
    (re.compile(r"\.(compressed|bitmask)$"), "compressed-tensors with sparse weights"),
    (re.compile(r"_blocks$"), "MXFP4"),
    (re.compile(r"\.W_q$"), "HQQ"),
    (re.compile(r"\.(_data|weight\._data)$"), "quanto"),
    (re.compile(r"_weight_qdata$|\.qdata$"), "torchao"),
    (re.compile(r"\.(codes|codebooks)$"), "AQLM"),
)
# What stands beside a quantised weight and is no weight: of the activations, of its own layout.
_BESIDE = ("input_scale", "output_scale", "activation_scale", "act_scale", "input_scale_ub", "input_zero_point",
           "output_zero_point", "weight_shape", "weight_format")  # fmt: skip
_DEEPSEEK_BLOCK = (128, 128)


class Reader(Protocol):
    """Named tensors; :class:`rankprobe.weights.tensors.TensorFiles` is one."""

    stored: Mapping

    def read(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Scaled:
    """How one 8-bit weight becomes numbers: ``(stored - zero) * scale``, or ``* scale / 127`` (bitsandbytes).

    Attributes
    ----------
    scale : str
        Name of the tensor of scales: one, one a row, or one a block.
    block : (int, int) or None
        Rows and columns that share a scale; None for a single scale or one a row.
    zero : str or None
        Name of the tensor of zero points, which are as many as the scales.
    divisor : float
        127 for bitsandbytes, whose scales are a row's largest magnitude.
    layout : str or None
        Name of bitsandbytes' layout code, which must be 0 (rows).
    """

    scale: str
    block: tuple[int, int] | None
    zero: str | None = None
    divisor: float = 1.0
    layout: str | None = None


def plan(tensors: Reader, config: Mapping, label: str) -> tuple[dict[str, Scaled], set[str]]:
    """Which tensors are quantised weights that can be read, and which stand beside them and are no weights.

    Parameters
    ----------
    tensors : Reader
    config : mapping
        config.json; its ``quantization_config`` names the method and the block size.
    label : str
        For messages.

    Returns
    -------
    scaled : dict of str to Scaled
        By name.
    beside : set of str
        Scales, zero points and other companions.

    Raises
    ------
    UsageError
        If the format is none of: float8 with ``weight_scale_inv`` (blocks: DeepSeek, transformers' fine-grained fp8)
        or ``weight_scale`` (one, a row, a block: compressed-tensors, fbgemm, modelopt), plain float8 with no
        ``quantization_config``, int8 with ``SCB`` (bitsandbytes' LLM.int8) or ``weight_scale``.

    Notes
    -----
    After transformers 5.23 (``integrations/finegrained_fp8.py``, ``bitsandbytes.py``, ``fbgemm_fp8.py``) and
    compressed-tensors 0.9: a stored number times its scale, whatever the scale is called.
    """
    settings = config.get("quantization_config")
    settings = settings if isinstance(settings, Mapping) else {}
    method = settings.get("quant_method")
    _refuse_packed(tensors, method, label)
    scaled: dict[str, Scaled] = {}
    beside: set[str] = set()
    for name, stored in tensors.stored.items():
        if not is_eight_bit(stored.dtype) or _is_companion(name, tensors.stored):
            continue
        found = _scaled(name, tensors, settings, label)
        if found is None:
            _check_plain(name, tensors, method, label)
            continue
        scaled[name] = found
        stem = name[: name.rfind(".") + 1]
        beside |= {of for of in (found.scale, found.zero, found.layout) if of is not None}
        beside |= {stem + of for of in _BESIDE if stem + of in tensors.stored}
    return scaled, beside


def dequantise(tensors: Reader, name: str, how: Scaled, label: str) -> Tensor:
    """One quantised weight as float32, of its own shape.

    Raises
    ------
    UsageError
        If bitsandbytes stored it in a layout for one GPU.
    """
    if how.layout is not None and int(tensors.read(how.layout)):
        rule, got = "be stored row by row", "a layout for one kind of GPU (weight_format)"
        raise UsageError(must(f"{name} in {label}", rule, got, "Save the model again with a current bitsandbytes"))
    out = tensors.read(name).to(torch.float32)
    scale = tensors.read(how.scale).to(torch.float32) / how.divisor
    zero = None if how.zero is None else tensors.read(how.zero).to(torch.float32)
    if how.block is None:
        shape = () if scale.numel() == 1 else (scale.numel(), 1)
        if zero is not None:
            out -= zero.reshape(shape)
        return out.mul_(scale.reshape(shape))
    rows, columns = how.block
    for i in range(scale.shape[-2]):  # a strip at a time: scales spread over the whole would take as much again
        strip = out[..., i * rows : (i + 1) * rows, :]
        if zero is not None:
            strip -= _spread(zero[..., i : i + 1, :], columns, strip.shape[-1])
        strip *= _spread(scale[..., i : i + 1, :], columns, strip.shape[-1])
    return out


def is_eight_bit(dtype: str) -> bool:
    """Whether numbers of a dtype are stored in 8 bits as quantised weights are."""
    return dtype.startswith("float8") or dtype in ("int8", "uint8")


def _spread(scale: Tensor, columns: int, n: int) -> Tensor:
    return scale.repeat_interleave(columns, dim=-1)[..., :n]


def _is_companion(name: str, stored: Mapping) -> bool:
    """Whether a tensor is what stands beside a weight: NVFP4 and MX formats keep scales in 8 bits too."""
    leaf = name[name.rfind(".") + 1 :]
    if leaf in _BESIDE:
        return True
    for end in ("_scale_inv", "_scale", "_zero_point", "_scale_2"):
        if leaf.endswith(end) and name.removesuffix(end) in stored:
            return True
    return False


def _scaled(name: str, tensors: Reader, settings: Mapping, label: str) -> Scaled | None:
    """How to read an 8-bit tensor; None where nothing beside it says so."""
    of = tensors.stored[name]
    stem = name[: name.rfind(".") + 1]
    if of.dtype == "int8" and name == f"{stem}weight" and f"{stem}SCB" in tensors.stored:
        scale = f"{stem}SCB"
        if len(of.shape) != 2 or math.prod(tensors.stored[scale].shape) != of.shape[0]:
            raise _misfit(name, scale, tensors, label)
        layout = f"{stem}weight_format"
        return Scaled(scale, None, None, 127.0, layout if layout in tensors.stored else None)
    scale = next((f"{name}{end}" for end in ("_scale_inv", "_scale") if f"{name}{end}" in tensors.stored), None)
    if scale is None or of.dtype == "uint8":
        return None
    if of.dtype == "int8" and (scale.endswith("_inv") or tensors.stored[scale].dtype not in FLOATS):
        # Nothing else tells them from 8-bit numbers: transformers' fp8 models keep two float4 numbers in a byte so.
        raise _refusal(label, f"{name} in int8 with {scale}, as packed float4 has", settings.get("quant_method"))
    if tensors.stored[scale].dtype not in (*FLOATS, "float8_e8m0fnu"):
        raise _refusal(label, f"{scale} in {tensors.stored[scale].dtype}", settings.get("quant_method"))
    if f"{name}_g_idx" in tensors.stored:
        raise _refusal(label, f"{name}_g_idx, columns in another order", settings.get("quant_method"))
    zero = f"{name}_zero_point" if f"{name}_zero_point" in tensors.stored else None
    if zero is not None and tensors.stored[zero].shape != tensors.stored[scale].shape:
        raise _misfit(name, zero, tensors, label)
    block = _block(name, scale, tensors, _asked_block(settings), label)
    return Scaled(scale, block, zero)


def _block(
    name: str, scale: str, tensors: Reader, asked: tuple[int, int] | None, label: str
) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None for one scale, or one a row."""
    shape, of = tensors.stored[name].shape, tensors.stored[scale].shape
    if math.prod(of) == 1 or (len(shape) == 2 and of in ((shape[0],), (shape[0], 1))):
        return None
    if len(shape) < 2 or len(of) != len(shape) or of[:-2] != shape[:-2] or 0 in (*shape, *of):
        raise _misfit(name, scale, tensors, label)
    m, n = shape[-2:]
    # DeepSeek's own blocks where nothing says: 192 rows with two scales are 128 and 64, not 96 and 96.
    for rows, columns in filter(None, (asked, _DEEPSEEK_BLOCK if scale.endswith("_inv") else None)):
        if (math.ceil(m / rows), math.ceil(n / columns)) == of[-2:]:
            return rows, columns
    if m % of[-2] or n % of[-1]:
        raise _misfit(name, scale, tensors, label)
    return m // of[-2], n // of[-1]


def _asked_block(settings: Mapping) -> tuple[int, int] | None:
    """The block size that ``quantization_config`` gives, in either of the two places where it may stand."""
    found = [settings.get("weight_block_size")]
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        found.append(weights.get("block_structure") if isinstance(weights, Mapping) else None)
    for block in found:
        if isinstance(block, list) and len(block) == 2 and all(type(k) is int and k > 0 for k in block):
            return block[0], block[1]
    return None


def _check_plain(name: str, tensors: Reader, method: object, label: str) -> None:
    """Refuse an 8-bit tensor that no scale was found for, unless it is plain float8 or no weight at all."""
    of = tensors.stored[name]
    stem = name[: name.rfind(".") + 1]
    if of.dtype.startswith("float8"):
        scales = [other for other in tensors.stored if other != name and other.startswith(stem)
                  and "scale" in other[len(stem) :] and "." not in other[len(stem) :]]  # fmt: skip
        if method is None and not scales:
            return
        got = f"{name} in {of.dtype} " + (f"with {scales[0]}" if scales else "and no scale beside it")
        raise _refusal(label, got, method)
    # Masks and counters are 8-bit too, in GPT-2's attn.bias for one: no matrix, or not called a weight.
    if len(of.shape) == 2 and (name.endswith("weight") or method is not None):
        raise _refusal(label, f"{name} in {of.dtype} and no scale beside it", method)


def _refuse_packed(tensors: Reader, method: object, label: str) -> None:
    for name, of in tensors.stored.items():
        if of.dtype in FLOATS and not name.endswith((".absmax", ".quant_map")):
            continue
        by_name = next((whose for pattern, whose in _PACKED if pattern.search(name)), None)
        if by_name is not None:
            raise _refusal(label, name, by_name if by_name.startswith(str(method or "")) else method)
        low = is_eight_bit(of.dtype) or of.dtype in ("int32", "int16")
        if low and len(of.shape) >= 2 and method is not None and method not in _READ_HERE:
            raise _refusal(label, f"{name} in {of.dtype}", method)


def _refusal(label: str, got: str, method: object) -> UsageError:
    rule = "be stored in a format that says how to dequantise it (float8 or int8 with its scales)"
    by = f" ({str(method)[:60]})" if method is not None else ""
    next_step = "Dequantise the model and save it with transformers"
    return UsageError(must(f"{label}", rule, f"{got}{by}", next_step))


def _misfit(name: str, other: str, tensors: Reader, label: str) -> UsageError:
    shapes = f"{list(tensors.stored[name].shape)} and {list(tensors.stored[other].shape)}"
    return UsageError(must(f"{name} and {other} in {label}", "have shapes that fit", shapes, "Save the model again"))
