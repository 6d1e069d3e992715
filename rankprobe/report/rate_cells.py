"""Learning rates on the page: what each configuration tried, which it took, and which may not be its best."""

from __future__ import annotations

import pandas as pd

from rankprobe.report import numbers as say
from rankprobe.report.cells import Cell, Table
from rankprobe.report.findings import Findings

_NAMED = 3


def end_of_grid_note(findings: Findings) -> str:
    """Which configurations took a rate at an end of their grid; empty where none did or rates were not tuned."""
    tried = findings.tables.get("tuning", pd.DataFrame())
    if tried.empty or not findings.runs:
        return ""
    run = findings.runs[0]  # the table has other models' and tasks' rows too
    mine = (tried["model"] == run["model"]["name"]) & (tried["task"] == run["task"]["name"])
    at_end = tried[mine & tried["chosen"] & tried["at_end"]]
    # Some differ in what has no name here, a dropout, say.
    names = list(dict.fromkeys(_name(row) for _, row in at_end.iterrows()))
    if not names:
        return ""
    named = names[:_NAMED] + ([f"{len(names) - _NAMED} more"] if len(names) > _NAMED else [])
    who = " and ".join(part for part in (", ".join(named[:-1]), named[-1]) if part)
    return (
        f"{who[0].upper()}{who[1:]}{' each' if len(names) > 1 else ''} took a rate at an end of its grid: a better one "
        "may lie beyond. Widen the grid before believing the comparison."
    )


def _name(row: pd.Series) -> str:
    adapted = say.adapted(row)
    return say.method_name(row) + (f" ({adapted})" if adapted else "")


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
