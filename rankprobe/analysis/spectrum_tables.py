"""ranks.csv in fewer rows: medians by kind and by layer, and what the storage dtype did."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from rankprobe.analysis.rank_columns import INTEGERS, NOISE_RANKS

# Kinds of a block's matrices, as data flow through it.
KINDS = ("q", "k", "v", "qkv", "kv", "o", "gate", "up", "gate_up", "down")
_LAST = ("other", "embed")  # what is no part of a block's attention or feed-forward comes last


def in_order(kinds: Iterable[str]) -> list[str]:
    """Kinds as tables and pictures show them: as data flow through a block, and what is none of it last.

    >>> in_order(["embed", "down", "q", "other", "conv"])
    ['q', 'down', 'conv', 'other', 'embed']
    """
    there = dict.fromkeys(kinds)
    middle = [k for k in there if k not in KINDS + _LAST]
    return [*(k for k in KINDS if k in there), *middle, *(k for k in _LAST if k in there)]


def read_ranks(path) -> pd.DataFrame:
    """ranks.csv as :func:`rankprobe.analysis.spectrum.spectrum` gives it, that of an earlier version too.

    Columns that an earlier version did not write are there and empty.
    """
    words = ["name", "kind", "dtype_base", "dtype_tuned", "source", "decomposition"]
    table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(words, str))
    for column in (*NOISE_RANKS, "storage_floor", "bulk_to_floor", "unchanged_fraction", "relative_change"):
        if column not in table:
            table[column] = float("nan")
    numbers = table.columns.difference(words)
    table[numbers] = table[numbers].apply(pd.to_numeric)
    return table.fillna(dict.fromkeys(words, "")).astype(dict.fromkeys(INTEGERS, "Int64"))


def energy_columns(ranks: pd.DataFrame) -> list[str]:
    """The columns of shares of the energy that a table has."""
    return [c for c in ranks.columns if str(c).startswith("energy_rank_")]


def medians(ranks: pd.DataFrame, by: str = "kind", *, outside: bool = False) -> pd.DataFrame:
    """Median of relative_change and every rank column over the blocks' matrices of each kind, or of each layer.

    Embeddings and what lies outside the blocks would be mixed with other things by a median: they are left out, or
    have rows of their own.

    Parameters
    ----------
    ranks : DataFrame
        From :func:`rankprobe.analysis.spectrum.spectrum` or :func:`read_ranks`.
    by : str
        ``kind`` (by :func:`in_order`) or ``layer`` (ascending).
    outside : bool
        By kind: rows after the others for what lies outside the blocks, as ``embed`` and ``other, outside``.

    Returns
    -------
    DataFrame
        kind or layer, matrices (how many the median is of), swallowed (of how many the storage dtype swallowed the
        update), change_share (of Σ||dW||_F² over the whole table), relative_change, the rank columns that the table
        has, and unchanged_fraction. Ranks are those of the matrices whose update was not swallowed: of what rounding
        left of the others, a rank says nothing about what was learned. Empty where no matrix has a value.
    """
    energy = (ranks["fro_norm"] / (ranks["fro_norm"].max() or 1.0)) ** 2  # squares of tiny norms would vanish
    ranks = ranks.assign(change_share=energy / (energy.sum() or 1.0))
    inside = ranks["layer"].notna() & (ranks["kind"] != "embed")
    table = _medians(ranks[inside].astype({"layer": int}), by)
    if outside and by == "kind" and not inside.all():
        rest = ranks[~inside]
        rest = rest.assign(kind=rest["kind"].where(rest["kind"] == "embed", rest["kind"] + ", outside"))
        rest = _medians(rest, by)
        table = pd.concat([table, rest], ignore_index=True) if len(table) else rest
    return table


def _medians(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    soft = ["stable_rank", "effective_rank", "participation_ratio"]
    ranks = [*soft, *energy_columns(rows), "numerical_rank", *NOISE_RANKS]
    present = [c for c in ("relative_change", *ranks, "unchanged_fraction") if c in rows]
    gone = swallowed(rows)
    values = {c: rows[c].astype("float64").mask(gone & (c in ranks)) for c in present}
    groups = rows.assign(swallowed=gone, **values).groupby(by)
    table = groups[present].median()
    table.insert(0, "change_share", groups["change_share"].sum())
    table.insert(0, "swallowed", groups["swallowed"].sum().astype(int))
    table.insert(0, "matrices", groups.size())
    return (table if by == "layer" else table.loc[in_order(rows[by])]).reset_index()


def swallowed(ranks: pd.DataFrame) -> pd.Series:
    """Whether the storage dtype swallowed a matrix's update: it has a noise floor and no storage_rank."""
    return ranks["storage_floor"].notna() & ranks["storage_rank"].isna()


@dataclass(frozen=True)
class Storage:
    """What storing TUNED in one dtype did to the updates that left a trace.

    Attributes
    ----------
    dtype : str
    matrices : int
        That changed, with a noise floor.
    swallowed : int
        Of how many it swallowed the update.
    unchanged : float
        Share of all their weights that did not change.
    unchanged_swallowed : float
        Likewise, of the swallowed ones; NaN where there is none.
    bulk_to_floor : float
        Median.
    """

    dtype: str
    matrices: int
    swallowed: int
    unchanged: float
    unchanged_swallowed: float
    bulk_to_floor: float


def storage_by_dtype(ranks: pd.DataFrame) -> list[Storage]:
    """What each storage dtype of TUNED did; empty where no noise was drawn or nothing changed."""
    rows = ranks[ranks["storage_floor"] > 0]
    found = []
    for dtype, part in rows.groupby("dtype_tuned", sort=False):
        gone = part[swallowed(part)]
        bulk = part["bulk_to_floor"].median()
        found.append(Storage(dtype, len(part), len(gone), _unchanged(part), _unchanged(gone), float(bulk)))
    return found


def _unchanged(rows: pd.DataFrame) -> float:
    weights = rows["m"] * rows["n"]
    return float((rows["unchanged_fraction"] * weights).sum() / weights.sum()) if len(rows) else float("nan")
