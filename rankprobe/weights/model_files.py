"""Which files of a folder are a model's weights and tokenizer. Nothing here imports torch."""

from __future__ import annotations

import json
from pathlib import Path

from rankprobe.errors import UsageError, must
from rankprobe.weights.shards import INDEX_END, read_index

# A single file goes before its sharded form and safetensors before pickles, the order that transformers reads in.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
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
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def weights_entry(folder: Path) -> Path | None:
    """The file that a model's weights begin with: the one file of them, or the index of its shards."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def adapter_weights(folder: Path) -> Path | None:
    """The file that holds a PEFT adapter's weights."""
    return next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: one, or all the shards that the index names.

    Raises
    ------
    UsageError
        If there are none, a shard is missing or outside the folder, or a file is only a Git LFS pointer.
    """
    found = weights_entry(folder)
    if found is None:
        got = f"{folder} with none of {', '.join(WEIGHT_FILES)}"
        raise UsageError(must("A model's folder", "hold weights", got, "Put the model's weights there"))
    files = [found]
    if found.name.endswith(INDEX_END):
        files = [folder / shard for shard in sorted(set(read_index(found).values()))]
    for file in files:
        with file.open("rb") as stream:
            if stream.read(23) == b"version https://git-lfs":
                got = f"the Git LFS pointer {file}"
                raise UsageError(must("The model's weights", "be at hand", got, "Run git lfs pull there"))
    return files


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that define the tokenizer; tokenizer.json makes the older vocabulary files redundant."""
    for name in VOCABULARY_FILES:
        if (folder / name).is_file():
            names = (name, *TOKENIZER_SETTINGS, *(("merges.txt",) if name == "vocab.json" else ()))
            return [folder / name for name in sorted(names) if (folder / name).is_file()]
    return []


def read_config(file: Path) -> dict:
    """A config.json.

    Raises
    ------
    UsageError
        If it is no JSON object.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        got = one_line(error)
        raise UsageError(must(f"{file}", "be readable JSON", got, "Fetch or save the model again")) from None
    if not isinstance(config, dict):
        rule = "be a JSON object"
        raise UsageError(must(f"{file}", rule, type(config).__name__, "Fetch or save the model again"))
    return config


def one_line(error: BaseException) -> str:
    """An error's kind and text, short enough for a message of one line."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
