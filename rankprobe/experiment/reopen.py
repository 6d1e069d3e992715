"""A finished run from its folder: with the model and the data that it was trained on, as its record says."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankprobe.errors import UsageError, must
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.spec import RunSpec
from rankprobe.experiment.store import finished, read_record
from rankprobe.tasks.load import load_task
from rankprobe.weights.rank_pattern import canonical_pattern
from rankprobe.weights.run_folder import run_folder
from rankprobe.weights.source import find_model

if TYPE_CHECKING:
    from rankprobe.tasks.files import FileSpec
    from rankprobe.tasks.sources import Progress


@dataclass(frozen=True)
class ReopenedRun(PlannedRun):
    """A finished run in a folder of any name: a copy, or the working directory.

    Attributes
    ----------
    recorded_id : str
        The run_id in its record.
    """

    recorded_id: str

    @property
    def run_id(self) -> str:
        """The record's."""
        return self.recorded_id


def reopen(
    where: str | Path,
    runs: Path,
    *,
    model: str | None = None,
    data_dir: Path | None = None,
    files: FileSpec | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ReopenedRun:
    """A finished run with its spec, model and task.

    Parameters
    ----------
    where : str or Path
        Its folder, or its name in the store.
    runs : Path
        The run store.
    model : str, optional
        Where the base is, for a run whose record names a folder that is not at hand under that name.
    data_dir, files
        As for :func:`rankprobe.tasks.load.load_task`; a record holds no paths.
    threads : int, optional
        Instead of the run's own number.
    progress : callable, optional
        As for :func:`rankprobe.tasks.load.load_task`.

    Returns
    -------
    ReopenedRun

    Raises
    ------
    UsageError
        If there is no such run, it did not end well, its files are not all here, or the model or the data are not those
        that it was trained on.
    """
    folder = run_folder(where, runs)
    if folder is None:
        rule = f"be a run's folder, or a name in the run store {runs}"
        raise UsageError(must("RUN", rule, where, "Pass a folder with run.json, or --runs"))
    record = read_record(folder)
    if record.get("kind") != "train" or record["status"] != "ok":
        got = f"one of kind {record.get('kind')} and status {record['status']}"
        raise UsageError(must(f"The run {record['run_id']}", "have trained a model and ended well", got,
                              "Pass another run"))  # fmt: skip
    if finished(folder) is None:
        rule, got = "have its files beside its record", f"some of them missing in {folder}"
        raise UsageError(must(f"The run {record['run_id']}", rule, got, "Copy the whole folder, or run it again"))
    spec = spec_of(record, threads=threads)
    source = find_model(model or spec.model)
    if source.sha256 != record["model"]["sha256"]:
        rule = f"be the model that the run {record['run_id']} started from"
        raise UsageError(must("--model", rule, f"{source.name} with other weights", f"Pass that {spec.model}"))
    task = load_task(task_name(spec.task), data_dir=data_dir, files=files, split=spec.split, progress=progress,
                     train_size=spec.train_size or None, eval_size=spec.eval_size or None,
                     held_out=None if spec.patience is None else spec.tuning_size or 0)  # fmt: skip
    if task.sha256 != record["task"]["sha256"]:
        rule = f"be the rows of the run {record['run_id']}"
        raise UsageError(must("the task's data", rule, f"others under the name {task.name}", "Pass the same files"))
    return ReopenedRun(spec, source, task, folder, record["run_id"])


def spec_of(record: dict, *, threads: int | None = None) -> RunSpec:
    """The spec in a record. Fields that came later than the record have their defaults.

    Raises
    ------
    UsageError
        If the record has fields that this version does not know.
    """
    known = {field.name for field in fields(RunSpec)}
    if unknown := sorted(record["spec"].keys() - known):
        rule = "be of a version that this one can read"
        raise UsageError(must(f"The run {record['run_id']}", rule, f"a spec with {unknown[0]}", "Update rankprobe"))
    try:
        spec = RunSpec(**record["spec"])
    except TypeError as error:
        raise UsageError(must(f"The run {record['run_id']}", "have a whole spec", error, "Run it again")) from None
    if spec.rank_pattern is not None:
        spec = replace(spec, rank_pattern=canonical_pattern(spec.rank_pattern))
    return spec if threads is None else replace(spec, threads=threads)


def task_name(name: str) -> str:
    """A task as ``--task`` names it: what a record adds to tell versions of a data set apart is cut off.

    >>> task_name("docmatch@1a2b3c4d"), task_name("sst2")
    ('docmatch', 'sst2')
    """
    return name.partition("@")[0]
