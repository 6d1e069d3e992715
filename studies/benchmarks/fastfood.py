"""Fastfood projections by size, and a step of random subspace training by a step of full fine-tuning.

Run with ``python studies/benchmarks/fastfood.py`` (extra ``offline``); about 20 minutes on 2 cores, and it may be cut
at any time: every round is written to results/benchmarks/fastfood.{json,csv} at once and a second call goes on. All
ways of a case are timed in one process, in interleaved rounds.

- ``projection``, ``adjoint``: seconds of one P θ and one Pᵀ y in float32 on one thread, which waits for no other, for
  D = 2^14 to 2^24 and three d. Stored with a line through log(time) against log(D log2 d), all d together and each
  alone: its slope, 1 where time is proportional to D log d, and the largest factor by which a time lies off the line.
  The same for fixed + c D log2 d, the fixed part being what calling the operations takes.
- ``draw``: seconds to draw P for the model below.
- ``step``: a step of DID or SAID by one of full fine-tuning, on all-MiniLM-L6-v2 with a new head and batches of 32
  rows of 64 tokens, in rankprobe's own loop, without dropout, with the attention that it picks. ``full again`` is what
  the machine cannot tell apart.

Where other work wants the same cores, set OMP_WAIT_POLICY=passive, which is recorded: threads that spin while they wait
take the core from the one that they wait for, and a step of either kind takes ten times as long.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import click
import numpy as np
import torch
from rounds import RESULTS, Book, figure, interval_of, seconds_of, show, verdict_of
from torch import nn

from rankprobe.experiment.models import pick_attention, set_dropout
from rankprobe.linalg.fastfood import Fastfood
from rankprobe.methods.full import unfreeze
from rankprobe.methods.head import freeze_all_but, head_parameters
from rankprobe.methods.random_subspace import RandomSubspace
from rankprobe.training.precision import pick_device
from rankprobe.training.train import train
from rankprobe.weights.pretrained import load_classifier
from rankprobe.weights.source import ModelSource, find_model

DIMENSIONS = (100, 1000, 10_000)
EXPONENTS = range(14, 25)
BATCH, LENGTH = 32, 64
# The first step of a training allocates the optimiser's state and is left out.
STEPS = 4
# A step of DID or SAID by one of full fine-tuning, at most.
BOUND = 2.0
# Small enough that the weights, and with them what is timed, stay as they are over all rounds.
RATE = 1e-6


def projection_timers(d: int, adjoint: bool, device: str) -> dict[str, Callable[[], float]]:
    """A timer for each D; small ones are timed many in a row, so that each timing takes some milliseconds."""
    largest = 1 << max(EXPONENTS)
    theta = torch.randn(d, device=device)
    y, out = torch.randn(largest, device=device), torch.empty(largest, device=device)

    def call(P: Fastfood) -> Callable[[], object]:
        return (lambda: P.adjoint(y[: P.D])) if adjoint else (lambda: P.project(theta, out=out[: P.D]))

    return {
        f"2^{e}": seconds_of(call(Fastfood(d, 1 << e, seed=0, device=device)), max(1, (1 << 21) >> e), device)
        for e in EXPONENTS
    }


def points(found: dict, d: int) -> tuple[np.ndarray, np.ndarray]:
    """log(D log2 d) and log(median seconds) of a case."""
    at = [(int(way[2:]), float(np.median(seconds))) for way, seconds in found["seconds"].items()]
    return np.array([np.log(2.0**e * np.log2(d)) for e, _ in at]), np.array([np.log(s) for _, s in at])


def line_rows(what: str, x: np.ndarray, y: np.ndarray) -> list[dict]:
    """Slope of a line by least squares, and how far off the farthest point lies; then with a fixed cost beside it.

    The fixed cost, what calling some twenty operations takes, is what bends the line at small D.
    """
    slope, constant = np.polyfit(x, y, 1)
    off = float(np.exp(np.abs(y - slope * x - constant).max()))
    # Least squares of (fixed + c D log2 d) / seconds - 1.
    (fixed, c), *_ = np.linalg.lstsq(np.stack([np.exp(-y), np.exp(x - y)], axis=1), np.ones_like(y))
    off_fixed = float(np.exp(np.abs(np.log(fixed + c * np.exp(x)) - y).max()))
    return (
        figure(f"slope {what}", float(slope), "of log time by log(D log2 d)")
        + figure(f"farthest from the line {what}", off, "times")
        + figure(f"fixed cost {what}", float(fixed), "s")
        + figure(f"farthest from fixed + c D log2 d {what}", off_fixed, "times")
    )


def projection_rows(book: Book, what: str) -> Callable[[dict], list[dict]]:
    """Rows of the fits: each d alone in its own case, all of them in that of the largest d."""

    def rows(d: int, found: dict) -> list[dict]:
        if not found["seconds"]:
            return []
        x, y = points(found, d)
        result = line_rows(f"{what} d={d}", x, y)
        slowest = float(np.median(found["seconds"][f"2^{max(EXPONENTS)}"]))
        result += figure(f"{what} D=2^{max(EXPONENTS)} d={d}", slowest, "s")
        cases = {other: book.record["cases"].get(f"{what} d={other}", {"seconds": {}}) for other in DIMENSIONS}
        if d == max(DIMENSIONS) and all(case["seconds"] for case in cases.values()):
            both = [points(case, other) for other, case in cases.items()]
            result += line_rows(f"{what} all d", *(np.concatenate(part) for part in zip(*both, strict=True)))
        return result

    return rows


def draw_rows(found: dict) -> list[dict]:
    """Seconds to draw P, the median."""
    return [
        row
        for way, seconds in found["seconds"].items()
        for row in figure(f"draw {way}", float(np.median(seconds)), "s")
    ]


def step_rows(found: dict) -> list[dict]:
    """Every way by full fine-tuning: the median of the ratios within rounds, its interval and the bound."""
    if "full" not in found["seconds"]:
        return []
    full = np.asarray(found["seconds"]["full"])
    rows = []
    for way, seconds in found["seconds"].items():
        if way == "full":
            continue
        ratios = np.asarray(seconds) / full
        low, high = interval_of(ratios)
        bounded = way.startswith(("did", "said"))
        rows.append(
            {
                "measure": f"{way} by full", "value": float(np.median(ratios)), "unit": "of a full step",
                "low": low, "high": high, "n": len(ratios), "bound": f"<= {BOUND:g}" if bounded else "",
                "verdict": verdict_of(low, high, most=BOUND) if bounded else "", "ours_s": float(np.median(seconds)),
                "other_s": float(np.median(full)),
            }
        )  # fmt: skip
    return rows


def load(source: ModelSource, device: str) -> tuple[nn.Module, int, set[str]]:
    """The base as every method starts from it, its padding token and its head."""
    model, tokenizer, missing = load_classifier(source, 2, seed=0)
    pick_attention(model, device)
    set_dropout(model, 0.0)
    head = head_parameters(model, missing)
    freeze_all_but(model, head)
    return model.to(device), tokenizer.pad_token_id, head


def step_timer(model: nn.Module, pad_id: int, dtype: str) -> Callable[[], float]:
    """Seconds a step in rankprobe's own loop, between the progress calls that end each step."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (STEPS * BATCH, LENGTH), generator=generator).tolist()
    rows = [{"input_ids": row, "token_type_ids": [0] * LENGTH, "attention_mask": [1] * LENGTH} for row in ids]
    labels = [i % 2 for i in range(len(rows))]

    def measure() -> float:
        ends: list[float] = []
        train(
            model, rows, labels, pad_id, lr=RATE, epochs=1, batch_size=BATCH, seed=0, dtype=dtype,
            progress=lambda *_: ends.append(time.perf_counter()),
        )  # fmt: skip
        return (ends[-1] - ends[0]) / (STEPS - 1)

    return measure


