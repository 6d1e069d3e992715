"""Pair parameters that both sides hold whole: which are compared, row by row or in common rows, and which are not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from rankprobe.errors import UsageError, must
from rankprobe.weights.architecture import WeightSite, kind_of, layer_of, weight_sites, why_whole
from rankprobe.weights.differences import Side, dense_delta, vector_change
from rankprobe.weights.pairing import Matrix, Vector

# A row a token: a longer vocabulary adds rows and leaves the others where they were.
_ROW_A_TOKEN = re.compile(
    r"(^|\.)(lm_head|embed_out|output_projection|vocab_projector|generator_lm_head|predictions|"
    r"(predictions|lm_head|generator_predictions)\.decoder)\.(weight|bias)$|(^|\.)final_logits_bias$"
)
# Not the 8-bit ones, which quantised weights are stored as.
_WHOLE_NUMBERS = ("bool", "int16", "int32", "int64", "uint16", "uint32", "uint64")
_NOT_A_MATRIX = {
    0: "a single number (0-d)",
    3: "a stack of matrices or a convolution (3-d)",
    4: "a convolution (4-d)",
}


@dataclass
class Found:
    """What pairing gathers before names are filtered."""

    matrices: list[Matrix] = field(default_factory=list)
    vectors: dict[str, Callable[[], Vector]] = field(default_factory=dict)
    added_rows: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)  # fused matrices that stay whole: name -> why
    notes: list[str] = field(default_factory=list)


def pair_tensors(
    pairs: Iterable[tuple[str, str]],
    base: Side,
    tuned: Side,
    config: Mapping,
    found: Found,
    *,
    fused: bool,
    keep: Callable[[str], bool],
) -> None:
    """Add every matched pair of whole tensors to what was found.

    Parameters
    ----------
    pairs : iterable of (str, str)
        (base's name, tuned's name).
    base, tuned : Side
    config : mapping
        config.json of either side.
    found : Found
        Added to, in place.
    fused : bool
        Whether fused matrices stay whole.
    keep : callable
        Whether a name is asked for: shapes that differ matter only there.

    Raises
    ------
    UsageError
        If a block's matrix has another shape on the other side.
    """
    pairs = list(pairs)
    sites: dict[str, list[WeightSite]] = {}
    for site in weight_sites({t: tuned.shapes[t] for _, t in pairs}, fused=fused, config=config):
        sites.setdefault(site.parameter, []).append(site)
    for b, t in pairs:
        before, after = tuple(base.shapes[b]), tuple(tuned.shapes[t])
        reason = _not_compared(before, after, base.dtypes[b], tuned.dtypes[t])
        if reason is not None:
            found.skipped[t] = reason
            continue
        if before != after and not _row_a_token(t, before, after):
            differ = f"{before} in {base.label}, {after} in {tuned.label}"
            if len(after) == 2 and layer_of(t) is not None and keep(t):
                next_step = "Pass the model that TUNED was trained from"
                raise UsageError(must(t, "have one shape on both sides", differ, next_step))
            found.skipped[t] = f"its shapes differ: {differ}"
            continue
        if before != after:
            found.added_rows[t] = after[0] - before[0]
        if len(after) == 1 or (1 in after and t not in sites):
            found.vectors[t] = partial(vector_change, base, tuned, b, t)
            continue
        for site in sites.get(t) or [WeightSite(t, layer_of(t), "other", after)]:
            if before != after:
                site = replace(site, shape=(min(before[0], after[0]), after[1]))
            why = None if fused else why_whole(site, config)
            if why is not None:
                found.whole[site.name] = why
            read = partial(dense_delta, base, tuned, b, site, site.name)
            found.matrices.append(
                Matrix(site.name, site.layer, site.kind, site.shape, t, site.transposed, "dense", read)
            )


def _not_compared(before: tuple, after: tuple, dtype_base: str, dtype_tuned: str) -> str | None:
    for dtype in (dtype_base, dtype_tuned):
        if dtype in _WHOLE_NUMBERS:
            return f"whole numbers ({dtype})"
    if 0 in before + after:
        return "empty"
    if len(after) in (1, 2) and len(before) in (1, 2):
        return None
    dims = len(after) if len(after) not in (1, 2) else len(before)
    return _NOT_A_MATRIX.get(dims, f"no matrix ({dims}-d)")


def _row_a_token(name: str, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether shapes differ in the number of tokens or positions alone."""
    if len(before) != len(after) or (len(after) == 2 and before[1] != after[1]):
        return False
    return bool(_ROW_A_TOKEN.search(name)) or (len(after) == 2 and kind_of(name.removesuffix(".weight")) == "embed")
