"""An intrinsic dimension's tables in words."""

from __future__ import annotations

import math

import pandas as pd

from rankprobe.report import numbers as say
from rankprobe.report.page_tables import Cell, Table


def dimension_cells(dimensions: pd.DataFrame) -> Table | None:
    """d by method, for the share of the score and of the gain."""
    if dimensions.empty:
        return None
    rows = [
        [
            Cell(row["method"].upper(), f"{100 * row['share']:g} % of the {row['of']}"),
            Cell(say.with_interval(row["d"], row["ci_low"], row["ci_high"], 0), _bracket(row)),
            Cell(say.percent(row["d_pct"]) if math.isfinite(row["d_pct"]) else say.MISSING),
            Cell(say.number(row["threshold"], 3)),
            Cell(say.number(row["full"], 3)),
            Cell(say.count(row["n_seeds"])),
        ]
        for _, row in dimensions.iterrows()
    ]
    caption = (
        f"The smallest d that reaches the threshold, interpolated in log d, with 95 % intervals "
        f"({dimensions['ci_method'].iloc[0]}). The gain is over a head trained on the frozen model."
    )
    return Table(["method", "d", "of the weights", "threshold", "full fine-tuning", "seeds"], rows, caption)


def beside_cells(table: pd.DataFrame) -> Table | None:
    """d90 beside LoRA's parameters and dW's ranks."""
    if table.empty:
        return None
    rows = [
        [
            Cell(row["measure"], "" if say.missing(row["note"]) else str(row["note"])),
            Cell(f"{say.with_interval(row['value'], row['ci_low'], row['ci_high'], 0)} {row['unit']}"),
        ]
        for _, row in table.iterrows()
    ]
    return Table(["what", "how much"], rows, "How little is enough, by every measure at hand, on one model and task.")


def _bracket(row: pd.Series) -> str:
    if math.isfinite(row["d_above"]):
        return f"measured: between {say.count(row['d_below'])} and {say.count(row['d_above'])}"
    return f"not reached at {say.count(row['d_below'])}, the largest d tried"
