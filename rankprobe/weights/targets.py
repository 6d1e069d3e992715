"""Which matrices a target string names: short names (``q,v``, ``all``) or a regular expression on module paths."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from rankprobe.errors import UsageError, must
from rankprobe.weights.architecture import BLOCK_KINDS, WeightSite, block_sites, why_whole
from rankprobe.weights.fused import FUSED_KINDS, PARTS


def parse_targets(targets: str) -> tuple[str, ...] | None:
    """Short kind names in a target string, in the order of :data:`BLOCK_KINDS`; None where it is a regex.

    >>> parse_targets("v,q"), parse_targets("qkvo"), parse_targets("all")[-1], parse_targets("query|value")
    (('q', 'v'), ('q', 'k', 'v', 'o'), 'gate', None)
    """
    text = targets.strip()
    names = {"all": set(BLOCK_KINDS)}.get(text) or {part.strip() for part in text.split(",")}
    if not names <= set(BLOCK_KINDS) and set(text) <= set("qkvo"):
        names = set(text)
    return tuple(k for k in BLOCK_KINDS if k in names) if names <= set(BLOCK_KINDS) else None


def canonical_targets(targets: str) -> str:
    """One spelling for each choice of targets, so that equal choices give equal run ids.

    >>> canonical_targets("v, q")
    'q,v'
    """
    kinds = parse_targets(targets)
    # "all" stays: which kinds that is depends on the model (Llama has a gate, BERT has none).
    return targets.strip() if kinds is None or targets.strip() == "all" else ",".join(kinds)


def target_choices(text: str) -> tuple[str, ...]:
    """Several choices of targets in one text, by commas between groups of kinds; a text without such is one choice.

    >>> target_choices("qv,qkvo"), target_choices("q,v"), target_choices("layer.[01].*query")
    (('qv', 'qkvo'), ('q,v',), ('layer.[01].*query',))
    """
    parts = [part.strip() for part in text.split(",")]
    kinds = [parse_targets(part) for part in parts]
    groups = None not in kinds and any(len(of) > 1 for of in kinds)
    return tuple(parts) if groups else (text,)


def target_sites(
    shapes: Mapping[str, Iterable[int]], targets: str, *, config: Mapping | None = None
) -> list[WeightSite]:
    """The sites that a target string names.

    Parameters
    ----------
    shapes : mapping of str to shape
        The model's parameters.
    targets : str
        Short names (``q,v``, ``qkvo``, ``all``) or a regular expression searched for in module paths. A short name
        takes its part of a fused matrix, a regex takes a fused matrix whole, as PEFT does. ``all`` takes whole those
        fused matrices whose parts are not known.
    config : mapping, optional
        config.json, from :func:`model_config`: some fused matrices are told apart by it alone.

    Raises
    ------
    UsageError
        If a short name or the regex matches nothing, or the regex does not compile.
    """
    if not targets.strip():
        raise UsageError(must("targets", "name something", repr(targets), "Pass q,v, say"))
    kinds = parse_targets(targets)
    if kinds is not None:
        sites = block_sites(shapes, config=config)
        there = {s.kind for s in sites}
        if targets.strip() == "all":
            kinds, missing = (*BLOCK_KINDS, *FUSED_KINDS), [] if there & {*BLOCK_KINDS, *FUSED_KINDS} else ["all"]
        else:
            missing = [k for k in kinds if k not in there]
        if missing:
            has = ", ".join(k for k in BLOCK_KINDS if k in there) or "none of them"
            fused = (s for s in sites if set(PARTS.get(s.kind, ())) & set(missing))
            reason = next((why for s in fused if (why := why_whole(s, config))), None)
            got = ",".join(missing) + (f" of a fused matrix: {reason}" if reason else "")
            next_step = "Pass some of those or a regular expression on module paths"
            raise UsageError(must("targets", f"name matrices that the model has ({has})", got, next_step))
        return [s for s in sites if s.kind in kinds]
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise UsageError(
            must(
                "targets",
                "be short names (q k v o up down gate) or a regular expression",
                f"{targets!r} ({error})",
                "Correct the expression",
            )
        ) from None
    inside = block_sites(shapes, fused=True, config=config)
    sites = [s for s in inside if pattern.search(s.module)]
    if not sites:
        modules = sorted({re.sub(r"\.\d+\.", ".N.", s.module) for s in inside})
        leaves = dict.fromkeys(module.rpartition(".")[2] for module in modules)
        near = difflib.get_close_matches(targets, [*leaves, *modules, *BLOCK_KINDS], n=1, cutoff=0.3)
        hint = f"Did you mean {near[0]!r}?" if near else "Pass q,v, say"
        raise UsageError(
            must("targets", f"match a linear weight of the model ({', '.join(modules[:8])})", repr(targets), hint)
        )
    return sites
