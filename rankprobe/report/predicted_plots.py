"""The score against r that one run foresees, drawn over the sweep, and its error as a table."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from rankprobe.report import numbers as say
from rankprobe.report.cells import Cell, Table
from rankprobe.report.comparison import MAIN_TARGETS, main_metric
from rankprobe.report.findings import Findings
from rankprobe.report.style import BLUE, ORANGE, PINK, WIDTH_IN, Picture, score_ticks

_LOOKS = {"full": (ORANGE, "s", "--"), "lora": (PINK, "^", ":")}


def predicted_picture(findings: Findings) -> Picture | None:
    """Predicted and measured scores against r, of the sweep on q and v or the first there is."""
    table = _shown(findings.tables.get("predicted_curve", pd.DataFrame()))
    if table.empty:
        return None
    metric = main_metric(findings.runs[0])
    figure = draw_predicted(table, metric)
    n = findings.runs[0]["task"]["n_eval"]
    summary = findings.tables["predicted_summary"].set_index(["source", "targets"])
    words = [
        f"Blue: LoRA on {table['targets'].iloc[0]} trained at each r ({say.count(n)} evaluation rows). The others: one "
        f"run, its dW cut to its best rank-r part, nothing trained again. Bars are 95 % intervals: of blue as in the "
        f"table above, of the others over evaluation rows."
    ]
    for key in dict.fromkeys(zip(table["source"], table["targets"], strict=True)):
        row = summary.loc[key]
        if row["n_rs"]:
            error = say.number(100 * row["mean_abs_error"], 2)
            words.append(f"What {_name(row)} foresees is off by {error} points on average.")
    title = f"{metric.capitalize()} against r, foreseen from one run"
    return Picture("predicted_curve", title, figure, " ".join(words))


def draw_predicted(table: pd.DataFrame, metric: str) -> Figure:
    """Predicted curves over the measured one.

    Parameters
    ----------
    table : DataFrame
        predicted_curve.csv for one choice of targets; one curve a ``source``.
    metric : str
    """
    figure = Figure(figsize=(WIDTH_IN, 3.1), layout="constrained")
    axes = figure.subplots()
    sources = [rows for _, rows in table.groupby("source", sort=False)]
    measured = sources[0].dropna(subset=["measured"])
    series = [(measured, "measured", (BLUE, "o", "-"), "trained at each r")]
    series += [(rows.dropna(subset=["predicted"]), "predicted", _LOOKS[rows["source_method"].iloc[0]],
                f"foreseen from {_name(rows.iloc[0])}") for rows in sources]  # fmt: skip
    for place, (rows, column, (color, marker, line), label) in enumerate(series):
        # Side by side: equal scores, which is what one hopes for, stay visible.
        x = np.log2(rows["r"].to_numpy(dtype=float)) + 0.06 * (place - (len(series) - 1) / 2)
        y = rows[column].to_numpy(dtype=float)
        ends = rows[[f"{column}_ci_low", f"{column}_ci_high"]].to_numpy(dtype=float)
        around = np.nan_to_num(np.stack([y - ends[:, 0], ends[:, 1] - y]))
        axes.errorbar(x, y, yerr=around, color=color, marker=marker, ls=line, ms=5, capsize=2.5, lw=1.2, label=label)
    rs = sorted(set(table["r"].astype(int)))
    axes.set_xticks(np.log2(rs), [str(r) for r in rs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("LoRA r, or kept rank of dW (log scale)")
    axes.set_ylabel(metric)
    axes.yaxis.set_major_formatter(score_ticks(metric))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.legend(loc="lower right")
    return figure


def predicted_cells(findings: Findings) -> Table | None:
    """The error at each r, and whether the same smallest r comes out."""
    table = findings.tables.get("predicted_curve", pd.DataFrame())
    if table.empty:
        return None
    metric = main_metric(findings.runs[0])
    rows = []
    for _, row in table.iterrows():
        predicted = say.score(metric, *(row[f"predicted{end}"] for end in ("", "_ci_low", "_ci_high")))
        measured = say.score(metric, *(row[f"measured{end}"] for end in ("", "_ci_low", "_ci_high")))
        error = "its own" if row["own"] else say.points(row["error"], row["error_ci_low"], row["error_ci_high"])
        rows.append([Cell(_name(row)), Cell(row["targets"]), Cell(say.number(row["r"], 0)), Cell(predicted),
                     Cell(measured, _seeds(row["n_seeds"])), Cell(error)])  # fmt: skip
    told = " ".join(_sentence(row) for _, row in findings.tables["predicted_summary"].iterrows())
    caption = (
        f"Foreseen: the run's dW cut to rank r, interval over evaluation rows. Error: foreseen minus measured, in "
        f"points; its interval joins the two as if they were independent. {told} Cutting is not training at that rank: "
        f"a small error here is no promise for other tasks."
    )
    return Table(["foreseen from", "targets", "r", "foreseen", "measured", "error, points"], rows, caption, 2)


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """One choice of targets, and of each method the first run: of LoRA the largest r's."""
    if table.empty:
        return table
    targets = MAIN_TARGETS if MAIN_TARGETS in set(table["targets"]) else table["targets"].iloc[0]
    mine = table[table["targets"] == targets]
    order = mine.sort_values(["source_r", "source_seed"], ascending=[False, True], kind="stable")
    first = order.drop_duplicates("source_method")["source"]
    return mine[mine["source"].isin(first)]


def _name(row: pd.Series) -> str:
    return "full fine-tuning" if row["source_method"] == "full" else f"LoRA r = {int(row['source_r'])}"


def _seeds(count: object) -> str:
    return f"{count:g} seed{'s' if count > 1 else ''}"


def _sentence(row: pd.Series) -> str:
    who = f"From {_name(row)} (seed {row['source_seed']}) on {row['targets']}"
    if not row["n_rs"]:
        return f"{who} no other r is foreseen."
    error = say.number(100 * row["mean_abs_error"], 2)
    most = say.number(100 * row["max_abs_error"], 2)
    sentence = f"{who}: off by {error} points on average and {most} at most, over {row['n_rs']} r."
    predicted, measured = (None if say.missing(row[name]) else int(row[name]) for name in ("predicted_r", "measured_r"))
    reach = f"within {say.margin_in_points(row['margin_points'])} of what it is measured against"
    if predicted is None or measured is None:
        return f"{sentence} No r of both curves is {reach}."
    agrees = "as measured" if predicted == measured else f"measured is r = {measured}"
    return f"{sentence} Smallest r {reach}: {predicted}, {agrees}."
