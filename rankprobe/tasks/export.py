"""A task's rows as TSV files, which the task ``files`` reads back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rankprobe.errors import UsageError, must
from rankprobe.tasks.task import Example

_NAMES = frozenset({"train.tsv", "tuning.tsv", "eval.tsv"})
# A file being written; one may be left where the machine stopped.
_PART = ".part"


def write_tsv(folder: Path, splits: Mapping[str, Sequence[Example]], labels: Sequence[str] | None) -> list[Path]:
    """Write one TSV file a split: row, label, text and, where rows have one, text_b; UTF-8, quotes as they are.

    Parameters
    ----------
    folder : Path
        Made if missing; files that an earlier call wrote there are replaced, and those of splits not given removed.
    splits : mapping of str to sequence of Example
        ``train``, ``tuning`` or ``eval`` to rows.
    labels : sequence of str or None
        Class names to write for class ids; empty for scores; None in language modelling, for no label column.

    Returns
    -------
    list of Path
        The files, in the order of ``splits``.

    Raises
    ------
    UsageError
        If the folder holds other files, or a text has a tab or a line break, which TSV cannot hold.
    """
    tables = {f"{split}.tsv": _table(split, rows, labels) for split, rows in splits.items()}
    if folder.exists() and not folder.is_dir():
        raise UsageError(must("--out", "be a folder", f"the file {folder}", "Choose another name"))
    folder.mkdir(parents=True, exist_ok=True)
    if other := sorted(path.name for path in folder.iterdir() if path.name.removesuffix(_PART) not in _NAMES):
        got = f"{folder} with {', '.join(other[:3])}{', ...' if len(other) > 3 else ''}"
        raise UsageError(must("--out", "be a new folder, or one with rows written earlier", got, "Choose another"))
    written = []
    for name, table in tables.items():
        part = folder / f"{name}{_PART}"
        try:
            part.write_text(table, encoding="utf-8", newline="\n")
            os.replace(part, folder / name)
        finally:
            part.unlink(missing_ok=True)
        written.append(folder / name)
    for name in _NAMES - set(tables):
        (folder / name).unlink(missing_ok=True)
    return written


def _table(split: str, rows: Sequence[Example], labels: Sequence[str] | None) -> str:
    pairs = any(row.text_b is not None for row in rows)
    head = ["row"] if labels is None else ["row", "label"]
    lines = [[*head, "text", "text_b"] if pairs else [*head, "text"]]
    for row in rows:
        label = [] if labels is None else [labels[int(row.label)] if labels else repr(float(row.label))]
        fields = [row.row, *label, row.text, *([row.text_b or ""] if pairs else [])]
        if any(mark in field for field in fields for mark in "\t\n\r"):
            got = f"one of each at most in row {row.row} of {split}"
            raise UsageError(must("A text", "have no tab and no line break to be written as TSV", got,
                                  "Replace them with spaces in the source"))
        lines.append(fields)
    return "".join("\t".join(fields) + "\n" for fields in lines)
