"""How long a study will take: a few steps and a few evaluation batches of each kind of run, timed before it starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from rankprobe.experiment.models import prepare, set_threads
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.training.batches import encode
from rankprobe.training.evaluate import predict
from rankprobe.training.train import train

# The first step pays for memory and kernels that the others reuse.
_WARM_UP, _TIMED = 1, 4
_EVAL_BATCHES = 2


@dataclass(frozen=True)
class Pace:
    """What one kind of run costs on this machine.

    Attributes
    ----------
    load_s : float
        Seconds to load the model and make it ready.
    step_s : float
        Seconds an optimiser step, the median of a few.
    row_s : float
        Seconds an evaluation row.
    """

    load_s: float
    step_s: float
    row_s: float

    def seconds(self, run: PlannedRun) -> float:
        """Expected duration of a run, the SVD of its dW left out; all of its epochs, which it may not need."""
        evaluated = len(run.task.eval) + run.spec.epochs * len(run.task.held_out)
        return self.load_s + self.step_s * run.steps + self.row_s * evaluated


def measure_pace(run: PlannedRun, *, seed: int = 0) -> Pace:
    """Train and evaluate a few batches of a run's own rows; nothing is written.

    Parameters
    ----------
    run : PlannedRun
    seed : int
        Of the rows that are drawn: their lengths stand for all.
    """
    spec, task = run.spec, run.task
    set_threads(spec.threads)
    start = time.perf_counter()
    prepared = prepare(spec, run.source, task)
    load_s = time.perf_counter() - start
    rng = np.random.default_rng(seed)

    def drawn(rows: Sequence, batches: int, batch_size: int) -> list:
        chosen = rng.permutation(len(rows))[: batches * batch_size]
        return [rows[i] for i in chosen]

    examples = drawn(task.train, _WARM_UP + _TIMED, spec.batch_size)
    ends = [time.perf_counter()]
    train(
        prepared.trainee,
        encode(prepared.tokenizer, examples, spec.max_length, problem=task.problem),
        [e.label for e in examples],
        prepared.tokenizer.pad_token_id,
        lr=spec.lr,
        epochs=1,
        batch_size=spec.batch_size,
        seed=spec.seed,
        dtype=spec.dtype,
        problem=task.problem,
        progress=lambda *_: ends.append(time.perf_counter()),
    )
    steps = np.diff(ends)
    examples = drawn(task.eval, _EVAL_BATCHES, 2 * spec.batch_size)
    rows = encode(prepared.tokenizer, examples, spec.max_length, problem=task.problem)
    start = time.perf_counter()
    predict(prepared.trainee, rows, [e.label for e in examples], prepared.tokenizer.pad_token_id,
            problem=task.problem, dtype=spec.dtype)  # fmt: skip
    row_s = (time.perf_counter() - start) / len(examples)
    # Training that diverged at once left no timed step: its first one is all there is.
    timed = steps[_WARM_UP:] if len(steps) > _WARM_UP else steps
    return Pace(load_s, float(median(timed)) if len(timed) else 0.0, row_s)


def expected_seconds(runs: Sequence[PlannedRun]) -> dict[str, float]:
    """Expected duration of every run, by run_id: a probe for each task and method.

    The largest r (or size) of a method stands for all of its sizes: on the models and ranks in use a step costs about
    the same, and an estimate is better too long than too short.

    Parameters
    ----------
    runs : sequence of PlannedRun
        What is to be done, from :meth:`rankprobe.experiment.sweep.PlannedStudy.left`.
    """
    kinds: dict[tuple, list[PlannedRun]] = {}
    for run in runs:
        spec = run.spec
        kind = (run.source.sha256, run.task.name, spec.max_length, spec.batch_size, spec.method)
        kinds.setdefault(kind, []).append(run)
    expected = {}
    for same in kinds.values():
        pace = measure_pace(max(same, key=lambda run: run.spec.r or run.spec.size or 0))
        expected |= {run.run_id: pace.seconds(run) for run in same}
    return expected