def trainees(source: ModelSource, device: str) -> tuple[dict[str, nn.Module], int]:
    """What is trained, by way, and the padding token."""
    full, pad_id, _ = load(source, device)
    unfreeze(full)
    found: dict[str, nn.Module] = {"full": full}
    for layerwise, d in [*((False, d) for d in DIMENSIONS), (True, 1000)]:
        model, _, head = load(source, device)
        found[f"{'said' if layerwise else 'did'} d={d}"] = RandomSubspace(model, head, d, layerwise=layerwise, seed=0)
    return found, pad_id


@click.command()
@click.option("--only", default="", metavar="REGEX", help="Cases whose name it finds.")
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(6), help="Rounds of every case.")
@click.option("--out", default=RESULTS, type=click.Path(path_type=Path), help="Output folder.")
def main(only: str, rounds: int, out: Path) -> None:
    """Measure, print and store the time of projections and of steps."""
    device, source = pick_device(), find_model()
    settings = {
        "batch": BATCH,
        "length": LENGTH,
        "model": {"name": source.name, "sha256": source.sha256},
        "projection_threads": 1,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
    }
    book = Book("fastfood", out, device=device, code=("linalg", "methods"), **settings)
    work: dict[str, Callable[[], object]] = {}
    threads = torch.get_num_threads()

    def projections(name: str, d: int) -> None:
        torch.set_num_threads(1)
        book.run(name, projection_timers(d, name.startswith("adjoint"), device), rounds)
        torch.set_num_threads(threads)

    for what in ("projection", "adjoint"):
        rows = projection_rows(book, what)
        for d in DIMENSIONS:
            name = f"{what} d={d}"
            book.rows[name] = lambda found, d=d, rows=rows: rows(d, found)
            work[name] = lambda name=name, d=d: projections(name, d)
    ready = cache(lambda: trainees(source, device))

    def draws() -> dict:
        D = ready()[0]["did d=1000"].D
        timers = {f"d={d} D={D}": seconds_of(lambda d=d: Fastfood(d, D, seed=0, device=device)) for d in DIMENSIONS}
        return book.run("draw", timers, rounds)

    def steps(dtype: str) -> dict:
        models, pad_id = ready()
        timers = {way: step_timer(model, pad_id, dtype) for way, model in models.items()}
        timers["full again"] = step_timer(models["full"], pad_id, dtype)
        return book.run(f"step {dtype}", timers, rounds)

    book.rows["draw"], work["draw"] = draw_rows, draws
    for dtype in ("bfloat16", "float32"):
        book.rows[f"step {dtype}"] = step_rows
        work[f"step {dtype}"] = lambda dtype=dtype: steps(dtype)
    for name, measure in work.items():
        if re.search(only, name):
            measure()
    show(book.table())


if __name__ == "__main__":
    main()
