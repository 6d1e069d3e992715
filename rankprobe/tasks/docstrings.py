"""``docmatch``: does this docstring describe this function? A real task made from installed packages, offline."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from rankprobe.tasks.fingerprint import combined_sha256, pinned_name, rows_sha256
from rankprobe.tasks.sources import DocumentedFunction, Progress, documented_functions
from rankprobe.tasks.task import Example

LABELS = ("no", "yes")
METRICS = ("accuracy",)
SPLITS = ("train", "tuning", "eval")
# Upper ends of the splits' shares of the modules.
_TRAIN_END, _TUNING_END = 0.7, 0.8

# The packages whose sources the pinned sets are made of, in the order in which they keep a docstring that several
# have; the versions are those of constraints.txt.
PINNED_VERSIONS: Mapping[str, str] = {
    "numpy": "2.4.6",
    "scipy": "1.17.1",
    "pandas": "3.1.1",
    "torch": "2.13.0",
    "matplotlib": "3.11.2",
    "seaborn": "0.13.2",
    "click": "8.5.1",
    "networkx": "3.6.1",
    "sympy": "1.14.0",
    "transformers": "5.23.0",
}
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "docmatch": tuple(PINNED_VERSIONS),
    "docmatch-smoke": ("click", "networkx", "seaborn"),
}
PINNED_SHA256: Mapping[str, str] = {
    "docmatch": "ebf9f778e6ade0b1134e9d82985e6bd36f4930e16885a2160cdfa275b41f34b1",
    "docmatch-smoke": "a90375de8f3b5d71229d6d5deecd1bb60a78d9dcd50fe41aeb871756f7e338cb",
}


@dataclass(frozen=True)
class DocmatchSet:
    """Every row of a docmatch set.

    Attributes
    ----------
    name : str
        ``docmatch``, or ``docmatch@1a2b3c4d`` where the rows are not the pinned ones.
    splits : mapping of str to tuple of Example
        ``train``, ``tuning`` and ``eval``; no two share a module. ``label`` 1: the docstring is the function's own.
    sha256 : str
        Of all rows.
    n_functions : int
        Rows in all; one a function.
    n_skipped : int
        Source files that did not parse.
    """

    name: str
    splits: Mapping[str, tuple[Example, ...]]
    sha256: str
    n_functions: int
    n_skipped: int


def docmatch(
    name: str = "docmatch",
    *,
    packages: Sequence[str] | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> DocmatchSet:
    """Build a docmatch set from the sources of installed packages, importing none of them.

    Text A is a function's qualified name in words with up to five argument names, text B a docstring's first
    paragraph. Half of the functions keep their own docstring; the others get that of another function of the same
    module. Every choice is a sha256 of names, so that a package's new version leaves the other packages' rows alone,
    except where it adds a docstring that a later package has too, or drops one: each text is used for one function.

    Parameters
    ----------
    name : str
        ``docmatch``, or ``docmatch-smoke``: click, networkx and seaborn only.
    packages : sequence of str, optional
        Other packages than the name's; such a set is never the pinned one.
    cache_dir : Path, optional
        As for :func:`rankprobe.tasks.sources.documented_functions`.
    progress : callable, optional
        Called with (package, files done, files in all) while sources are parsed; not where all is cached.

    Returns
    -------
    DocmatchSet

    Raises
    ------
    UsageError
        If a package is not installed.

    Warns
    -----
    UserWarning
        If the rows are not the pinned ones: other versions of the packages.

    Notes
    -----
    The only function of a module could not be paired with another and would always be labelled yes: it is left out.
    """
    found: list[DocumentedFunction] = []
    n_skipped = 0
    for package in PACKAGES[name] if packages is None else packages:
        pin = f"{package}=={PINNED_VERSIONS[package]}" if package in PINNED_VERSIONS else package
        functions, skipped = documented_functions(package, cache_dir=cache_dir, progress=progress, pip_name=pin)
        found.extend(functions)
        n_skipped += skipped
    splits, sha256 = _paired(tuple(found))
    if packages is None:
        versions = {package: PINNED_VERSIONS[package] for package in PACKAGES[name]}
        name = pinned_name(name, sha256, PINNED_SHA256[name], versions)
    else:
        name = f"{name}@{sha256[:8]}"
    return DocmatchSet(name, splits, sha256, sum(map(len, splits.values())), n_skipped)


@lru_cache(maxsize=2)
def _paired(functions: tuple[DocumentedFunction, ...]) -> tuple[Mapping[str, tuple[Example, ...]], str]:
    """The rows of these functions and their sha256, kept: each study of a command asks for the same again."""
    splits = make_pairs(functions)
    return MappingProxyType(splits), combined_sha256(*(rows_sha256(splits[split], LABELS) for split in SPLITS))


def make_pairs(functions: Sequence[DocumentedFunction]) -> dict[str, tuple[Example, ...]]:
    """Pair functions with docstrings, and split by module.

    Parameters
    ----------
    functions : sequence of DocumentedFunction
        The first function with a docstring keeps it; later ones with the same text are left out.

    Returns
    -------
    dict of str to tuple of Example
        ``train`` (about 70 % of the modules), ``tuning`` (10 %) and ``eval`` (20 %). Rows are ordered by the sha256 of
        their name, so that the first N of a split are a sample of it that stays the same as N grows.
    """
    first_with: dict[str, DocumentedFunction] = {}
    for function in functions:
        first_with.setdefault(function.docstring, function)
    modules: dict[str, list[DocumentedFunction]] = {}
    for function in first_with.values():
        modules.setdefault(function.module, []).append(function)
    rows: dict[str, list[tuple[bytes, Example]]] = {split: [] for split in SPLITS}
    for module, members in modules.items():
        if len(members) < 2:
            continue
        split = rows[split_of(module)]
        named = [(function, function.name.encode("utf-8")) for function in members]
        for function in members:
            digest = hashlib.sha256(function.name.encode("utf-8")).digest()
            # The last bit: rows are ordered by the first ones.
            label = digest[-1] & 1
            source = function if label else _partner(function, named)
            split.append((digest, Example(function.name, function.text, source.docstring, label)))
    return {split: tuple(example for _, example in sorted(pairs, key=_digest)) for split, pairs in rows.items()}


def split_of(module: str) -> str:
    """``train``, ``tuning`` or ``eval``, from the first 8 bytes of the sha256 of a module's dotted name.

    >>> split_of("numpy.linalg._linalg"), split_of("click.core")
    ('train', 'eval')
    """
    share = int.from_bytes(hashlib.sha256(module.encode("utf-8")).digest()[:8], "big") / 2**64
    return "train" if share < _TRAIN_END else "tuning" if share < _TUNING_END else "eval"


def _partner(
    function: DocumentedFunction, named: Sequence[tuple[DocumentedFunction, bytes]]
) -> DocumentedFunction:
    """The other function of the module, all given with their names, that minimises sha256(function + NUL + other)."""
    docstring, start = function.docstring, hashlib.sha256(function.name.encode("utf-8") + b"\0")
    best, least = None, b"\xff" * 33
    # Half a million pairs: a key function for min() would be a third of all the time.
    for other, name in named:
        digest = start.copy()
        digest.update(name)
        found = digest.digest()
        if found < least and other.docstring != docstring:
            best, least = other, found
    return best


def _digest(pair: tuple[bytes, Example]) -> bytes:
    return pair[0]
