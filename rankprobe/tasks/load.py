"""A task by its name."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rankprobe.errors import UsageError, must
from rankprobe.tasks import docgen, docstrings, nlg
from rankprobe.tasks.fingerprint import combined_sha256, rows_sha256
from rankprobe.tasks.sources import Progress
from rankprobe.tasks.task import LANGUAGE_METRICS, Example, Task, problem_of

if TYPE_CHECKING:
    from rankprobe.tasks.files import FileSpec

GLUE_TASKS = ("sst2", "mrpc", "rte", "cola", "qnli", "qqp", "mnli", "stsb")
TEXT_TASKS = ("e2e", "smiles")
LANGUAGE_TASKS = (*docgen.PACKAGES, *TEXT_TASKS)
TASKS = (*docstrings.PACKAGES, *docgen.PACKAGES, *GLUE_TASKS, *TEXT_TASKS, "files")


class Splits(NamedTuple):
    """All of a task's rows.

    Attributes
    ----------
    name : str
    rows : mapping of str to tuple of Example
        ``train`` and ``eval``. docmatch, docgen, e2e and smiles have ``tuning`` between them; elsewhere tuning rows are
        the last of ``train``.
    labels, metrics : tuple of str
        As a Task has them.
    sha256 : str
        Of all rows.
    """

    name: str
    rows: Mapping[str, tuple[Example, ...]]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    sha256: str

    @property
    def problem(self) -> str:
        """As a Task's."""
        return problem_of(self.labels, self.metrics)


