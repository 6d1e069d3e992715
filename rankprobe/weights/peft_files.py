"""LoRA adapters as PEFT writes them: adapter_config.json beside one file of weights, read one module at a time."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path

from rankprobe.errors import UsageError, must
from rankprobe.weights.factors import AdapterModule, AdapterSource, scaling_of
from rankprobe.weights.fingerprint import fingerprint
from rankprobe.weights.peft_patterns import by_pattern, check_matches, check_pattern
from rankprobe.weights.tensors import TensorFiles, open_tensors

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_WEIGHTS_FILE = "adapter_model.bin"
PREFIX = "base_model.model."

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>A|B)(\.(?P<adapter>[^.]+))?\.(?P<what>weight|bias)")
_EMBEDDING = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<factor>A|B)(\.(?P<adapter>[^.]+))?")
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save(\.default)?\.(?P<leaf>.+)")
# What makes the update something else than scaling * B @ A, or B and A something else than two factors of one layer.
_NOT_PLAIN = ("use_dora", "use_qalora", "kasa_config", "use_bdlora", "layer_replication", "alora_invocation_tokens")
# Starts that take the first B @ A out of the base's weights.
_MOVES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
_RESIZE = "Train the adapter again, or correct adapter_config.json"


def open_peft(folder: Path, *, alpha: float | None = None) -> AdapterSource:
    """Open a LoRA adapter that PEFT or rankprobe wrote; its factors stay on disk.

    Parameters
    ----------
    folder : Path
        With adapter_config.json and adapter_model.safetensors or .bin.
    alpha : float, optional
        ``lora_alpha`` for an adapter_config.json that lacks it.

    Returns
    -------
    AdapterSource

    Raises
    ------
    UsageError
        If a file is missing or damaged, the adapter is not LoRA or not a plain ``B @ A`` (DoRA), the config says other
        ranks than the factors have, alpha is in neither place, or a pattern matches no module.

    Notes
    -----
    As PEFT 0.18 reads it: a pattern's key is a regular expression for the end of a module's path and the first one
    that matches wins; r for the scaling is the factors' own.
    """
    folder = Path(folder)
    config = read_config(folder)
    if alpha is not None:
        if config.get("lora_alpha") is not None:
            got = f"{alpha:g} beside lora_alpha: {config['lora_alpha']} in {CONFIG_FILE}"
            raise UsageError(must("alpha", "come from one place", got, "Leave --alpha out"))
        config = {**config, "lora_alpha": alpha}
    file = weights_file(folder)
    return parse(folder, config, open_tensors([file]), file)


def weights_file(folder: Path) -> Path:
    """The file that holds an adapter's tensors.

    Raises
    ------
    UsageError
        If there is none.
    """
    file = next((folder / f for f in (WEIGHTS_FILE, PICKLED_WEIGHTS_FILE) if (folder / f).is_file()), None)
    if file is None:
        got = f"no {WEIGHTS_FILE} in {folder}"
        raise UsageError(must("A LoRA adapter", "have its weights beside its config", got, "Pass PEFT's output folder"))
    return file


def parse(folder: Path, config: dict, tensors: TensorFiles, file: Path) -> AdapterSource:
    """What :func:`open_peft` returns, of a config and tensors that are open already.

    Raises
    ------
    UsageError
        As :func:`open_peft` does.
    """
    factors, saved_keys, skipped = _sort_keys(tensors)
    modules, stacked = _modules(factors, tensors, config)
    if not modules:
        got = next(iter(stacked.values()), f"none in {file.name}")
        raise UsageError(must("A LoRA adapter", "hold lora_A and lora_B of a matrix", got, "Pass a LoRA adapter"))
    return AdapterSource(
        label=folder.resolve().name,
        path=folder,
        config=config,
        fingerprint=fingerprint([folder / CONFIG_FILE, file], tensors),
        base_name=_base_name(config.get("base_model_name_or_path")),
        modules=modules,
        saved={name: tuple(tensors.stored[key].shape) for name, key in saved_keys.items()},
        skipped={**skipped, **stacked},
        notes=_notes(config),
        saved_keys=saved_keys,
        tensors=tensors,
    )


def read_config(folder: Path) -> dict:
    """adapter_config.json of a plain LoRA adapter, its fields' types checked.

    Raises
    ------
    UsageError
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        rule = f"be a folder with {CONFIG_FILE}"
        raise UsageError(must("A LoRA adapter", rule, folder, "Pass PEFT's output folder")) from None
    except (OSError, ValueError, RecursionError) as error:
        got = " ".join(str(error).split())[:160]
        raise UsageError(must(CONFIG_FILE, "be readable JSON", got, "Save the adapter again")) from None
    if not isinstance(config, dict):
        raise UsageError(must(CONFIG_FILE, "be a JSON object", type(config).__name__, "Save the adapter again"))
    if config.get("peft_type") != "LORA":
        got = config.get("peft_type")
        got = got[:80] if isinstance(got, str) else reprlib.repr(got)
        raise UsageError(must("adapter", "be of peft_type LORA", got, "Pass a LoRA adapter"))
    for option in _NOT_PLAIN:
        if config.get(option):
            got = f"{option}: {reprlib.repr(config[option]).lower()}"
            raise UsageError(must("adapter", "be a plain B @ A", got, "Merge it with peft and pass the merged model"))
    for option in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(option) or {}
        if not isinstance(patterns, dict):
            got = type(patterns).__name__
            raise UsageError(must(f"{option} in {CONFIG_FILE}", "be an object", got, "Save the adapter again"))
        for pattern, value in patterns.items():
            _number(f"{option}[{pattern[:160]!r}]", value)
            check_pattern(f"{option}'s keys", pattern)
    for option in ("r", "lora_alpha"):
        if config.get(option) is not None:
            _number(option, config[option])
    return config


