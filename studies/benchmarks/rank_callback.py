"""What RankCallback costs a training: transformers.Trainer with it and without, at its default settings.

Run with ``OMP_NUM_THREADS=1 python studies/benchmarks/rank_callback.py`` (extras ``offline`` and ``dev``).
all-MiniLM-L6-v2 is trained on random tokens, fully and by peft's LoRA r = 8 on q and v; the Trainer logs every so many
steps, and the callback measures q and v of all 6 blocks there as far as its budget allows.

A machine that other guests share changes its speed by a sixth from one half minute to the next, which hides a cost of
3 %. So a round trains with the callback and without *at once*, a step of the one and then a step of the other, each
waiting while the other works: both see the same machine, and the ratio of their sums is what the callback costs.
Everything from one step's beginning to the next is counted, the Trainer's own logging too. Beside the wall time stand
the process's processor time and what the callback itself says that it took.

``full_each`` is the control: the same without a budget, at every logged step, which the figures must show.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

import click
import numpy as np
import torch
from rounds import RESULTS, Book, show
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from rankprobe import RankCallback
from rankprobe.training.latency import median_interval
from rankprobe.weights.source import find_model

BOUND = 1.03
DEFAULT = RankCallback().budget
CASES = {"full": ("full", DEFAULT), "lora": ("lora", DEFAULT), "full_each": ("full", None)}
WAYS = ("with", "without")
CODE = ("callback.py", "linalg", "training", "weights")


class Turns:
    """Lets the threads of a round work one at a time, in turn, and keeps the time that each had."""

    def __init__(self, order: list[str]) -> None:
        self._order, self._changed = list(order), threading.Condition()
        self.wall = dict.fromkeys(order, 0.0)
        self.processor = dict.fromkeys(order, 0.0)

    def take(self, way: str) -> None:
        """Wait for the turn, and start the clocks."""
        with self._changed:
            self._changed.wait_for(lambda: self._order[0] == way)
        self._begun = time.perf_counter(), time.process_time()

    def give(self, way: str, *, last: bool = False) -> None:
        """Stop the clocks, and let the next one work; ``last``: for good."""
        self.wall[way] += time.perf_counter() - self._begun[0]
        self.processor[way] += time.process_time() - self._begun[1]
        with self._changed:
            self._order.pop(0)
            if not last:
                self._order.append(way)
            self._changed.notify_all()


class StepByStep(TrainerCallback):
    """Gives the turn away before each step."""

    def __init__(self, turns: Turns, way: str) -> None:
        self.turns, self.way = turns, way

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.turns.give(self.way)
        self.turns.take(self.way)


def make_model(method: str, path: Path) -> nn.Module:
    """MiniLM as a classifier, trained fully or by peft's LoRA."""
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
    if method == "full":
        return model
    from peft import LoraConfig, TaskType, get_peft_model

    settings = {"r": 8, "lora_alpha": 16, "task_type": TaskType.SEQ_CLS}
    return get_peft_model(model, LoraConfig(target_modules=["query", "value"], **settings))


