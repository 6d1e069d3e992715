"""What RankCallback costs a training: transformers.Trainer with it and without, at its default settings.

Run with ``python studies/benchmarks/rank_callback.py`` (extras ``offline`` and ``dev``). all-MiniLM-L6-v2 is trained on
random tokens, fully and by peft's LoRA r = 8 on q and v; the Trainer logs every so many steps, and the callback
measures q and v of all 6 blocks there as far as its budget of 3 % allows. A round trains once with it and once without,
in random order, and a ratio is taken within a round. Beside the wall time stands the processors' time, which a busy
machine hardly moves, and what the callback itself says that it took. Prints and stores the ratios, after every case.

``full_each`` is the control: the same without a budget, at every logged step, which the figures must show.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PrinterCallback, Trainer, TrainingArguments

from rankprobe import RankCallback
from rankprobe.experiment.provenance import device_record, git_state, versions
from rankprobe.training.latency import median_interval
from rankprobe.training.precision import pick_device
from rankprobe.weights.source import find_model

ROOT = Path(__file__).resolve().parents[2]
BOUND = 1.03
CASES = {"full": ("full", 0.03), "lora": ("lora", 0.03), "full_each": ("full", None)}


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


def train(model: nn.Module, rows: list[dict], batch: int, every: int, callback: RankCallback | None, folder: str):
    """Wall and processor seconds of a training, and the Trainer's log."""
    arguments = TrainingArguments(
        output_dir=folder, num_train_epochs=1, per_device_train_batch_size=batch, learning_rate=1e-4,
        logging_steps=every, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=pick_device() == "cpu",
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[] if callback is None else [callback])
    trainer.remove_callback(PrinterCallback)
    wall, processor = time.perf_counter(), time.process_time()
    trainer.train()
    return time.perf_counter() - wall, time.process_time() - processor, trainer.state.log_history


def summary(case: str, found: dict[str, list[float]], measured: list[int]) -> list[dict]:
    """A row for each way to tell the time."""
    rows = []
    for clock in ("wall", "processor"):
        with_it, without = (np.asarray(found[f"{clock}_{which}"]) for which in ("with", "without"))
        ratios = with_it / without
        few = len(ratios) < 6
        low, high = (ratios.min(), ratios.max()) if few else median_interval(ratios)
        verdict = "met" if high <= BOUND else "missed" if low > BOUND else "undecided"
        rows.append(
            {
                "case": case, "clock": clock, "ratio": float(np.median(ratios)), "low": float(low), "high": float(high),
                "n": len(ratios), "bound": BOUND if case != "full_each" else None,
                "verdict": verdict if case != "full_each" else "", "with_s": float(np.median(with_it)),
                "without_s": float(np.median(without)), "own_share": float(np.median(found["share"])),
                "measured_steps": " ".join(map(str, measured)),
            }
        )  # fmt: skip
    return rows


@click.command()
@click.option("--rounds", default=6, show_default=True, type=click.IntRange(2), help="Pairs of trainings a case.")
@click.option("--steps", default=60, show_default=True, type=click.IntRange(1), help="Of a training.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1))
@click.option("--tokens", default=32, show_default=True, type=click.IntRange(1), help="Of a text.")
@click.option("--every", default=5, show_default=True, type=click.IntRange(1), help="The Trainer's logging_steps.")
@click.option("--out", default=ROOT / "results" / "benchmarks", type=click.Path(path_type=Path), help="Output folder.")
def main(rounds: int, steps: int, batch: int, tokens: int, every: int, out: Path) -> None:
    """Measure, print and store the ratios."""
    from transformers.utils import logging

    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    source, rows = find_model(), make_rows(batch * steps, tokens)
    generator, table = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as folder:
        for case, (method, budget) in CASES.items():
            found: dict[str, list[float]] = {}
            measured: list[int] = []
            for number in range(-1, rounds):  # the first is to warm up
                for which in generator.permutation(["with", "without"]).tolist():
                    callback = RankCallback(budget=budget) if which == "with" else None
                    model = make_model(method, source.path)
                    wall, processor, history = train(model, rows if number >= 0 else rows[: 4 * batch], batch, every,
                                                     callback, folder)  # fmt: skip
                    if number < 0:
                        continue
                    found.setdefault(f"wall_{which}", []).append(wall)
                    found.setdefault(f"processor_{which}", []).append(processor)
                    if callback is not None:
                        logged = [row for row in history if "rank/cost_share" in row]
                        measured = [row["step"] for row in logged]
                        found.setdefault("share", []).append(logged[-1]["rank/cost_share"] if logged else 0.0)
                click.echo(f"\r{case}: round {max(0, number + 1)} of {rounds}", nl=number + 1 == rounds, err=True)
            table += summary(case, found, measured)
            out.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(table).to_csv(out / "rank_callback.csv", index=False, float_format="%.6g")
    record = {
        "command": "python studies/benchmarks/rank_callback.py",
        "shape": {"batch": batch, "length": tokens, "steps": steps, "logging_steps": every},
        "ci_method": "median of per-round ratios; order statistics, 95 %, the extremes below six rounds",
        "model": {"name": source.name, "sha256": source.sha256},
        "device": device_record(pick_device(), torch.get_num_threads()),
        "load_average": os.getloadavg(),
        "git": git_state(),
        "versions": versions(),
    }
    (out / "rank_callback.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    click.echo(pd.DataFrame(table).to_string(index=False, float_format=lambda x: f"{x:.4g}", na_rep=""))


if __name__ == "__main__":
    main()
