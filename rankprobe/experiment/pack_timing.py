"""Whether packing runs pays on this machine: a few steps of them as a pack and alone, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rankprobe.errors import WorkError, must
from rankprobe.experiment.models import prepare, set_threads
from rankprobe.experiment.pack_groups import check_pack
from rankprobe.experiment.pack_model import fits, prepare_pack
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.spec import training_settings
from rankprobe.training.batches import encode
from rankprobe.training.packed import train_packed
from rankprobe.training.train import train


@dataclass(frozen=True)
class PackTiming:
    """What packing does to a step's time, on this machine, for these runs.

    Attributes
    ----------
    members : int
    lone_step_s, packed_step_s : float
        Seconds a step of one run, alone and in the pack (the pack's step divided by its members); medians.
    speedups : list of float
        The first by the second, of each round.
    """

    members: int
    lone_step_s: float
    packed_step_s: float
    speedups: list[float]

    @property
    def speedup(self) -> float:
        """Median over the rounds."""
        return float(np.median(self.speedups))

    @property
    def pays(self) -> bool:
        """Whether packing was the faster in every round."""
        return min(self.speedups) > 1


def measure_pack(runs: Sequence[PlannedRun], *, steps: int = 3, rounds: int = 5) -> PackTiming:
    """Time a few steps of runs as a pack and of one of them alone, in turns. Nothing is written or kept.

    Parameters
    ----------
    runs : sequence of PlannedRun
        As :func:`rankprobe.experiment.pack_groups.check_pack` asks. The one with the median r is also
        done alone.
    steps : int
        Timed in each round, after one that is not, which sets up the optimiser.
    rounds : int

    Raises
    ------
    UsageError
        If the runs cannot be a pack, or the model cannot: then there is nothing to choose.
    WorkError
        If the pack does not fit the device's memory.
    """
    check_pack(runs)
    one = sorted(runs, key=lambda run: run.spec.r)[len(runs) // 2]
    spec, task = one.spec, one.task
    set_threads(spec.threads)
    examples = task.train[: (steps + 1) * spec.batch_size]
    epochs = -(-(steps + 1) // -(-len(examples) // spec.batch_size))
    # A rate of 0 leaves everything as it is: each round does the same.
    settings = {**training_settings(spec), "problem": task.problem, "epochs": epochs}
    with fits(runs):
        packed, lone = prepare_pack(runs), prepare(spec, one.source, task)
        pad_id = lone.tokenizer.pad_token_id
        data = (encode(lone.tokenizer, examples, spec.max_length, problem=task.problem), [e.label for e in examples])
        lrs, seeds = [0.0] * len(runs), [run.spec.seed for run in runs]

        def together(progress: Callable) -> None:
            train_packed(packed.pack, *data, pad_id, lrs=lrs, seeds=seeds, progress=progress, **settings)

        def alone(progress: Callable) -> None:
            train(lone.trainee, *data, pad_id, lr=0.0, seed=spec.seed, progress=progress, **settings)

        times = [(seconds_a_step(alone), seconds_a_step(together) / len(runs)) for _ in range(rounds + 1)][1:]
    apart, packed_s = zip(*times, strict=True)
    speedups = [a / b for a, b in times]
    return PackTiming(len(runs), float(np.median(apart)), float(np.median(packed_s)), speedups)


def seconds_a_step(training: Callable[[Callable], None]) -> float:
    """Seconds a step, without the first.

    Raises
    ------
    WorkError
        If training diverged before its second step.
    """
    ends: list[float] = []
    training(lambda *_: ends.append(time.perf_counter()))
    if len(ends) < 2:
        got = f"one that diverged at step {len(ends) + 1}"
        raise WorkError(must("a trial of packing", "be a training of some steps", got, "Pass --pack off, or a number"))
    return (ends[-1] - ends[0]) / (len(ends) - 1)
