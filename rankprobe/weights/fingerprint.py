"""A short hash that recognises the same files of weights when work is taken up again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

_SAMPLES, _SAMPLE_BYTES = 16, 4096


class Described(Protocol):
    """Files that were opened: names, shapes and dtypes."""

    stored: Mapping


def fingerprint(files: Iterable[Path], tensors: Described) -> str:
    """Short hash of files' names, sizes and times of change, of samples of their bytes, and of what they hold.

    The samples tell two models of one architecture apart where an archive or an image gave all files one time.

    Parameters
    ----------
    files : iterable of Path
    tensors : TensorFiles
        What is in them.

    Returns
    -------
    str
        16 hexadecimal digits; the same wherever the files lie.
    """
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            total.update(f"{file.name} {size} {file.stat().st_mtime_ns}\n".encode())
            for i in range(_SAMPLES):
                stream.seek(i * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                total.update(stream.read(_SAMPLE_BYTES))
    for name, stored in sorted(tensors.stored.items()):
        total.update(f"{name} {tuple(stored.shape)} {stored.dtype}\n".encode())
    return total.hexdigest()[:16]
