"""A training step and an epoch of rankprobe against PEFT, the hardware's floor and transformers.Trainer.

Run with ``python studies/benchmarks/train_step.py`` (extras ``offline`` and ``dev``); about 4 minutes on 2 cores.
Everything is timed in one process, interleaved in random order, and a ratio is taken within a round, so that the
machine's mood cancels. Prints the ratios with their intervals and bounds, and stores them in results/benchmarks/.

What is compared, on all-MiniLM-L6-v2 with batches of 32 rows of 52 tokens, LoRA r = 8 on q and v:

- ``lora_vs_peft``: our LoRA step by that of PEFT's model in the same loop, in the dtype that the product picks;
- ``*_vs_floor``: a step by the time that its products alone take in float32: 6 N tokens FLOP for full fine-tuning, 4 N
  for LoRA (no product for the frozen weights' gradients), N the parameters outside the embeddings, at the rate that
  products of the model's own shapes reach in the same round;
- ``epoch_vs_trainer``: an epoch of docmatch by transformers.Trainer's with PEFT's LoRA, dynamic padding, the same rows
  and as many steps; same attention, dropout and dtype. Building the Trainer and encoding the texts are not timed;
- ``epoch_vs_trainer_default``: the same, with the attention and dropout that transformers picks by itself;
- ``a_a``: our LoRA step against itself: what this machine cannot tell apart.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from rounds import interval_of, verdict_of
from torch import nn

from rankprobe.experiment.models import load_base, prepare, set_dropout
from rankprobe.experiment.provenance import device_record, git_state, versions
from rankprobe.experiment.spec import RunSpec
from rankprobe.tasks.load import load_task
from rankprobe.tasks.task import Task
from rankprobe.training.batches import encode
from rankprobe.training.precision import pick_device, pick_dtype
from rankprobe.training.train import train
from rankprobe.weights.source import ModelSource, find_model

ROOT = Path(__file__).resolve().parents[2]
BATCH, LENGTH = 32, 52
# The first step of a training allocates the optimiser's state and is left out.
STEPS = 4
BOUNDS = {
    "lora_vs_peft": 1.03,
    "full_float32_vs_floor": 1.5,
    "lora_float32_vs_floor": 1.5,
    "full_product_vs_floor": 1.0,
    "lora_product_vs_floor": 1.0,
    "epoch_vs_trainer": 0.75,
}
# Small enough that the weights, and with them what is timed, stay as they are over all rounds.
RATE = 1e-6


def make_spec(task: str, rows: int, dtype: str, device: str) -> RunSpec:
    """What `reproduce-paper --scale small` trains as LoRA r = 8, with a rate that changes nothing."""
    return RunSpec(
        model="all-MiniLM-L6-v2",
        task=task,
        split="eval",
        method="lora",
        r=8,
        alpha=16.0,
        targets="q,v",
        dropout=0.0,
        rslora=False,
        model_dropout=0.0,
        lr=RATE,
        epochs=1,
        batch_size=BATCH,
        warmup_ratio=0.06,
        weight_decay=0.01,
        clip_norm=1.0,
        train_size=rows,
        eval_size=BATCH,
        max_length=64,
        seed=0,
        dtype=dtype,
        device=device,
        threads=torch.get_num_threads(),
    )


def peft_model(spec: RunSpec, source: ModelSource, task: Task, as_it_comes: bool = False) -> nn.Module:
    """PEFT's LoRA on the same base; ``as_it_comes`` with transformers' own choice of attention and dropout."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification

    if as_it_comes:
        model = AutoModelForSequenceClassification.from_pretrained(source.path, num_labels=len(task.labels))
        model.to(spec.device)
    else:
        model, _, _ = load_base(spec, source, task)
        set_dropout(model, spec.model_dropout)
    settings = {"r": spec.r, "lora_alpha": spec.alpha, "lora_dropout": spec.dropout, "task_type": TaskType.SEQ_CLS}
    return get_peft_model(model, LoraConfig(target_modules=["query", "value"], **settings))


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


