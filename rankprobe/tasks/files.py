"""Anyone's own rows: TSV, CSV or JSON Lines with named columns."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from rankprobe.errors import UsageError, must
from rankprobe.tasks.records import Record, format_of, read_records
from rankprobe.tasks.task import Example

# A label column with more kinds than this, and more than half as many as rows, holds scores or texts.
_FEW_CLASSES = 20
_MOST_TUNING_ROWS = 2000
# What pandas and JSON write for a label that is missing, or came of a division by zero.
_NO_LABEL = ("", "nan", "<na>", "inf", "+inf", "-inf", "infinity", "-infinity")
# What else stands for a missing one, where all other labels are numbers: beside words, "none" is a class.
_MISSING = ("na", "n/a", "#n/a", "none", "null", "nil", "-", "--", ".", "?")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
# A whole number, as it is or as pandas writes it in a column that has missing ones.
_WHOLE = re.compile(r"([+-]?\d+)(\.0*)?")
# A field that had to be quoted for the quotes in it, which stand twice there.
_CSV_QUOTED = re.compile(r'"(?=.*"".*")([^"]|"")*"', re.DOTALL)


@dataclass(frozen=True)
class FileSpec:
    """Which files, and which of their columns.

    Attributes
    ----------
    train, eval : Path or str
    text, label : str or int
        Column names; numbers from 0 where there is no header.
    text_b : str or int, optional
        Column of a second text.
    header : bool
        Whether the first line names the columns.
    encoding : str
        Of both files; a byte-order mark is dropped from UTF-8.
    regression : bool
        Labels are scores, not classes.
    file_format : {"tsv", "csv", "jsonl"}, optional
        Of both files; by their suffixes where not given.
    """

    train: Path | str
    eval: Path | str
    text: str | int
    label: str | int
    text_b: str | int | None = None
    header: bool = True
    encoding: str = "utf-8"
    regression: bool = False
    file_format: str | None = None


class LoadedRows(NamedTuple):
    """Training rows, evaluation rows, class names (none for regression) and metrics, as a Task holds them."""

    train: tuple[Example, ...]
    eval: tuple[Example, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]


def load_files(spec: FileSpec, split: str = "eval") -> LoadedRows:
    """Read training and evaluation rows from two files.

    Classes are the training file's labels, sorted (as numbers where all are whole numbers; 1.0 is 1 then). A row's id
    is its place in its file, from 0. Evaluation rows that the training file has too are warned of, and texts of a TSV
    file that are quoted as in CSV.

    Parameters
    ----------
    spec : FileSpec
    split : str
        ``eval``, or ``tuning``: see :func:`hold_out`.

    Returns
    -------
    LoadedRows

    Raises
    ------
    UsageError
        If a file cannot be read or lacks a column, a label is missing, there is one label only, or the evaluation file
        has a label that the training file lacks.
    """
    train_path, eval_path = Path(spec.train), Path(spec.eval)
    if train_path.resolve() == eval_path.resolve():
        raise UsageError(must("--train and --eval", "be two files", str(spec.eval), "Keep rows apart to evaluate on"))
    columns = [str(name).strip() for name in (spec.label, spec.text, spec.text_b) if name is not None]
    if len(set(columns)) < len(columns):
        raise UsageError(
            must("--label, --text and --text-b", "be different columns", ", ".join(columns), "Name the right ones")
        )
    train, evaluation = _read(spec, train_path), _read(spec, eval_path)
    labels = () if spec.regression else _classes(train_path, train)
    splits = []
    # The training file first: with one label in it, every other label of the evaluation file would look unknown.
    for path, records in ((train_path, train), (eval_path, evaluation)):
        found = scores_of(path, records, "--regression") if spec.regression else class_ids(path, records, labels)
        need_two_labels(path, found)
        if not any(text.strip() for record in records for text in record.values[1:]):
            raise UsageError(must(f"{path}", "have texts", f"nothing in the column {spec.text}", "Check --text"))
        splits.append(make_examples(records, found))
    train_rows, eval_rows = splits
    _look_for_training_rows(spec, train_rows, eval_rows)
    for path, rows in ((train_path, train_rows), (eval_path, eval_rows)):
        _look_for_quotes(spec, path, rows)
    if split == "tuning":
        train_rows, eval_rows = hold_out(train_rows, eval_rows)
        need_two_labels(f"{train_path} (its last tenth, the tuning rows)", [row.label for row in eval_rows])
    metrics = ("pearson", "spearman") if spec.regression else ("accuracy", "matthews")
    return LoadedRows(train_rows, eval_rows, labels, metrics)


def hold_out(
    rows: tuple[Example, ...], evaluation: Sequence[Example] = ()
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Training rows without their last tenth (at most 2,000 rows), and that tenth to tune on.

    A text that is in both stays with the tuning rows alone, and one of the evaluation rows is in neither of the two
    for tuning: rates are chosen on texts that were neither trained on nor will be reported on.

    Raises
    ------
    UsageError
        If there are fewer than 10 rows, or nothing is left of either part.
    """
    held = min(_MOST_TUNING_ROWS, len(rows) // 10)
    if not held:
        raise UsageError(must("The training file", "have 10 rows to tune on a tenth of them", len(rows), "Add rows"))
    reported = {_texts(row) for row in evaluation}
    tuning = tuple(row for row in rows[-held:] if _texts(row) not in reported)
    chosen_on = {_texts(row) for row in tuning}
    train = tuple(row for row in rows[:-held] if _texts(row) not in chosen_on | reported)
    if not tuning or not train:
        rule = "have texts in its last tenth, which rates are chosen on, that no other part has"
        got = f"{held} rows whose texts are all in " + ("the rest of it" if tuning else "the evaluation file")
        raise UsageError(must("The training file", rule, got, "Remove duplicates"))
    return train, tuning


def _texts(row: Example) -> tuple[str, str | None]:
    return row.text, row.text_b


def _look_for_training_rows(spec: FileSpec, train: Sequence[Example], evaluation: Sequence[Example]) -> None:
    """Warn of evaluation rows that are trained on."""
    trained_on = {_texts(row) for row in train}
    shared = sum(_texts(row) in trained_on for row in evaluation)
    if shared:
        warnings.warn(f"{shared} of the {len(evaluation)} rows of {spec.eval} are in {spec.train} too, whatever their "
                      "labels: scores on them are not of new rows. Remove them from one of the two", stacklevel=3)


def _look_for_quotes(spec: FileSpec, path: Path, rows: Sequence[Example]) -> None:
    """Warn of texts that a CSV writer quoted, which a TSV file is not: pandas does so with ``sep="\\t"``."""
    if format_of(path, spec.file_format) != "tsv":
        return
    quoted = sum(any(text and _CSV_QUOTED.fullmatch(text) for text in _texts(row)) for row in rows)
    if quoted:
        warnings.warn(f"{quoted} of the {len(rows)} rows of {path} have a text in quotes with quotes doubled in it, as "
                      "CSV writes them; TSV is read as it stands, quotes included. Write it as .csv or without quoting",
                      stacklevel=3)


def make_examples(records: Sequence[Record], labels: Sequence[int | float]) -> tuple[Example, ...]:
    """Rows of a file, numbered from 0; a record's values are its label, its text and perhaps a second text."""
    return tuple(
        Example(str(row), record.values[1], record.values[2] if len(record.values) > 2 else None, label)
        for row, (record, label) in enumerate(zip(records, labels, strict=True))
    )


def class_ids(path: Path, records: Sequence[Record], labels: Sequence[str]) -> list[int]:
    """Each record's label as an index into ``labels``.

    Raises
    ------
    UsageError
        If a label is not among them.
    """
    index = {label: i for i, label in enumerate(labels)}
    ids = []
    for record in records:
        label = record.values[0].strip()
        if label not in index and (whole := _WHOLE.fullmatch(label)):
            label = whole[1]
        if label not in index:
            close = difflib.get_close_matches(label, labels, n=1)
            hint = f"Did you mean {close[0]}?" if close else "Remove the row, or train on such rows too"
            shown = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
            rule = f"be one of the classes to train on, {shown}"
            raise UsageError(must(f"The label on line {record.line} of {path}", rule, repr(label), hint))
        ids.append(index[label])
    return ids


def scores_of(path: Path, records: Sequence[Record], asked_by: str) -> list[float]:
    """Each record's label as a finite number.

    Raises
    ------
    UsageError
        If one is not; ``asked_by`` names what made it a score.
    """
    scores = []
    for record in records:
        try:
            value = float(record.values[0])
        except ValueError:
            value = float("nan")
        if not isfinite(value):
            raise UsageError(
                must(
                    f"The label on line {record.line} of {path}",
                    "be a finite number",
                    repr(record.values[0]),
                    f"Correct it, or leave {asked_by} out for classes",
                )
            )
        scores.append(value)
    return scores


def _read(spec: FileSpec, path: Path) -> list[Record]:
    wanted = [spec.label, spec.text] if spec.text_b is None else [spec.label, spec.text, spec.text_b]
    return read_records(path, wanted, file_format=spec.file_format, header=spec.header, encoding=spec.encoding)


def _classes(path: Path, records: Sequence[Record]) -> tuple[str, ...]:
    for record in records:
        if record.values[0].strip().lower() in _NO_LABEL:
            rule = "be a class" if record.values[0].strip() else "not be empty"
            what, next_step = f"The label on line {record.line} of {path}", "Fill it in, or remove the row"
            raise UsageError(must(what, rule, repr(record.values[0]), next_step))
    names = {record.values[0].strip() for record in records}
    if all(_WHOLE.fullmatch(name) for name in names):
        names = {_WHOLE.fullmatch(name)[1] for name in names}
    numbers = {name for name in names if _NUMBER.fullmatch(name)}
    if numbers and all(name.lower() in _MISSING for name in names - numbers):
        for record in records:
            if record.values[0].strip() in names - numbers:
                what, next_step = f"The label on line {record.line} of {path}", "Fill it in, or remove the row"
                rule = "be a number, as all others are"
                raise UsageError(must(what, rule, repr(record.values[0]), next_step))
    if len(names) > _FEW_CLASSES and 2 * len(names) > len(records):
        got = f"{len(names)} different labels in {len(records)} rows, {min(names)!r} one of them"
        raise UsageError(
            must(
                f"The label column of {path}",
                "hold classes",
                got,
                "Pass --regression if they are scores, or another --label",
            )
        )
    odd = sorted(name for name in names if not _WHOLE.fullmatch(name))
    if odd and all(map(_NUMBER.fullmatch, names)):
        next_step = "Pass --regression if they are scores; give classes names that are no numbers"
        raise UsageError(must(f"The label column of {path}", "hold classes", f"numbers such as {odd[0]}", next_step))
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def need_two_labels(what: object, labels: Sequence[float]) -> None:
    """Raise UsageError where all labels are the same: what is measured on such rows says nothing."""
    if len(set(labels)) < 2:
        raise UsageError(
            must(
                f"{what}",
                "have rows of at least two labels",
                f"one label in {len(labels)} rows",
                "Check --label, and shuffle a file that is sorted by label",
            )
        )
