"""Seconds that rankprobe takes to plan, to watch and to report a study of 1,000 finished runs.

Run with ``python studies/benchmarks/thousand_runs.py --keep DIR`` (extra ``offline``); about 8 minutes on 2 cores, most
of them for making the runs once, and it may be cut at any time. The study has LoRA at 7 r on 7 choices of matrices,
full fine-tuning and the head alone, 20 seeds each but for a few, on all-MiniLM-L6-v2 and 4,000 evaluation rows of
docmatch.

The first seed of each configuration is really trained, for two steps, so that its folder has every file that a run
has. The other seeds' folders are copies of it with predictions of their own: rows right or wrong around an accuracy
that rises with r, so that the report has something to answer.

Each of the three is a process of its own from its start to its end: imports, reading, drawing and writing counted.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
import pandas as pd
from rounds import RESULTS, ROOT, Book, show

from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.store import finished, write_atomic
from rankprobe.experiment.study_file import load_studies
from rankprobe.experiment.sweep import Place, plan_study
from rankprobe.training.precision import pick_dtype

RANKS, TARGETS = (1, 2, 4, 8, 16, 32, 64), ("q", "k", "v", "o", "q,v", "q,k,v,o", "all")
BOUND_S = 10.0
_CONFIGURATIONS = """
  {{ method = "full", seeds = {few} }},
  {{ method = "head", seeds = {few} }},
  {{ method = "lora", r = {ranks}, targets = {targets}, seeds = {seeds} }},
"""
_STUDY = """question = "What do {runs:,} runs cost to look at?"
task = "docmatch"
train_size = 64
eval_size = 4000
epochs = 1
max_length = 16
truncate = []
configurations = [{configurations}]
"""
# Planning reads the model's shapes, makes the data and names every run, as a sweep does before its first step.
_PLAN = """
import sys
from pathlib import Path
from rankprobe.cli.sweep_plan import plan_sweep
from rankprobe.experiment.study_file import load_studies
from rankprobe.experiment.sweep import Place
from rankprobe.training.precision import pick_dtype
place = Place(Path(sys.argv[2]), pick_dtype("cpu"), "cpu", 1)
print(len(plan_sweep(load_studies(Path(sys.argv[1])), place).now[0].runs))
"""


def study_text(seeds: int, few: int) -> str:
    """The study as a file, with so many seeds of LoRA and of what is beside it."""
    targets = json.dumps(TARGETS)
    runs = len(RANKS) * len(TARGETS) * seeds + 2 * few
    return _STUDY.format(
        runs=runs, configurations=_CONFIGURATIONS.format(ranks=list(RANKS), targets=targets, seeds=seeds, few=few)
    )


def make_runs(folder: Path) -> Path:
    """Train the first seed of each configuration and copy it for the others; returns the study of all 1,000.

    What is there already is left as it is.
    """
    first, study = folder / "first.toml", folder / "study.toml"
    first.write_text(study_text(1, 1), encoding="utf-8")
    study.write_text(study_text(20, 10), encoding="utf-8")
    call("-m", "rankprobe.cli.main", "sweep", first, "--drop-weights", "--threads", "1", "--jobs", "1",
         "--runs", folder / "runs", "--out", folder / "first")  # fmt: skip
    place = Place(folder / "runs", pick_dtype("cpu"), "cpu", 1)
    templates: dict[tuple, Path] = {}
    for run in plan_study(load_studies(study)[0], place).runs:
        key = (run.spec.method, run.spec.r, run.spec.targets)
        template = templates.setdefault(key, run.folder)
        if not finished(run.folder):
            shutil.copytree(template, run.folder, dirs_exist_ok=True)
        write_record(run, predictions_of(run))
    return study


def predictions_of(run: PlannedRun) -> int:
    """Draw a run's predictions around an accuracy that rises with r; returns the file's size."""
    path = run.folder / "predictions.csv"
    table = pd.read_csv(path)
    accuracy = {"full": 0.80, "head": 0.60}.get(run.spec.method, 0.80 - 0.05 / (run.spec.r or 1))
    # Which rows are hard is shared by all runs; seeds have some luck with rows and in all, as in life.
    luck = np.random.default_rng([run.spec.seed, run.spec.r or 0, len(run.spec.targets or "")])
    accuracy += 0.005 * luck.normal()
    hardness = np.random.default_rng(7).normal(size=len(table)) + 0.5 * luck.normal(size=len(table))
    right = hardness < np.quantile(hardness, accuracy)
    table["prediction"] = np.where(right, table["label"], 1 - table["label"])
    write_atomic(path, table.to_csv(index=False, lineterminator="\n"))
    return path.stat().st_size


def write_record(run: PlannedRun, predictions: int) -> None:
    """A copied folder's run.json as this run's own."""
    path = run.folder / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    table = pd.read_csv(run.folder / "predictions.csv", usecols=["label", "prediction"])
    record["run_id"], record["seed"], record["spec"]["seed"] = run.run_id, run.spec.seed, run.spec.seed
    record["metrics"]["accuracy"] = float((table["label"] == table["prediction"]).mean())
    record["files"]["predictions.csv"] = predictions
    write_atomic(path, json.dumps(record, indent=1) + "\n")


def call(*command: object) -> None:
    """Run a python process to its end; refuses to go on where it fails."""
    words: Sequence[str] = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{' '.join(words[:6])} ended with {done.returncode}: {done.stderr[-800:]}")


def process(*command: object) -> Callable[[], float]:
    """A timer of a whole process."""

    def measure() -> float:
        start = time.perf_counter()
        call(*command)
        return time.perf_counter() - start

    return measure


@click.command()
@click.option("--rounds", default=6, show_default=True, type=click.IntRange(1), help="Of each of the three.")
@click.option("--keep", required=True, type=click.Path(path_type=Path), help="Folder for the runs, some 2 GB.")
@click.option("--out", default=RESULTS, type=click.Path(path_type=Path), help="Output folder.")
def main(rounds: int, keep: Path, out: Path) -> None:
    """Make the runs, time the three, print and store them."""
    keep = keep.resolve()
    keep.mkdir(parents=True, exist_ok=True)
    study = make_runs(keep)
    runs, results = keep / "runs", keep / "out"
    # The sweep finds everything finished: it writes plan.json, tables and pages, and stops.
    call("-m", "rankprobe.cli.main", "sweep", study, "--drop-weights", "--threads", "1", "--runs", runs,
         "--out", results)  # fmt: skip
    book = Book("thousand_runs", out, code=("cli", "experiment", "report"), runs=1000)

    def rows(found: dict) -> list[dict]:
        return [
            {"measure": way, "value": float(np.median(took)), "unit": "s", "low": min(took), "high": max(took),
             "n": len(took), "bound": f"<= {BOUND_S:g}",
             "verdict": "met" if max(took) <= BOUND_S else "missed" if min(took) > BOUND_S else "undecided"}
            for way, took in found["seconds"].items()
        ]  # fmt: skip

    book.rows["1000 runs"] = rows
    ways = {
        "plan": process("-c", _PLAN, study, runs),
        "rankprobe status": process("-m", "rankprobe.cli.main", "status", results, "--runs", runs),
        "rankprobe report": process("-m", "rankprobe.cli.main", "report", results, "--runs", runs),
    }
    book.run("1000 runs", ways, rounds)
    show(book.table())


if __name__ == "__main__":
    main()