def _sort_keys(tensors: TensorFiles) -> tuple[dict[str, dict[str, str]], dict[str, str], dict[str, str]]:
    """A file's keys: of factors by module, of tensors saved whole by parameter name, and what is neither."""
    factors: dict[str, dict[str, str]] = {}
    saved: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for key in tensors.stored:
        name = key.removeprefix(PREFIX)
        found = _FACTOR.fullmatch(name) or _EMBEDDING.fullmatch(name)
        if found is not None:
            what = found.groupdict().get("what") or "embedding"
            role = found["factor"] if what == "weight" else f"{what} {found['factor']}"
            parts = factors.setdefault(found["module"], {})
            if role in parts:
                got = f"{parts[role]} and {key}"
                next_step = "Save each adapter in a folder of its own"
                raise UsageError(must("adapter", "be one adapter a file", got, next_step))
            parts[role] = key
        elif "lora_magnitude_vector" in name:
            raise UsageError(must("adapter", "be a plain B @ A", f"{key}, DoRA's magnitudes",
                                  "Merge it with peft and pass the merged model"))
        elif ".lora_" in name:
            raise UsageError(must("adapter", "hold lora_A and lora_B alone", key, "Pass a plain LoRA adapter"))
        elif "trainable_tokens" in name:
            skipped[name] = "single tokens of an embedding, trained beside LoRA"
        elif ".original_module." not in name:
            whole = _SAVED.fullmatch(name)
            name = f"{whole['module']}.{whole['leaf']}" if whole else name
            saved[name.replace(".base_layer.", ".")] = key
    return factors, saved, skipped


