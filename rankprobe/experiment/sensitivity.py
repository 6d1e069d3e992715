"""Sensitivity of a finished run's loss to each matrix's rank, measured a chunk of rows at a time: losses/, kept."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rankprobe.analysis.sensitivity import ladder, sensitivity_table
from rankprobe.errors import UsageError, must
from rankprobe.experiment.cut_model import BATCH, CutModel
from rankprobe.experiment.observer import Observer, Silent
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.store import write_table
from rankprobe.tasks.task import Example, Task
from rankprobe.weights.run_folder import read_run, trained_weights

CHUNK = 256
LOSSES = "losses"


@dataclass(frozen=True)
class Rows:
    """The rows that sensitivity is measured on; none of them is one that the run's score is reported on.

    Attributes
    ----------
    examples : tuple of Example
        In random order, so that the first chunks are a fair sample of all.
    origin : str
        ``tuning`` or ``train``.
    trained_on : int
        How many of them the run was trained on.
    """

    examples: tuple[Example, ...]
    origin: str
    trained_on: int


def pick_rows(run: PlannedRun, tuning: Task | None, count: int, *, seed: int = 0) -> Rows:
    """Rows to measure on: tuning rows where there are some, else training rows.

    Parameters
    ----------
    run : PlannedRun
    tuning : Task or None
        The run's task with ``split="tuning"``; None takes the run's training rows.
    count : int
        As many at most.
    seed : int
        Of the choice.

    Raises
    ------
    UsageError
        If the run is scored on its tuning rows and they are passed, or fewer than two rows are left.

    Notes
    -----
    A rank that is chosen on the rows on which it is then judged looks better than it is. Rows whose texts are also
    among the run's evaluation rows are left out.
    """
    if tuning is not None and run.task.split == "tuning":
        rule, got = "be other rows than those of the run's score", f"tuning rows, which {run.run_id} is scored on"
        raise UsageError(must("rows of the sensitivity", rule, got, "Pass --rows-of train"))
    scored = {(e.text, e.text_b) for e in run.task.eval}
    trained = {(e.text, e.text_b) for e in run.task.train}
    pool = [e for e in (tuning.eval if tuning is not None else run.task.train) if (e.text, e.text_b) not in scored]
    order = np.random.default_rng(seed).permutation(len(pool))[:count]
    if len(order) < 2:
        raise UsageError(must("rows of the sensitivity", "be at least two", len(order), "Pass more --rows"))
    chosen = tuple(pool[i] for i in order)
    seen = sum((e.text, e.text_b) in trained for e in chosen)
    return Rows(chosen, "train" if tuning is None else "tuning", seen)


@dataclass(frozen=True)
class Work:
    """What has to be measured.

    Attributes
    ----------
    cuts : tuple of (str, int)
        Site and k, in the order of the tables' columns.
    chunks : tuple of tuple of Example
    folder : Path
        Of the chunks' files.
    mark : str
        Hash of run, trained weights, rows and cuts: part of the files' names, so that no other measurement's are taken.
    """

    cuts: tuple[tuple[str, int], ...]
    chunks: tuple[tuple[Example, ...], ...]
    folder: Path
    mark: str

    def file(self, chunk: int) -> Path:
        """Where a chunk's losses are kept: row, whole, and a column for each cut."""
        return self.folder / f"{self.mark}-{chunk:04d}.csv"

    @property
    def left(self) -> list[int]:
        """Chunks that are not measured yet."""
        return [i for i in range(len(self.chunks)) if not self.file(i).is_file()]


def plan_work(cut: CutModel, rows: Rows, out: Path) -> Work:
    """Every update at every k of its ladder, on every chunk of rows; nothing is measured or written."""
    cuts = tuple((update.site.name, k) for update in cut.updates for k in ladder(len(update.S)))
    chunks = tuple(rows.examples[i : i + CHUNK] for i in range(0, len(rows.examples), CHUNK))
    run = [cut.run.run_id, _weights_sha256(cut.run.folder)]  # of one id there may be several: made anew, or elsewhere
    content = [run, cuts, [[e.row, e.text, e.text_b, e.label] for e in rows.examples], CHUNK, 1]
    mark = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:10]
    return Work(cuts, chunks, Path(out) / LOSSES, mark)


def _weights_sha256(folder: Path) -> str:
    """Of the files that a run's trained weights are in, the head's too, and their names."""
    weights, total = trained_weights(read_run(folder)), hashlib.sha256()
    for file in sorted(path for path in weights.rglob("*") if path.is_file()):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(weights).as_posix()} {digest}\n".encode())
    return total.hexdigest()


def estimate_s(cut: CutModel, work: Work) -> float:
    """Seconds that the chunks that are left will take, from one timed batch of the first of them."""
    if not work.left:
        return 0.0
    examples = work.chunks[work.left[0]][:BATCH]
    rows, labels = cut.encode(examples), [e.label for e in examples]
    cut.ladder_losses(rows[:2], labels[:2], [])  # warm, and whether blocks can be skipped is known
    start = time.perf_counter()
    cut.losses(rows, labels)
    forward = (time.perf_counter() - start) / len(rows)
    count = sum(len(work.chunks[i]) for i in work.left)
    return forward * count * (1 + sum(cut.share_computed(name) for name, _ in work.cuts))


