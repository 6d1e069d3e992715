"""Where an extraction stands on disk: finished matrices in a hidden folder of the output, and the output itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.weights.adapter import CONFIG_FILE
from rankprobe.weights.write_adapter import Entry, write_tensors

RECORD_FILE = "extraction.json"
_WORK = ".extract-"
_LOCK = ".lock"  # of a command that holds the folder for itself


class Work:
    """Finished matrices of an extraction, a file each, written whole or not at all; and the adapter until it is whole.

    Parameters
    ----------
    out : Path
        The output folder, made where it is not there; the work lies in a hidden folder inside.
    identity : str
        All that decides the factors; work of another identity found there is deleted.
    """

    def __init__(self, out: Path, identity: str) -> None:
        self.out, self._made = out, not out.exists()
        self.folder = out / f"{_WORK}{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        for other in out.glob(f"{_WORK}*"):
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

    def new(self) -> Path:
        """An empty folder for the adapter's files."""
        folder = self.folder / "new"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def finish(self) -> None:
        """Put the files of :meth:`new` into the output folder and forget all else; files of others stay there.

        Without its config an adapter is none: an earlier one's goes first, and the new one's comes after the weights.
        """
        last = (CONFIG_FILE, RECORD_FILE)
        for name in reversed(last):
            (self.out / name).unlink(missing_ok=True)
        for file in sorted((self.folder / "new").iterdir(), key=lambda file: (file.name in last, file.name)):
            file.replace(self.out / file.name)
        self.drop()

    def drop(self) -> None:
        """Forget all work, and the output folder where it was made for it and holds nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._made:
            with contextlib.suppress(OSError):
                self.out.rmdir()


def check_output(out: Path) -> None:
    """Refuse an output folder that holds what no extraction left there.

    Raises
    ------
    UsageError
        If it does, or is no folder.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(must("--out", "be a folder", out, "Pass another --out"))
    names = [file.name for file in out.iterdir()] if out.is_dir() else []
    ours = all(name == _LOCK for name in names) or any(name.startswith(_WORK) for name in names)
    if not ours and read_record(out) is None:
        rule = "be new, empty, or hold an earlier extraction"
        raise UsageError(must("--out", rule, f"{out} with other files", "Pass another --out"))


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
    check_output(out)
    record = read_record(out)
    if overwrite or record is None:
        return False
    if record["inputs"] != inputs:
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
