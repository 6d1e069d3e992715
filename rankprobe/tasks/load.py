"""A task by its name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankprobe.errors import UsageError, must
from rankprobe.tasks.docstrings import LABELS, PACKAGES, docmatch
from rankprobe.tasks.fingerprint import combined_sha256, rows_sha256
from rankprobe.tasks.sources import Progress
from rankprobe.tasks.task import Example, Task

if TYPE_CHECKING:
    from rankprobe.tasks.files import FileSpec

GLUE_TASKS = ("sst2", "mrpc", "rte", "cola", "qnli", "qqp", "mnli", "stsb")
TASKS = (*PACKAGES, *GLUE_TASKS, "files")


def load_task(
    name: str,
    *,
    data_dir: Path | str | None = None,
    train_size: int | None = None,
    eval_size: int | None = None,
    split: str = "eval",
    files: FileSpec | None = None,
    progress: Progress | None = None,
) -> Task:
    """Load a task's rows.

    Parameters
    ----------
    name : str
        One of :data:`TASKS`.
    data_dir : Path or str, optional
        Folder with a GLUE task's files, or the folder above it; without it GLUE comes from the hub.
    train_size, eval_size : int, optional
        Use the first N rows; all by default.
    split : str
        ``eval``, or ``tuning``: rows to choose settings on take the place of the evaluation rows. They overlap neither
        the evaluation rows nor the training rows returned with them.
    files : FileSpec, optional
        For the task ``files``.
    progress : callable, optional
        As for :func:`rankprobe.tasks.docstrings.docmatch`.

    Returns
    -------
    Task

    Raises
    ------
    UsageError
        If there is no such task, its data is missing or wrong, or more rows are asked for than there are.
    WorkError
        If the data would have to come from the hub, and the hub does not answer.
    """
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"Did you mean {close[0]}?" if close else "Pass one of them"
        raise UsageError(must("The task", f"be one of {', '.join(TASKS)}", repr(name), hint))
    if split not in ("eval", "tuning"):
        raise UsageError(must("split", "be eval or tuning", repr(split), "Pass one of the two"))
    if (files is None) == (name == "files"):
        raise UsageError(must("files", "be given for the task files, and for no other", f"the task {name}",
                              "Pass --task files with --train, --eval, --text and --label"))
    if data_dir is not None and name not in GLUE_TASKS:
        raise UsageError(must("--data-dir", "be given for a GLUE task", f"the task {name}", "Leave it out"))
    if name in PACKAGES:
        made = docmatch(name, progress=progress)
        rows = made.splits["train"], made.splits[split]
        return make_task(made.name, split, *rows, LABELS, ("accuracy",), train_size=train_size, eval_size=eval_size)
    if name in GLUE_TASKS:
        from rankprobe.tasks.glue import load_glue

        train, evaluation, labels, metrics = load_glue(name, data_dir, split)
    else:
        from rankprobe.tasks.files import load_files, need_two_labels

        train, evaluation, labels, metrics = load_files(files, split)
        # A file sorted by label has one label only in its first rows.
        need_two_labels(f"The first {train_size} rows of {files.train}", [row.label for row in train[:train_size]])
        need_two_labels(f"The first {eval_size} rows of {files.eval}", [row.label for row in evaluation[:eval_size]])
    return make_task(name, split, train, evaluation, labels, metrics, train_size=train_size, eval_size=eval_size)


def make_task(
    name: str,
    split: str,
    train: Sequence[Example],
    evaluation: Sequence[Example],
    labels: Sequence[str],
    metrics: Sequence[str],
    *,
    train_size: int | None = None,
    eval_size: int | None = None,
) -> Task:
    """A Task of the first ``train_size`` and ``eval_size`` rows, with their sha256.

    Raises
    ------
    UsageError
        If more rows are asked for than there are, or fewer than one.
    """
    train = _first(train, train_size, "train", "--train-size")
    evaluation = _first(evaluation, eval_size, split, "--eval-size")
    eval_sha256 = rows_sha256(evaluation, labels)
    sha256 = combined_sha256(rows_sha256(train, labels), eval_sha256)
    return Task(name, split, train, evaluation, tuple(labels), tuple(metrics), sha256, eval_sha256)


def _first(rows: Sequence[Example], size: int | None, split: str, option: str) -> tuple[Example, ...]:
    if size is not None and not 1 <= size <= len(rows):
        rule = f"be between 1 and the {split} rows there are, {len(rows)}"
        raise UsageError(must(option, rule, size, f"Leave {option} out to use all"))
    return tuple(rows[:size])
