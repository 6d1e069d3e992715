"""What people pass as a model or an adapter: folders, files, runs, hub names, models in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from rankprobe.errors import UsageError, must
from rankprobe.weights.checkpoint import Checkpoint, checkpoint_in_memory, open_checkpoint
from rankprobe.weights.factors import AdapterSource
from rankprobe.weights.loralib import open_loralib
from rankprobe.weights.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_weights, weights_entry
from rankprobe.weights.peft_files import open_peft
from rankprobe.weights.run_folder import RUN_FILE, base_of, read_run, run_folder, trained_weights
from rankprobe.weights.shards import INDEX_END
from rankprobe.weights.source import find_weights
from rankprobe.weights.tensors import PICKLES, SAFETENSORS, open_tensors

__all__ = ["base_of", "open_input"]

# What a training script leaves beside the weights; DeepSpeed's and accelerate's states too.
_NO_WEIGHTS = re.compile(r"(optimizer|scheduler|scaler|sampler|training_args|rng_state|random_states|trainer_state|"
                         r"adapter_model|head\.safetensors$)|.*optim_states")  # fmt: skip
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?P<suffix>\.\w+)")
_OTHER_FORMATS = (".gguf", ".h5", ".msgpack", ".onnx", ".npz", ".tflite", ".index")
_TAKEN = "a model's folder, a PEFT adapter's, a rankprobe run, a file of weights or a hub name"


def open_input(
    where: object,
    *,
    alpha: float | None = None,
    role: str = "TUNED",
    runs: str | Path = "runs",
    offline: bool = False,
) -> Checkpoint | AdapterSource:
    """Open a model or an adapter, wherever it is; its weights stay there until they are read one by one.

    Parameters
    ----------
    where : str, Path, nn.Module or mapping of str to Tensor
        A folder with a whole model, a PEFT adapter or a rankprobe run; one file of weights (``.safetensors``,
        ``.bin``, ``.pt``), a state dict or loralib's factors; a run's name in ``runs``; a name on the hub; a model or
        a state dict in memory. What is on disk goes before a name.
    alpha : float, optional
        ``lora_alpha`` of an adapter that does not hold it.
    role : str
        For messages: BASE, TUNED, X, Y.
    runs : Path
        Where runs are looked for by name.
    offline : bool
        Never ask the hub. The environment variable HF_HUB_OFFLINE does the same.

    Returns
    -------
    Checkpoint or AdapterSource

    Raises
    ------
    UsageError
        If it is nothing of that, or damaged; the message names the file.
    WorkError
        If it would have to come from the hub and the hub does not answer.
    """
    if isinstance(where, nn.Module | Mapping):
        return _without_alpha(checkpoint_in_memory(where, role=role), alpha)
    if not isinstance(where, str | os.PathLike):
        raise UsageError(must(role, f"be {_TAKEN}, or a model", type(where).__name__, "Pass a path"))
    name, path = os.fspath(where), Path(where).expanduser()
    if not name or not name.isprintable() or len(name) > 4096:
        raise UsageError(must(role, f"be {_TAKEN}", repr(name)[:80], "Pass a path"))
    try:
        folder, file = path.is_dir(), path.is_file()
    except OSError:  # a name too long for the file system
        folder = file = False
    if folder:
        return _open_folder(path, alpha, role)
    if file:
        return _open_file(path, alpha)
    run = run_folder(where, Path(runs))
    if run is not None:
        return _open_folder(run, alpha, role)
    if name.startswith(("/", ".", "~")) or path.suffix in (SAFETENSORS, *PICKLES) or name.count("/") > 1:
        got = f"{name}, which does not exist"
        raise UsageError(must(role, f"be {_TAKEN}", got, "Check the path for a typing error"))
    label, found = find_weights(name, offline=offline, what=role)
    return replace(_open_folder(found, alpha, role), label=label)


def _open_folder(folder: Path, alpha: float | None, role: str) -> Checkpoint | AdapterSource:
    label = _label(folder)
    run = read_run(folder) if (folder / RUN_FILE).is_file() else None
    if run is not None:
        return replace(_open_folder(trained_weights(run), alpha, role), label=label, path=folder)
    config, adapter, entry = folder / ADAPTER_CONFIG, adapter_weights(folder), weights_entry(folder)
    if adapter is not None and config.is_file():
        return replace(open_peft(folder, alpha=alpha), label=label)
    if entry is None:
        loose = _loose_weights(folder)
        if len(loose) == 1 and adapter is None:
            return _open_file(loose[0], alpha)
        files = loose
    else:
        files = [entry]
    if not files:
        raise _nothing_in(folder, role, adapter is not None, config.is_file())
    return _without_alpha(open_checkpoint(files, label=label, path=folder, config_file=_config_beside(folder)), alpha)


def _open_file(file: Path, alpha: float | None) -> Checkpoint | AdapterSource:
    folder = file.parent
    if file.name.endswith(INDEX_END):
        opened = open_checkpoint([file], label=_label(folder), path=file, config_file=_config_beside(folder))
        return _without_alpha(opened, alpha)
    part = _SHARD.fullmatch(file.name)
    if part is not None and int(part["count"]) > 1:
        got = f"{file.name}, one shard of {int(part['count'])}"
        raise UsageError(must(f"{file}", "be all of the weights", got, "Pass the folder of all shards"))
    tensors = open_tensors([file])
    if any(name.endswith((".lora_A", ".lora_B")) for name in tensors.stored):
        return open_loralib(file, alpha)
    if any(".lora_A." in name or ".lora_embedding_A" in name for name in tensors.stored):
        if file.name in ADAPTER_WEIGHTS and (folder / ADAPTER_CONFIG).is_file():
            return replace(open_peft(folder, alpha=alpha), label=_label(folder))
        rule = f"have its {ADAPTER_CONFIG} beside it"
        raise UsageError(must("A PEFT adapter", rule, f"{file} alone", "Pass PEFT's output folder"))
    generic = file.stem.split(".")[0] in ("model", "pytorch_model", "weights", "consolidated")
    label = _label(folder) if generic else file.stem
    opened = open_checkpoint([file], label=label, path=file, config_file=_config_beside(folder), tensors=tensors)
    return _without_alpha(opened, alpha)


def _loose_weights(folder: Path) -> list[Path]:
    """A folder's weights where none has the usual name: one file, or all shards of one set; empty where none has.

    Raises
    ------
    UsageError
        If there are several files and nothing says which, or a shard is missing.
    """
    for suffixes in ((SAFETENSORS,), PICKLES):
        found = sorted(file for file in folder.iterdir()
                       if file.suffix in suffixes and not _NO_WEIGHTS.match(file.name) and file.is_file())  # fmt: skip
        parts = [_SHARD.fullmatch(file.name) for file in found]
        sets = {(part["stem"], part["count"]) for part in parts if part is not None}
        if len(sets) == 1 and None not in parts:
            count = int(parts[0]["count"])
            missing = set(range(1, count + 1)) - {int(part["number"]) for part in parts} if count < 10_000 else {count}
            if missing or len(found) != count:
                got = f"{len(found)} shards of {count} in {folder}"
                raise UsageError(must("The model's weights", "be whole", got, "Fetch the shard that is missing"))
            return found
        if len(found) > 1:
            got = f"{folder} with {', '.join(file.name for file in found[:4])}{', ...' if len(found) > 4 else ''}"
            raise UsageError(must("A model's folder", "hold one model", got, "Pass one of the files"))
        if found:
            return found
    return []


def _nothing_in(folder: Path, role: str, adapter: bool, config: bool) -> UsageError:
    """Why a folder is no input, and what in it may have been meant."""
    if adapter:
        got = f"{adapter_weights(folder).name} alone in {folder}"
        return UsageError(must("A PEFT adapter", f"have its {ADAPTER_CONFIG} beside it", got, "Copy it there"))
    below = [sub for sub in sorted(folder.iterdir()) if sub.is_dir() and _holds_weights(sub)]
    # A trainer's last checkpoint is the one with the highest number.
    below.sort(key=lambda sub: [int(digits) for digits in re.findall(r"\d+", sub.name)[-1:]])
    other = next((file.name for file in sorted(folder.iterdir()) if file.suffix in _OTHER_FORMATS), None)
    got = f"{folder} without weights"
    if config:
        got = f"{folder} with {ADAPTER_CONFIG} and no {ADAPTER_WEIGHTS[0]}"
    elif other is not None:
        got = f"{folder} with {other}"
    next_step = f"Pass {_TAKEN}"
    if below:
        next_step = f"Pass one of the folders in it, such as {below[-1]}"
    elif other is not None:
        next_step = "Convert it to safetensors with transformers"
    return UsageError(must(role, "be a folder with weights that are safetensors or torch.save's", got, next_step))


def _holds_weights(folder: Path) -> bool:
    whole_adapter = adapter_weights(folder) is not None and (folder / ADAPTER_CONFIG).is_file()
    return whole_adapter or weights_entry(folder) is not None or (folder / RUN_FILE).is_file()


def _config_beside(folder: Path) -> Path | None:
    return folder / "config.json" if (folder / "config.json").is_file() else None


def _without_alpha(opened: Checkpoint, alpha: float | None) -> Checkpoint:
    if alpha is not None:
        got = f"alpha {alpha} for the whole model {opened.label}"
        raise UsageError(must("alpha", "be given for an adapter", got, "Leave it out"))
    return opened


def _label(folder: Path) -> str:
    """A folder's name for tables; the hub's name of a snapshot in its cache, and a checkpoint's with its run's."""
    path = Path(os.path.abspath(folder))
    if path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):
        return path.parents[1].name.removeprefix("models--").replace("--", "/")
    if re.fullmatch(r"checkpoint-\d+", path.name):
        return f"{path.parent.name}/{path.name}"
    return path.name
