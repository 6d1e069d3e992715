"""A file that torch.save wrote (.bin, .pt, .pth, .ckpt): its tensors by name, without running any code in it."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.weights.tensor_file import AGAIN, Stored, check_file, check_name

# Where training scripts put a model's state dict beside an optimizer's.
_NESTED = ("state_dict", "model_state_dict", "model", "module")
_AS_SAFETENSORS = "Save its state_dict as safetensors"


def describe(file: Path) -> tuple[dict[str, Stored], dict[str, str], dict[str, Tensor] | None]:
    """Names, shapes and dtypes in a file of torch.save; what it maps is released again.

    Returns
    -------
    stored : dict of str to Stored
        Every tensor once.
    aliases : dict of str to str
        Names of tensors that share all their memory with another, to that other's name.
    held : dict of str to Tensor, or None
        The tensors themselves where the file has the format from before torch 1.6, which can only be read as a whole.

    Raises
    ------
    UsageError
        If it is no such file, would run code, or holds no tensors by name.
    """
    tensors, mapped = _load(file)
    stored, aliases = {}, {}
    seen: dict[tuple, str] = {}
    for name, tensor in tensors.items():
        same = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if same in seen:
            aliases[name] = seen[same]
        else:
            seen[same] = name
            stored[name] = Stored(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
    return stored, aliases, None if mapped else {name: tensors[name] for name in stored}


def read(file: Path, name: str) -> Tensor:
    """One tensor, in memory of its own; the file is mapped for this alone.

    Raises
    ------
    UsageError
        If the file is not what it was when it was described.
    """
    tensors, _ = _load(file)
    if name not in tensors:
        raise UsageError(must(f"{file}", "stay as it was when it was opened", f"no {name}", AGAIN))
    return tensors[name].detach().clone(memory_format=torch.contiguous_format)


def _load(file: Path) -> tuple[dict[str, Tensor], bool]:
    """A file's tensors by name, and whether they are mapped from it rather than read."""
    check_file(file)
    mapped = _is_mappable(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped or None)
    except pickle.UnpicklingError as error:
        raise _unpicklable(file, error) from None
    # A damaged pickle raises whatever the half-read objects raise; torch's own reader raises RuntimeError.
    except Exception as error:
        got = " ".join(str(error).split())[:160] or type(error).__name__
        raise UsageError(must(f"{file}", "be a whole file of torch.save", got, AGAIN)) from None
    tensors = _tensors(loaded)
    if not tensors:
        got = f"a {type(loaded).__name__} without any"
        raise UsageError(must(f"{file}", "hold tensors by name", got, _AS_SAFETENSORS))
    for name, tensor in tensors.items():
        check_name(file, name)
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            got = f"{name}, which is {'quantised by torch' if tensor.is_quantized else 'sparse or without data'}"
            raise UsageError(must(f"{file}", "hold plain dense tensors", got, _AS_SAFETENSORS))
    return tensors, mapped


def _is_mappable(file: Path) -> bool:
    """Whether torch.save wrote a zip archive, as since torch 1.6, with its data as it is and not compressed."""
    with file.open("rb") as stream:
        if stream.read(4) != b"PK\x03\x04":
            return False
    try:
        with zipfile.ZipFile(file) as archive:
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    # Python's zip reader has errors of its own and lets others through.
    except Exception as error:
        got = f"a damaged archive ({' '.join(str(error).split())[:100]})"
        raise UsageError(must(f"{file}", "be a whole file of torch.save", got, AGAIN)) from None
    if compressed:
        raise UsageError(must(f"{file}", "hold its tensors uncompressed", "a compressed archive", _AS_SAFETENSORS))
    return True


def _tensors(loaded: object) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        return {}
    for key in _NESTED:
        nested = loaded.get(key)
        if isinstance(nested, Mapping) and (tensors := _tensors(nested)):
            return tensors
    return {name: of for name, of in loaded.items() if isinstance(of, Tensor)}


def _unpicklable(file: Path, error: pickle.UnpicklingError) -> UsageError:
    text = " ".join(str(error).split())
    found = re.search(r"(?:GLOBAL|Unsupported (?:class|global):?) ([\w.]+\.[\w.]+)", text)
    if found:
        got = f"code to run, {found[1]}"
        return UsageError(must(f"{file}", "hold tensors and nothing that runs", got, _AS_SAFETENSORS))
    found = re.search(r"(?:WeightsUnpickler error: |Error: )(.*?)(?: Check the documentation| Please file|$)", text)
    got = f"a pickle that is damaged or holds more ({(found[1] if found else text)[:120]})"
    return UsageError(must(f"{file}", "hold tensors and nothing else", got, _AS_SAFETENSORS))
