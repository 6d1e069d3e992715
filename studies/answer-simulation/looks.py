"""How often "equivalent" is false where seeds are added until it is said.

Run with ``python studies/answer-simulation/looks.py``; README.md beside this file says what it asks.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np
import pandas as pd
from simulate import exact
from sweeps import WORLDS, World, draw

from rankprobe.report.equivalence import ALPHA, MARGIN, equivalence
from rankprobe.report.power import seeds_needed

ROOT = Path(__file__).resolve().parents[2]
BY_HAND = (3, 5, 10)
FIRST, MOST = BY_HAND[0], BY_HAND[-1]


@click.command()
@click.option("--sweeps", default=4000, show_default=True, help="Of each world.")
@click.option("--seed", default=2028, show_default=True, help="Of everything that is drawn.")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "results" / "answer-simulation")
def main(sweeps: int, seed: int, out: Path) -> None:
    """Draw configurations that are exactly the margin below full fine-tuning, look, add seeds, look again."""
    start = time.perf_counter()
    rows = []
    for number, world in enumerate(WORLDS):
        rows += looked(world, sweeps, np.random.default_rng([seed, number]))
        print(f"{time.perf_counter() - start:4.0f} s  {world.name}", flush=True)
        table = pd.DataFrame(rows)
        table.to_csv(out / "looks.csv", index=False, float_format="%.4g")
    print(table.to_string(index=False))


def looked(world: World, sweeps: int, rng: np.random.Generator) -> list[dict]:
    """Shares of sweeps that end in a false claim, by how seeds are added."""
    # Sweeps that have claimed it by their first, second and third look; of the two that go by advice, by their last.
    by_hand, advised, looks = np.zeros(len(BY_HAND), dtype=int), 0, 0
    for _ in range(sweeps):
        full, lora = (table_of(each) for each in draw(world, [-MARGIN], MOST, rng))
        claims = [equivalence(lora[:n], full[:n]).p <= ALPHA for n in BY_HAND]
        by_hand += np.logical_or.accumulate(claims)
        claimed, n_looks = as_advised(lora, full)
        advised, looks = advised + claimed, looks + n_looks
    ways = {f"looked at {', '.join(map(str, BY_HAND[:i]))} seeds": by_hand[i - 1] for i in range(1, len(BY_HAND) + 1)}
    as_told = f"{FIRST} seeds, then as many as advised, up to {MOST}"
    return [
        {"world": world.name, "way": way, "sweeps": sweeps, "false_claims": k / sweeps}
        | dict(zip(("low", "high"), exact(int(k), sweeps), strict=True))
        | {"mean_looks": looks / sweeps if way == as_told else None}
        for way, k in (ways | {as_told: advised}).items()
    ]


def table_of(right: np.ndarray) -> list[tuple]:
    """Labels, predictions, scores of each seed, of who is right on which row."""
    labels = np.ones(right.shape[1], dtype=np.int64)
    return [(labels, seed.astype(np.int64), None) for seed in right]


def as_advised(lora: list[tuple], full: list[tuple]) -> tuple[bool, int]:
    """Whether it is claimed in the end, and after how many looks, where each look adds the seeds the last one named."""
    n = FIRST
    for look in range(1, MOST):
        found = equivalence(lora[:n], full[:n])
        if found.p <= ALPHA:
            return True, look
        apart = found.difference
        more = seeds_needed(
            difference=apart.estimate,
            bound=found.bound,
            seed_sd=apart.seed_sd,
            row_se=apart.row_se,
            at_least=n + 1,
        )
        if more.total is None or more.total > MOST:
            return False, look
        n = more.total
    return False, look


if __name__ == "__main__":
    main()
