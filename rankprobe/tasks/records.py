"""Named columns of a TSV, CSV or JSON Lines file; what is wrong with a file is said with its line."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rankprobe.errors import UsageError, must

FORMATS = {".tsv": "tsv", ".tab": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
# The default of 131,072 characters a field is for spreadsheets; a document may be longer.
_FIELD_LIMIT = 2**31 - 1


class Record(NamedTuple):
    """The wanted values of one row, and the line it begins on, counted from 1."""

    line: int
    values: tuple[str, ...]


def read_records(
    path: Path | str,
    wanted: Sequence[str | int],
    *,
    file_format: str | None = None,
    header: bool = True,
    encoding: str = "utf-8",
    skip_short: bool = False,
) -> list[Record]:
    """Read some columns of a file.

    In CSV, fields are quoted as in RFC 4180; in TSV a quote is a character like any other. Empty lines are skipped. In
    JSON Lines, numbers and booleans are taken as they are written.

    Parameters
    ----------
    path : Path or str
    wanted : sequence of str or int
        Column names; without a header numbers from 0, as int or str.
    file_format : {"tsv", "csv", "jsonl"}, optional
        By the file's suffix where not given.
    header : bool
        Whether the first line names the columns; JSON Lines always has names.
    encoding : str
        Any text encoding of Python's; a byte-order mark is dropped from UTF-8.
    skip_short : bool
        Leave out TSV and CSV rows that lack a wanted column, instead of raising.

    Returns
    -------
    list of Record
        In file order, at least one.

    Raises
    ------
    UsageError
        If the file is missing, empty, in another encoding or badly formed, or lacks a column.
    """
    path = Path(path)
    kind = format_of(path, file_format)
    text = _text(path, encoding)
    if kind == "jsonl":
        records = list(_json_records(path, text, [str(name) for name in wanted]))
    else:
        rows = _tsv_rows(text) if kind == "tsv" else _csv_rows(path, text)
        records = list(_table_records(path, rows, wanted, header, skip_short))
    if not records:
        what = "a row below its header" if header and kind != "jsonl" else "a row"
        raise UsageError(must(str(path), f"have {what}", "none", "Check that it is the right file"))
    return records


def format_of(path: Path, file_format: str | None) -> str:
    """``tsv``, ``csv`` or ``jsonl``: what is asked for, or what the file's suffix says.

    Raises
    ------
    UsageError
        If it is none of them.
    """
    if file_format is not None and file_format not in FORMATS.values():
        raise UsageError(must("format", "be tsv, csv or jsonl", repr(file_format), "Pass one of them"))
    found = file_format or FORMATS.get(path.suffix.lower())
    if found is None:
        rule = "end in .tsv, .csv or .jsonl"
        raise UsageError(must(str(path), rule, repr(path.suffix), "Rename it after its format"))
    return found


def _text(path: Path, encoding: str) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(must(str(path), "be a file", "nothing of that name", "Check the path")) from None
    except IsADirectoryError:
        raise UsageError(must(str(path), "be a file", "a folder", "Pass a file in it")) from None
    except OSError as error:
        raise UsageError(must(str(path), "be readable", error.strerror or error, "Check its permissions")) from None
    if not data.strip():
        raise UsageError(must(str(path), "have rows", "an empty file", "Check that it was written completely"))
    try:
        name = codecs.lookup(encoding).name
        return data.decode("utf-8-sig" if name == "utf-8" else name)
    except LookupError:
        raise UsageError(must("--encoding", "be a text encoding that Python knows", repr(encoding),
                              "Pass utf-8, latin-1 or cp1252, say")) from None
    except UnicodeError as error:
        # A few codecs raise the plain UnicodeError, which says no position.
        start = getattr(error, "start", None)
        where = "bytes that are not" if start is None else \
            f"byte 0x{data[start]:02x} on line {data.count(bytes([10]), 0, start) + 1} (offset {start})"
        other = "latin-1" if encoding.lower() not in ("latin-1", "latin1") else "utf-8"
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as spreadsheets save "Unicode text"
            other = "utf-16"
        raise UsageError(must(str(path), f"be text in {encoding}", where,
                              f"Pass its encoding: --encoding {other}, say")) from None


def _tsv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    # Not splitlines: a text may hold U+2028 or a form feed, which end no line of a file.
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if line:
            yield number, line.split("\t")


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    limit = csv.field_size_limit(_FIELD_LIMIT)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        begin = 1
        try:
            for row in reader:
                if row:
                    yield begin, row
                begin = reader.line_num + 1
        except csv.Error as error:
            raise UsageError(must(str(path), "be CSV with fields quoted as in RFC 4180", f"{error} on line {begin}",
                                  "Double the quotes inside a field, or save it as TSV")) from None
    finally:
        csv.field_size_limit(limit)


def _table_records(
    path: Path, rows: Iterable[tuple[int, list[str]]], wanted: Sequence[str | int], header: bool, skip_short: bool
) -> Iterator[Record]:
    rows = iter(rows)
    indices: list[int] | None = None
    names: list[str] = []
    for line, row in rows:
        if indices is None:
            names = [name.strip() for name in row] if header else [str(i) for i in range(len(row))]
            indices = [_column(path, names, str(name).strip()) for name in wanted]
            if header:
                continue
        if len(row) <= max(indices) and skip_short:
            continue
        if len(row) != len(names) and not skip_short:
            separator = "tab" if path.suffix.lower() in (".tsv", ".tab") else "separator"
            raise UsageError(must(f"{path} line {line}", f"have {len(names)} columns as the first line has", len(row),
                                  f"Check it for a missing or extra {separator}, or a missing header for --no-header"))
        yield Record(line, tuple(row[i] for i in indices))


def _column(path: Path, names: Sequence[str], name: str) -> int:
    """Index of a column; the error lists those there are."""
    if names.count(name) == 1:
        return names.index(name)
    if name in names:
        raise UsageError(must(f"{path}", f"have one column {name!r}", names.count(name), "Rename one of them"))
    raise _missing_column(path, names, name)


def _missing_column(path: Path, names: Sequence[str], name: str, line: int | None = None) -> UsageError:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    close = close or [other for other in names if other.lower() == name.lower()]
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    hint = f"Did you mean {close[0]}?" if close else "Pass one of these"
    if len(names) == 1 and (other := next((mark for mark in ";\t|" if mark in names[0]), None)):
        hint = "Rename it to .tsv" if other == "\t" else f"Save it with commas: its columns have {other!r} between them"
    where = str(path) if line is None else f"{path} line {line}"
    return UsageError(must(where, f"have a column {name!r}", f"the columns {shown}", hint))


def _json_records(path: Path, text: str, wanted: Sequence[str]) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(must(f"{path} line {number}", "be one JSON object", f"an error: {error}",
                                  "Write one object a line")) from None
        if not isinstance(row, dict):
            raise UsageError(must(f"{path} line {number}", "be one JSON object", f"a JSON {type(row).__name__}",
                                  "Write one object a line"))
        if missing := [name for name in wanted if name not in row]:
            raise _missing_column(path, list(row), missing[0], number)
        yield Record(number, tuple(_json_text(path, number, name, row[name]) for name in wanted))


def _json_text(path: Path, line: int, name: str, value: object) -> str:
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise UsageError(must(f"{path} line {line}, {name}", "be valid Unicode", "half a surrogate pair",
                                  "Write the file anew with its text repaired"))
        return value
    if value is None or isinstance(value, dict | list):
        got = "null" if value is None else f"a JSON {type(value).__name__}"
        raise UsageError(must(f"{path} line {line}, {name}", "be a text, number or boolean", got, "Fill it in"))
    return json.dumps(value)