def load_task(
    name: str,
    *,
    data_dir: Path | str | None = None,
    train_size: int | None = None,
    eval_size: int | None = None,
    split: str = "eval",
    files: FileSpec | None = None,
    held_out: int | None = None,
    progress: Progress | None = None,
) -> Task:
    """Load a task's rows.

    Parameters
    ----------
    name : str
        One of :data:`TASKS`.
    data_dir : Path or str, optional
        Folder with a GLUE task's, e2e's or smiles' files, or the folder above it; smiles' may be the file itself.
        Without it GLUE comes from the hub.
    train_size, eval_size : int, optional
        Use the first N rows; all by default.
    split : str
        ``eval``, or ``tuning``: rows to choose settings on take the place of the evaluation rows. They overlap neither
        the evaluation rows nor the training rows returned with them.
    files : FileSpec, optional
        For the task ``files``.
    held_out : int, optional
        With so many tuning rows (0 for all) as ``held_out``, to stop trainings by; where ``split`` is ``tuning`` they
        are the evaluation rows. The training rows are then without them, as for ``tuning``.
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
    if split not in ("eval", "tuning"):
        raise UsageError(must("split", "be eval or tuning", repr(split), "Pass one of the two"))
    if held_out is not None:
        same = {"data_dir": data_dir, "train_size": train_size, "files": files, "progress": progress}
        if split == "tuning":
            tuning = load_task(name, split=split, eval_size=eval_size, **same)
            return replace(tuning, held_out=tuning.eval)
        tuning = load_task(name, split="tuning", eval_size=held_out or None, **same)
        task = load_task(name, split=split, eval_size=eval_size, **same)
        sha256 = combined_sha256(tuning.sha256, task.eval_sha256)
        return replace(task, train=tuning.train, held_out=tuning.eval, sha256=sha256)
    _check_source(name, data_dir, files)
    made = _three_splits(name, data_dir, progress)
    if made is not None:
        rows = made.rows["train"], made.rows[split]
        return make_task(made.name, split, *rows, made.labels, made.metrics, train_size=train_size, eval_size=eval_size)
    if name in GLUE_TASKS:
        from rankprobe.tasks.glue import load_glue

        loaded = load_glue(name, data_dir, split)
        return make_task(name, split, *loaded, train_size=train_size, eval_size=eval_size)
    from rankprobe.tasks.files import load_files, need_two_labels

    task = make_task(name, split, *load_files(files, split), train_size=train_size, eval_size=eval_size)
    # The first rows of a file that is sorted by label have one label only.
    need_two_labels(f"The first {len(task.train)} rows of {files.train}", [row.label for row in task.train])
    need_two_labels(f"The first {len(task.eval)} {split} rows", [row.label for row in task.eval])
    there = {row.label for row in task.train}
    if unseen := [label for i, label in enumerate(task.labels) if i not in there]:
        warnings.warn(f"the {len(task.train)} training rows that are used have no row of {', '.join(unseen[:5])}, "
                      f"{len(unseen)} of {len(task.labels)} classes: shuffle {files.train}, or use more rows",
                      stacklevel=2)
    return task


def needs_files(name: str) -> bool:
    """Whether a task reads a folder of files, ``data_dir``."""
    return name in (*GLUE_TASKS, *TEXT_TASKS)


def load_splits(
    name: str,
    *,
    data_dir: Path | str | None = None,
    files: FileSpec | None = None,
    progress: Progress | None = None,
) -> Splits:
    """All rows of a task, to look at or to carry elsewhere; parameters and errors as for :func:`load_task`."""
    _check_source(name, data_dir, files)
    made = _three_splits(name, data_dir, progress)
    if made is not None:
        return made
    task = load_task(name, data_dir=data_dir, files=files)
    return Splits(name, {"train": task.train, "eval": task.eval}, task.labels, task.metrics, task.sha256)


def _three_splits(name: str, data_dir: Path | str | None, progress: Progress | None) -> Splits | None:
    """A task that comes with tuning rows of its own; None for the others."""
    if name in docstrings.PACKAGES:
        made = docstrings.docmatch(name, progress=progress)
        return Splits(made.name, made.splits, docstrings.LABELS, docstrings.METRICS, made.sha256)
    if name in docgen.PACKAGES:
        made = docgen.docgen(name, progress=progress)
        return Splits(made.name, made.splits, (), LANGUAGE_METRICS, made.sha256)
    if name in TEXT_TASKS:
        rows = nlg.load_texts(name, data_dir)
        return Splits(name, rows, (), LANGUAGE_METRICS, combined_sha256(*(rows_sha256(r, ()) for r in rows.values())))
    return None


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
        If more rows are asked for than there are, or fewer than one; or two to evaluate on: of one row nothing has an
        interval.
    """
    left = "train" if split == "eval" else "train (without those kept for tuning)"
    train = _first(train, train_size, left, "--train-size")
    option, least = ("--eval-size", 2) if split == "eval" else ("--tuning-size (or --eval-size)", 1)
    if len(evaluation) < least:
        raise UsageError(must(f"{name}'s evaluation rows", f"be at least {least}", len(evaluation), "Add rows"))
    evaluation = _first(evaluation, eval_size, split, option, least=least)
    eval_sha256 = rows_sha256(evaluation, labels)
    sha256 = combined_sha256(rows_sha256(train, labels), eval_sha256)
    return Task(name, split, train, evaluation, tuple(labels), tuple(metrics), sha256, eval_sha256)


def _check_source(name: str, data_dir: Path | str | None, files: FileSpec | None) -> None:
    """Raise UsageError for a task that does not exist, or that has another kind of source."""
    if name not in TASKS:
        close = difflib.get_close_matches(name.lower().replace("-", "").replace("_", ""), TASKS, n=1)
        hint = f"Did you mean {close[0]}?" if close else "Pass one of them"
        raise UsageError(must("The task", f"be one of {', '.join(TASKS)}", repr(name), hint))
    if name == "files" and files is None:
        raise UsageError(must("The task files", "come with files", "none", "Pass --train, --eval, --text and --label"))
    if name != "files" and files is not None:
        raise UsageError(must("Own files", "be used with the task files", f"the task {name}", "Name the task files"))
    if not needs_files(name) and data_dir is not None:
        rule = f"be given for a GLUE task only, or for {' and '.join(TEXT_TASKS)}"
        raise UsageError(must("--data-dir", rule, f"the task {name}", "Leave it out"))


def _first(
    rows: Sequence[Example], size: int | None, split: str, option: str, *, least: int = 1
) -> tuple[Example, ...]:
    if size is not None and not least <= size <= len(rows):
        rule = f"be between {least} and the {split} rows there are, {len(rows)}"
        raise UsageError(must(option, rule, size, f"Leave {option} out to use all"))
    return tuple(rows[:size])