def products_timer(model: nn.Module, device: str) -> tuple[Callable[[], float], float]:
    """Seconds for the products of a full step of the blocks' linear weights in float32, and their FLOP."""
    shapes = [tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".layer." in n]
    tokens = BATCH * LENGTH
    operands = [
        (torch.randn(tokens, n, device=device), torch.randn(m, n, device=device), torch.randn(tokens, m, device=device))
        for m, n in shapes
    ]
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)

    @torch.inference_mode()
    def measure() -> float:
        wait()
        start = time.perf_counter()
        for X, W, dY in operands:
            X @ W.T  # forward
            dY @ W  # gradient of the input
            dY.T @ X  # gradient of the weight
        wait()
        return time.perf_counter() - start

    return measure, 6.0 * tokens * sum(m * n for m, n in shapes)


def epoch_timer(model: nn.Module, rows: list[dict], labels: list[int], pad_id: int, dtype: str) -> Callable[[], float]:
    """Seconds an epoch in rankprobe's loop."""

    def measure() -> float:
        start = time.perf_counter()
        result = train(model, rows, labels, pad_id, lr=RATE, epochs=1, batch_size=BATCH, seed=0, dtype=dtype)
        seconds = time.perf_counter() - start
        assert result.status == "ok" and len(result.history) == -(-len(rows) // BATCH)
        return seconds

    return measure


def trainer_timer(model: nn.Module, rows: list[dict], labels: list[int], tokenizer, spec: RunSpec, folder: Path):
    """Seconds an epoch in transformers.Trainer."""
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainingArguments

    data = [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)]

    def measure() -> float:
        settings = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            warmup_steps=max(1, round(len(rows) / BATCH * spec.warmup_ratio)),
            weight_decay=spec.weight_decay,
            max_grad_norm=spec.clip_norm,
            bf16=spec.dtype == "bfloat16",
            use_cpu=spec.device == "cpu",
            dataloader_pin_memory=spec.device != "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        collator = DataCollatorWithPadding(tokenizer)
        trainer = Trainer(model=model, args=settings, train_dataset=data, data_collator=collator)
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        assert trainer.state.global_step == -(-len(rows) // BATCH)
        return seconds

    return measure


def interleave(timers: dict[str, Callable[[], float]], rounds: int, seed: int, what: str) -> dict[str, np.ndarray]:
    """Every timer once a round, in random order; one untimed round first."""
    generator = np.random.default_rng(seed)
    times: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(-1, rounds):
        for name in generator.permutation(list(timers)).tolist():
            seconds = timers[name]()
            if number >= 0:
                times[name].append(seconds)
        click.echo(f"\r{what}: round {max(0, number + 1)} of {rounds}", nl=number + 1 == rounds, err=True)
    return {name: np.asarray(seconds) for name, seconds in times.items()}


def compare(name: str, ours: np.ndarray, other: np.ndarray, dtype: str) -> dict:
    """One row of the table: the median over rounds of ours by the other's, its interval, and the bound."""
    low, high = interval_of(ours / other)
    bound = BOUNDS.get(name)
    return {
        "comparison": name,
        "dtype": dtype,
        "ratio": float(np.median(ours / other)),
        "ci_low": low,
        "ci_high": high,
        "n": len(ours),
        "bound": bound,
        "verdict": verdict_of(low, high, most=bound),
        "ours_s": float(np.median(ours)),
        "other_s": float(np.median(other)),
    }


def measure_steps(source: ModelSource, task: Task, dtype: str, device: str, rounds: int) -> tuple[list[dict], float]:
    """All comparisons of a step, and the float32 products' rate in FLOP/s."""
    spec = make_spec(task.name, len(task.train), dtype, device)
    lora = prepare(spec, source, task)
    full = prepare(dataclasses.replace(spec, method="full", r=None, alpha=None, targets=None), source, task)
    pad_id = lora.tokenizer.pad_token_id
    products, flop = products_timer(full.model, device)
    timers = {
        "lora": step_timer(lora.model, pad_id, dtype),
        "lora_again": step_timer(lora.model, pad_id, dtype),
        "peft": step_timer(peft_model(spec, source, task), pad_id, dtype),
        "full": step_timer(full.model, pad_id, dtype),
        "products": products,
    }
    if dtype != "float32":
        timers["lora_float32"] = step_timer(lora.model, pad_id, "float32")
        timers["full_float32"] = step_timer(full.model, pad_id, "float32")
    times = interleave(timers, rounds, 0, "steps")
    N = sum(p.numel() for name, p in full.model.named_parameters() if ".embeddings." not in name)
    floor_full = times["products"] * (6.0 * N * BATCH * LENGTH / flop)
    floor_lora = floor_full * 4 / 6
    float32 = "" if dtype == "float32" else "_float32"
    rows = [
        compare("a_a", times["lora_again"], times["lora"], dtype),
        compare("lora_vs_peft", times["lora"], times["peft"], dtype),
        compare("full_float32_vs_floor", times[f"full{float32}"], floor_full, "float32"),
        compare("lora_float32_vs_floor", times[f"lora{float32}"], floor_lora, "float32"),
        compare("full_product_vs_floor", times["full"], floor_full, dtype),
        compare("lora_product_vs_floor", times["lora"], floor_lora, dtype),
    ]
    return rows, flop / float(np.median(times["products"]))


def measure_epochs(source: ModelSource, task: Task, dtype: str, device: str, rounds: int, folder: Path) -> list[dict]:
    """Our epoch against the Trainer's."""
    spec = make_spec(task.name, len(task.train), dtype, device)
    ours = prepare(spec, source, task)
    rows, labels = encode(ours.tokenizer, task.train, spec.max_length), [int(e.label) for e in task.train]
    timers = {"ours": epoch_timer(ours.model, rows, labels, ours.tokenizer.pad_token_id, dtype)}
    for name, as_it_comes in (("trainer", False), ("trainer_default", True)):
        model = peft_model(spec, source, task, as_it_comes)
        timers[name] = trainer_timer(model, rows, labels, ours.tokenizer, spec, folder)
    times = interleave(timers, rounds, 1, "epochs")
    return [
        compare("epoch_vs_trainer", times["ours"], times["trainer"], dtype),
        compare("epoch_vs_trainer_default", times["ours"], times["trainer_default"], dtype),
    ]


@click.command()
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(6), help="Rounds of steps.")
@click.option("--epoch-rounds", default=7, show_default=True, type=click.IntRange(6), help="Rounds of epochs.")
@click.option("--train-size", default=640, show_default=True, type=click.IntRange(BATCH), help="Rows of an epoch.")
@click.option("--out", default=ROOT / "results" / "benchmarks", type=click.Path(path_type=Path), help="Output folder.")
def main(rounds: int, epoch_rounds: int, train_size: int, out: Path) -> None:
    """Measure, print and store the ratios of a training step and an epoch."""
    import tempfile

    from transformers.utils import logging

    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    os.environ["HF_HUB_OFFLINE"] = "1"
    device = pick_device()
    dtype = pick_dtype(device)
    source, task = find_model(), load_task("docmatch", train_size=train_size, eval_size=BATCH)
    rows, rate = measure_steps(source, task, dtype, device, rounds)
    with tempfile.TemporaryDirectory() as folder:
        rows += measure_epochs(source, task, dtype, device, epoch_rounds, Path(folder))
    table = pd.DataFrame(rows)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "train_step.csv", index=False, float_format="%.6g")
    record = {
        "command": "python studies/benchmarks/train_step.py",
        "shape": {"batch": BATCH, "length": LENGTH, "epoch_rows": train_size},
        "products_float32_flop_per_s": rate,
        "ci_method": "median of per-round ratios, order statistics, 95 %",
        "model": {"name": source.name, "sha256": source.sha256},
        "task": {"name": task.name, "sha256": task.sha256},
        "device": device_record(device, torch.get_num_threads()),
        "git": git_state(),
        "versions": versions(),
        "rows": json.loads(table.to_json(orient="records")),
    }
    (out / "train_step.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    click.echo(table.to_string(index=False, float_format=lambda x: f"{x:.3f}", na_rep=""))
    click.echo(f"float32 products: {rate / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
