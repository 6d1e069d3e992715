"""An intrinsic dimension's tables in words."""

from __future__ import annotations

import math

import pandas as pd

from rankprobe.report import numbers as say
from rankprobe.report.cells import Cell, Table


def dimension_cells(dimensions: pd.DataFrame) -> Table | None:
    """d by method, for the share of the score and of the gain."""
    if dimensions.empty:
        return None
    rows = [
        [
            Cell(row["method"].upper(), f"{100 * row['share']:g} % of the {row['of']}"),
            Cell(say.with_interval(row["d"], row["ci_low"], row["ci_high"], 0), _small_print(row)),
            Cell(say.percent(row["d_pct"]) if math.isfinite(row["d_pct"]) else say.MISSING),
            Cell(say.number(row["threshold"], 3)),
            Cell(say.number(row["full"], 3)),
            Cell(say.count(row["n_seeds"])),
        ]
        for _, row in dimensions.iterrows()
    ]
    caption = (
        f"The smallest d that reaches the threshold, interpolated in log d, with 95 % intervals "
        f"({dimensions['ci_method'].iloc[0]}), open where no d was measured. The gain is over a head trained on the "
        f"frozen model: a share of the score itself, as the source has it, is a low bar where guessing scores well."
    )
    for _, row in dimensions.iterrows():
        if row["of"] == "score" and math.isfinite(row["over_did_ci_high"]):
            ratio = say.with_interval(row["over_did"], row["over_did_ci_low"], row["over_did_ci_high"], 2)
            caption += f" For the share of the score SAID's d is {ratio} times DID's."
    return Table(["method", "d", "of the weights", "threshold", "full fine-tuning", "seeds"], rows, caption)


def beside_cells(table: pd.DataFrame) -> Table | None:
    """d90 beside LoRA's parameters and dW's ranks."""
    if table.empty:
        return None
    rows = [
        [
            Cell(row["measure"], "" if say.missing(row["note"]) else str(row["note"])),
            Cell(f"{say.with_interval(row['value'], row['ci_low'], row['ci_high'], 0)} {_unit(row)}".strip()),
            Cell(say.number(row["score"], 3), "" if say.missing(row["reaches"]) else _reaches(row["reaches"])),
        ]
        for _, row in table.iterrows()
    ]
    caption = (
        "How little is enough, by every measure at hand, on one model and task. Scores are means over seeds; of a "
        "random subspace it is the threshold. Heads are trained everywhere and not counted."
    )
    return Table(["what", "how much", "score"], rows, caption)


def _unit(row: pd.Series) -> str:
    return "" if say.missing(row["value"]) else row["unit"]


def _reaches(bars: str) -> str:
    return f"reaches its share of the {bars}" if bars else "reaches neither"


def _small_print(row: pd.Series) -> str:
    return row["reason"] or f"measured: between {say.count(row['d_below'])} and {say.count(row['d_above'])}"
