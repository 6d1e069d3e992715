"""Two sides of a fine-tuning, matched matrix by matrix: two checkpoints, or an adapter with its base or without."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rankprobe.errors import UsageError, must
from rankprobe.weights.architecture import layer_of
from rankprobe.weights.factors import AdapterSource
from rankprobe.weights.matching import Matching, match
from rankprobe.weights.pair_adapter import pair_adapter
from rankprobe.weights.pair_tensors import Found, pair_tensors
from rankprobe.weights.pairing import Matrix, Pairing, Vector

if TYPE_CHECKING:
    from rankprobe.weights.checkpoint import Checkpoint

__all__ = ["Matrix", "NameFilter", "Pairing", "Vector", "pair"]

_TASK_HEAD = re.compile(r"(^|\.)(classifier|pre_classifier|score|qa_outputs|classification_head|logits_proj|summary)\.")
# What a base has from pretraining and loses when a task head takes its place.
_PRETRAINING_HEAD = re.compile(r"(^|\.)(lm_head|cls|pooler|embed_out|(generator_|discriminator_)?predictions|"
                               r"vocab_(transform|layer_norm|projector))\.")  # fmt: skip
_FEW = 0.1  # of the smaller side's block matrices: with fewer in common the two are different architectures
_MOST = 0.9  # of them: with fewer two model_types are not two names for one architecture, as Llama's and Mistral's are


def pair(
    base: Checkpoint | None,
    tuned: Checkpoint | AdapterSource,
    *,
    include: str | None = None,
    exclude: str | None = None,
    fused: bool = False,
) -> Pairing:
    """Match two sides of a fine-tuning; looks at names, shapes and dtypes, and at B where an adapter's is fused.

    Parameters
    ----------
    base : Checkpoint or None
        None only for an adapter.
    tuned : Checkpoint or AdapterSource
    include, exclude : str, optional
        Regular expressions searched in names. What the first does not match, or the second matches, is left out of
        everything.
    fused : bool
        Keep a fused matrix (c_attn, query_key_value, qkv_proj, gate_up_proj) as one Matrix.

    Returns
    -------
    Pairing

    Raises
    ------
    UsageError
        If the two are swapped, of different architecture or size, or an adapter is for another base; or if include or
        exclude is no regular expression or matches nothing.
    """
    if isinstance(base, AdapterSource):
        both = isinstance(tuned, AdapterSource)
        next_step = "Pass the model that TUNED was trained from" if both else "Swap the two: the base comes first"
        raise UsageError(must("BASE", "be a whole model", f"the adapter {base.label}", next_step))
    if base is None and not isinstance(tuned, AdapterSource):
        got = f"the whole model {tuned.label} alone"
        raise UsageError(must("TUNED", "be an adapter or come with its base", got, "Pass BASE and TUNED"))
    keep, found = NameFilter(include, exclude), Found()
    if isinstance(tuned, AdapterSource):
        matching, saved = pair_adapter(base, tuned, found, fused=fused, keep=keep)
    else:
        matching, saved = _pair_models(base, tuned, found, fused=fused, keep=keep), []
    notes = _notes(base, tuned, matching, found)
    pairing = Pairing(
        [matrix for matrix in found.matrices if keep(matrix.name)],
        [name for name in matching.only_base if keep(name)],
        [name for name in matching.only_tuned if keep(name)],
        {name: added for name, added in found.added_rows.items() if keep(name)},
        {name: reason for name, reason in found.skipped.items() if keep(name)},
        [name for name in saved if keep(name)],
        notes,
        base,
        tuned,
        matching.renamed,
        {name: read for name, read in found.vectors.items() if keep(name)},
    )
    keep.check(bool(pairing.matrices or pairing.vector_readers))
    if not isinstance(tuned, AdapterSource):
        _check_heads(base, tuned, pairing)
    if not pairing.matrices and not pairing.vector_readers:
        got = f"none in {tuned.label}"
        raise UsageError(must("BASE and TUNED", "have matrices or vectors in common", got, "Pass two models"))
    return pairing


class NameFilter:
    """Which names --include and --exclude keep, and whether --exclude ever matched."""

    def __init__(self, include: str | None, exclude: str | None) -> None:
        self.include, self.exclude = _regex("include", include), _regex("exclude", exclude)
        self.excluded = False

    def __call__(self, name: str) -> bool:
        if self.exclude is not None and self.exclude.search(name):
            self.excluded = True
            return False
        return self.include is None or self.include.search(name) is not None

    def check(self, anything: bool) -> None:
        """Refuse expressions that match nothing, or leave nothing."""
        if self.exclude is not None and not self.excluded:
            got = f"{self.exclude.pattern!r}, which matches none"
            raise UsageError(must("exclude", "match a parameter's name", got, "Correct the expression"))
        if not anything and (self.include is not None or self.exclude is not None):
            given = {"include": self.include, "exclude": self.exclude}
            got = " and ".join(f"{name} {of.pattern!r}" for name, of in given.items() if of is not None)
            raise UsageError(must("include and exclude", "leave a matrix or a vector", got, "Correct the expression"))


def _regex(option: str, pattern: str | None) -> re.Pattern | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        got = f"{pattern!r} ({error})"
        raise UsageError(must(option, "be a regular expression", got, "Correct the expression")) from None


def _pair_models(base: Checkpoint, tuned: Checkpoint, found: Found, *, fused: bool, keep: NameFilter) -> Matching:
    for side, role in ((base, "BASE"), (tuned, "TUNED")):
        factor = next((name for name in side.shapes if ".lora_A" in name), None)
        if factor is not None:
            next_step = "Save the adapter alone (save_pretrained) and pass its folder, or merge it first"
            got = f"both in {side.label} ({factor})"
            raise UsageError(must(role, "be a whole model or an adapter", got, next_step))
    matching = match(base.shapes, tuned.shapes, base_tied=base.tied, tuned_tied=tuned.tied)
    _check_architecture(base, tuned, matching)
    pair_tensors(matching.pairs, base, tuned, tuned.config or base.config, found, fused=fused, keep=keep)
    return matching


def _check_architecture(base: Checkpoint, tuned: Checkpoint, matching: Matching) -> None:
    """Refuse two models of which hardly any block matrix has the other's name."""
    blocks = [sum(_in_block(name, shape) for name, shape in side.shapes.items()) for side in (base, tuned)]
    common = sum(_in_block(t, tuned.shapes[t]) and _in_block(b, base.shapes[b]) for b, t in matching.pairs)
    types = {str(side.config["model_type"]) for side in (base, tuned) if side.config.get("model_type")}
    share = _FEW if len(types) < 2 else _MOST
    if common < share * min(blocks) or (common == 0 and max(blocks) > 0) or not matching.pairs:
        names = [f"{side.label} ({side.config.get('model_type') or 'model_type unknown'})" for side in (base, tuned)]
        got = f"{names[0]} and {names[1]} with {common} block matrices in common"
        next_step = "Pass the model that TUNED was trained from"
        raise UsageError(must("BASE and TUNED", "be of one architecture", got, next_step))


