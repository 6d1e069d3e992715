"""LoRA weights as loralib (microsoft/LoRA) saves them: bare lora_A and lora_B, no config, no alpha."""

from __future__ import annotations

import math
from pathlib import Path

from rankprobe.errors import UsageError, must
from rankprobe.weights.architecture import kind_of
from rankprobe.weights.factors import AdapterModule, AdapterSource, scaling_of
from rankprobe.weights.fingerprint import fingerprint
from rankprobe.weights.peft_files import CONFIG_FILE
from rankprobe.weights.tensors import TensorFiles, open_tensors

# Of a fused qkv, as the authors' GPT-2 has them: enable_lora=[True, False, True], or all three.
_PARTS = {2: ("q", "v"), 3: ("q", "k", "v")}


def open_loralib(file: Path, alpha: float | None) -> AdapterSource:
    """Open a file of loralib's ``lora_state_dict``; its factors stay on disk.

    Parameters
    ----------
    file : Path
        With ``<module>.lora_A`` (r, in_features) and ``<module>.lora_B`` (out_features, r). A fused matrix has them
        stacked, (groups * r, in_features) and (groups * rows, r).
    alpha : float or None
        What the file does not say: ``lora_alpha`` of the run that made it.

    Returns
    -------
    AdapterSource

    Raises
    ------
    UsageError
        If alpha is None or not finite, the file cannot be read, holds no such factors, or their shapes do not fit.

    Notes
    -----
    loralib's MergedLinear applies stacked factors as a grouped convolution: group i is
    ``lora_B[i * rows : (i + 1) * rows] @ lora_A[i * r : (i + 1) * r]``. Two groups are q and v, three are q, k, v.
    """
    file = Path(file)
    tensors = open_tensors([file])
    paths = [key.removesuffix(".lora_A") for key in tensors.stored if key.endswith(".lora_A")]
    if not paths:
        peft = any(".lora_A." in key for key in tensors.stored)
        got = f"{file.name} {'alone' if peft else 'with none'}"
        if peft:
            rule = f"have its {CONFIG_FILE} beside it"
            raise UsageError(must("A PEFT adapter", rule, got, "Pass PEFT's output folder"))
        raise UsageError(must("A loralib file", "hold lora_A and lora_B", got, "Pass loralib's lora_state_dict"))
    if alpha is None:
        got = f"none in {file.name}"
        next_step = "Pass --alpha with the lora_alpha that it was trained with"
        raise UsageError(must("lora_alpha", "be known: it scales the update, and loralib does not store it", got,
                              next_step))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha) or abs(alpha) > 1e30:
        raise UsageError(must("alpha", "be a finite number", alpha, "Pass --alpha 16, say"))
    modules = {path: _module(path, tensors, float(alpha)) for path in paths}
    saved = {key: tuple(of.shape) for key, of in tensors.stored.items() if not key.endswith((".lora_A", ".lora_B"))}
    return AdapterSource(file.stem, file, {}, fingerprint([file], tensors), None, modules, saved, tensors=tensors)


def _module(path: str, tensors: TensorFiles, alpha: float) -> AdapterModule:
    A, B = tensors.stored[f"{path}.lora_A"], tensors.stored.get(f"{path}.lora_B")
    if B is None:
        raise UsageError(must(f"{path}.lora_B", "be there", "lora_A alone", "Save the file again"))
    shapes = f"lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}"
    if len(A.shape) != 2 or len(B.shape) != 2 or 0 in (*A.shape, *B.shape) or A.shape[0] % B.shape[1]:
        rule = "have the shapes (groups * r, in) and (out, r)"
        raise UsageError(must(f"{path}'s factors", rule, shapes, "Save the file again"))
    for of in (A, B):
        if not of.dtype.startswith(("float", "bfloat")):
            raise UsageError(must(of.name, "be floating point", of.dtype, "Save the file again"))
    r, groups, rows = B.shape[1], A.shape[0] // B.shape[1], B.shape[0]
    parts: tuple[str, ...] = ()
    if groups > 1:
        parts = _PARTS.get(groups, ())
        if kind_of(path) != "qkv" or not parts or rows % groups:
            rule = "be stacked for q and v, or for q, k and v, of a fused matrix"
            raise UsageError(must(f"{path}'s factors", rule, shapes, "Pass a file of plain factors"))
        rows = 3 * rows // groups
    return AdapterModule((rows, A.shape[1]), r, alpha, scaling_of(alpha, r, False), A.name, B.name, B.dtype, parts)
