"""What two finished runs share: one comparison of their weights, stored like a run."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rankprobe.analysis.compare import compare
from rankprobe.errors import WorkError, must
from rankprobe.experiment.observer import Observer, Silent
from rankprobe.experiment.pair_files import TABLES, read_pair
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.provenance import git_state, versions
from rankprobe.experiment.store import ERROR_FILE, RUN_FILE, files_of, finished, lock, write_atomic, write_table

# Of these a row is about one side: which run that is stands beside it.
_BY_SIDE = ("amplification", "intruders")


@dataclass(frozen=True)
class PairPlan:
    """Two runs and what is to be compared of them.

    Attributes
    ----------
    name : str
        ``r8-r64``, say.
    x, y : PlannedRun
    of : str
        Which directions, as for :func:`rankprobe.analysis.compare.compare`.
    folder : Path
        ``runs/compare-<name>-<hash>``.
    """

    name: str
    x: PlannedRun
    y: PlannedRun
    of: str
    folder: Path

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.folder.name


def plan_pair(name: str, x: PlannedRun, y: PlannedRun, runs: Path, *, of: str = "right") -> PairPlan:
    """Name the comparison's folder; nothing is written.

    Parameters
    ----------
    name : str
        Part of the folder's name.
    x, y : PlannedRun
    runs : Path
        The run store.
    of : str
        ``right``, ``left`` or ``A``.
    """
    content = {"x": x.run_id, "y": y.run_id, "of": of, "semantics": 1}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    return PairPlan(name, x, y, of, Path(runs) / f"compare-{name}-{digest}")


def execute_pair(plan: PairPlan, *, observer: Observer | None = None) -> dict[str, pd.DataFrame]:
    """Compare, or read what was compared.

    Parameters
    ----------
    plan : PairPlan
        Both runs finished, with their weights.
    observer : Observer, optional

    Returns
    -------
    dict of str to DataFrame
        By the keys of :data:`TABLES`; amplification and intruders have the side's method, LoRA's r (lora_r) and seed.

    Raises
    ------
    UsageError
        If a run's weights are not here.
    WorkError
        If a run is not finished, or ended badly.
    """
    observer = observer or Silent()
    if done := read_pair(plan.folder):
        return done
    for run in (plan.x, plan.y):
        record = finished(run.folder)
        if record is None or record["status"] != "ok":
            got = "no finished run" if record is None else f"status {record['status']}"
            raise WorkError(must(run.run_id, "have ended well to be compared", got, "Run the same command again"))
    with lock(plan.folder):
        (plan.folder / ERROR_FILE).unlink(missing_ok=True)
        start, seen = time.perf_counter(), 0

        def progress(matrix) -> None:
            nonlocal seen
            seen += 1
            observer.stage("compare", seen, 0, matrix.name)

        found = compare(plan.x.folder, plan.y.folder, plan.x.source.path, of=plan.of, progress=progress)
        tables = {key: getattr(found, attribute) for key, attribute in TABLES.items()}
        for key in _BY_SIDE:
            tables[key] = _with_runs(tables[key], plan)
        for key, table in tables.items():
            write_table(plan.folder / f"{key}.csv", table)
        record = {
            "schema": 1,
            "run_id": plan.run_id,
            "kind": "compare",
            "status": "ok",
            "error": None,
            "spec": {"name": plan.name, "x": plan.x.run_id, "y": plan.y.run_id, "of": plan.of},
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "git": git_state(),
            "versions": versions(),
            "model": {"name": plan.x.source.name, "sha256": plan.x.source.sha256},
            "weights_kept": False,
            "timings": {"total_s": time.perf_counter() - start},
            "files": files_of(plan.folder),
        }
        write_atomic(plan.folder / RUN_FILE, json.dumps(record, indent=1) + "\n")
    return read_pair(plan.folder)


def _with_runs(table: pd.DataFrame, plan: PairPlan) -> pd.DataFrame:
    """Which run a row's side is; empty for the control, W0 against itself."""
    specs = {"X": plan.x.spec, "Y": plan.y.spec}
    for column, field in (("method", "method"), ("lora_r", "r"), ("seed", "seed")):
        values = [getattr(specs[side], field) if side in specs else None for side in table["side"]]
        table[column] = values if column == "method" else pd.array(values, dtype="Int64")
    return table
