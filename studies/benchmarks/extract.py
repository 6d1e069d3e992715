"""What `rankprobe extract` costs beside peft's and mergekit's ways to an adapter, and how good the adapters are.

Run with ``python studies/benchmarks/extract.py``; about 8 minutes on 2 cores and 2 GB of disk. It may be cut at any
time: every round is written to results/benchmarks/extract.{json,csv} at once and a second call goes on.

- ``bert``: the decompositions of a full fine-tuning in BERT-base's shape (12 blocks of q, k, v, o and the two of the
  MLP; a random base, an update of rank 32 above a power-law tail), rank 16: ours by the call of peft's
  ``convert_to_lora``, ``torch.linalg.svd(dW.float(), full_matrices=False)``, matrix by matrix in random order. Then
  the adapter that ``rankprobe extract --rank 16`` writes of the same pair: ``||dW - B A||`` of every matrix by the
  least that rank 16 allows, in extract_errors.csv.
- ``llama``: the whole command as a process of its own beside mergekit-extract-lora's on a pair that it takes: wall time
  and largest resident memory of each, as the operating system counts them, and both adapters by the optimum.
  ``--mergekit`` is the path of that program in an environment of its own (``pip install mergekit``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from rounds import RESULTS, Book, faster, figure, resident_peak, show
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rankprobe.linalg.decompose import leading, svdvals_dense

RANK, PLANTED = 16, 32
# ||dW - B A|| may be so many times the optimum, plus so much of ||dW||.
OF_OPTIMUM, OF_NORM = 1.001, 1e-6
MIB = 2**20
BERT = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "num_attention_heads": 12,
        "vocab_size": 30522}  # fmt: skip
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": 16, "vocab_size": 8000,
         "num_key_value_heads": 16, "tie_word_embeddings": True, "torch_dtype": "float32"}  # fmt: skip


def bert_shapes(layers: int, hidden: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """The blocks' matrices of BERT."""
    for layer in range(layers):
        stem = f"bert.encoder.layer.{layer}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            yield f"{stem}.{part}.weight", (hidden, hidden)
        yield f"{stem}.intermediate.dense.weight", (4 * hidden, hidden)
        yield f"{stem}.output.dense.weight", (hidden, 4 * hidden)


