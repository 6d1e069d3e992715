"""Recovered against true rank of updates that were planted and stored, or planted in Gaussian noise.

Run with ``python studies/planted-ranks/planted.py``; README.md beside this file says what it does.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from plants import BOTH, DTYPES, FINER, GAUSSIAN, NOISY, SAME, STORED, noisy, regime, stored
from recovered import counts, picture, summary

from rankprobe.experiment.parts import Parts
from rankprobe.report.style import save_picture, style

ROOT = Path(__file__).resolve().parents[2]
RANKS = (1, 4, 16)
# Updates of each cell: of stored ones (dtype, base, rank), and of those in Gaussian noise (storage, rank).
DRAWS = {(64, 64): (45, 54), (256, 256): (18, 24), (768, 768): (8, 8), (768, 3072): (2, 4), (2048, 512): (4, 6)}


@click.command()
@click.option("--seed", default=2027, show_default=True, help="Of everything that is drawn.")
@click.option("--share", default=1.0, show_default=True, help="Of the updates: 0.1 for a first look.")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "results" / "planted-ranks")
def main(seed: int, share: float, out: Path) -> None:
    """Plant updates of known rank, store them, and count how often each definition finds the rank."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    parts = Parts(out, f"{seed} {share} {DRAWS} {_code()}")
    rows = []
    for number, cell in enumerate(cells()):
        key = f"{number} {cell}"
        if key not in parts:
            parts[key] = {"rows": list(drawn(seed, number, cell, share))}
            print(f"{time.perf_counter() - start:4.0f} s  {key}", flush=True)
        rows += parts[key]["rows"]
    cases = pd.DataFrame(rows)
    cases["regime"] = [regime(row) for row in rows]
    cases.to_csv(out / "cases.csv.gz", index=False, float_format="%.4g", compression={"method": "gzip", "mtime": 0})
    cases = pd.read_csv(out / "cases.csv.gz", keep_default_na=True)
    table = summary(cases)
    table.to_csv(out / "summary.csv", index=False, float_format="%.4g")
    counts(cases).to_csv(out / "recovered.csv", index=False)
    with style():
        save_picture(picture(cases), out)
    parts.clear()
    print(table[table["by"] == "all"].to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print(f"{len(cases)} updates, {time.perf_counter() - start:.0f} s")


def cells() -> Iterator[tuple]:
    """Shape, noise (a dtype or Gaussian), base (or the dtype that the noisy weights are stored in), true rank."""
    for shape in DRAWS:
        for dtype, base in itertools.product(DTYPES, (SAME, FINER, BOTH)):
            for k in RANKS if base == SAME else (0, *RANKS):  # without an update a base on the grid stays as it is
                yield shape, dtype, base, k
        for dtype, k in itertools.product(("", "float32", "bfloat16"), (0, *RANKS)):
            yield shape, GAUSSIAN, dtype, k


def drawn(seed: int, number: int, cell: tuple, share: float) -> Iterator[dict]:
    """The updates of one cell: settings in turn, scales spread evenly on a log axis, in an order of their own."""
    shape, noise, base, k = cell
    settings = NOISY if noise == GAUSSIAN else STORED
    draws = max(1, round(share * DRAWS[shape][noise == GAUSSIAN]))
    order = np.random.default_rng([seed, number]).permutation(draws)
    for i in range(draws):
        choose = np.random.default_rng([seed, number, i])
        where = (order[i] + choose.uniform()) / draws
        name = settings[(number + i) % len(settings)]
        if noise == GAUSSIAN:
            yield noisy(choose, *shape, base, k, name, where)
        else:
            yield stored(choose, *shape, noise, base, k, name, where)


def _code() -> str:
    """Fingerprint of what makes and what measures the updates: results of other code are not taken up."""
    files = [*sorted((ROOT / "rankprobe" / "linalg").glob("*.py")), ROOT / "rankprobe" / "analysis" / "spectrum.py",
             *sorted(Path(__file__).parent.glob("*.py"))]  # fmt: skip
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


if __name__ == "__main__":
    main()
