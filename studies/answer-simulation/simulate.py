"""How often a rank sweep names an r that is not equivalent, and how often it finds the one that is.

Run with ``python studies/answer-simulation/simulate.py``; README.md beside this file says what it does.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
import pandas as pd
from methods import METHODS, p_values
from scipy import stats
from sweeps import WORLDS, World, draw

from rankprobe.experiment.parts import Parts
from rankprobe.report.equivalence import ALPHA, MARGIN, YES, fixed_sequence
from rankprobe.report.rank_answer import rank_answer
from rankprobe.report.rank_input import Configuration

ROOT = Path(__file__).resolve().parents[2]
# Population accuracy minus full fine-tuning's, from the largest r down; within the margin is less than 2 points. What
# comes after a failed r is not tested, so that one r at the margin is as bad as many.
TRUTHS = {
    "at the margin, worse": (-MARGIN,),
    "second at the margin": (0.0, -MARGIN),
    "all equal": (0.0, 0.0, 0.0),
}
SEEDS = (2, 3, 5, 10)
# Cells of which the method that reports use claims more than this falsely are drawn again, ten times as often.
CLOSER = 0.045
MIXED_RANKS = (64, 16, 8, 4, 2, 1)
# Ranges of the plateau of large r, of how far r = 1 is below it, and of the factor a doubling of r takes that by.
MIXED = ((-0.010, 0.005), (0.0, 0.12), (0.35, 0.85))


@click.command()
@click.option("--sweeps", default=1000, show_default=True, help="Of each cell: a truth, a world, a number of seeds.")
@click.option("--mixed", default=1000, show_default=True, help="Sweeps of random truth, through rank_answer itself.")
@click.option("--seed", default=2027, show_default=True, help="Of everything that is drawn.")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "results" / "answer-simulation")
def main(sweeps: int, mixed: int, seed: int, out: Path) -> None:
    """Draw sweeps of known truth and count what is claimed of them."""
    start = time.perf_counter()
    parts = Parts(out, f"{sweeps} {mixed} {seed} {code()}")

    def kept(key: str, make: Callable[[], dict]) -> dict:
        if key not in parts:
            parts[key] = make()
            print(f"{time.perf_counter() - start:4.0f} s  {key}", flush=True)
        return parts[key]

    answers = []
    for first in range(0, mixed, 100):
        which = range(first, min(mixed, first + 100))
        answers += kept(f"mixed {first}", partial(mixed_sweeps, seed, which))["rows"]
    answers = pd.DataFrame(answers).astype({"true_r": "Int64", "found_r": "Int64"})
    rare = pd.DataFrame(
        [kept(f"rare {n}", partial(rare_failure, n, sweeps, np.random.default_rng([seed, 10**7, n]))) for n in SEEDS]
    )
    rows = []
    for number, (truth, world, n_seeds) in enumerate(itertools.product(TRUTHS, WORLDS, SEEDS)):
        rng = np.random.default_rng([seed, number])
        cell = kept(
            f"{truth}, {world.name}, {n_seeds} seeds", partial(count, TRUTHS[truth], world, n_seeds, sweeps, rng)
        )
        of = {"truth": truth, "world": world.name, "n_rows": world.n_rows, "n_seeds": n_seeds, "sweeps": sweeps}
        rows += [of | {"method": name} | numbers for name, numbers in cell.items()]
    rates = pd.DataFrame(rows)
    closer = []
    for row in rates[(rates["method"] == METHODS[0]) & (rates["false_claims"] > CLOSER)].itertuples():
        world = next(each for each in WORLDS if each.name == row.world)
        rng = np.random.default_rng([seed, 10**8, row.Index])
        more = partial(count, TRUTHS[row.truth], world, row.n_seeds, 10 * sweeps, rng)
        cell = kept(f"again: {row.truth}, {row.world}, {row.n_seeds} seeds", more)
        of = {"truth": row.truth, "world": row.world, "n_seeds": row.n_seeds, "sweeps": 10 * sweeps}
        closer += [of | {"method": name} | numbers for name, numbers in cell.items()]
    closer = pd.DataFrame(closer)
    for name, table in {"rates": rates, "closer": closer, "mixed": answers, "rare_failure": rare}.items():
        table.to_csv(out / f"{name}.csv", index=False, float_format="%.4g")
    parts.clear()
    print(worst(rates).to_string())
    print(closer.to_string())
    print(answers["outcome"].value_counts().to_string())
    print(rare.to_string(index=False))
    print(f"{time.perf_counter() - start:.0f} s")


def code() -> str:
    """Fingerprint of what draws and what tests the sweeps: results of other code are not taken up."""
    files = [*sorted((ROOT / "rankprobe" / "report").glob("*.py")), *sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def count(truth: tuple, world: World, n_seeds: int, sweeps: int, rng: np.random.Generator) -> dict[str, dict]:
    """Shares of sweeps that claim something false, and that name the r that is the right answer, by method."""
    equivalent = [abs(difference) < MARGIN for difference in truth]
    right = next((i for i, is_so in enumerate(equivalent) if not is_so), len(truth))
    false, found = Counter(), Counter()
    for _ in range(sweeps):
        drawn = draw(world, truth, n_seeds, rng).astype(np.float64)
        p = [p_values(each - drawn[0], MARGIN) for each in drawn[1:]]
        for name in METHODS:
            passed = fixed_sequence([of[name] for of in p], ALPHA).count(YES)
            false[name] += not all(equivalent[:passed])
            found[name] += right > 0 and passed == right
    return {
        name: {
            "false_claims": false[name] / sweeps,
            **dict(zip(("low", "high"), exact(false[name], sweeps), strict=True)),
            "right_r": found[name] / sweeps if right else None,
        }
        for name in METHODS
    }


def exact(k: int, n: int) -> tuple[float, float]:
    """95 % Clopper-Pearson interval of a share."""
    found = stats.binomtest(k, n).proportion_ci(0.95, "exact")
    return found.low, found.high


def worst(rates: pd.DataFrame) -> pd.DataFrame:
    """The largest share of false claims over worlds and truths, by number of seeds and method."""
    return rates.pivot_table("false_claims", "n_seeds", "method", "max")[list(METHODS)]


def mixed_sweeps(seed: int, which: range) -> dict:
    """Some of the sweeps of random truth."""
    return {"rows": [one_mixed(np.random.default_rng([seed, 10**6, i])) for i in which]}


def one_mixed(rng: np.random.Generator) -> dict:
    """A sweep of six r in a world drawn at random, answered as reports answer it.

    Differences rise from r = 1 to a plateau within 1 point of full fine-tuning, by a factor a doubling of r; nothing is
    exactly at the margin, but much is near it.
    """
    world = World(
        "mixed",
        n_rows=round(np.exp(rng.uniform(np.log(300), np.log(4000)))),
        seed_points=rng.uniform(0, 1.5),
        family=rng.uniform(0, 0.1),
        suits=rng.uniform(0, 0.15),
        luck=rng.uniform(0.02, 0.15),
        accuracy=rng.uniform(0.7, 0.92),
    )
    n_seeds, plateau, at_one, factor = int(rng.integers(2, 9)), *(rng.uniform(*x) for x in MIXED)
    truth = {r: plateau - at_one * factor ** np.log2(r) for r in MIXED_RANKS}
    drawn = draw(world, list(truth.values()), n_seeds, rng)
    labels = np.ones(world.n_rows, dtype=np.int64)
    full, *others = ({seed: (labels, x.astype(np.int64), None) for seed, x in enumerate(each)} for each in drawn)
    sweep = [Configuration(f"LoRA r = {r}", r, seeds) for r, seeds in zip(truth, others, strict=True)]
    found = rank_answer(sweep, Configuration("full fine-tuning", None, full))
    within = {r: abs(difference) < MARGIN for r, difference in truth.items()}
    smallest = min((r for r in truth if all(within[s] for s in truth if s >= r)), default=None)
    if found.r is None:
        none = found.text.startswith("No r tested")
        outcome = ("false: none is within" if any(within.values()) else "none is within") if none else "not shown"
    else:
        is_true = all(within[r] for r in truth if r >= found.r)
        outcome = "false claim" if not is_true else "the smallest r" if found.r == smallest else "a larger r"
    return {
        "n_rows": world.n_rows,
        "n_seeds": n_seeds,
        "seed_points": world.seed_points,
        **{f"truth_{r}": difference for r, difference in truth.items()},
        "true_r": smallest,
        "found_r": found.r,
        "outcome": outcome,
    }


def rare_failure(n_seeds: int, sweeps: int, rng: np.random.Generator) -> dict:
    """A LoRA configuration of which one seed in ten loses 20 points, so that it is 2 points below on average.

    No normal law: most sweeps of a few seeds never see it.
    """
    world, false, seen = WORLDS[0], 0, 0
    for _ in range(sweeps):
        drawn = draw(world, [0.0], n_seeds, rng).astype(np.float64)
        failed = rng.random(n_seeds) < 0.1
        # A failed seed gets a quarter of what it had right wrong: 0.8 becomes 0.6.
        drawn[1][failed] *= rng.random((int(failed.sum()), world.n_rows)) >= 0.25
        false += p_values(drawn[1] - drawn[0], MARGIN)[METHODS[0]] <= ALPHA
        seen += failed.any()
    return {
        "n_seeds": n_seeds,
        "sweeps": sweeps,
        "false_claims": int(false) / sweeps,
        "failure_seen": int(seen) / sweeps,
    }


if __name__ == "__main__":
    main()
