"""A safetensors file: what it holds, by its header alone, and one tensor of it at a time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.weights.tensor_file import AGAIN, Stored, check_file, check_name

_LONGEST_HEADER = 100_000_000  # bytes: the format's own limit
_LARGEST_SIZE = 2**63  # of one dimension, which torch holds in an int64
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}
# The library's words, where they are not those that a reader of our messages needs.
_REASONS = (
    (r"not fully covered", "data that the header does not account for"),
    (r"invalid offset for tensor `(.*)`", r"overlapping or displaced data of \1"),
    (r"invalid shape, data type, or offset", "a tensor whose shape, dtype and bytes do not agree"),
    (r"overflow computing", "a shape too large for any file"),
    (r"unknown variant `(.*?)`", r"the unknown dtype \1"),
    (r"invalid (?:JSON|UTF-8)[^:]*(?:: (.*))?", r"a header that does not parse: \1"),
)


def describe(file: Path) -> dict[str, Stored]:
    """Names, shapes and dtypes in a safetensors file; its data is not touched.

    Raises
    ------
    UsageError
        If it is no whole safetensors file, its path is no Unicode, or it holds a dtype that torch cannot compute with.
    """
    size = check_file(file)
    try:
        str(file).encode()
    except UnicodeEncodeError:  # safetensors opens no other
        raise UsageError(must(f"{file}", "have a path that is Unicode", "bytes that are none", "Rename it")) from None
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 10 or length > min(size - 8, _LONGEST_HEADER):
            got = f"{size} bytes" if size < 10 else f"a header of {length} bytes in a file of {size}"
            raise _not_safetensors(file, got)
        text = stream.read(length)
    try:
        with safe_open(file, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise _not_safetensors(file, _truncated(text, size - 8 - length) or _reason(error)) from None
    entries: dict[str, dict] = {}
    for name, entry in json.loads(text, object_pairs_hook=_Pairs):
        if name == "__metadata__":
            continue
        check_name(file, name)
        if name in entries:
            raise _not_safetensors(file, f"{name} twice")
        entries[name] = dict(entry)
    return {name: _stored(file, name, entry) for name, entry in entries.items()}


def read(file: Path, name: str) -> Tensor:
    """One tensor, in memory of its own: the file is closed again, so that its touched pages do not add up.

    Raises
    ------
    UsageError
        If the file is not what it was when it was described.
    """
    try:
        with safe_open(file, "pt") as opened:
            return opened.get_tensor(name).clone()
    except (SafetensorError, OSError, TypeError, ValueError, RuntimeError) as error:
        got = f"{name} unreadable: {_reason(error)}"
        raise UsageError(must(f"{file}", "stay as it was when it was opened", got, AGAIN)) from None


class _Pairs(list):
    """A JSON object as its pairs, where a name may stand twice."""


def _stored(file: Path, name: str, entry: dict) -> Stored:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None or not hasattr(torch, dtype):
        rule = "have a dtype that torch computes with"
        next_step = "Dequantise the model and save it with transformers"
        raise UsageError(must(f"{name} in {file}", rule, entry["dtype"], next_step))
    shape = tuple(entry["shape"])
    if any(of >= _LARGEST_SIZE for of in shape):
        raise _not_safetensors(file, f"{name} of shape {list(shape)}")
    return Stored(name, shape, dtype)


def _truncated(text: bytes, held: int) -> str | None:
    """What is missing where a header promises more bytes than the file has; None where that is not what is wrong."""
    try:
        ends = [int(entry["data_offsets"][1]) for name, entry in json.loads(text).items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError):
        return None
    promised = max(ends, default=0)
    return f"{held} bytes of data where its header tells of {promised}" if promised > held else None


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()).removeprefix("Error while deserializing header: ")
    for pattern, words in _REASONS:
        found = re.search(pattern, text)
        if found:
            return found.expand(words)[:160]
    return text[:160] or type(error).__name__


def _not_safetensors(file: Path, got: str) -> UsageError:
    return UsageError(must(f"{file}", "be a whole safetensors file", got, AGAIN))
