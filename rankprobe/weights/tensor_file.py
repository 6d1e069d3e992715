"""What every file of weights must be, before anything parses it; and what is known of one tensor in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rankprobe.errors import UsageError, must

_LFS_POINTER = b"version https://git-lfs"
_LONGEST_NAME = 1000
AGAIN = "Fetch or save it again"


@dataclass(frozen=True)
class Stored:
    """One tensor as it lies on disk.

    Attributes
    ----------
    name : str
    shape : tuple of int
    dtype : str
        torch's name, ``"bfloat16"``, ``"float8_e4m3fn"``, ``"int8"``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


def check_file(file: Path) -> int:
    """Size in bytes of a file that can be read and is not a stand-in for another.

    Raises
    ------
    UsageError
        If it is missing, empty, unreadable, no file, or a Git LFS pointer.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_LFS_POINTER))
            size = stream.seek(0, 2)
    except OSError as error:
        got = error.strerror or type(error).__name__
        raise UsageError(must(f"{file}", "be a file that can be read", got, "Check the path")) from None
    if not size:
        raise UsageError(must(f"{file}", "hold weights", "a file of 0 bytes", AGAIN))
    if start == _LFS_POINTER:
        rule = "be the weights themselves"
        raise UsageError(must(f"{file}", rule, "a Git LFS pointer to them", "Run git lfs pull there"))
    return size


def check_name(file: Path, name: object) -> None:
    """Refuse a tensor's name that no table and no message can show in one line.

    Raises
    ------
    UsageError
        If it is empty, has control characters, or is longer than 1,000 characters.
    """
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
        rule = f"have names that can be printed, of 1 to {_LONGEST_NAME} characters"
        raise UsageError(must(f"Tensors in {file}", rule, repr(name)[:80], AGAIN))
