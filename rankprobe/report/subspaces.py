"""Table 7, Figures 3 and 4 and intruder dimensions as tables, from what pairs of runs share."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from rankprobe.report.stats import Estimate, bootstrap_mean, bootstrap_median

# The pairs that the tables are made of, by their names: LoRA's r (and seed) on each side, None for full fine-tuning,
# and which directions are compared. One pair gives amplification and intruder dimensions of both of its sides.
PAIRS = {
    "r8-r64": ((8, 0), (64, 0), "A"),
    "r64-seeds": ((64, 0), (64, 1), "A"),
    "r4-r64": ((4, 0), (64, 0), "right"),
    "r1-full": ((1, 0), (None, 0), "right"),
}
Pairs = Mapping[str, Mapping[str, pd.DataFrame]]
_QUANTITIES = {
    "base_norm": "norm_of_W",
    "update_norm": "norm_of_dW",
    "on_update": "norm_on_dW",
    "on_base": "norm_on_W",
    "on_random": "norm_on_random",
    "factor": "amplification",
}
TABLE_7 = ["lora_r", "quantity", "median", "ci_low", "ci_high", "n", "ci_method", "paper"]
INTRUDERS = ["method", "lora_r", "seed", "k", "mean", "ci_low", "ci_high", "n", "ci_method", "share_of_matrices"]


def table_7(pairs: Pairs, published: pd.DataFrame) -> pd.DataFrame:
    """How much dW amplifies what it finds in W0: medians over the adapted matrices, by r.

    Parameters
    ----------
    pairs : mapping
        As :class:`rankprobe.report.verdicts.Evidence` has them.
    published : DataFrame

    Returns
    -------
    DataFrame, columns :data:`TABLE_7`
        Frobenius norms: of W0; of dW's best rank-r part; of W0 on dW's directions, on its own leading ones, on random
        ones; and the second over the third. ``paper`` is GPT-3's W_q of layer 48.
    """
    rows = []
    for r, of in amplified(pairs).items():
        for column, name in _QUANTITIES.items():
            found = bootstrap_median(of[column])
            rows.append({"lora_r": r, "quantity": name, "median": found.estimate, "ci_low": found.low,
                         "ci_high": found.high, "n": found.n, "ci_method": found.method,
                         "paper": printed(published, name, r)})  # fmt: skip
    return pd.DataFrame(rows, columns=TABLE_7)


def amplified(pairs: Pairs) -> dict[int, pd.DataFrame]:
    """The amplification rows of each LoRA r, a row a matrix: of the pair of Table 7 where it is there."""
    found: dict[int, pd.DataFrame] = {}
    for name in sorted(pairs, key=lambda name: name != "r4-r64"):
        table = pairs[name]["amplification"]
        for r, rows in table[table["method"] == "lora"].groupby("lora_r"):
            rows = rows[rows["seed"] == rows["seed"].min()].drop_duplicates("name")
            found.setdefault(int(r), rows.reset_index(drop=True))
    return dict(sorted(found.items()))


def printed(published: pd.DataFrame, metric: str, r: int) -> float:
    """A number of the paper's Table 7."""
    if published.empty:
        return math.nan
    rows = published[published["source"].str.endswith("Table 7") & (published["metric"] == metric)]
    if metric != "norm_of_W":
        rows = rows[rows["r"] == r]
    return float(rows["value"].iloc[0]) if len(rows) else math.nan


def intruders_table(pairs: Pairs) -> pd.DataFrame:
    """Intruder dimensions among the leading directions of W1: mean number a matrix, by method and r.

    Returns
    -------
    DataFrame, columns :data:`INTRUDERS`
        Also W0 against itself, the control, as the method ``base``.
    """
    rows = []
    for (method, r, seed), of in counted(pairs).items():
        found = mean_of(of["intruders"], int(of["k"].iloc[0]))
        rows.append({"method": method, "lora_r": r, "seed": seed, "k": int(of["k"].iloc[0]), "mean": found.estimate,
                     "ci_low": found.low, "ci_high": found.high, "n": found.n, "ci_method": found.method,
                     "share_of_matrices": float((of["intruders"] > 0).mean())})  # fmt: skip
    table = pd.DataFrame(rows, columns=INTRUDERS)
    return table.astype({"lora_r": "Int64", "seed": "Int64"})


def counted(pairs: Pairs) -> dict[tuple[str, int | None, int | None], pd.DataFrame]:
    """Rows of intruders.csv by (method, r, seed), a row a matrix; (``base``, None, None) for the control."""
    found: dict[tuple[str, int | None, int | None], pd.DataFrame] = {}
    for tables in pairs.values():
        table = tables["intruders"]
        table = table.assign(method=table["method"].fillna("base"))
        for (method, r, seed), rows in table.groupby(["method", "lora_r", "seed"], dropna=False):
            key = (str(method), *(None if pd.isna(v) else int(v) for v in (r, seed)))
            found.setdefault(key, rows.drop_duplicates("name").reset_index(drop=True))
    return dict(sorted(found.items(), key=lambda item: (item[0][0], item[0][1] or 0, item[0][2] or 0)))


def mean_of(counts: pd.Series, k: int) -> Estimate:
    """A mean number over matrices, of k directions in each.

    Where no direction of any is counted, what that many directions without one still leave possible.
    """
    if (counts == 0).all():
        share = bootstrap_mean(np.zeros(k * len(counts)), bounds=(0.0, 1.0), over="directions")
        return share._replace(high=k * share.high)
    return bootstrap_mean(counts, bounds=(-k, k), over="matrices")


def figure_tables(pairs: Pairs) -> dict[str, pd.DataFrame]:
    """``figure3`` and ``figure4``: φ(i, j) of every matrix, with random subspaces' mean and interval.

    A row a cell: the layer and the kind say which matrix it is, and φ has four decimals here, so that 64 x 64 cells of
    every matrix stay a file that can be sent around. The pair's own overlap.csv in the run store has all digits.
    """
    return {
        figure: pairs[name]["overlap"].drop(columns="name").round(4)
        for figure, name in (("figure3", "r8-r64"), ("figure4", "r64-seeds"))
        if name in pairs
    }
