"""GLUE's tasks by name, from its files in a folder or from the Hugging Face hub, with GLUE's own metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rankprobe.errors import UsageError, WorkError, must
from rankprobe.tasks.files import LoadedRows, class_ids, hold_out, make_examples, scores_of
from rankprobe.tasks.records import Record, read_records
from rankprobe.tasks.task import Example

HUB_NAME = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """How GLUE stores and scores one task.

    Attributes
    ----------
    columns : tuple of str
        Label and texts in GLUE's TSV files; numbers from 0 where these have no header.
    hub_columns : tuple of str
        Texts on the hub, where the label is always ``label``.
    labels : tuple of str
        Class names in the hub's order; empty for a score.
    metrics : tuple of str
        GLUE's; the first is the one that tables show.
    dev, hub_dev : str
        The development split's file, and its name on the hub.
    header : bool
    skip_short : bool
        QQP's official file has a few broken lines, which GLUE's loaders leave out too.
    """

    columns: tuple[str, ...]
    hub_columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    dev: str = "dev.tsv"
    hub_dev: str = "validation"
    header: bool = True
    skip_short: bool = False


_ENTAILMENT = ("entailment", "not_entailment")
_SENTENCES = ("sentence1", "sentence2")
GLUE: Mapping[str, GlueTask] = {
    "sst2": GlueTask(("label", "sentence"), ("sentence",), ("negative", "positive")),
    "mrpc": GlueTask(("Quality", "#1 String", "#2 String"), _SENTENCES, ("not_equivalent", "equivalent"),
                     ("accuracy", "f1")),
    "rte": GlueTask(("label", *_SENTENCES), _SENTENCES, _ENTAILMENT),
    "cola": GlueTask(("1", "3"), ("sentence",), ("unacceptable", "acceptable"), ("matthews",), header=False),
    "qnli": GlueTask(("label", "question", "sentence"), ("question", "sentence"), _ENTAILMENT),
    "qqp": GlueTask(("is_duplicate", "question1", "question2"), ("question1", "question2"),
                    ("not_duplicate", "duplicate"), ("accuracy", "f1"), skip_short=True),
    "mnli": GlueTask(("gold_label", *_SENTENCES), ("premise", "hypothesis"),
                     ("entailment", "neutral", "contradiction"), dev="dev_matched.tsv", hub_dev="validation_matched"),
    "stsb": GlueTask(("score", *_SENTENCES), _SENTENCES, (), ("pearson", "spearman")),
}


def load_glue(name: str, data_dir: Path | str | None = None, split: str = "eval") -> LoadedRows:
    """Read a GLUE task: all its training rows in file order, and its development rows to evaluate on.

    Parameters
    ----------
    name : str
        Key of :data:`GLUE`.
    data_dir : Path or str, optional
        Folder with train.tsv and dev.tsv (MNLI: dev_matched.tsv) as GLUE lays them out, or the folder above it, in
        which it may be called ``SST-2`` or ``sst2``. Without it the rows come from the hub.
    split : str
        ``eval``, or ``tuning``: the last tenth of the training rows, at most 2,000, which training then leaves out.

    Returns
    -------
    LoadedRows
        A row's id is its place in its file, from 0.

    Raises
    ------
    UsageError
        If the folder or its files are not as GLUE's, or ``datasets`` is not installed.
    WorkError
        If the hub does not answer.

    Notes
    -----
    MNLI's score is the matched development set's; MNLI's table in the LoRA paper shows matched and mismatched overall.
    """
    task = GLUE[name]
    if data_dir is None:
        train, evaluation = _from_hub(name, task)
    else:
        folder = _folder(name, task, Path(data_dir).expanduser())
        train = _from_file(task, folder / "train.tsv")
        # Tuning looks at the development rows only to keep clear of them, and works without.
        wanted = split != "tuning" or (folder / task.dev).is_file()
        evaluation = _from_file(task, folder / task.dev) if wanted else ()
    if split == "tuning":
        train, evaluation = hold_out(train, evaluation)
    return LoadedRows(train, evaluation, task.labels, task.metrics)


def _folder(name: str, task: GlueTask, data_dir: Path) -> Path:
    """The folder that holds the task's files: a child called after it, else ``data_dir`` itself."""
    if not data_dir.is_dir():
        raise UsageError(must("--data-dir", "be a folder", data_dir, f"Pass the folder of {name}'s files"))
    children = sorted(child for child in data_dir.iterdir() if child.is_dir())
    named = [child for child in children if child.name.lower().replace("-", "").replace("_", "") == name]
    for folder in (*named, data_dir):
        if (folder / "train.tsv").is_file():
            return folder
    rule = f"hold {name}'s train.tsv and {task.dev}, in it or in a folder called {name}"
    got = ", ".join(child.name for child in sorted(data_dir.iterdir())[:10]) or "an empty folder"
    raise UsageError(must(f"--data-dir {data_dir}", rule, got, "Pass the folder that GLUE was unpacked in"))


def _from_file(task: GlueTask, path: Path) -> tuple[Example, ...]:
    records = read_records(path, task.columns, header=task.header, skip_short=task.skip_short)
    if not task.labels:
        return make_examples(records, scores_of(path, records, "--task stsb"))
    # Files name a class (RTE, QNLI, MNLI) or number it (the others) in the same order.
    names = [_class_name(record.values[0].strip(), task.labels) for record in records]
    named = [Record(record.line, (name, *record.values[1:])) for name, record in zip(names, records, strict=True)]
    return make_examples(named, class_ids(path, named, task.labels))


def _class_name(label: str, labels: tuple[str, ...]) -> str:
    numbers = {str(number): name for number, name in enumerate(labels)}
    return numbers.get(label, label)


def _from_hub(name: str, task: GlueTask) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    try:
        from datasets import load_dataset
    except ImportError:
        got = "neither --data-dir nor the package datasets"
        raise UsageError(must(f"The task {name}", "have a source", got,
                              "Pass --data-dir, or run: pip install 'rankprobe[hub]'")) from None
    # Without a network the hub's client warns of five tries before it raises, and the error says it all.
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        found = load_dataset(HUB_NAME, name)
        splits = found["train"], found[task.hub_dev]
    # The hub's client raises a dozen types of half as many libraries for no network, no access and no such file.
    except Exception as error:
        got = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise WorkError(must(f"The hub's {HUB_NAME}", "be reachable or in the cache", got,
                             "Connect to the network, or pass --data-dir with GLUE's files")) from error
    finally:
        log.setLevel(level)
    return tuple(_from_table(task, split) for split in splits)


def _from_table(task: GlueTask, table: object) -> tuple[Example, ...]:
    """Rows of a hub split: a mapping of column names to values; a label of -1 would be a hidden one."""
    texts = [list(table[column]) for column in task.hub_columns]
    labels = [int(label) if task.labels else float(label) for label in table["label"]]
    if task.labels and any(not 0 <= label < len(task.labels) for label in labels):
        raise UsageError(must(f"Labels of {HUB_NAME}", f"be 0 to {len(task.labels) - 1}", min(labels),
                              "Choose a split with labels"))
    return tuple(
        Example(str(row), values[0], values[1] if len(values) > 1 else None, label)
        for row, (label, *values) in enumerate(zip(labels, *texts, strict=True))
    )