def make_rows(rows: int, tokens: int) -> list[dict]:
    """Random texts with random labels."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (rows, tokens), generator=generator)
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": i % 2} for i, row in enumerate(ids)]


def train_both(trainers: dict[str, Trainer], turns: Turns) -> None:
    """Train step by step in turn; what one of them raises is raised here."""
    raised = []

    def work(way: str) -> None:
        # A thread begins with OpenMP's default, not with what the main one was told.
        torch.set_num_threads(1)
        turns.take(way)
        try:
            trainers[way].train()
        except BaseException as error:
            raised.append(error)
        finally:
            turns.give(way, last=True)

    threads = [threading.Thread(target=work, args=(way,)) for way in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def one_round(case: str, path: Path, rows: list[dict], batch: int, every: int, order: list[str]) -> tuple[Turns, dict]:
    """Train with the callback and without; their times, and what the callback says of itself at its last row."""
    method, budget = CASES[case]
    turns, trainers = Turns(order), {}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=batch, learning_rate=1e-4,
            logging_steps=every, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        for way in WAYS:
            callbacks = [RankCallback(budget=budget)] if way == "with" else []
            model = make_model(method, path)
            trainers[way] = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=callbacks)
            trainers[way].add_callback(StepByStep(turns, way))
            trainers[way].remove_callback(PrinterCallback)
        train_both(trainers, turns)
    logged = [row for row in trainers["with"].state.log_history if "rank/cost_share" in row]
    steps = [row["step"] for row in logged]
    # Its last row counts the training until then; the rest of the training is in no row.
    return turns, {"measured_steps": steps, "own_share": logged[-1]["rank/cost_share"] if logged else 0.0}


def cost(case: str, found: dict) -> list[dict]:
    """A row for each way to tell the time: with the callback by without."""
    facts, rows = found["facts"], []
    for clock in ("wall", "processor"):
        used, plain = (np.asarray(found["seconds"][f"{way}, {clock}"]) for way in WAYS)
        ratios = used / plain
        few = len(ratios) < 6
        low, high = (ratios.min(), ratios.max()) if few else median_interval(ratios)
        judged = case != "full_each"
        verdict = "met" if high <= BOUND else "missed" if low > BOUND else "undecided"
        rows.append(
            {
                "measure": f"with by without, {clock}", "ratio": float(np.median(ratios)), "low": float(low),
                "high": float(high), "n": len(ratios), "bound": BOUND if judged else None,
                "verdict": verdict if judged else "", "with_s": float(np.median(used)),
                "without_s": float(np.median(plain)), "own_share": float(np.median(facts["own_share"])),
                "measured_steps": " ".join(map(str, facts["measured_steps"][-1])),
            }
        )  # fmt: skip
    return rows


@click.command()
@click.option("--rounds", default=6, show_default=True, type=click.IntRange(1), help="Pairs of trainings a case.")
@click.option("--steps", default=240, show_default=True, type=click.IntRange(1), help="Of a training.")
@click.option("--batch", default=4, show_default=True, type=click.IntRange(1))
@click.option("--tokens", default=16, show_default=True, type=click.IntRange(1), help="Of a text.")
@click.option("--every", default=4, show_default=True, type=click.IntRange(1), help="The Trainer's logging_steps.")
@click.option("--out", default=RESULTS, type=click.Path(path_type=Path), help="Output folder.")
def main(rounds: int, steps: int, batch: int, tokens: int, every: int, out: Path) -> None:
    """Measure, print and store the ratios."""
    from transformers.utils import logging

    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    source, rows = find_model(), make_rows(batch * steps, tokens)
    settings = {"steps": steps, "batch": batch, "tokens": tokens, "every": every, "budget": DEFAULT}
    book = Book("rank_callback", out, code=CODE, model_sha256=source.sha256, **settings)
    for case in CASES:
        book.rows[case] = lambda found, case=case: cost(case, found)
        if book.rounds_of(case) < rounds:
            one_round(case, source.path, rows[: 4 * batch], batch, every, list(WAYS))  # to warm up
        for number in range(book.rounds_of(case), rounds):
            load, order = os.getloadavg()[0], list(WAYS if number % 2 else reversed(WAYS))
            turns, facts = one_round(case, source.path, rows, batch, every, order)
            for name, value in facts.items():
                book.case(case)["facts"].setdefault(name, []).append(value)
            clocks = {"wall": turns.wall, "processor": turns.processor}
            book.add(case, {f"{way}, {clock}": s[way] for clock, s in clocks.items() for way in WAYS}, load)
            click.echo(f"\r{case}: round {number + 1} of {rounds}", nl=number + 1 == rounds, err=True)
    book.write()
    show(book.table())


if __name__ == "__main__":
    main()
