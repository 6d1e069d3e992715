"""The sha256 of a task's rows: what two runs must share before their scores are compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

from rankprobe.tasks.task import Example


def rows_sha256(rows: Iterable[Example], labels: Sequence[str]) -> str:
    """Sha256 of rows in their order, and of what their labels mean.

    Each row is one line of ASCII JSON, ``[row, text, text_b, label]``, after a line with the class names: independent
    of locale, hash seed and of where the rows came from.

    Parameters
    ----------
    rows : iterable of Example
    labels : sequence of str
        Class names; empty for regression.

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


def _line(values: list) -> bytes:
    return json.dumps(values, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"
