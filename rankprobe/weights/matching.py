"""Which parameter of one model is which of another: equal names, once what wraps one of the two is taken off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rankprobe.weights.names import modern, without_inner_wrappers

_DEPTH = 3  # path components that a wrapper may have: `base_model.model.`, `_orig_mod.module.`, `model.language_model.`
_SHARE = 0.1  # of a side's names that a prefix has to begin, to be worth trying


@dataclass(frozen=True)
class Matching:
    """Names of two sides, matched.

    Attributes
    ----------
    pairs : list of (str, str)
        (base's name, tuned's name), each as it is stored, in the tuned side's order.
    only_base, only_tuned : list of str
    renamed : (str, str)
        The prefixes taken off the base's and the tuned side's names.
    notes : list of str
        One line each, for people.
    """

    pairs: list[tuple[str, str]]
    only_base: list[str]
    only_tuned: list[str]
    renamed: tuple[str, str]
    notes: list[str] = field(default_factory=list)


def match(
    base: Mapping[str, tuple[int, ...]],
    tuned: Mapping[str, tuple[int, ...]],
    *,
    base_tied: Mapping[str, str] | None = None,
    tuned_tied: Mapping[str, str] | None = None,
) -> Matching:
    """Match two sides' parameters by name.

    Parameters
    ----------
    base, tuned : mapping of str to shape
        Tied parameters once. A shape and its transpose count as equal.
    base_tied, tuned_tied : mapping of str to str, optional
        Names left out to the ones kept.

    Returns
    -------
    Matching
        With the prefixes that give the most common names of equal shape; none taken off where that does as well.

    Examples
    --------
    >>> found = match({"encoder.w": (2, 2)}, {"bert.encoder.w": (2, 2), "head.w": (3, 2)})
    >>> found.pairs, found.only_tuned, found.renamed
    ([('encoder.w', 'bert.encoder.w')], ['head.w'], ('', 'bert.'))
    """
    base_tied, tuned_tied = base_tied or {}, tuned_tied or {}
    renamed = _best_prefixes({**base, **{alias: base[kept] for alias, kept in base_tied.items() if kept in base}},
                             {**tuned, **{alias: tuned[kept] for alias, kept in tuned_tied.items() if kept in tuned}})
    in_base = {_plain(alias, renamed[0]): kept for alias, kept in base_tied.items()}
    in_base |= {_plain(name, renamed[0]): name for name in base}
    aliases: dict[str, list[str]] = {}
    for alias, kept in tuned_tied.items():
        aliases.setdefault(kept, []).append(alias)
    pairs, only_tuned, notes = [], [], []
    for name in tuned:
        names = (name, *aliases.get(name, ()))
        found = [in_base[plain] for plain in (_plain(n, renamed[1]) for n in names) if plain in in_base]
        if not found:
            only_tuned.append(name)
            continue
        pairs.append((found[0], name))
        for other in dict.fromkeys(found[1:]):
            if other != found[0]:
                notes.append(f"{other} is a matrix of its own in the base and tied to {name} in the tuned model: "
                             "its change is not measured")
    kept_once: dict[str, str] = {}
    for b, t in pairs:
        if b in kept_once:
            notes.append(f"{t} and {kept_once[b]} are tied in the base and not in the tuned model: "
                         f"both are compared with {b}")
        kept_once[b] = t
    reached = kept_once.keys() | {in_base.get(_plain(alias, renamed[1])) for alias in tuned_tied}
    return Matching(pairs, [name for name in base if name not in reached], only_tuned, renamed, notes)


def _best_prefixes(base: Mapping[str, tuple], tuned: Mapping[str, tuple]) -> tuple[str, str]:
    sides = []
    for shapes in (base, tuned):
        options = {}
        for prefix in _prefixes(shapes):
            plain = {_plain(name, prefix): tuple(sorted(shape)) for name, shape in shapes.items()}
            if len(plain) == len(shapes):  # else two names would become one
                options[prefix] = plain
        sides.append(options)
    best, best_score = ("", ""), None
    for of_base, base_plain in sides[0].items():
        for of_tuned, tuned_plain in sides[1].items():
            common = base_plain.keys() & tuned_plain.keys()
            equal = sum(base_plain[name] == tuned_plain[name] for name in common)
            score = (equal, len(common), -len(of_base) - len(of_tuned))
            if best_score is None or score > best_score:
                best, best_score = (of_base, of_tuned), score
    return best


def _prefixes(names: Iterable[str]) -> list[str]:
    """Beginnings that many names share, and none at all: words before the first number, with their dots."""
    counts: dict[str, int] = {"": 0}
    total = 0
    for name in names:
        total += 1
        words = name.split(".")[:-1]
        for depth in range(1, min(_DEPTH, len(words)) + 1):
            if words[depth - 1].isdigit():
                break
            prefix = ".".join(words[:depth]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    return [prefix for prefix, count in counts.items() if not prefix or count >= _SHARE * total]


def _plain(name: str, prefix: str) -> str:
    return modern(without_inner_wrappers(name.removeprefix(prefix)))
