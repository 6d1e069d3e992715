"""LoRA runs packed on one base against the same runs one by one: throughput and peak memory from 1 to 64 members.

Run with ``python studies/benchmarks/packed.py --device cuda`` on a GPU, or with ``--device cpu``. Weights are random:
what is timed does not depend on them. The data are random token ids, all rows equally long.

Models: on ``cuda`` RoBERTa-base's architecture, batch 16, length 128, bfloat16, where 8 packed runs are to reach 4
times the throughput of one by one. On ``cpu`` a BERT of 2 layers of 128 and one of MiniLM's shape (6 layers of 384),
batch 32, length 52, in the dtype that the product picks.

For each number of members R, in rounds: a lone run's steps and those of a pack of R, the order drawn anew each round.
``speedup`` is R times the lone step by the packed step, median over rounds with its interval (order statistics, 95 %;
the extremes where there are fewer than six rounds). Peak memory is of a training of its own, the other model gone: on a
GPU of CUDA's allocator, on a CPU of the process's resident memory, all libraries included. A row is stored when it is
measured, and a cut command goes on where it was; figures of another machine or commit are not gone on with.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
import transformers
from rounds import interval_of, verdict_of

from rankprobe.experiment.models import pick_attention, set_dropout
from rankprobe.experiment.pack_timing import seconds_a_step
from rankprobe.experiment.provenance import device_record, git_state, versions
from rankprobe.methods.apply import apply_method
from rankprobe.methods.head import head_parameters
from rankprobe.methods.lora import unload_lora
from rankprobe.methods.packed_lora import Pack, lone_state
from rankprobe.training.packed import train_packed
from rankprobe.training.precision import pick_dtype
from rankprobe.training.train import TrainResult, train

ROOT = Path(__file__).resolve().parents[2]
# A sweep's ranks, in turn.
RANKS = (8, 4, 16, 2)
# The bar for 8 members on a GPU.
BAR = 4.0
# Timed a round, after the first, which allocates the optimiser's state.
STEPS = 3


def bert(layers: int, width: int, heads: int) -> transformers.BertConfig:
    """A BERT with the usual vocabulary and feed-forward width."""
    shape = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    return transformers.BertConfig(**shape, intermediate_size=4 * width)


def roberta_base() -> transformers.RobertaConfig:
    """RoBERTa-base's own settings."""
    return transformers.RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1
    )


# Name, configuration, batch, length.
MODELS = {
    "cpu": [("2 x 128", lambda: bert(2, 128, 2), 32, 52), ("MiniLM's shape", lambda: bert(6, 384, 12), 32, 52)],
    "cuda": [("RoBERTa-base", roberta_base, 16, 128)],
}


def build(config: Callable[[], transformers.PretrainedConfig], device: str) -> tuple[torch.nn.Module, set[str]]:
    """A random classifier of two classes without dropout, and its head's names."""
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config())
    set_dropout(model, 0.0)
    pick_attention(model, device)
    return model.to(device), head_parameters(model)


def put_lora(model: torch.nn.Module, head: set[str], i: int) -> dict:
    """Member i's LoRA on q and v."""
    return apply_method(model, head, "lora", r=RANKS[i % 4], alpha=2.0 * RANKS[i % 4], targets="q,v", seed=i).layers


def pack_of(config: Callable, device: str, members: int) -> Pack:
    """Members with ranks of a sweep on one base."""
    model, head = build(config, device)
    states = []
    for i in range(members):
        states.append(lone_state(model, put_lora(model, head, i), head))
        unload_lora(model)
    return Pack(model, states)