def llama_shapes(layers: int, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """The blocks' matrices of Llama."""
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        for part in "qkvo":
            yield f"{stem}.self_attn.{part}_proj.weight", (hidden, hidden)
        for part in ("gate", "up"):
            yield f"{stem}.mlp.{part}_proj.weight", (inner, hidden)
        yield f"{stem}.mlp.down_proj.weight", (hidden, inner)


def sides(name: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """W0 and W1 of a matrix in float32, the same at every call: rank 32 above a tail σ_i ~ i^(-1/2)."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    (m, n), p = shape, min(shape)
    W0 = 0.02 * torch.randn(m, n, generator=generator)
    U, V = (torch.linalg.qr(torch.randn(side, p, generator=generator)).Q for side in shape)
    i = torch.arange(1.0, p + 1)
    S = torch.where(i <= PLANTED, i**-0.25, 0.14 * (i / PLANTED) ** -0.5)
    return W0, W0 + (U * S) @ V.T


def write_pair(folder: Path, config: dict, shapes: dict[str, tuple[int, int]], vectors: dict[str, Tensor]) -> None:
    """A base and a tuned folder below ``folder``; what is in ``vectors`` is the same in both."""
    base, tuned = {}, {}
    for name, shape in shapes.items():
        base[name], tuned[name] = sides(name, shape)
    for side, tensors in (("base", base), ("tuned", tuned)):
        (folder / side).mkdir()
        (folder / side / "config.json").write_text(json.dumps(config))
        save_file(tensors | vectors, folder / side / "model.safetensors", metadata={"format": "pt"})


def errors(adapter: Path, shapes: dict[str, tuple[int, int]], optimum) -> pd.DataFrame:
    """``||dW - B A||_F`` of every matrix as the adapter has it, and the least that its rank allows."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] and not config.get("use_rslora"), "the scaling is 1"
    rows = []
    with safe_open(adapter / "adapter_model.safetensors", "pt") as tensors:
        for name, shape in shapes.items():
            stem = "base_model.model." + name.removesuffix(".weight")
            B, A = (tensors.get_tensor(f"{stem}.lora_{factor}.weight").double() for factor in "BA")
            assert B.shape[1] <= RANK, f"{name} has rank {B.shape[1]}"
            rows.append(row_of(name, shape, B, A, optimum))
    return pd.DataFrame(rows)


def row_of(name: str, shape: tuple[int, int], B: Tensor, A: Tensor, optimum) -> dict:
    """One matrix of :func:`errors`."""
    W0, W1 = sides(name, shape)
    dW = W1.double() - W0.double()
    left, norm = float(torch.linalg.matrix_norm(dW - B @ A)), float(torch.linalg.matrix_norm(dW))
    least = optimum(name, shape)
    allowed = OF_OPTIMUM * least + OF_NORM * norm
    return {"name": name, "m": shape[0], "n": shape[1], "norm": norm, "optimum": least, "error": left,
            "by_optimum": left / least, "by_allowed": left / allowed}  # fmt: skip


@cache
def least_error(name: str, shape: tuple[int, int]) -> float:
    """The norm of what the best part of rank 16 leaves, from all singular values in float64."""
    W0, W1 = sides(name, shape)
    return float(svdvals_dense(W1.double() - W0.double())[RANK:].square().sum().sqrt())


def measure_decompositions(book: Book, name: str, shapes: dict[str, tuple[int, int]], rounds: int) -> None:
    """Leading parts of every update, ours and peft's, one after the other on each matrix."""
    if book.rounds_of(name) >= rounds:
        return

    def ours(dW: Tensor) -> tuple[Tensor, Tensor]:
        part = leading(dW, RANK)
        return (part.U * part.S).float(), part.Vh.float()

    def peft(dW: Tensor) -> tuple[Tensor, Tensor]:
        U, S, V = torch.linalg.svd(dW.float(), full_matrices=False)
        return U[:, :RANK] * S[:RANK], V[:RANK]

    ways = {"rankprobe": ours, "peft": peft}
    updates = {key: (lambda W: W[1] - W[0])(sides(key, shape)) for key, shape in shapes.items()}
    for dW in list(updates.values())[:6]:
        ours(dW), peft(dW)
    while (number := book.rounds_of(name)) < rounds:
        seconds, load = dict.fromkeys(ways, 0.0), os.getloadavg()[0]
        generator = np.random.default_rng(number)
        for dW in updates.values():
            for way in generator.permutation(list(ways)).tolist():
                start = time.perf_counter()
                ways[way](dW)
                seconds[way] += time.perf_counter() - start
        book.add(name, seconds, load)
        click.echo(f"\r{name}: round {number + 1} of {rounds}", nl=number + 1 == rounds, err=True)
    found = [row_of(key, shapes[key], *(X.double() for X in peft(dW)), least_error) for key, dW in updates.items()]
    book.case(name)["facts"]["peft_by_optimum"] = max(row["by_optimum"] for row in found)
    book.write()


def measure_adapter(book: Book, name: str, folder: Path, shapes: dict, out: Path) -> None:
    """The adapter that the command writes, on every matrix."""
    if book.rounds_of(name):
        return
    vectors = {"classifier.weight": torch.zeros(2, next(iter(shapes.values()))[1])}
    folder.mkdir()
    write_pair(folder, BERT | {"hidden_size": vectors["classifier.weight"].shape[1]}, shapes, vectors)
    load = os.getloadavg()[0]
    seconds, maxrss = run(rankprobe_command(folder, folder / "adapter"))
    table = errors(folder / "adapter", shapes, least_error)
    table.to_csv(out / "extract_errors.csv", index=False, float_format="%.9g")
    facts = {key: float(table[key].max()) for key in ("by_optimum", "by_allowed")}
    book.case(name)["facts"] |= {"matrices": len(table), "maxrss": maxrss / MIB, **facts}
    book.add(name, {"rankprobe": seconds}, load)


def measure_commands(book: Book, name: str, folder: Path, shapes: dict, mergekit: str | None, rounds: int) -> None:
    """The whole commands, ours and mergekit's, in turns."""
    if book.rounds_of(name) >= rounds:
        return
    hidden = next(iter(shapes.values()))[1]
    layers, inner = len(shapes) // 7, max(max(shape) for shape in shapes.values())
    embedding = torch.full((LLAMA["vocab_size"], hidden), 0.01)
    vectors = {"model.embed_tokens.weight": embedding, "model.norm.weight": torch.ones(hidden)}
    for layer in range(layers):
        for norm in ("input", "post_attention"):
            vectors[f"model.layers.{layer}.{norm}_layernorm.weight"] = torch.ones(hidden)
    folder.mkdir()
    config = LLAMA | {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    write_pair(folder, config, shapes, vectors)
    commands = {"rankprobe": lambda to: rankprobe_command(folder, to)}
    if mergekit:
        commands["mergekit"] = lambda to: [
            mergekit, "--model", str(folder / "tuned"), "--base-model", str(folder / "base"), "--out-path", str(to),
            "--max-rank", str(RANK),
        ]  # fmt: skip
    facts = book.case(name)["facts"]
    for number in range(book.rounds_of(name), rounds):
        seconds, load = {}, os.getloadavg()[0]
        for way in np.random.default_rng(number).permutation(list(commands)).tolist():
            to = folder / f"{way}-{number}"
            seconds[way], maxrss = run(commands[way](to))
            facts.setdefault("maxrss", {}).setdefault(way, []).append(maxrss / MIB)
            facts.setdefault("by_optimum", {})[way] = float(errors(to, shapes, least_error)["by_optimum"].max())
        book.add(name, seconds, load)
        click.echo(f"\r{name}: round {number + 1} of {rounds}", nl=number + 1 == rounds, err=True)


def rankprobe_command(folder: Path, to: Path) -> list[str]:
    """``rankprobe extract --rank 16``."""
    command = [sys.executable, "-m", "rankprobe.cli.main", "extract", str(folder / "base"), str(folder / "tuned")]
    return [*command, "--rank", str(RANK), "--out", str(to)]


def run(command: list[str]) -> tuple[float, int]:
    """Wall-clock seconds and largest resident memory in bytes of a process that must succeed."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process, peak = subprocess.Popen(command, stdout=said, stderr=said, env=environment), 0
        while process.poll() is None:
            peak = max(peak, resident_peak(process.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        if process.returncode:
            said.seek(0)
            end = said.read()[-2000:].decode(errors="replace")
            raise click.ClickException(f"{' '.join(command)} ended with exit code {process.returncode}:\n{end}")
    return seconds, peak


def decomposition_rows(found: dict) -> list[dict]:
    """By peft's call, with the bar."""
    rows = faster(found, "rankprobe", "peft", 5)
    return rows + figure("error of peft, at most", found["facts"].get("peft_by_optimum"), "of the optimum")


def adapter_rows(found: dict) -> list[dict]:
    """The written adapter by what is allowed."""
    facts = found["facts"]
    return [
        *figure("error of rankprobe, at most", facts.get("by_allowed"), "of 1.001 optimum + 1e-6 norm", 1.0),
        *figure("error of rankprobe, at most", facts.get("by_optimum"), "of the optimum"),
        *figure("largest memory of rankprobe", facts.get("maxrss"), "MiB"),
        *figure("time of rankprobe", next(iter(found["seconds"].get("rankprobe", [])), None), "s"),
        *figure("matrices", facts.get("matrices"), ""),
    ]


def command_rows(found: dict) -> list[dict]:
    """Time, memory and error of both commands."""
    rows = faster(found, "rankprobe", "mergekit")
    for way, sizes in found["facts"].get("maxrss", {}).items():
        rows += figure(f"largest memory of {way}", max(sizes), "MiB")
    for way, error in found["facts"].get("by_optimum", {}).items():
        rows += figure(f"error of {way}, at most", error, "of the optimum")
    return rows


@click.command()
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1), help="Rounds of the decompositions.")
@click.option("--command-rounds", default=6, show_default=True, type=click.IntRange(1), help="Rounds of the commands.")
@click.option("--scale", default=1.0, show_default=True, help="Sides and layers: a try at 0.25 takes a minute.")
@click.option("--mergekit", type=click.Path(exists=True), help="mergekit-extract-lora, in an environment of its own.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the pairs are put.  [default: a temporary one]")
@click.option("--out", default=RESULTS, type=click.Path(path_type=Path), help="Output folder.")
def main(rounds: int, command_rounds: int, scale: float, mergekit: str | None, folder: Path | None, out: Path) -> None:
    """Measure, print and store what extracting an adapter costs and leaves."""
    code = ("linalg", "analysis", "weights")
    book = Book("extract", out, code=code, scale=scale, mergekit=bool(mergekit))
    bert = dict(bert_shapes(max(1, round(12 * scale)), 12 * round(64 * scale)))
    llama = dict(llama_shapes(max(1, round(4 * scale)), 16 * round(64 * scale), round(2816 * scale)))
    names = [f"{what} of {len(shapes)} matrices" for what, shapes in
             (("bert: decompositions", bert), ("bert: adapter", bert), ("llama: commands", llama))]  # fmt: skip
    book.rows = dict(zip(names, (decomposition_rows, adapter_rows, command_rows), strict=True))
    measure_decompositions(book, names[0], bert, rounds)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        measure_adapter(book, names[1], Path(temporary) / "bert", bert, out)
        measure_commands(book, names[2], Path(temporary) / "llama", llama, mergekit, command_rounds)
    show(book.table())


if __name__ == "__main__":
    main()
