"""``docgen``: say what a function does, from its name and arguments. A language model's task, made offline."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rankprobe.tasks.docstrings import PACKAGES as DOCMATCH_PACKAGES
from rankprobe.tasks.docstrings import PINNED_VERSIONS, SPLITS, split_of
from rankprobe.tasks.fingerprint import combined_sha256, pinned_name, rows_sha256
from rankprobe.tasks.sources import DocumentedFunction, Progress, documented_functions
from rankprobe.tasks.task import Example

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "docgen": DOCMATCH_PACKAGES["docmatch"],
    "docgen-smoke": DOCMATCH_PACKAGES["docmatch-smoke"],
}
PINNED_SHA256: Mapping[str, str] = {
    "docgen": "8b5beb09ea4334576674a246d9a4121acf3b23b1d0e252f94fc5d0bc20d7ab13",
    "docgen-smoke": "2c3a74482c38f2af3dc577199ee60e70055825561c7b68bd1b1fe1426aa8cd02",
}


class DocgenSet(NamedTuple):
    """Every row of a docgen set.

    Attributes
    ----------
    name : str
        ``docgen``, or ``docgen@1a2b3c4d`` where the rows are not the pinned ones.
    splits : mapping of str to tuple of Example
        ``train``, ``tuning`` and ``eval``; no two share a module, or a docstring.
    sha256 : str
        Of all rows.
    n_skipped : int
        Source files that did not parse.
    """

    name: str
    splits: Mapping[str, tuple[Example, ...]]
    sha256: str
    n_skipped: int


def docgen(
    name: str = "docgen",
    *,
    packages: Sequence[str] | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> DocgenSet:
    """Build a docgen set from the sources of installed packages, importing none of them.

    The prompt is a function's qualified name in words with up to five argument names and a colon, as in ``Linear Model
    fit (X, y, sample weight):``, and the completion a space and its docstring's first paragraph.

    Parameters
    ----------
    name : str
        ``docgen``, or ``docgen-smoke``: click, networkx and seaborn only.
    packages : sequence of str, optional
        Other packages than the name's; such a set is never the pinned one.
    cache_dir, progress
        As for :func:`rankprobe.tasks.docstrings.docmatch`, with which the cache is shared.

    Returns
    -------
    DocgenSet

    Raises
    ------
    UsageError
        If a package is not installed.

    Warns
    -----
    UserWarning
        If the rows are not the pinned ones: other versions of the packages.
    """
    found: list[DocumentedFunction] = []
    n_skipped = 0
    for package in PACKAGES[name] if packages is None else packages:
        pin = f"{package}=={PINNED_VERSIONS[package]}" if package in PINNED_VERSIONS else package
        functions, skipped = documented_functions(package, cache_dir=cache_dir, progress=progress, pip_name=pin)
        found.extend(functions)
        n_skipped += skipped
    splits = make_rows(found)
    sha256 = combined_sha256(*(rows_sha256(splits[split], ()) for split in SPLITS))
    if packages is None:
        versions = {package: PINNED_VERSIONS[package] for package in PACKAGES[name]}
        name = pinned_name(name, sha256, PINNED_SHA256[name], versions)
    else:
        name = f"{name}@{sha256[:8]}"
    return DocgenSet(name, splits, sha256, n_skipped)


def make_rows(functions: Sequence[DocumentedFunction]) -> dict[str, tuple[Example, ...]]:
    """A row a function, split by module as docmatch's are.

    Parameters
    ----------
    functions : sequence of DocumentedFunction
        The first function with a docstring keeps it; later ones with the same text are left out: none that was trained
        on is asked for again.

    Returns
    -------
    dict of str to tuple of Example
        ``train``, ``tuning`` and ``eval``, each ordered by the sha256 of the rows' names, so that the first N are a
        sample that stays the same as N grows.

    Notes
    -----
    docmatch leaves out the only function of a module, which it cannot pair with another; here it is a row.
    """
    first_with: dict[str, DocumentedFunction] = {}
    for function in functions:
        first_with.setdefault(function.docstring, function)
    rows: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for function in sorted(first_with.values(), key=_digest):
        row = Example(function.name, f"{function.text}:", f" {function.docstring}", 0)
        rows[split_of(function.module)].append(row)
    return {split: tuple(examples) for split, examples in rows.items()}


def _digest(function: DocumentedFunction) -> bytes:
    return hashlib.sha256(function.name.encode("utf-8")).digest()