def worth(cut: CutModel, work: Work) -> tuple[float, float]:
    """Growth of the loss when nothing is kept of all updates at once, and its standard error, on the first chunk.

    A run whose updates are worth no more than noise has learned nothing that these rows show: what single matrices of
    it are worth, then, is noise too.
    """
    examples = work.chunks[0]
    rows, labels = cut.encode(examples), [e.label for e in examples]
    whole = cut.losses(rows, labels)
    with cut.cut({update.site.name: 0 for update in cut.updates}):
        growth = cut.losses(rows, labels) - whole
    return float(growth.mean()), float(growth.std(ddof=1) / np.sqrt(len(growth)))


def measure(
    cut: CutModel,
    work: Work,
    *,
    observer: Observer | None = None,
    renewed: Callable[[pd.DataFrame], None] = lambda _: None,
) -> pd.DataFrame:
    """Measure what is left, a chunk of rows after the other, and return the table of all.

    Parameters
    ----------
    cut : CutModel
    work : Work
    observer : Observer, optional
        Begins once a batch, with one step.
    renewed : callable
        Called with the table so far after every chunk.

    Returns
    -------
    DataFrame
        :func:`rankprobe.analysis.sensitivity.sensitivity_table`'s.
    """
    observer = observer or Silent()
    left = set(work.left)
    columns = ["row", "whole", *(f"{name} k={k}" for name, k in work.cuts)]
    tables = []
    for i, examples in enumerate(work.chunks):
        if i not in left:
            tables.append(pd.read_csv(work.file(i), dtype={"row": str}))
            continue
        label = f"rows {i * CHUNK + 1:,} to {i * CHUNK + len(examples):,}"
        whole, losses = _chunk(cut, work, examples, label, observer)
        values = [[e.row for e in examples], whole, *losses]
        tables.append(pd.DataFrame(dict(zip(columns, values, strict=True))))
        write_table(work.file(i), tables[-1])
        if len(tables) < len(work.chunks):
            renewed(_table(cut, work, tables))
    return _table(cut, work, tables)


def batches_left(work: Work) -> int:
    """Batches that are not measured yet: what :func:`measure` tells its observer of."""
    return sum(-(-len(work.chunks[i]) // BATCH) for i in work.left)


def pattern_losses(cut: CutModel, work: Work, patterns: Mapping[str, Mapping[str, int]]) -> pd.DataFrame:
    """The loss with every update cut at once, paired with the whole model's on the same rows.

    Parameters
    ----------
    cut : CutModel
    work : Work
        Measured.
    patterns : mapping of str to (mapping of str to int)
        Ranks by matrix, by the pattern's name.

    Returns
    -------
    DataFrame
        pattern, rows, loss, increase, se.
    """
    found = {name: [] for name in patterns}
    whole = []
    for i, examples in enumerate(work.chunks):
        table = pd.read_csv(work.file(i), usecols=["whole"])
        whole.append(table["whole"].to_numpy())
        rows, labels = cut.encode(examples), [e.label for e in examples]
        for name, ranks in patterns.items():
            with cut.cut(ranks):
                found[name].append(cut.losses(rows, labels))
    before = np.concatenate(whole)
    rows = []
    for name, parts in found.items():
        losses = np.concatenate(parts)
        difference = losses - before
        rows.append({"pattern": name, "rows": len(before), "loss": float(losses.mean()),
                     "increase": float(difference.mean()),
                     "se": float(difference.std(ddof=1) / np.sqrt(len(before)))})  # fmt: skip
    return pd.DataFrame(rows, columns=["pattern", "rows", "loss", "increase", "se"])


def _chunk(
    cut: CutModel, work: Work, examples: Sequence[Example], label: str, observer: Observer
) -> tuple[np.ndarray, np.ndarray]:
    rows, labels = cut.encode(examples), [e.label for e in examples]
    whole, losses = np.empty(len(rows)), np.empty((len(work.cuts), len(rows)))
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))  # rows of like length: little padding
    for start in range(0, len(order), BATCH):
        index = order[start : start + BATCH]
        observer.begin(label, 1)
        observer.stage("measure", 0, 0, f"{len(work.cuts)} cuts")
        whole[index], losses[:, index] = cut.ladder_losses(
            [rows[i] for i in index], [labels[i] for i in index], work.cuts
        )
    return whole, losses


def _table(cut: CutModel, work: Work, tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    merged = pd.concat(tables, ignore_index=True)
    losses = {
        update.site.name: np.stack(
            [merged[f"{update.site.name} k={k}"].to_numpy(dtype=float) for k in ladder(len(update.S))]
        )
        for update in cut.updates
    }
    return sensitivity_table(cut.updates, losses, merged["whole"].to_numpy(dtype=float))
