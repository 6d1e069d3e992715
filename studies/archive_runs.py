"""Put the runs of a report into one small file beside it: records, predictions, spectra and curves, no weights.

Run with ``python studies/archive_runs.py results/DIR`` (``--runs`` names the run store). It writes DIR/runs.tar.xz. In
another clone

    mkdir -p runs && tar -xf results/DIR/runs.tar.xz -C runs

puts the runs back: ``rankprobe report results/DIR`` then makes every table and page again from them, and the command
that made them goes on where it was. They are as ``--drop-weights`` would have left them.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import click

from rankprobe.experiment.output import study_plan
from rankprobe.experiment.store import RUN_FILE, finished

ARCHIVE = "runs.tar.xz"
# Folders of what was trained.
_WEIGHTS = ("model/", "adapter/")


def run_ids(plan: dict) -> list[str]:
    """Everything that a plan names: trainings, random subspaces, pairs, latency."""
    others = [*plan.get("intrinsic", []), *(plan.get("pairs") or {}).values(), plan.get("latency"), plan.get("table1")]
    return list(dict.fromkeys(run_id for run_id in (*plan["runs"], *others) if run_id))


def without_weights(record: dict) -> dict:
    """A record as it would be if the run had dropped what it trained."""
    if not record.get("weights_kept"):
        return record
    files = {name: size for name, size in record["files"].items() if not is_weights(name)}
    return record | {"weights_kept": False, "files": files}


def is_weights(name: str) -> bool:
    """Whether a run's file is of what it trained."""
    return name.startswith(_WEIGHTS) or name.endswith(".safetensors")


def contents(plan: dict, runs: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the archive's files, like ones together, which makes them small; records last."""
    records = {run_id: record for run_id in run_ids(plan) if (record := finished(runs / run_id))}
    kept = {run_id: without_weights(record) for run_id, record in records.items()}
    names = [(name, run_id) for run_id, record in kept.items() for name in record["files"]]
    # A functional rank is measured after its run's record was written.
    names += [(path.name, run_id) for run_id, record in kept.items() for path in (runs / run_id).glob("*.csv")
              if path.name not in record["files"]]  # fmt: skip
    for name, run_id in sorted(names):
        yield f"{run_id}/{name}", (runs / run_id / name).read_bytes()
    for run_id, record in sorted(kept.items()):
        yield f"{run_id}/{RUN_FILE}", (json.dumps(record, indent=1) + "\n").encode()


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--runs", default="runs", show_default=True, type=click.Path(path_type=Path), help="The run store.")
def main(folder: Path, runs: Path) -> None:
    """Write FOLDER/runs.tar.xz; the same runs give the same bytes."""
    plan, path = study_plan(folder), folder / ARCHIVE
    with tarfile.open(path, "w:xz", preset=9) as archive:
        count = 0
        for name, data in contents(plan, runs):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
            count += name.endswith(RUN_FILE)
    click.echo(f"{path}: {count} of {len(run_ids(plan))} runs, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