def _modules(
    factors: Mapping[str, Mapping[str, str]], tensors: TensorFiles, config: Mapping
) -> tuple[dict[str, AdapterModule], dict[str, str]]:
    """Each module's factors, checked; and those that adapt no single matrix, with the reason."""
    targets = config.get("target_parameters") or []
    targets = tuple(map(str, targets)) if isinstance(targets, list) else ()
    stacks = tuple(of.rpartition(".")[0] for of in targets)
    layers = config.get("target_modules")
    if "" in stacks and isinstance(layers, list):  # `gate_up_proj` alone: whatever is no target module holds it
        ends = tuple(f".{of}" for of in layers)
        stacks += tuple(path for path in factors if not f".{path}".endswith(ends))
    # A parameter's own rank goes by the parameter's path, which no factor has in its name.
    leaves = {of.rpartition(".")[2] for of in targets}
    parameters = [f"{path.replace('.base_layer', '')}.{leaf}" for path in factors for leaf in sorted(leaves)]
    for option in ("rank_pattern", "alpha_pattern"):
        check_matches(f"{option}'s keys", config.get(option) or {}, (*factors, *parameters))
    modules, stacked = {}, {}
    for path, keys in factors.items():
        embedding = "embedding A" in keys or "embedding B" in keys
        A, B = (keys.get(f"embedding {f}" if embedding else f) for f in "AB")
        if A is None or B is None:
            got = f"{path} with lora_{'B' if A is None else 'A'} alone"
            raise UsageError(must("adapter", "hold both lora_A and lora_B", got, "Save the adapter again"))
        shapes = [tuple(tensors.stored[key].shape) for key in (A, B)]
        if any(f"{path}.".endswith(f"{stack}.") or ".base_layer" in path for stack in stacks if stack):
            stacked[path] = "adapts parameters, not a layer (target_parameters)"
        elif min(map(len, shapes)) > 2:
            stacked[path] = f"adapts a convolution ({len(shapes[0])}-d factors)"
        else:
            modules[path] = _module(path, A, B, shapes, tensors, config, embedding, keys.get("bias B"))
    return modules, stacked


def _module(
    path: str, A: str, B: str, shapes: list[tuple[int, ...]], tensors: TensorFiles, config: Mapping, embedding: bool,
    bias: str | None,
) -> AdapterModule:
    of_A, of_B = shapes
    if len(of_A) != 2 or len(of_B) != 2 or of_A[0] != of_B[1] or 0 in of_A + of_B:
        rule = f"have the shape (out, {of_A[0] if of_A else 'r'})"
        raise UsageError(must(f"{B}", rule, f"{of_B} beside lora_A {of_A}", "Save the adapter again"))
    r = of_A[0]
    for key in (A, B):
        if not tensors.stored[key].dtype.startswith(("float", "bfloat")):
            raise UsageError(must(key, "be floating point", tensors.stored[key].dtype, "Save the adapter again"))
    expected = by_pattern(config.get("rank_pattern") or {}, path, config.get("r"))
    if expected is not None and expected != r:
        got = f"{r} in the factors of {path}, {expected} in {CONFIG_FILE}"
        raise UsageError(must("r", "be the same in config and weights", got, _RESIZE))
    alpha = by_pattern(config.get("alpha_pattern") or {}, path, config.get("lora_alpha"))
    if alpha is None:
        got = f"none for {path} in {CONFIG_FILE}"
        raise UsageError(must("lora_alpha", "be known: it scales the update", got, "Pass --alpha"))
    scaling = scaling_of(float(alpha), r, bool(config.get("use_rslora")))
    shape = (of_A[1], of_B[0]) if embedding else (of_B[0], of_A[1])
    if bias is not None and tuple(tensors.stored[bias].shape) != (of_B[0],):
        rule = f"have the shape ({of_B[0]},)"
        raise UsageError(must(bias, rule, tuple(tensors.stored[bias].shape), "Save the adapter again"))
    return AdapterModule(shape, r, float(alpha), scaling, A, B, tensors.stored[B].dtype, (), embedding, bias)


def _number(name: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or abs(value) > 1e30 or not math.isfinite(value):
        rule = "be a finite number"
        raise UsageError(must(f"{name} in {CONFIG_FILE}", rule, reprlib.repr(value), "Correct it there"))


def _base_name(stored: object) -> str | None:
    """The base's name as the config has it; of a path its last part, since paths are nobody else's business."""
    if not isinstance(stored, str) or not stored.isprintable() or not 0 < len(stored) < 500:
        return None
    if stored.startswith(("/", "~", ".")) or "\\" in stored:
        return stored.replace("\\", "/").rstrip("/").rpartition("/")[2] or None
    return stored


def _notes(config: Mapping) -> tuple[str, ...]:
    if moves_base(start := config.get("init_lora_weights")):
        return (f"init_lora_weights is {start}: that start changed the base's weights before training, so that B @ A "
                "is not the change from the published base",)
    return ()


def moves_base(start: object) -> bool:
    """Whether ``init_lora_weights`` is a start that puts a part of W0 into the first B @ A.

    >>> moves_base("OLoRA"), moves_base("gaussian"), moves_base(True)
    (True, False, False)
    """
    return isinstance(start, str) and start.lower().startswith(_MOVES_BASE)
