"""Learning rates on the page: what each configuration tried and which it took."""

from __future__ import annotations

import pandas as pd

from rankprobe.report import numbers as say
from rankprobe.report.cells import Cell, Table
from rankprobe.report.findings import Findings


def rates_cells(findings: Findings) -> Table | None:
    """Which rate each configuration took, and from what; None where rates were not tuned."""
    tried = findings.tables.get("tuning", pd.DataFrame())
    if tried.empty:
        return None
    rows = []
    keys = ["model", "task", "method", "r", "alpha", "targets", "size", "rank_pattern", "dropout", "rslora"]
    for _, group in tried.groupby(keys, sort=False, dropna=False):
        best = group[group["chosen"]]
        taken = best.iloc[0] if len(best) else None
        losses = ", ".join(
            f"{say.learning_rate(t['lr'])}: {say.number(t['loss'], 3) if t['status'] == 'ok' else t['status']}"
            for _, t in group.iterrows()
        )
        rows.append(
            [
                Cell(say.method_name(group.iloc[0]), say.adapted(group.iloc[0])),
                Cell(losses),
                Cell(say.learning_rate(taken["lr"]) if taken is not None else say.MISSING,
                     "an end of its grid" if taken is not None and taken["at_end"] else ""),
                Cell(say.score(taken["metric"], taken["score"]) if taken is not None else say.MISSING),
            ]
        )  # fmt: skip
    n = int(tried["n_tuning"].iloc[0])
    caption = (
        f"As many rates for every configuration, one seed, and the lowest loss on {n:,} tuning rows, which no other "
        "number on this page is from. At an end of its grid a better rate may lie beyond."
    )
    return Table(["method", "loss by rate", "chosen", f"{tried['metric'].iloc[0]} there"], rows, caption, 2)
