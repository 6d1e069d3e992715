"""The tables of a comparison, from what was measured of each matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rankprobe.analysis.compare_matrix import angle_chance, chance
from rankprobe.analysis.spectrum_tables import in_order
from rankprobe.linalg.subspace import overlap_moments, random_overlap

_RANDOM = ("random_mean", "random_low", "random_high")
_WHERE = ["name", "layer", "kind"]
MATRICES = [
    *_WHERE, "m", "n", "source_x", "source_y", "dim", "r_x", "r_y", "energy_x", "energy_y",
    *(f"{place}{end}" for place in ("phi_1_1", "phi_min_min", "phi_rx_ry", "best_phi")
      for end in ("", *(f"_{r}" for r in _RANDOM))),
    "best_i", "best_j",
    *(f"angle_{which}_{end}" for which in ("min", "median", "max") for end in ("deg", *_RANDOM)),
    "share_x_in_y", "share_x_in_y_random", "share_y_in_x", "share_y_in_x_random",
]
OVERLAP = [*_WHERE, "i", "j", "phi", *_RANDOM]
ANGLES = [*_WHERE, "index", "angle_deg", *_RANDOM]
AMPLIFICATION = [*_WHERE, "side", "r", "base_norm", "update_norm", "on_update", "on_base", "on_random", "factor"]
INTRUDERS = [*_WHERE, "side", "k", "eps", "intruders", "cosine_min", "cosine_median"]
COSINES = [*_WHERE, "side", "index", "cosine", "base_index"]
LAYERS = ["matrix", "kind", "layer_x", "layer_y", "dim", "r", "phi", *_RANDOM]
SKIPPED = ["name", "reason"]


@dataclass(frozen=True)
class Comparison:
    """What two tunings share, matrix by matrix.

    Attributes
    ----------
    matrices : DataFrame, a row a matrix
        compare.csv: name, layer, kind, m, n; source_x, source_y (``dense`` or ``factored``); dim (n; m for left
        directions); r_x, r_y (directions compared) and energy_x, energy_y (their share of ||dW||_F²); φ at (1, 1), at
        (min, min) and at (r_x, r_y), and where it exceeds chance the most (best_phi at best_i, best_j), each with the
        mean and the 95 % interval of random subspaces; smallest, median and largest principal angle in degrees,
        likewise; share_x_in_y (energy of X's leading part inside the span of Y's directions; at random r_y / dim) and
        share_y_in_x.
    overlap : DataFrame
        overlap.csv, a row an (i, j): φ(i, j) with the random mean and interval.
    angles : DataFrame
        angles.csv, a row a principal angle (degrees, ascending) with the random mean and interval.
    amplification : DataFrame
        amplification.csv, a row a matrix and side: r, ||W0||_F, ||[dW]_r||_F, ||UᵀW0Vhᵀ||_F on dW's directions, on W0's
        own, on random ones, and the factor ||[dW]_r||_F over the first of these.
    intruders : DataFrame
        intruders.csv, a row a matrix and side, and one for W0 against itself, the control.
    cosines : DataFrame
        intruder_cosines.csv: the largest |cosine| of each of W1's leading left singular vectors with any of W0's.
    layers : DataFrame
        layers.csv: φ(r, r) of every layer of X with every layer of Y, r the same for all matrices that differ in the
        layer alone; empty unless asked for.
    skipped : DataFrame
        skipped.csv: matrices that were not compared, and why.
    notes : tuple of str
        One line each.
    labels : (str, str)
        Names of X and Y.
    of : str
        Which directions: ``right``, ``left`` or ``A``.
    same : bool
        X and Y are one input.
    """

    matrices: pd.DataFrame
    overlap: pd.DataFrame
    angles: pd.DataFrame
    amplification: pd.DataFrame
    intruders: pd.DataFrame
    cosines: pd.DataFrame
    layers: pd.DataFrame
    skipped: pd.DataFrame
    notes: tuple[str, ...]
    labels: tuple[str, str]
    of: str
    same: bool

    def __repr__(self) -> str:
        tables = ", ".join(f"{name} {len(table)}" for name, table in vars(self).items() if hasattr(table, "columns"))
        return f"Comparison of {' and '.join(dict.fromkeys(self.labels))}; rows: {tables}"


def tabulate(
    parts: Iterable[dict],
    layers: Iterable[dict],
    *,
    skipped: dict[str, str],
    notes: Iterable[str],
    labels: tuple[str, str],
    of: str,
    same: bool,
    intruder_eps: float = 0.5,
) -> Comparison:
    """Put together what was measured.

    Parameters
    ----------
    parts : iterable of dict
        From :func:`rankprobe.analysis.compare_matrix.measure`, in the tables' order.
    layers : iterable of dict
        matrix (a name without its layer), kind, layers, dim, r and phi (a list of lists).
    skipped : dict of str to str
    notes, labels, of, same
        As the Comparison has them.
    intruder_eps : float
        Below this cosine a direction is an intruder.
    """
    parts = list(parts)
    done = [part for part in parts if part["reason"] is None]
    skipped = {**skipped, **{part["name"]: part["reason"] for part in parts if part["reason"] is not None}}
    cosines = _rows(done, "cosines")
    return Comparison(
        matrices=_frame([{**_where(p), **p["row"]} for p in done], MATRICES),
        overlap=_long(done, "phi"),
        angles=_long(done, "angles_deg"),
        amplification=_frame(_rows(done, "amplification"), AMPLIFICATION),
        intruders=_frame([_intruders(row, intruder_eps) for row in cosines], INTRUDERS),
        cosines=_cosines(cosines),
        layers=pd.concat([_layers(grid) for grid in layers] or [pd.DataFrame(columns=LAYERS)], ignore_index=True),
        skipped=pd.DataFrame({"name": list(skipped), "reason": list(skipped.values())}, columns=SKIPPED),
        notes=tuple(notes),
        labels=labels,
        of=of,
        same=same,
    )


def by_kind(comparison: Comparison) -> pd.DataFrame:
    """Medians over the matrices of each kind.

    Returns
    -------
    DataFrame
        kind, matrices, r_x, r_y, φ at (1, 1) and at (min, min) with its random mean, how many matrices lie above the
        random interval there, the smallest principal angle, the shares of energy; factor_x, factor_y, and the mean
        number of intruders, where W0 was at hand.
    """
    table = comparison.matrices
    above = (table["phi_min_min"] > table["phi_min_min_random_high"]).astype(int)
    groups = table.assign(above=above).groupby("kind", sort=False)
    shown = ["r_x", "r_y", "phi_1_1", "phi_min_min", "phi_min_min_random_mean", "angle_min_deg", "share_x_in_y",
             "share_y_in_x"]
    found = groups[shown].median()
    found.insert(0, "matrices", groups.size())
    found.insert(found.columns.get_loc("phi_min_min_random_mean") + 1, "above_random", groups["above"].sum())
    for source, column, name in ((comparison.amplification, "factor", "factor"),
                                 (comparison.intruders, "intruders", "intruders")):
        rows = source[source["side"].isin(["X", "Y"])]
        if len(rows):
            for side, part in rows.groupby("side"):
                by = part.groupby("kind")[column]
                found[f"{name}_{side.lower()}"] = by.median() if name == "factor" else by.mean()
    return found.loc[in_order(found.index)].reset_index()


def across_layers(comparison: Comparison) -> pd.DataFrame:
    """Mean φ(r, r) over pairs of layers of each kind of matrix, against what random subspaces give.

    Returns
    -------
    DataFrame
        matrix, kind, which (``same layer`` or ``other layers``), pairs, r, mean_phi, random_mean, random_low,
        random_high (95 % interval of the mean of so many random pairs), above (share of the pairs above their own
        95 % interval; 2.5 % at random), largest_phi and its layer_x, layer_y. Of one input with itself, a pair of
        layers counts once.
    """
    rows = []
    for matrix, grid in comparison.layers.groupby("matrix", sort=False):
        parts = {"same layer": grid["layer_x"] == grid["layer_y"], "other layers": grid["layer_x"] != grid["layer_y"]}
        if comparison.same:
            parts = {"other layers": grid["layer_x"] > grid["layer_y"]}
        for which, chosen in parts.items():
            pairs = grid[chosen]
            if pairs.empty:
                continue
            first = pairs.iloc[0]
            # Pairs of independent random subspaces are uncorrelated, those with a layer in common too.
            variance = overlap_moments(int(first["dim"]), int(first["r"]), int(first["r"]))[1]
            half = 1.959964 * math.sqrt(variance / len(pairs))
            top = pairs.loc[pairs["phi"].idxmax()]
            rows.append(
                {"matrix": matrix, "kind": first["kind"], "which": which, "pairs": len(pairs), "r": int(first["r"]),
                 "mean_phi": pairs["phi"].mean(), "random_mean": first["random_mean"],
                 "random_low": first["random_mean"] - half, "random_high": first["random_mean"] + half,
                 "above": (pairs["phi"] > pairs["random_high"]).mean(), "largest_phi": top["phi"],
                 "layer_x": int(top["layer_x"]), "layer_y": int(top["layer_y"])}
            )
    return pd.DataFrame(rows)


def _where(part: dict) -> dict:
    return {key: part[key] for key in _WHERE}


def _rows(parts: list[dict], field: str) -> list[dict]:
    return [{**_where(part), **row} for part in parts for row in part[field]]


def _frame(rows: list[dict], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64"})


def _long(parts: list[dict], field: str) -> pd.DataFrame:
    """overlap.csv or angles.csv: one block a matrix, names as categories, or a large model's would fill the memory."""
    columns = OVERLAP if field == "phi" else ANGLES
    blocks = []
    for part in parts:
        values = np.array(part[field])
        dim, i, j = (part["row"][key] for key in ("dim", "r_x", "r_y"))
        index = np.indices(values.shape).reshape(values.ndim, -1) + 1
        if field == "phi":
            random = chance(dim, i, j)
        else:
            drawn = angle_chance(dim, i, j)
            random = drawn.mean(axis=0), *np.quantile(drawn, [0.025, 0.975], axis=0)
        blocks.append([*index, values.ravel(), *(level.ravel() for level in random)])
    stacked = [np.concatenate(column) for column in zip(*blocks, strict=True)] or [[]] * (len(columns) - 3)
    sizes = [len(block[0]) for block in blocks]
    frame = pd.DataFrame(dict(zip(columns[3:], stacked, strict=True)))
    layers = pd.array([part["layer"] for part in parts], dtype="Int64").repeat(sizes)
    frame.insert(0, "kind", pd.Categorical([p["kind"] for p in parts]).repeat(sizes))
    frame.insert(0, "layer", layers)
    frame.insert(0, "name", pd.Categorical([p["name"] for p in parts]).repeat(sizes))
    return frame


def _intruders(row: dict, eps: float) -> dict:
    cosines = np.array(row["cosines"])
    return {**_where(row), "side": row["side"], "k": len(cosines), "eps": eps, "intruders": int((cosines < eps).sum()),
            "cosine_min": cosines.min(), "cosine_median": float(np.median(cosines))}


def _cosines(rows: list[dict]) -> pd.DataFrame:
    return _frame(
        [{**_where(row), "side": row["side"], "index": i, "cosine": cosine, "base_index": at}
         for row in rows for i, (cosine, at) in enumerate(zip(row["cosines"], row["index"], strict=True), 1)],
        COSINES,
    )


def _layers(grid: dict) -> pd.DataFrame:
    phi = np.array(grid["phi"])
    mean, low, high = random_overlap(grid["dim"], grid["r"], grid["r"])
    rows, columns = np.indices(phi.shape)
    layers = np.array(grid["layers"])
    found = {
        **{key: grid[key] for key in ("matrix", "kind", "dim", "r")},
        "layer_x": layers[rows.ravel()], "layer_y": layers[columns.ravel()], "phi": phi.ravel(),
        "random_mean": mean, "random_low": low, "random_high": high,
    }
    return pd.DataFrame(found)[LAYERS]
