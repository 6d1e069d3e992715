"""Wall time of a rank sweep with rankprobe by the loop that a user writes with transformers.Trainer and peft.

Run with ``python studies/benchmarks/sweep_loop.py`` (extras ``offline`` and ``dev``); about 50 minutes a round on 2
slow cores, and it may be cut at any time. Both train r = 1, 2, 4, 8, 16 with two seeds on all-MiniLM-L6-v2 and
docmatch: the same rows, epochs, batch size, rate and schedule, so as many steps, and one evaluation on the same rows
after each. Each way is a process of its own from a cold start, everything in it counted: imports, reading the data,
loading the model, and rankprobe's tables, pictures and report besides. The loop (user_loop.py) pads each batch to its
longest row, as the libraries' guides do; rankprobe also puts rows of like length into a batch.

The loop runs in float32, which is what Trainer does when it is not told otherwise, and, where the processor has it, in
bfloat16, which rankprobe takes by itself. rankprobe's sweep runs a second time with one run at a time on all cores, for
what ``--jobs`` saves.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
from rounds import RESULTS, ROOT, Book, faster, figure, show

from rankprobe.tasks.load import load_splits
from rankprobe.training.precision import pick_device, pick_dtype
from rankprobe.weights.source import find_model

RANKS, SEEDS = "1,2,4,8,16", 2
LR, EPOCHS, TRAIN, EVAL, LENGTH = 2e-3, 1, 4000, 4000, 128
# Ours by the loop's: at most 0.7 of it.
BOUND = 1 / 0.7
ONE = "rankprobe, one run at a time"
CODE = ("cli", "experiment", "training", "methods", "tasks", "report")


def ours(jobs: int) -> Callable[[Path], dict]:
    """The sweep as a command, in a new run store; returns accuracies by r and seed."""

    def sweep(folder: Path) -> dict:
        command = [
            sys.executable, "-m", "rankprobe.cli.main", "sweep", "--r", RANKS, "--seeds", SEEDS, "--no-full",
            "--no-head", "--lr", LR, "--epochs", EPOCHS, "--train-size", TRAIN, "--eval-size", EVAL,
            "--max-length", LENGTH, "--drop-weights", "--runs", folder / "runs", "--out", folder / "out",
            "--jobs", jobs,
        ]  # fmt: skip
        _call(command)
        records = [json.loads(path.read_text()) for path in (folder / "runs").glob("*/run.json")]
        return {
            f"r={record['spec']['r']} seed={record['spec']['seed']}": {
                "accuracy": record["metrics"]["accuracy"], "steps": record["timings"]["steps"]
            }
            for record in records
        }  # fmt: skip

    return sweep


def loop(rows: Path, bf16: bool) -> Callable[[Path], dict]:
    """The user's loop as a script."""

    def train(folder: Path) -> dict:
        script = Path(__file__).with_name("user_loop.py")
        command = [
            sys.executable, script, "--model", find_model().path, "--rows", rows, "--ranks", RANKS, "--seeds", SEEDS,
            "--lr", LR, "--epochs", EPOCHS, "--train-size", TRAIN, "--eval-size", EVAL, "--max-length", LENGTH,
            "--bf16" if bf16 else "--no-bf16", "--out", folder / "found.json",
        ]  # fmt: skip
        _call(command)
        return json.loads((folder / "found.json").read_text())

    return train


def _call(command: list) -> None:
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{Path(str(command[1])).name} ended with {done.returncode}: {done.stderr[-800:]}")


def timer(work: Callable[[Path], dict], facts: dict, way: str) -> Callable[[], float]:
    """Seconds of a whole process in a new folder; what it found is kept among the case's facts."""

    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            found = work(Path(folder))
            took = time.perf_counter() - start
        steps = {run["steps"] for run in found.values()}
        scores = [run["accuracy"] for run in found.values()]
        facts[way] = {"runs": len(found), "steps": sorted(steps), "accuracy": sum(scores) / len(scores)}
        return took

    return measure


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Sweeps of each way.")
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(1), help="rankprobe's --jobs.")
@click.option("--out", default=RESULTS, type=click.Path(path_type=Path), help="Output folder.")
def main(rounds: int, jobs: int, out: Path) -> None:
    """Measure, print and store the ratio of whole wall times."""
    device = pick_device()
    bf16 = pick_dtype(device) == "bfloat16"
    settings = {"ranks": RANKS, "seeds": SEEDS, "train": TRAIN, "eval": EVAL, "epochs": EPOCHS, "length": LENGTH,
                "jobs": jobs, "bfloat16": bf16}  # fmt: skip
    book = Book("sweep_loop", out, device=device, code=CODE, **settings)

    def rows(found: dict) -> list[dict]:
        result = []
        for other in ("loop, float32", "loop, bfloat16"):
            result += faster(found, "rankprobe", other, BOUND)
        result += faster(found, "rankprobe", ONE)
        for way, fact in found["facts"].items():
            result += figure(f"accuracy, mean of {fact['runs']} runs, {way}", fact["accuracy"], "")
        return result

    book.rows["10 runs"] = rows
    with tempfile.TemporaryDirectory() as folder:
        from rankprobe.tasks.export import write_tsv

        splits = load_splits("docmatch")
        write_tsv(Path(folder), {name: splits.rows[name] for name in ("train", "eval")}, splits.labels)
        facts = book.case("10 runs")["facts"]
        ways = {"rankprobe": ours(jobs), ONE: ours(1), "loop, float32": loop(Path(folder), False)}
        if bf16:
            ways["loop, bfloat16"] = loop(Path(folder), True)
        book.run("10 runs", {way: timer(work, facts, way) for way, work in ways.items()}, rounds, warm=False)
        book.write()
    show(book.table())


if __name__ == "__main__":
    main()