def trainings(config: Callable, batch: int, length: int, device: str, members: int) -> dict[str, Callable]:
    """Makers of a training of STEPS + 1 steps as ``(progress) -> result``: of a lone run, and of a pack."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, ((STEPS + 1) * batch, length), generator=generator).tolist()
    rows = [{"input_ids": row, "attention_mask": [1] * length} for row in ids]
    labels = [i % 2 for i in range(len(rows))]
    # A rate of 0: weights, and with them what is timed, stay as they are.
    settings = {"epochs": 1, "batch_size": batch, "dtype": pick_dtype(device)}

    def lone() -> Callable:
        model, head = build(config, device)
        put_lora(model, head, 0)
        return lambda progress: train(model, rows, labels, 1, lr=0.0, seed=0, progress=progress, **settings)

    def packed() -> Callable:
        pack = pack_of(config, device, members)
        many = {"lrs": [0.0] * members, "seeds": list(range(members))}
        return lambda progress: train_packed(pack, rows, labels, 1, progress=progress, **many, **settings)

    return {"lone": lone, "packed": packed}


def peak(make: Callable[[], Callable], device: str) -> int:
    """Peak memory in bytes of one training, of a model that is made for it and gone afterwards."""
    training = make()
    result = training(lambda *_: None)
    one: TrainResult = result[0] if isinstance(result, list) else result
    seen = one.peak_memory_bytes
    del training, result
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return seen


def measure(model: tuple, device: str, members: int, rounds: int) -> dict:
    """One row of the table; without times where the pack does not fit the device."""
    name, config, batch, length = model
    makers = trainings(config, batch, length, device, members)
    row = {"model": name, "batch": batch, "length": length, "dtype": pick_dtype(device), "device": device,
           "members": members}  # fmt: skip
    try:
        row |= {f"{kind}_peak_bytes": peak(make, device) for kind, make in makers.items()}
        running = {kind: make() for kind, make in makers.items()}
        generator = np.random.default_rng(members)
        times: dict[str, list[float]] = {"lone": [], "packed": []}
        for number in range(-1, rounds):
            for kind in generator.permutation(list(running)).tolist():
                seconds = seconds_a_step(running[kind])
                if number >= 0:
                    times[kind].append(seconds)
    except torch.OutOfMemoryError:
        return row | {"note": "does not fit the device's memory"}
    lone, packed = (np.asarray(times[kind]) for kind in ("lone", "packed"))
    ratios = members * lone / packed
    low, high = interval_of(ratios)
    bar = BAR if device == "cuda" and members == 8 else None
    return row | {
        "lone_step_s": float(np.median(lone)), "packed_step_s": float(np.median(packed)),
        "tokens_per_s": members * batch * length / float(np.median(packed)),
        "speedup": float(np.median(ratios)), "ci_low": low, "ci_high": high, "n": rounds,
        "bar": bar, "verdict": verdict_of(low, high, least=bar),
    }  # fmt: skip


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), required=True, help="What to measure on.")
@click.option("--members", default="1,2,4,8,16,32,64", show_default=True, help="Members of the packs, by commas.")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1), help="Timed rounds of each.")
@click.option("--note", default="", help="What else is to be known of these figures, such as a busy machine.")
@click.option("--out", default=ROOT / "results" / "benchmarks", type=click.Path(path_type=Path), help="Output folder.")
def main(device: str, members: str, rounds: int, note: str, out: Path) -> None:
    """Measure, print and store how many times faster packs are than their members one by one."""
    transformers.logging.set_verbosity(50)
    os.environ["HF_HUB_OFFLINE"] = "1"
    file = out / f"packed-{device}.json"
    head = {
        "command": f"python studies/benchmarks/packed.py --device {device}",
        "ranks": list(RANKS),
        "ci_method": "median of per-round ratios; order statistics, 95 %, the extremes for fewer than six rounds",
        "device": device_record(device, torch.get_num_threads()),
        "git": git_state(),
        "versions": versions(),
    }
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows = stored.get("rows", []) if all(stored.get(key) == value for key, value in head.items()) else []
    for model in MODELS[device]:
        for R in map(int, members.split(",")):
            if any((row["model"], row["members"]) == (model[0], R) for row in rows):
                continue
            click.echo(f"{model[0]}, {R} members", err=True)
            load = os.getloadavg()[0]
            row = measure(model, device, R, rounds) | {"load_before": load}
            row["note"] = "; ".join(filter(None, (row.get("note"), note)))
            rows.append(row)
            out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n", encoding="utf-8")
            pd.DataFrame(rows).to_csv(out / f"packed-{device}.csv", index=False, float_format="%.6g")
    click.echo(pd.DataFrame(rows).to_string(index=False, float_format=lambda x: f"{x:.4g}", na_rep=""))


if __name__ == "__main__":
    main()
