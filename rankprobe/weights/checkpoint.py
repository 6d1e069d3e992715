"""A whole model's parameters by name, on disk or in memory, read one at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rankprobe.errors import UsageError, must
from rankprobe.weights.fingerprint import fingerprint
from rankprobe.weights.model_files import read_config
from rankprobe.weights.quantised import FLOATS, Reader, Scaled, dequantise, plan
from rankprobe.weights.shards import INDEX_END, check_index, read_index
from rankprobe.weights.tensor_file import Stored
from rankprobe.weights.tensors import TensorFiles, open_tensors

# Which matrices a model may tie to its input embedding: the output's, and T5's and BART's copies of the input's.
_INPUT = re.compile(r"(^|\.)(shared|word_embeddings|embed_tokens|wte|embed_in|tok_embeddings|tokens_embed|"
                    r"word_embedding)\.weight$")  # fmt: skip
_OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|output_projection|vocab_projector|generator_lm_head|lm_head\.decoder|"
                     r"predictions\.decoder|output)\.weight$")  # fmt: skip
_SAMPLES = 64


@dataclass(frozen=True)
class Checkpoint:
    """A whole model.

    Attributes
    ----------
    label : str
        For tables: the folder's or the hub's name, never a path.
    path : Path or None
        None for a model in memory.
    config : dict
        config.json; empty where there is none.
    shapes : dict of str to tuple of int
        Parameters by name, in the files' order: tied ones once, without scales of quantised ones, whole numbers and
        complex numbers.
    dtypes : dict of str to str
        Storage dtypes, torch's names.
    tied : dict of str to str
        Names left out to the ones kept.
    fingerprint : str
        Short hash of sizes, times of change, headers and samples: recognises the same input when work is resumed.
    skipped : dict of str to str
        Tensors that are no weights, with the reason.
    """

    label: str
    path: Path | None
    config: dict
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    tied: dict[str, str]
    fingerprint: str
    skipped: dict[str, str] = field(default_factory=dict)
    tensors: Reader | None = field(default=None, repr=False, compare=False)
    scaled: Mapping[str, Scaled] = field(default_factory=dict, repr=False, compare=False)

    def read(self, name: str) -> Tensor:
        """One parameter, on the CPU.

        Parameters
        ----------
        name : str
            Of ``shapes``, or of ``tied``.

        Returns
        -------
        Tensor
            Floating point, as stored; float32 for quantised and float8 weights. Of a model in memory on the CPU it is
            the parameter itself: not to be written to.

        Raises
        ------
        UsageError
            If a file cannot be read any more.
        """
        name = self.tied.get(name, name)
        if name not in self.shapes:
            raise KeyError(name)
        if name in self.scaled:
            return dequantise(self.tensors, name, self.scaled[name], self.label)
        tensor = self.tensors.read(name)
        return tensor if self.dtypes[name] in FLOATS else tensor.to(torch.float32)


def open_checkpoint(
    files: Sequence[Path],
    *,
    label: str,
    path: Path,
    config_file: Path | None = None,
    tensors: TensorFiles | None = None,
) -> Checkpoint:
    """Open a model's files; looks at headers alone, but reads what may be tied.

    Parameters
    ----------
    files : sequence of Path
        Weights in one file or many, or the index of a model's shards, which is checked against them.
    label : str
    path : Path
        Folder or file, as it was asked for.
    config_file : Path, optional
        config.json, where there is one.
    tensors : TensorFiles, optional
        The files' tensors where they are open already.

    Raises
    ------
    UsageError
        If a file is damaged, an index does not fit, or the weights are quantised in a way that cannot be read.
    """
    config = {} if config_file is None else read_config(config_file)
    described = [] if config_file is None else [config_file]
    index = next((file for file in files if file.name.endswith(INDEX_END)), None)
    if index is None:
        tensors = tensors or open_tensors(files)
    else:
        described, parameters = [*described, index], read_index(index)
        files = [index.parent / shard for shard in sorted(set(parameters.values()))]
        tensors = open_tensors(files)
        check_index(index, parameters, tensors.files)
    return _checkpoint(label, path, config, tensors, fingerprint([*described, *files], tensors), tensors.aliases)


def checkpoint_in_memory(model: nn.Module | Mapping[str, Tensor], *, role: str = "model") -> Checkpoint:
    """A model, or a state dict, that is in memory already.

    Parameters
    ----------
    model : nn.Module or mapping of str to Tensor
        Of a module its parameters, and its ``config`` where it has one as transformers' models do.
    role : str
        For messages, and the label of what has no name.

    Raises
    ------
    UsageError
        If it is not tensors by name, has unmerged LoRA factors, or tensors without data.
    """
    config, label = {}, role
    if isinstance(model, nn.Module):
        tensors = dict(model.named_parameters(remove_duplicate=False))
        to_dict = getattr(getattr(model, "config", None), "to_dict", None)
        config = to_dict() if callable(to_dict) else {}
        label = type(model).__name__
    else:
        tensors = dict(model)
    if not tensors or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in tensors.items()):
        odd = next((n for n, t in tensors.items() if not isinstance(n, str) or not isinstance(t, Tensor)), "nothing")
        rule = "be tensors by name"
        raise UsageError(must(role, rule, f"{odd!r} of another type" if tensors else odd, "Pass a state dict"))
    bare = next((n for n, t in tensors.items() if t.is_meta or t.layout != torch.strided or t.is_quantized), None)
    if bare is not None:
        rule = "hold dense tensors with data"
        raise UsageError(must(role, rule, f"{bare}, which is on meta, sparse or quantised by torch", "Load it first"))
    in_memory = _InMemory(tensors)
    return _checkpoint(label, None, config, in_memory, in_memory.fingerprint(), in_memory.aliases)


class _InMemory:
    """Tensors in memory, as :class:`rankprobe.weights.tensors.TensorFiles` gives them out."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self.stored: dict[str, Stored] = {}
        self.aliases: dict[str, str] = {}
        seen: dict[tuple, str] = {}
        for name, tensor in self.tensors.items():
            shape = tuple(tensor.shape)
            same = (tensor.data_ptr(), tensor.device, shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
            if same in seen:
                self.aliases[name] = seen[same]
                continue
            seen[same] = name
            self.stored[name] = Stored(name, shape, str(tensor.dtype).removeprefix("torch."))

    def read(self, name: str) -> Tensor:
        return self.tensors[name].cpu()

    def fingerprint(self) -> str:
        """Hash of names, shapes, dtypes, and of 64 elements of each tensor."""
        total = hashlib.sha256()
        for name, of in sorted(self.stored.items()):
            flat = self.tensors[name].reshape(-1)
            some = flat[:: max(1, len(flat) // _SAMPLES)].cpu()
            some = torch.view_as_real(some) if some.is_complex() else some
            total.update(f"{name} {of.shape} {of.dtype}\n".encode() + some.double().numpy().tobytes())
        return total.hexdigest()[:16]


def _checkpoint(
    label: str, path: Path | None, config: dict, tensors: Reader, hashed: str, aliases: Mapping[str, str]
) -> Checkpoint:
    lora = next((name for name in tensors.stored if ".lora_A" in name or ".lora_B" in name), None)
    if lora is not None:
        next_step = "Merge it, or save the adapter with save_pretrained and pass that folder"
        raise UsageError(must(label, "be a merged model or an adapter on disk", f"LoRA factors, {lora}", next_step))
    scaled, beside = plan(tensors, config, label)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes, skipped = {}, {}
    for name, of in tensors.stored.items():
        if name in beside:
            continue
        if of.dtype in FLOATS or of.dtype.startswith("float8") or name in scaled:
            shapes[name], dtypes[name] = tuple(of.shape), of.dtype
        else:
            kind = "complex numbers" if of.dtype.startswith("complex") else "whole numbers"
            skipped[name] = f"{kind} ({of.dtype})"
    if not shapes:
        got = f"{len(tensors.stored)} tensors of which none is"
        raise UsageError(must(label, "hold weights in floating point", got, "Pass a model's folder"))
    made = Checkpoint(label, path, config, shapes, dtypes, {}, hashed, skipped, tensors, scaled)
    copies = _copies(made)
    tied = {alias: copies.get(kept, kept) for alias, kept in aliases.items() if kept in shapes} | copies
    once = [name for name in shapes if name not in copies]
    return replace(made, shapes={n: shapes[n] for n in once}, dtypes={n: dtypes[n] for n in once}, tied=tied)


def _copies(model: Checkpoint) -> dict[str, str]:
    """Copies of the input embedding, stored as tensors of their own, to the embedding that they are tied to.

    An output embedding counts as tied where it equals the input's in every element and config.json does not say
    ``"tie_word_embeddings": false``; transformers, too, leaves two that differ apart, whatever the config says.
    """
    tie = model.config.get("tie_word_embeddings")
    if tie is None and isinstance(model.config.get("text_config"), dict):
        tie = model.config["text_config"].get("tie_word_embeddings")
    inputs = [name for name in model.shapes if _INPUT.search(name)]
    outputs = [name for name in model.shapes if _OUTPUT.search(name)] if tie is not False else []
    copies: dict[str, str] = {}
    for kept in inputs:
        like = (model.shapes[kept], model.dtypes[kept])
        others = [n for n in (*inputs, *outputs) if n != kept and n not in copies
                  and (model.shapes[n], model.dtypes[n]) == like]  # fmt: skip
        if kept in copies or not others or len(like[0]) != 2:
            continue
        embedding = model.read(kept)
        copies |= {name: kept for name in others if torch.equal(embedding, model.read(name))}
    return copies
