"""The sha256 of a task's rows: what two runs must share before their scores are compared."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence

from rankprobe.tasks.task import Example


def rows_sha256(rows: Iterable[Example], labels: Sequence[str]) -> str:
    """Sha256 of rows in their order, and of what their labels mean.

    Each row is one line of ASCII JSON, ``[row, text, text_b, label]``, after a line with the class names: independent
    of locale, hash seed and of where the rows came from.

    Parameters
    ----------
    rows : iterable of Example
    labels : sequence of str
        Class names; empty for regression and language modelling.

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    The same as ``printf '["no","yes"]\\n["0","a text",null,1]\\n' | sha256sum``:

    >>> rows_sha256([Example("0", "a text", None, 1)], ("no", "yes"))[:8]
    'b30de61c'
    """
    digest = hashlib.sha256(_line(list(labels)))
    for example in rows:
        digest.update(_line([example.row, example.text, example.text_b, example.label]))
    return digest.hexdigest()


def combined_sha256(*digests: str) -> str:
    """Sha256 of several hexadecimal digests in their order: of a task's splits."""
    return hashlib.sha256("\n".join(digests).encode("ascii")).hexdigest()


def pinned_name(name: str, sha256: str, pinned_sha256: str, versions: Mapping[str, str], *, stacklevel: int = 3) -> str:
    """The name of a set made of installed packages: ``docgen``, or ``docgen@1a2b3c4d`` where its rows are others.

    Parameters
    ----------
    name, sha256, pinned_sha256 : str
    versions : mapping of str to str
        The packages that the set is made of, to the versions that it is pinned for.
    stacklevel : int
        As for :func:`warnings.warn`, from here.

    Warns
    -----
    UserWarning
        If the rows are not the pinned ones: which packages are of another version.
    """
    if sha256 == pinned_sha256:
        return name
    other = [f"{package} {_version(package)} (pinned: {pinned})" for package, pinned in versions.items()
             if _version(package) != pinned]
    why = ", ".join(other) or "the versions are the pinned ones, the files are not"
    warnings.warn(f"{name} is made of other rows here than the pinned set and is named {name}@{sha256[:8]}: {why}. "
                  "Scores on the two cannot be compared. Install with -c constraints.txt to get the pinned set.",
                  stacklevel=stacklevel)
    return f"{name}@{sha256[:8]}"


def _version(package: str) -> str:
    """Installed version without a build's suffix, ``2.13.0`` for ``2.13.0+cpu``."""
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _line(values: list) -> bytes:
    return json.dumps(values, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"
