"""Pictures of an allocation: the rank of every matrix, and what each update is worth."""

from __future__ import annotations

import pandas as pd

from rankprobe.analysis.spectrum_tables import in_order
from rankprobe.report import numbers as say
from rankprobe.report.matrix_plots import heat_map
from rankprobe.report.style import Picture, style


def allocation_pictures(table: pd.DataFrame, summary: dict) -> list[Picture]:
    """Heat maps by layer and kind.

    Parameters
    ----------
    table : DataFrame
        allocation.csv, see :func:`rankprobe.analysis.allocate.allocation_table`.
    summary : dict
        allocation.json: run, task, rows, rows_of, parameters, uniform_r.

    Returns
    -------
    list of Picture
        ``ranks`` and ``sensitivity``.
    """
    uniform = f"; one r for all of them would be {summary['uniform_r']}" if summary["uniform_r"] else ""
    ranks = _grid(table, "r")
    words = f"{say.count(summary['parameters'])} parameters over {len(table)} matrices"
    measured = (
        f"{summary['run']}, on {say.count(summary['rows'])} {summary['rows_of']} rows of {summary['task']}, none of "
        f"which its score is reported on"
    )
    losses = _grid(table, "loss_without")
    shown = _grid(table, "sensitivity")
    with style():
        return [
            Picture(
                "ranks",
                "Rank by layer and kind",
                heat_map(
                    ranks.where(ranks > 0),
                    ranks.map(lambda r: "" if pd.isna(r) else f"{r:.0f}" if r else "–"),
                    label="LoRA r",
                    top=float(ranks.max().max()),
                    marked="r = 0: not adapted",
                ),
                f"r that the sensitivity of {measured}, gives each matrix: {words}{uniform}.",
            ),
            Picture(
                "sensitivity",
                "What each update is worth",
                heat_map(
                    1e3 * shown.where(shown > 0),
                    losses.where(shown > 0, other=0).map(lambda loss: f"{1e3 * loss:.1f}" if loss else "–")
                    .where(losses.notna(), ""),
                    label="growth of the loss, 1/1000",
                    marked="under its noise",
                ),
                f"Growth of the mean loss when this matrix's dW alone is left out: {measured}. Grey is less than twice "
                f"its standard error, or a loss that falls.",
            ),
        ]  # fmt: skip


def _grid(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column by layer and kind; several matrices of one place, as an expert's, are added up."""
    grid = table.assign(layer=table["layer"].astype(int)).pivot_table(
        index="layer", columns="kind", values=column, aggfunc="sum", min_count=1
    )
    return grid[in_order(table["kind"])].astype(float)
