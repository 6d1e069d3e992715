"""Write an adapter in PEFT's on-disk format with all that PEFT can carry, one tensor in memory at a time."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.weights.adapter import CONFIG_FILE, PREFIX, WEIGHTS_FILE

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
# Endings of class names. PEFT has no task type for the others (masked language models, multiple choice).
_TASKS = (
    ("ForSequenceClassification", "SEQ_CLS"),
    ("ForTokenClassification", "TOKEN_CLS"),
    ("ForQuestionAnswering", "QUESTION_ANS"),
    ("ForCausalLM", "CAUSAL_LM"),
    ("LMHeadModel", "CAUSAL_LM"),
    ("ForConditionalGeneration", "SEQ_2_SEQ_LM"),
    ("Model", "FEATURE_EXTRACTION"),
)
# Modules that PEFT adds to modules_to_save by itself: it then asks for their tensors whether they were trained or not.
_ADDED_BY_PEFT = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


@dataclass(frozen=True)
class Entry:
    """One tensor to write.

    Attributes
    ----------
    key : str
        Its name in the file.
    shape : tuple of int
    dtype : torch.dtype
    read : callable
        Gives the tensor; called once, when its turn comes.
    """

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.dtype.itemsize * _product(self.shape)


def task_type(architectures: object, *, encoder_decoder: bool = False) -> str | None:
    """PEFT's task type for the class that a config.json names; None where it has none.

    >>> task_type(["RobertaForSequenceClassification"]), task_type(["GPT2LMHeadModel"]), task_type(["BertForMaskedLM"])
    ('SEQ_CLS', 'CAUSAL_LM', None)
    """
    name = architectures[0] if isinstance(architectures, list) and architectures else ""
    for ending, task in _TASKS:
        if isinstance(name, str) and name.endswith(ending):
            # Models of images and text are called ...ForConditionalGeneration too, and are decoders alone.
            return "CAUSAL_LM" if task == "SEQ_2_SEQ_LM" and not encoder_decoder else task
    return None


def added_by_peft(task: str | None) -> tuple[str, ...]:
    """Ends of module paths that PEFT saves whole for a task type, asked or not."""
    return _ADDED_BY_PEFT.get(task or "", ())


def adapter_config(
    ranks: Mapping[str, int],
    modules: Collection[str],
    *,
    task: str | None,
    modules_to_save: Sequence[str] = (),
    bias: str = "none",
    lora_bias: bool = False,
    fan_in_fan_out: bool = False,
    base_model: str = "",
) -> dict:
    """``adapter_config.json`` of factors with a scaling of 1: alpha is r everywhere.

    Parameters
    ----------
    ranks : mapping of str to int
        r by module path, each at least 1.
    modules : collection of str
        All module paths of the model, to see what else the targets' names would match.
    task : str or None
    modules_to_save : sequence of str
    bias : str
        ``all`` where biases of the base are replaced, else ``none``.
    lora_bias : bool
        Whether every ``lora_B`` has a bias.
    fan_in_fan_out : bool
        Whether a target is transformers' Conv1D.
    base_model : str
        A name on the hub, or nothing: never a path.

    Notes
    -----
    PEFT takes ``target_modules`` for ends of paths, and the keys of the patterns for regular expressions of ends of
    paths of which the first that matches wins. Where an end is not unambiguous, the targets are written as one
    regular expression for whole paths and the keys begin with ``^``.
    """
    counts = Counter(ranks.values())
    r = min(counts, key=lambda k: (-counts[k], k))
    clear = not any(other.endswith(f".{path}") for path in ranks for other in modules)
    start = "" if clear else "^"
    other = {start + re.escape(path): k for path, k in ranks.items() if k != r}
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base_model,
        "r": r,
        "lora_alpha": r,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "fan_in_fan_out": fan_in_fan_out,
        "bias": bias,
        "lora_bias": lora_bias,
        "target_modules": sorted(ranks) if clear else "|".join(map(re.escape, sorted(ranks))),
        "rank_pattern": other,
        "alpha_pattern": dict(other),
        "modules_to_save": list(modules_to_save) or None,
        "inference_mode": True,
    }


def factor_entries(
    path: str, shape: tuple[int, int], k: int, dtype: torch.dtype, read: Callable[[str], Tensor], *, embedding: bool
) -> list[Entry]:
    """The two factors of a module.

    Parameters
    ----------
    path : str
    shape : (int, int)
        ``(m, n)`` of the update; of an embedding (tokens, dimensions).
    k : int
        Its r.
    dtype : torch.dtype
    read : callable
        Gives B (m, k) for ``"B"`` and A (k, n) for ``"A"``.
    embedding : bool
        PEFT keeps an embedding's factors the other way round: A (k, tokens), B (dimensions, k).
    """
    m, n = shape
    if embedding:
        return [
            Entry(f"{PREFIX}{path}.lora_embedding_A", (k, m), dtype, lambda: read("B").T),
            Entry(f"{PREFIX}{path}.lora_embedding_B", (n, k), dtype, lambda: read("A").T),
        ]
    return [
        Entry(f"{PREFIX}{path}.lora_A.weight", (k, n), dtype, lambda: read("A")),
        Entry(f"{PREFIX}{path}.lora_B.weight", (m, k), dtype, lambda: read("B")),
    ]


def write_files(folder: Path, config: Mapping, entries: Iterable[Entry]) -> None:
    """Write adapter_config.json and adapter_model.safetensors into a folder that is there.

    Raises
    ------
    OSError
        If the disk is full, or refuses for another reason; the file's name is with it.
    UsageError
        If a tensor cannot be held in its dtype.
    """
    write_tensors(folder / WEIGHTS_FILE, list(entries))
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text file down to the disk."""
    with _named(file), file.open("w", encoding="utf-8", newline="") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def write_tensors(file: Path, entries: Sequence[Entry], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file one tensor after the other, down to the disk.

    Parameters
    ----------
    file : Path
    entries : sequence of Entry
    metadata : mapping of str to str, optional
        Put into the header.

    Raises
    ------
    OSError, UsageError
        As :func:`write_files`.

    Notes
    -----
    The library's own writer wants all tensors in memory, and their bytes once more beside them. The format is eight
    bytes of the header's length, a JSON header, and the tensors' bytes, little-endian; tensors of wide dtypes come
    first so that all are aligned.
    """
    entries = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.key))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    position = 0
    for entry in entries:
        header[entry.key] = {
            "dtype": _CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [position, position + entry.size],
        }
        position += entry.size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with _named(file), file.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for entry in entries:
            stream.write(_bytes(entry))
        stream.flush()
        os.fsync(stream.fileno())


def _bytes(entry: Entry) -> memoryview:
    tensor = entry.read().detach().cpu()
    if tuple(tensor.shape) != tuple(entry.shape):
        raise ValueError(f"{entry.key} has shape {tuple(tensor.shape)}, not {entry.shape}.")
    cast = tensor.to(entry.dtype).contiguous()
    if cast.dtype.is_floating_point and not bool(cast.isfinite().all()):
        got = f"values up to {float(tensor.abs().max()):.3g} for {entry.dtype}"
        raise UsageError(must(entry.key, "be finite in the adapter's dtype", got, "Pass --dtype float32"))
    return memoryview(cast.reshape(-1).view(torch.uint8).numpy())


class _named:
    """Puts a file's name on the system's errors that lack it: write and fsync do not say which disk is full."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(self.file)


def _product(shape: Iterable[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
