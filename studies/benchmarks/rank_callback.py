"""What RankCallback costs a training by transformers.Trainer, at its default settings.

Run with ``OMP_NUM_THREADS=1 python studies/benchmarks/rank_callback.py`` (extras ``offline`` and ``dev``).
all-MiniLM-L6-v2 is trained on random tokens, fully and by peft's LoRA r = 8 on q and v; the Trainer logs every so many
steps, and the callback measures q and v of all 6 blocks there as far as its budget allows.

Two trainings, one with it and one without, cannot show a cost of 3 % here: two copies of one model, a step of the one
and then a step of the other, differ by up to 5 % for a whole training (commit cbff90c measured that way), by where
their weights lie in memory. So a training is compared with itself. A step on which the callback measured, and the step
after it, which finds caches cold, are set against the two steps before and the two after those; what they take more,
the Trainer's own logging included, is the cost of that measurement. Beside it stand the callback's time on all other
steps and its start. ``own_share`` is what it says of itself.

``full_each`` is the control: the same without a budget, at every logged step, which the figures must show.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from rounds import RESULTS, Book, interval_of, show, verdict_of
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from rankprobe import RankCallback
from rankprobe.weights.source import find_model

BOUND = 1.03
DEFAULT = RankCallback().budget
CASES = {"full": ("full", DEFAULT), "lora": ("lora", DEFAULT), "full_each": ("full", None)}
CODE = ("callback.py", "linalg", "training", "weights")


class Timed(RankCallback):
    """The callback, with the time that its start and each of its steps took, whatever it did there."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.start_s, self.step_s = 0.0, []

    def on_init_end(self, *args, **kwargs) -> None:
        begun = time.perf_counter()
        super().on_init_end(*args, **kwargs)
        self.start_s += time.perf_counter() - begun

    def on_train_begin(self, *args, **kwargs) -> None:
        begun = time.perf_counter()
        super().on_train_begin(*args, **kwargs)
        self.start_s += time.perf_counter() - begun

    def on_step_end(self, *args, **kwargs) -> None:
        begun = time.perf_counter()
        super().on_step_end(*args, **kwargs)
        self.step_s.append(time.perf_counter() - begun)


class Beginnings(TrainerCallback):
    """When each step began."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step_begin(self, *args, **kwargs) -> None:
        self.at.append(time.perf_counter())

    def on_train_end(self, *args, **kwargs) -> None:
        self.at.append(time.perf_counter())


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


def cost_of_steps(seconds: np.ndarray, measured: list[int]) -> float:
    """Seconds that measured steps (from 1) and the steps after them took more than their neighbours.

    >>> cost_of_steps(np.array([1.0, 1.0, 1.0, 1.5, 1.1, 1.0, 1.0, 1.0]), [4])
    0.6000000000000001
    """
    cost = 0.0
    for step in measured:
        i = step - 1
        here = seconds[i : i + 2]
        beside = np.r_[seconds[max(0, i - 2) : i], seconds[i + 2 : i + 4]]
        cost += here.sum() - len(here) * float(np.median(beside))
    return float(cost)


def one_round(case: str, path: Path, rows: list[dict], batch: int, every: int) -> tuple[dict, dict]:
    """A training: seconds in all and without the callback, and what the callback says of itself at its last row."""
    method, budget = CASES[case]
    callback, beginnings = Timed(budget=budget), Beginnings()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=batch, learning_rate=1e-4,
            logging_steps=every, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        model = make_model(method, path)
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[beginnings, callback])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    logged = [row for row in trainer.state.log_history if "rank/cost_share" in row]
    measured = [row["step"] for row in logged]
    seconds = np.diff(beginnings.at)
    other = sum(took for step, took in enumerate(callback.step_s, 1) if step not in measured)
    total = float(seconds.sum()) + callback.start_s
    spent = callback.start_s + other + cost_of_steps(seconds, measured)
    facts = {"measured_steps": measured, "own_share": logged[-1]["rank/cost_share"] if logged else 0.0}
    return {"with": total, "without": total - spent}, facts


def cost(case: str, found: dict) -> list[dict]:
    """The row of a case: with the callback by without."""
    facts, bound = found["facts"], None if case == "full_each" else BOUND
    used, plain = (np.asarray(found["seconds"][way]) for way in ("with", "without"))
    ratios = used / plain
    low, high = interval_of(ratios)
    return [
        {
            "measure": "with by without", "ratio": float(np.median(ratios)), "low": low, "high": high,
            "n": len(ratios), "bound": bound, "verdict": verdict_of(low, high, most=bound),
            "with_s": float(np.median(used)), "own_share": float(np.median(facts["own_share"])),
            "measured_steps": " ".join(map(str, facts["measured_steps"][-1])),
        }
    ]  # fmt: skip


@click.command()
@click.option("--rounds", default=8, show_default=True, type=click.IntRange(1), help="Trainings of a case.")
@click.option("--steps", default=240, show_default=True, type=click.IntRange(16), help="Of a training.")
@click.option("--batch", default=4, show_default=True, type=click.IntRange(1))
@click.option("--tokens", default=16, show_default=True, type=click.IntRange(1), help="Of a text.")
@click.option("--every", default=4, show_default=True, type=click.IntRange(4), help="The Trainer's logging_steps.")
@click.option("--out", default=RESULTS, type=click.Path(path_type=Path), help="Output folder.")
def main(rounds: int, steps: int, batch: int, tokens: int, every: int, out: Path) -> None:
    """Measure, print and store the ratios."""
    from transformers.utils import logging

    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    source, rows = find_model(), make_rows(batch * steps, tokens)
    settings = {"steps": steps, "batch": batch, "tokens": tokens, "every": every, "budget": DEFAULT}
    book = Book("rank_callback", out, code=CODE, model_sha256=source.sha256, **settings)
    for case in CASES:
        book.rows[case] = lambda found, case=case: cost(case, found)
        if book.rounds_of(case) < rounds:
            one_round(case, source.path, rows[: 8 * batch], batch, every)  # to warm up
        for number in range(book.rounds_of(case), rounds):
            load = os.getloadavg()[0]
            seconds, facts = one_round(case, source.path, rows, batch, every)
            for name, value in facts.items():
                book.case(case)["facts"].setdefault(name, []).append(value)
            book.add(case, seconds, load)
            click.echo(f"\r{case}: round {number + 1} of {rounds}", nl=number + 1 == rounds, err=True)
    book.write()
    show(book.table())


if __name__ == "__main__":
    main()
