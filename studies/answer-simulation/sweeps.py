"""Synthetic sweeps whose truth is known: who is right on which row, from a model with seeds and rows in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class World:
    """A task, and how far seeds and rows matter on it.

    A configuration gets a row right where ``level + seed + difficulty + family + suits + luck > 0``, each a normal
    variable: ``seed`` drawn once a configuration and seed, ``difficulty`` once a row, ``family`` once a row for full
    fine-tuning and once for all LoRA configurations, ``suits`` once a row and configuration, ``luck`` once for each of
    all three. The rows' variances are the fields; ``difficulty``'s is what is left to 1. The population accuracy over
    all seeds and rows is then the normal distribution function of level / sqrt(1 + seed variance), exactly.

    Attributes
    ----------
    name : str
    n_rows : int
    seed_points : float
        Standard deviation of a configuration's accuracy over seeds, in points, on infinitely many rows.
    family, suits, luck : float
        Shares of the rows' variance.
    accuracy : float
        Of full fine-tuning, in the population.
    """

    name: str
    n_rows: int
    seed_points: float
    family: float = 0.05
    suits: float = 0.10
    luck: float = 0.10
    accuracy: float = 0.80


# For scale: over seeds, LoRA's measured difference to full fine-tuning has a standard deviation of 0.4 to 1.0 points on
# docmatch (4,000 rows) and 0.7 to 1.4 on SST-2 (872); of two LoRA runs on docmatch just one is right on 5 to 20 % of
# the rows.
WORLDS = (
    World("docmatch", 4000, 0.4),
    World("sst2", 872, 0.4),
    World("small", 200, 0.5),
    World("restless seeds", 1500, 1.5),
    World("quiet seeds", 1500, 0.0),
    World("rows decide", 1500, 0.3, family=0.10, suits=0.15, luck=0.05),
    World("nearly alike", 872, 0.2, family=0.003, suits=0.003, luck=0.004, accuracy=0.95),
)


def draw(world: World, differences: Sequence[float], n_seeds: int, rng: np.random.Generator) -> np.ndarray:
    """Who is right, of full fine-tuning (first) and of configurations that truly differ from it by so much.

    Parameters
    ----------
    world : World
    differences : sequence of float
        Population accuracy minus full fine-tuning's, one a LoRA configuration.
    n_seeds : int
    rng : Generator

    Returns
    -------
    ndarray of bool, shape (1 + len(differences), n_seeds, n_rows)
    """
    # A seed moves the level; near the mean accuracy a step of the level moves the accuracy by the normal density.
    seed_sd = world.seed_points / 100 / stats.norm.pdf(stats.norm.ppf(world.accuracy))
    levels = stats.norm.ppf(world.accuracy + np.array([0.0, *differences])) * np.sqrt(1 + seed_sd**2)
    shape = (len(levels), n_seeds, world.n_rows)

    def normal(variance: float, *size: int) -> np.ndarray:
        return np.float32(np.sqrt(variance)) * rng.standard_normal(size, dtype=np.float32)

    right = normal(world.luck, *shape)
    right += normal(1 - world.family - world.suits - world.luck, world.n_rows)
    right += normal(world.suits, shape[0], 1, shape[2])
    right[0] += normal(world.family, world.n_rows)
    right[1:] += normal(world.family, world.n_rows)
    right += normal(seed_sd**2, *shape[:2], 1)
    right += levels.astype(np.float32)[:, None, None]
    return right > 0
