"""Sort all that a whole tuned model changed into what an adapter can hold, and as what."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from rankprobe.analysis.extract_layout import Bias, Layout, Lost, Target, Whole, head_of, tensors_of
from rankprobe.errors import UsageError, must
from rankprobe.weights.matching import match
from rankprobe.weights.pair import NameFilter
from rankprobe.weights.pairing import Matrix, Pairing
from rankprobe.weights.skeleton import Part, skeleton_of
from rankprobe.weights.write_adapter import added_by_peft, task_type


def layout_of_model(pairing: Pairing, *, keep: NameFilter, embeddings: str) -> Layout:
    """Sort all that a whole tuned model changed.

    Parameters
    ----------
    pairing : Pairing
        With fused matrices whole and no name filtered out.
    keep : NameFilter
        Which matrices, norms and biases to carry. Task heads and what only TUNED has are carried whatever it says: a
        model without them computes something else.
    embeddings : str
        ``lora``, ``whole`` or ``drop``.

    Returns
    -------
    Layout

    Raises
    ------
    UsageError
        If a vector that is read here holds NaN or infinity.
    """
    return _Sorter(pairing, keep, embeddings).sort()


class _Sorter:
    def __init__(self, pairing: Pairing, keep: NameFilter, embeddings: str) -> None:
        self.pairing, self.keep, self.embeddings = pairing, keep, embeddings
        self.base, self.tuned = pairing.base, pairing.tuned
        matching = match(self.base.shapes, self.tuned.shapes, base_tied=self.base.tied, tuned_tied=self.tuned.tied)
        self.base_names = {tuned: base for base, tuned in matching.pairs}
        self.skeleton = skeleton_of(self.tuned.config, self.tuned.shapes, self.tuned.tied)
        self.names = {name: self.skeleton.canonical(name) for name in self.tuned.shapes}
        self.stored = {canonical: name for name, canonical in self.names.items()}
        tied = {alias: self.skeleton.canonical(kept) for alias, kept in self.skeleton.tied.items()}
        tied |= {self.skeleton.canonical(a): self.skeleton.canonical(k) for a, k in self.tuned.tied.items()}
        self.tied = {alias: kept for alias, kept in tied.items() if alias not in self.stored}
        architectures = self.tuned.config.get("architectures")
        task = task_type(architectures, encoder_decoder=self.skeleton.encoder_decoder)
        self.layout = Layout(self.skeleton, task, self.stored, self.tied)

    def sort(self) -> Layout:
        self._heads()
        self._only_tuned(name for name in self.tuned.shapes if name not in self.base_names)
        for matrix in self.pairing.matrices:
            self._matrix(matrix)
        self._vectors()
        for name in self.pairing.skipped:
            self._skipped(name)
        return self.layout

    def _heads(self) -> None:
        heads: dict[str, list[str]] = {}
        for name, canonical in self.names.items():
            if (head := head_of(canonical)) is not None:
                self.keep(name)  # carried all the same; an expression that names it names something
                heads.setdefault(head, []).append(name)
        for head, names in heads.items():
            changes = [self._change(name) for name in names]
            fresh = any(map(math.isnan, changes))
            asked = head.endswith(added_by_peft(self.layout.task) or ("\0",))
            if fresh or any(changes) or asked:
                why = "task head" if fresh or any(changes) else "task head, unchanged, which peft asks for"
                self._carry(head, why, math.nan if fresh else math.hypot(*changes))

    def _only_tuned(self, names: Iterable[str]) -> None:
        for name in names:
            if self._held(name):
                continue
            module, part = self._module(name)
            if part and self.names[name] == f"{module}.bias" and not (part.leaf and self._is_new(f"{module}.weight")):
                shape = tuple(self.tuned.shapes[name])
                self.layout.biases.append(Bias(self.names[name], "", name, "", shape, math.nan))
            elif not (part and part.leaf and self._carry(module, "only in TUNED", math.nan)):
                self._lose(name, "only in TUNED, and no module that an adapter can carry",
                           float(self.tuned.read(name).double().norm()))

    def _matrix(self, matrix: Matrix) -> None:
        name = matrix.parameter
        if self._held(name):
            return
        if not self.keep(matrix.name):
            self.layout.left_out.append(matrix.name)
            return
        module, part = self._module(name)
        rows = self.pairing.added_rows.get(name, 0)
        if part is None or self.names[name] != f"{module}.weight":
            self._lose(name, self._unknown(module, part), lambda: _norm(matrix))
        elif part.kind == "embedding" and self.embeddings == "drop":
            self._lose(name, "embeddings are dropped, as asked", lambda: _norm(matrix))
        elif part.adaptable and not rows and not (part.kind == "embedding" and self.embeddings == "whole"):
            copies = tuple((path, self.skeleton.parts[path].kind) for path in self._tied_to(module))
            self.layout.targets.append(Target(matrix, module, part.kind, copies))
        else:
            self._whole_matrix(matrix, name, module, part, rows)

    def _whole_matrix(self, matrix: Matrix, name: str, module: str, part: Part, rows: int) -> None:
        change = _norm(matrix)
        if change == 0 and not rows:
            return
        why = "embedding" if part.kind == "embedding" else f"{part.kind} layer that takes no factors"
        if rows:
            count = self.tuned.shapes[name][0]
            why += f" with {abs(rows)} rows {'more' if rows > 0 else 'fewer'} than the base's"
            self.layout.notes.append(f"{name} has {count} rows and the base {count - rows}: call "
                                     f"resize_token_embeddings({count}) on the base before peft loads the adapter")
        if not self._carry(module, why, change):
            self._lose(name, f"{why}, of which TUNED's files lack a tensor", change)
            return
        for copy in self._tied_to(module):
            self._carry(copy, f"tied to {module}", 0.0)

    def _vectors(self) -> None:
        for vector in self.pairing.vectors():
            name = vector.name
            if self._held(name) or vector.change_norm == 0:
                continue
            if not self.keep(name):
                self.layout.left_out.append(name)
                continue
            module, part = self._module(name)
            canonical, base = self.names[name], self.base_names[name]
            linear = part is not None and part.kind in ("linear", "conv1d")
            if self.tuned.shapes[name] != self.base.shapes[base]:
                self._lose(name, "its length differs from the base's", vector.change_norm)
            elif part is not None and canonical == f"{module}.bias" and (linear or not part.leaf):
                of = module if linear else ""
                self.layout.biases.append(Bias(canonical, of, name, base, vector.shape, vector.change_norm))
            elif not (part and part.leaf and self._carry(module, "norm", self._module_change(module))):
                self._lose(name, self._unknown(module, part), vector.change_norm)

    def _skipped(self, name: str) -> None:
        if name not in self.names or name not in self.base_names or self._held(name):
            return
        change = self._change(name)
        if change == 0:
            return
        if not self.keep(name):
            self.layout.left_out.append(name)
            return
        module, part = self._module(name)
        differs = math.isnan(change)
        fits = part is not None and part.leaf and (part.kind == "convolution" or differs)
        why = "its shape differs from the base's" if differs else "convolution"
        if not (fits and self._carry(module, why, change)):
            norm = float(self.tuned.read(name).double().norm()) if differs else change
            self._lose(name, self.pairing.skipped[name] if part is not None else self._unknown(module, part), norm)

    def _module(self, name: str) -> tuple[str, Part | None]:
        module = self.names[name].rpartition(".")[0]
        return module, self.skeleton.parts.get(module)

    def _unknown(self, module: str, part: Part | None) -> str:
        if part is None and self.skeleton.architecture:
            return f"transformers' {self.skeleton.architecture} has no {module or 'such parameter'}"
        return "a parameter of its own, no linear layer's weight"

    def _held(self, name: str) -> bool:
        """Whether a module that is carried whole has it."""
        module = self.names[name].rpartition(".")[0]
        return any(module == whole or module.startswith(f"{whole}.") for whole in self.layout.whole)

    def _is_new(self, parameter: str) -> bool:
        """Whether TUNED has a parameter, of its own, that the base has not."""
        return parameter in self.stored and self.stored[parameter] not in self.base_names

    def _tied_to(self, module: str) -> list[str]:
        """Modules whose weight files leave out, since it is that module's."""
        aliases = [alias for alias, kept in self.tied.items() if kept == f"{module}.weight"]
        return [path for path in (alias.rpartition(".")[0] for alias in aliases) if path in self.skeleton.parts]

    def _carry(self, module: str, why: str, change: float) -> bool:
        """Put a module among those carried whole; False where TUNED's files do not have all of it."""
        tensors = tensors_of(module, self.skeleton, self.stored, self.tied)
        if tensors is None:
            return False
        self.layout.whole[module] = Whole(tensors, why, change)
        return True

    def _module_change(self, module: str) -> float:
        tensors = tensors_of(module, self.skeleton, self.stored, self.tied) or {}
        return math.hypot(*map(self._change, tensors.values()))

    def _change(self, name: str) -> float:
        """||dW|| of a stored tensor; NaN where the base has none of its shape."""
        base = self.base_names.get(name)
        if base is None or tuple(self.base.shapes[base]) != tuple(self.tuned.shapes[name]):
            return math.nan
        change = float((self.tuned.read(name).double() - self.base.read(base).double()).norm())
        if not math.isfinite(change):
            rule = "be finite on both sides"
            raise UsageError(must(name, rule, "NaN or infinity", "Check how the model was trained and stored"))
        return change

    def _lose(self, name: str, why: str, change: float | Callable[[], float]) -> None:
        change = change() if callable(change) else change
        if change != 0:
            self.layout.lost.append(Lost(self.names.get(name, name), why, change))


@torch.no_grad()
def _norm(matrix: Matrix) -> float:
    dW: Tensor = matrix.delta().dW
    return float(torch.linalg.vector_norm(dW))
