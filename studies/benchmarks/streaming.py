"""What `rankprobe spectrum` costs on a checkpoint that is larger than the memory it may take.

Run with ``python studies/benchmarks/streaming.py``; about 10 minutes and 5 GB of disk. Makes a pair of Llama-shaped
bfloat16 checkpoints of 2 GB each, in shards, runs the command on them as a process of its own, and stores in
results/benchmarks/:

- ``maxrss``: the process's largest resident memory, as the operating system counted it, by the bound of 6 times the
  largest matrix in float64 plus 500 MiB;
- ``last_vs_first``: the time between two finished matrices of one shape, the median of the last quarter of them by that
  of the first quarter: 1 where the cost of a matrix does not grow with what was read before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from rounds import resident_peak
from safetensors.torch import save_file

from rankprobe.experiment.provenance import device_record, git_state, versions

ROOT = Path(__file__).resolve().parents[2]
LAYERS, HIDDEN, INNER, VOCABULARY, RANK = 18, 2048, 5632, 32000, 16
MIB = 2**20


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama, in the order of its shards."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        for name in "qkvo":
            yield f"{stem}.self_attn.{name}_proj.weight", (HIDDEN, HIDDEN)
        for name in ("gate", "up"):
            yield f"{stem}.mlp.{name}_proj.weight", (INNER, HIDDEN)
        yield f"{stem}.mlp.down_proj.weight", (HIDDEN, INNER)
        for name in ("input", "post_attention"):
            yield f"{stem}.{name}_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)


def write_pair(folder: Path, layers: int, shard_bytes: int) -> tuple[Path, Path, int]:
    """A random base and a tuned side with a planted rank and training noise; both folders and the bytes of one."""
    generator = torch.Generator().manual_seed(0)
    sides = (folder / "base", folder / "tuned")
    held: tuple[dict, dict] = ({}, {})
    where: dict[str, str] = {}
    size = shard = total = 0

    def flush() -> None:
        nonlocal size, shard
        shard += 1
        file = f"model-{shard:05d}.safetensors"
        for side, tensors in zip(sides, held, strict=True):
            save_file(tensors, side / file)
            where.update(dict.fromkeys(tensors, file))
            tensors.clear()
        size = 0

    for side in sides:
        side.mkdir()
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "tie_word_embeddings": True,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "hidden_size": HIDDEN,
        }
        (side / "config.json").write_text(json.dumps(config))
    for name, shape in shapes(layers):
        W0 = 0.02 * torch.randn(shape, generator=generator)
        W1 = W0.bfloat16().float()
        if len(shape) == 2:
            m, n = shape
            B, A = torch.randn(m, RANK, generator=generator), torch.randn(RANK, n, generator=generator)
            W1 += 2e-4 * (B @ A) + 2e-4 * torch.randn(shape, generator=generator)
        for tensors, W in zip(held, (W0, W1), strict=True):
            tensors[name] = W.bfloat16()
        size += 2 * W0.numel()
        total += 2 * W0.numel()
        if size >= shard_bytes:
            flush()
    if size:
        flush()
    for side in sides:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (side / "model.safetensors.index.json").write_text(json.dumps(index))
    return *sides, total


def watch(command: list[str], table: Path) -> tuple[int, float, int, list[float]]:
    """Run a command; its exit code, seconds, maxrss in bytes, and when each row of the table had been written."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    ends: list[float] = []
    peak = 0
    while True:
        peak = max(peak, resident_peak(process.pid))
        done, status = os.waitpid(process.pid, os.WNOHANG)
        if table.is_file() and not done:
            rows = table.read_bytes().count(b"\n") - 1
            ends += [time.monotonic() - start] * (rows - len(ends))
        if done:
            return os.waitstatus_to_exitcode(status), time.monotonic() - start, peak, ends
        time.sleep(0.05)


@click.command()
@click.option("--layers", default=LAYERS, show_default=True, type=click.IntRange(1), help="18 make 2 GB a side.")
@click.option("--shard-mb", default=500, show_default=True, type=click.IntRange(1), help="Size of a shard.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the pair is put.  [default: a temporary one]")
@click.option("--out", default=ROOT / "results" / "benchmarks", type=click.Path(path_type=Path), help="Output folder.")
def main(layers: int, shard_mb: int, folder: Path | None, out: Path) -> None:
    """Measure, print and store memory and the cost of a matrix."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        base, tuned, total = write_pair(Path(temporary), layers, shard_mb * 10**6)
        found = Path(temporary) / "spectrum"
        code, seconds, maxrss, ends = watch(
            [sys.executable, "-m", "rankprobe.cli.main", "spectrum", str(base), str(tuned), "--out", str(found)],
            found / "ranks.csv",
        )
        if code:
            raise click.ClickException(f"rankprobe spectrum ended with exit code {code}")
        ranks = pd.read_csv(found / "ranks.csv")
    largest = max(m * n for m, n in zip(ranks["m"], ranks["n"], strict=True)) * 8
    bound = 6 * largest + 500 * MIB
    # Of one shape, gate and up, and whole layers: what stands before a matrix in the file is then always the same.
    steps = pd.Series(np.diff(ends, prepend=np.nan))[: len(ranks)]
    same = steps[ranks["name"].str.contains("up_proj")].to_numpy()
    quarter = max(1, len(same) // 4)
    ratio = float(np.median(same[-quarter:]) / np.median(same[:quarter]))
    rows = [
        {
            "measure": "maxrss",
            "value": maxrss / MIB,
            "unit": "MiB",
            "bound": bound / MIB,
            "verdict": "met" if maxrss <= bound else "missed",
        },
        {"measure": "largest_matrix_float64", "value": largest / MIB, "unit": "MiB"},
        {"measure": "checkpoint", "value": total / MIB, "unit": "MiB a side"},
        {"measure": "time", "value": seconds, "unit": "s"},
        {"measure": "matrices", "value": len(ranks), "unit": ""},
        {"measure": "last_vs_first", "value": ratio, "unit": "ratio"},
        {"measure": "up_proj_first_quarter", "value": float(np.median(same[:quarter])), "unit": "s a matrix"},
        {"measure": "up_proj_last_quarter", "value": float(np.median(same[-quarter:])), "unit": "s a matrix"},
    ]
    table = pd.DataFrame(rows)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "streaming.csv", index=False, float_format="%.6g")
    record = {
        "command": "python studies/benchmarks/streaming.py",
        "shape": {"layers": layers, "hidden": HIDDEN, "inner": INNER, "vocabulary": VOCABULARY},
        "device": device_record("cpu", torch.get_num_threads()),
        "git": git_state(),
        "versions": versions(),
        "rows": json.loads(table.to_json(orient="records")),
        "seconds_a_matrix": [{"name": name, "seconds": step} for name, step in zip(ranks["name"], steps, strict=False)],
    }
    text = json.dumps(record, indent=1, allow_nan=True).replace("NaN", "null")
    (out / "streaming.json").write_text(text + "\n", encoding="utf-8")
    click.echo(table.to_string(index=False, float_format=lambda x: f"{x:,.3f}", na_rep=""))


if __name__ == "__main__":
    main()