def _in_block(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and layer_of(name) is not None


def _check_heads(base: Checkpoint, tuned: Checkpoint, pairing: Pairing) -> None:
    """Fine-tuning adds a task head; where the base alone has one, the two were probably swapped."""
    heads = [name for name in pairing.only_base if _TASK_HEAD.search(name)]
    if heads and all(_PRETRAINING_HEAD.search(name) for name in pairing.only_tuned):
        head = _TASK_HEAD.search(heads[0])[2]
        got = f"{heads[0]} in {base.label} alone"
        next_step = f"Swap the two, or leave it out with --exclude '{head}' where BASE was tuned before"
        raise UsageError(must("BASE", "have no task head that TUNED lacks", got, next_step))


def _notes(base: Checkpoint | None, tuned: Checkpoint | AdapterSource, matching: Matching, found: Found) -> list[str]:
    notes = [*getattr(tuned, "notes", ()), *found.notes]
    if any(matching.renamed):
        took = [f"{prefix!r} off {side}" for prefix, side in zip(matching.renamed, ("BASE", "TUNED"), strict=True)
                if prefix]
        notes.append(f"Names matched after taking {' and '.join(took)}")
    notes += matching.notes
    reasons: dict[str, list[str]] = {}
    for name, why in found.whole.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        count = f"{len(names)} fused matrices such as {names[0]} stay" if len(names) > 1 else f"{names[0]} stays"
        notes.append(f"{count} whole: {why}")
    if base is not None and base.fingerprint and base.fingerprint == tuned.fingerprint:
        notes.append(f"BASE and TUNED are the same files ({base.label})")
    return notes
