"""Finished parts of long work, kept on disk while it goes on: after an interrupt the same command takes them up."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from rankprobe.experiment.store import write_atomic

_PREFIX = ".parts-"


class Parts(MutableMapping[str, dict]):
    """A mapping of names to what JSON can hold, a file an entry, each written whole or not at all.

    Parameters
    ----------
    out : Path
        The output folder; the parts lie in a hidden folder inside, parts of other work there are deleted.
    identity : str
        All that decides the results: inputs and settings. Parts of another identity are never taken up.
    """

    def __init__(self, out: Path, identity: str) -> None:
        self.folder = out / f"{_PREFIX}{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        for other in out.glob(f"{_PREFIX}*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)

    def __getitem__(self, key: str) -> dict:
        try:
            found = json.loads(self._file(key).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            raise KeyError(key) from None
        if not isinstance(found, dict) or found.get("key") != key:
            raise KeyError(key)
        return found["part"]

    def __setitem__(self, key: str, part: dict) -> None:
        write_atomic(self._file(key), json.dumps({"key": key, "part": part}) + "\n")

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self._file(key).unlink()

    def __iter__(self) -> Iterator[str]:
        for file in sorted(self.folder.glob("*.json")):
            try:
                yield json.loads(file.read_text(encoding="utf-8"))["key"]
            except (ValueError, KeyError, TypeError):
                continue

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def clear(self) -> None:
        """Forget all parts: the work is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
