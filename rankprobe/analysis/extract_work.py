"""Where an extraction stands on disk: finished matrices beside the output folder, and the output itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.weights.write_adapter import Entry, write_tensors

RECORD_FILE = "extraction.json"


def work_folder(out: Path) -> Path:
    """The hidden folder beside an output folder that holds unfinished work.

    >>> work_folder(Path("adapters/mine")).name
    '.mine.extract'
    """
    out = Path(out)
    return out.parent / f".{out.name}.extract"


class Work:
    """Finished matrices of an extraction, a file each, written whole or not at all.

    Parameters
    ----------
    folder : Path
    identity : str
        All that decides the factors; work of another identity found here is deleted.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self.folder = folder / f"parts-{digest}"
        for other in folder.glob("parts-*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def row(self, key: str) -> dict | None:
        """What was noted with a matrix; None where it is not done."""
        try:
            with safe_open(self._file(key), framework="pt") as file:
                return json.loads((file.metadata() or {})["row"])
        except (OSError, SafetensorError, KeyError, ValueError):  # not there, or no file of ours
            return None

    def put(self, key: str, row: Mapping, tensors: Mapping[str, Tensor]) -> None:
        """Keep a matrix."""
        file = self._file(key)
        new = file.with_suffix(".new")
        entries = [Entry(name, tuple(t.shape), t.dtype, lambda t=t: t) for name, t in tensors.items()]
        write_tensors(new, entries, {"row": json.dumps(row)})
        new.replace(file)

    def read(self, key: str, name: str) -> Tensor:
        """One of a matrix's tensors."""
        with safe_open(self._file(key), framework="pt") as file:
            return file.get_tensor(name)

    def _file(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def find_earlier(out: Path, inputs: str, settings: str, *, overwrite: bool) -> bool:
    """Whether a folder holds this very extraction, finished.

    Parameters
    ----------
    out : Path
    inputs, settings : str
        What is extracted, and how.
    overwrite : bool
        Replace an earlier extraction, whatever it was of.

    Raises
    ------
    UsageError
        If the folder holds something else, or is no folder.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UsageError(must("--out", "be a folder", out, "Pass another --out"))
    if not out.is_dir() or not any(out.iterdir()):
        return False
    record = read_record(out)
    if record is None:
        rule = "be new, empty, or hold an earlier extraction"
        raise UsageError(must("--out", rule, f"{out} with other files", "Pass another --out"))
    if overwrite:
        return False
    if record.get("inputs") != inputs:
        got = f"{out}, which is of {record.get('title', 'other models')}"
        raise UsageError(must("--out", "be of the same models", got, "Pass another --out, or --overwrite"))
    if record.get("settings") != settings:
        got = f"{out}, which was extracted with {record.get('rule', 'others')}"
        raise UsageError(must("--out", "be of the same settings", got, "Pass another --out, or --overwrite"))
    return True


def read_record(out: Path) -> dict | None:
    """What a finished extraction noted of itself; None where there is none."""
    try:
        record = json.loads((out / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "inputs" in record else None


def put_in_place(new: Path, out: Path) -> None:
    """Let a finished folder take the output's place, at once; files of others in it stay."""
    if out.is_dir() and any(out.iterdir()):
        old = new.with_name("replaced")
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
        new.rename(out)
        for file in old.iterdir():
            if not (out / file.name).exists():
                file.rename(out / file.name)
        shutil.rmtree(old, ignore_errors=True)
        return
    if out.is_dir():
        out.rmdir()
    new.rename(out)
