"""What the decompositions of a 7B model's updates cost on a GPU, matrix by matrix, beside the hardware's floor.

Run with ``python studies/benchmarks/gpu_shapes.py --device cuda``; it stops by itself after 7 minutes with what it has,
and goes on when it is called again. The 224 matrices of a Llama of 7B parameters (32 layers of q, k, v, o 4096 x 4096,
gate and up 11008 x 4096, down 4096 x 11008) are made on the device one by one in float32, an update of rank 16 above a
Gaussian bulk, and nothing of them is kept. Stored in results/benchmarks/gpu_shapes.{json,csv} after each matrix:

- ``values``: all singular values; ``top 64``: the 64 leading triplets, with their exact residual;
- ``floor``: the least that the device could take, the larger of the time that the operations alone take and that of
  reading the matrix. Operations: half a product for the Gram matrix and 4/3 p³ for its tridiagonal form; two passes of
  64 columns for the leading part. Both at the rates that a product in float64 and a copy reach on the same matrix;
- how well the two, which share no step, agree: Σσ² by ``||M||²``, what the leading part leaves by the least that 64
  triplets can, and how far its values lie below the exact ones (those within the bulk need not converge for the part to
  be as good as the best).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from rounds import RESULTS, Book, figure, seconds_of, show
from torch import Tensor

from rankprobe.linalg.decompose import leading, singular_values
from rankprobe.training.precision import pick_device

LAYERS, HIDDEN, INNER, RANK, TOP = 32, 4096, 11008, 16, 64


def shapes(hidden: int, inner: int) -> Iterator[tuple[str, int, int]]:
    """The matrices of a layer."""
    for kind in "qkvo":
        yield kind, hidden, hidden
    for kind in ("gate", "up"):
        yield kind, inner, hidden
    yield "down", hidden, inner


def update(m: int, n: int, seed: int, device: str) -> Tensor:
    """Rank 16, from 3 to 30 times above the edge of a Gaussian bulk."""
    generator = torch.Generator(device).manual_seed(seed)

    def gaussian(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, device=device)

    edge, U, V = m**0.5 + n**0.5, torch.linalg.qr(gaussian(m, RANK)).Q, torch.linalg.qr(gaussian(n, RANK)).Q
    return gaussian(m, n) + edge * (U * torch.logspace(1.477, 0.477, RANK, device=device)) @ V.T


def measure(M: Tensor, top: int, device: str) -> tuple[dict[str, float], dict]:
    """Seconds of each way on one matrix, and how well they agree."""
    D, found = M.double(), {}
    small = D[: D.shape[1], : D.shape[0]][: min(D.shape) // 2]
    ways = {
        "values": lambda: found.update(values=singular_values(M)),
        "top": lambda: found.update(top=leading(M, top)),
        "product": lambda: small @ small.T,
        "copy": D.clone,
    }
    seconds = {way: seconds_of(call, device=device)() for way, call in ways.items()}
    values, part = found["values"], found["top"]
    S, energy = values.S, float(torch.linalg.vector_norm(D)) ** 2
    least = float(S[top:].square().sum().sqrt())
    facts = {
        "methods": [values.method, part.method],
        "difference": float((part.S - S[:top]).abs().max() / S[0]),
        "energy": abs(float(S.square().sum()) / energy - 1),
        "by_optimum": part.residual * energy**0.5 / least,
        "product_flop": 2.0 * small.shape[0] ** 2 * small.shape[1],
        "copy_bytes": 16.0 * D.numel(),
    }
    return seconds, facts


def floors(m: int, n: int, top: int, flop_rate: float, byte_rate: float) -> dict[str, float]:
    """Least seconds of the two ways on an m x n matrix."""
    p, larger = sorted((m, n))
    values = max((larger * p**2 + 4 / 3 * p**3) / flop_rate, 4 * m * n / byte_rate)
    return {"values": values, "top": max(4 * m * n * top / flop_rate, 16 * m * n / byte_rate)}


def rows(found: dict, m: int, n: int, top: int) -> list[dict]:
    """Times of one shape's matrices, by their floors, and the checks."""
    facts, table = found["facts"].get("matrices", []), []
    if not facts:
        return []
    seconds = {way: np.asarray(times) for way, times in found["seconds"].items()}
    flop_rate = float(np.median([f["product_flop"] for f in facts] / seconds["product"]))
    byte_rate = float(np.median([f["copy_bytes"] for f in facts] / seconds["copy"]))
    for way, floor in floors(m, n, top, flop_rate, byte_rate).items():
        times, label = seconds[way], "values" if way == "values" else f"top {top}"
        low, high = float(times.min()), float(times.max())
        common = {"n": len(times), "method": "/".join(sorted({f["methods"][way != "values"] for f in facts}))}
        for name, scale, unit in ((label, 1.0, "s a matrix"), (f"{label} by floor", 1 / floor, "times")):
            table.append({"measure": name, "value": float(np.median(times)) * scale, "unit": unit,
                          "low": low * scale, "high": high * scale, **common})  # fmt: skip
        table += figure(f"floor of {label}", floor, "s")
    table += figure("float64 product", flop_rate / 1e12, "TFLOP/s") + figure("copy", byte_rate / 1e9, "GB/s")
    table += figure(f"top {top} below the exact values, at most", max(f["difference"] for f in facts), "of σ₁")
    table += figure("Σσ² by ||M||²", max(f["energy"] for f in facts), "off 1", 1e-12)
    return table + figure("error of the leading part", max(f["by_optimum"] for f in facts), "of the optimum", 1.001)


@click.command()
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--layers", default=LAYERS, show_default=True, type=click.IntRange(1), help="Layers of the model.")
@click.option("--scale", default=1.0, show_default=True, help="Sides are multiplied by it: a try on a CPU at 0.05.")
@click.option("--minutes", default=7.0, show_default=True, help="No matrix is begun after it.")
@click.option("--out", default=RESULTS, type=click.Path(path_type=Path), help="Output folder.")
def main(device: str, layers: int, scale: float, minutes: float, out: Path) -> None:
    """Measure, print and store what decomposing a 7B model's matrices costs."""
    end = time.monotonic() + 60 * minutes
    device = pick_device() if device == "auto" else device
    book = Book("gpu_shapes", out, device=device, scale=scale)
    top = max(4, round(TOP * scale))
    layer = list(shapes(round(HIDDEN * scale), round(INNER * scale)))
    for _, m, n in layer:
        book.rows[f"{m}x{n}"] = lambda found, m=m, n=n: rows(found, m, n, top)
        measure(update(m, n, 0, device), top, device)  # libraries are loaded and kernels chosen outside the clock
    done: dict[str, int] = {}
    total = layers * len(layer)
    for number, (_, m, n) in enumerate(layer * layers):
        name = f"{m}x{n}"
        done[name] = done.get(name, 0) + 1
        if book.rounds_of(name) >= done[name]:
            continue
        if time.monotonic() > end:
            click.echo(f"\nTime is up after {number} of {total} matrices; call it again for the others", err=True)
            break
        seconds, facts = measure(update(m, n, 1 + number, device), top, device)
        book.case(name)["facts"].setdefault("matrices", []).append(facts)
        book.add(name, seconds, 0.0)
        click.echo(f"\rmatrix {number + 1} of {total}", nl=number + 1 == total, err=True)
    show(book.table())


if __name__ == "__main__":
    main()
