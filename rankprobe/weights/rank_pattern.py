"""r by matrix: which r a pattern of names gives to each matrix that LoRA adapts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

from rankprobe.errors import UsageError, must
from rankprobe.weights.architecture import WeightSite
from rankprobe.weights.peft_patterns import by_pattern, check_pattern

# Pairs of a key and r, sorted by key, so that equal patterns are equal tuples and give equal run ids.
RankPattern = tuple[tuple[str, int], ...]


def factor_shapes(shape: tuple[int, int], r: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of B (m, r) and A (r, n), which LoRA trains for a matrix of shape (m, n).

    >>> factor_shapes((512, 768), 16)
    ((512, 16), (16, 768))
    """
    m, n = shape
    return (m, r), (r, n)


def canonical_pattern(pattern: Mapping[str, int] | Iterable[Sequence]) -> RankPattern:
    """One spelling for each pattern.

    Parameters
    ----------
    pattern : mapping of str to int, or pairs of the two
        r by key; a key is a matrix's path (:func:`site_path`), or a regular expression for the end of paths, as in
        PEFT's ``rank_pattern``. r = 0 leaves a matrix as it is.

    Raises
    ------
    UsageError
        If it is empty, a key is no regular expression, or an r is no whole number of at least 0.

    Examples
    --------
    >>> canonical_pattern({"value": 2, "query": 0})
    (('query', 0), ('value', 2))
    """
    pairs = list(pattern.items() if isinstance(pattern, Mapping) else pattern)
    if not pairs:
        raise UsageError(must("rank_pattern", "give some matrices an r", "nothing", "Leave it out for one r for all"))
    for key, r in pairs:
        if not isinstance(key, str) or not key:
            raise UsageError(must("keys of rank_pattern", "be names of matrices", repr(key), "Write query, say"))
        check_pattern("keys of rank_pattern", key)
        if isinstance(r, bool) or not isinstance(r, int) or r < 0:
            rule, next_step = "be a whole number of at least 0", "Pass 0 to leave the matrix as it is"
            raise UsageError(must(f"r of {key} in rank_pattern", rule, repr(r), next_step))
    return tuple(sorted((key, int(r)) for key, r in pairs))


def site_path(site: WeightSite) -> str:
    """What a pattern calls a matrix: its module's path, and behind it the kind of a part of a fused matrix.

    ``bert.encoder.layer.0.attention.self.query``, ``transformer.h.0.attn.c_attn.q``.
    """
    return site.module if site.rows is None else f"{site.module}.{site.kind}"


def ranks_by_site(sites: Iterable[WeightSite], r: int, pattern: RankPattern) -> dict[str, int]:
    """r of every matrix, by :attr:`WeightSite.name`.

    Parameters
    ----------
    sites : iterable of WeightSite
        LoRA's targets.
    r : int
        Of the matrices that no key names.
    pattern : RankPattern
        A key that is the path of a matrix counts for it alone, before any that matches it as a regular expression.

    Raises
    ------
    UsageError
        If a key matches no target, two keys match one, or no matrix is left to adapt.
    """
    paths = {site_path(site): site.name for site in sites}
    exact = {key: k for key, k in pattern if key in paths}
    rest = [(key, k) for key, k in pattern if key not in paths]
    used: set[str] = set()
    ranks = {}
    for path, name in paths.items():
        if path in exact:
            ranks[name] = exact[path]
            continue
        found = [(key, k) for key, k in rest if by_pattern({key: True}, path, False)]
        if len(found) > 1:
            got = f"{found[0][0]} and {found[1][0]} for {path}"
            raise UsageError(must("rank_pattern", "name each matrix once", got, "Correct the keys"))
        used.update(key for key, _ in found)
        ranks[name] = found[0][1] if found else r
    # A key may match only what another names in full: it is no mistake then.
    for key, _ in rest:
        if key not in used and not any(by_pattern({key: True}, path, False) for path in exact):
            got = f"{key}, which matches none of {len(paths)}, such as {next(iter(paths), 'none')}"
            raise UsageError(must("keys of rank_pattern", "name matrices among the targets", got, "Correct the key"))
    if not any(ranks.values()):
        raise UsageError(must("rank_pattern", "leave a matrix to adapt", "r = 0 for all", "Give one of them an r"))
    return ranks


def pattern_tag(pattern: Iterable[Sequence]) -> str:
    """Six hex digits that tell one pattern from another in tables.

    >>> pattern_tag((("query", 0), ("value", 2))) == pattern_tag([["query", 0], ["value", 2]])
    True
    """
    return hashlib.sha256(json.dumps([list(pair) for pair in pattern]).encode()).hexdigest()[:6]
