"""For tests that kill a sweep: the sweep, and what two executions of it must have in common."""

from __future__ import annotations

import time
from pathlib import Path
from unittest import mock

import pandas as pd

from tests.cli.lab import SWEEP

CONFIGURED = (*SWEEP, "--r", "1", "--seeds", "2", "--no-head", "--out", "out")
# Times, memory and where the checkout stands may differ between two runs of one command; nothing else in a table may.
_MEASURED = ["train_time_s", "tokens_per_s", "peak_memory_bytes", "started", "eval_time_s", "commit", "dirty"]


def wait_for(condition, seconds=60.0):
    """Poll until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def no_pictures() -> None:
    """Tables only."""
    import rankprobe.report.report

    mock.patch.object(rankprobe.report.report, "write_pages", lambda *args, **kwargs: None).start()


def finished_records(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in Path(folder, "runs").glob("*/run.json")}


def results_of(folder):
    """Everything that two executions of one sweep must have in common."""
    folder = Path(folder)
    files = {}
    for path in sorted(folder.glob("runs/*/*.csv")):
        files[str(path.relative_to(folder))] = path.read_bytes() if path.name != "history.csv" else None
    tables = {}
    for path in sorted(folder.glob("out/tables/*.csv")):
        table = pd.read_csv(path)
        tables[path.name] = table.drop(columns=[c for c in _MEASURED if c in table])
    return files, tables
