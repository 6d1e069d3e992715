"""The paper's own tables in words: Tables 2, 5, 6 and 7, and its parameter counts."""

from __future__ import annotations

import pandas as pd

from rankprobe.report import numbers as say
from rankprobe.report.cells import Cell, Table
from rankprobe.report.findings import Findings

_QUANTITIES = {
    "norm_of_W": "‖W0‖",
    "norm_of_dW": "‖dW‖",
    "norm_on_dW": "W0 on dW's directions",
    "norm_on_W": "W0 on its own top directions",
    "norm_on_random": "W0 on random directions",
    "amplification": "dW over what W0 has there",
}


def table_2_cells(findings: Findings) -> Table | None:
    """Methods × tasks, of one table row the configurations that a method is measured with on every task."""
    table = findings.tables.get("table2")
    if table is None or table.empty or table["method"].nunique() < 4:
        return None
    tasks = list(dict.fromkeys(table["task"]))
    rows = []
    keys = ["method", "targets", "r", "size"]
    for _, of in table.groupby(keys, dropna=False, sort=False):
        first = of.iloc[0]
        if first["method"] == "lora" and first["targets"] != "q,v":
            continue
        cells = [Cell(say.method_name(first), f"on {first['targets']}" if first["method"] == "lora" else "")]
        params = say.count(first["trainable_params"] - first["head_params"])
        latency = say.MISSING if say.missing(first["latency_ratio"]) else say.number(first["latency_ratio"], 3)
        cells += [Cell(params), Cell(latency)]
        for task in tasks:
            mine = of[of["task"] == task]
            cells.append(_score_cell(mine.iloc[0]) if len(mine) else Cell(say.MISSING))
        rows.append(cells)
    units = ", ".join(f"{task} ({table.loc[table['task'] == task, 'metric'].iloc[0]})" for task in tasks)
    caption = (
        f"The paper's Table 2 here: {units}; below each score its seeds, its 95 % interval and, where the paper has "
        "the method on the task, RoBERTa base's score. Parameters without the head; latency over the base's at the "
        "smallest batch. What has one seed is no verdict."
    )
    return Table(["method", "parameters", "latency", *tasks], rows, caption)


def _score_cell(row: pd.Series) -> Cell:
    seeds = int(row["n_seeds"])
    parts = [f"{seeds} seed{'s' if seeds != 1 else ''}"]
    scale = 100 if say.is_share(row["metric"]) else 1
    digits = 1 if scale == 100 else 3
    if not say.missing(row["ci_low"]):
        parts.append(say.interval(scale * row["ci_low"], scale * row["ci_high"], digits))
    if not say.missing(row["paper_score"]):
        parts.append(f"paper {say.score(row['metric'], row['paper_score'])}")
    return Cell(say.score(row["metric"], row["score"]), ", ".join(parts))


def table_5_cells(findings: Findings) -> Table | None:
    """Which matrices to adapt under one budget."""
    table = findings.tables.get("table5")
    if table is None or table.empty:
        return None
    rows = [
        [
            Cell(row["targets"]),
            Cell(str(row["r"])),
            _score_cell(row.reindex([*row.index, "paper_score"])),
            Cell(say.points(row["diff_vs_q"], row["diff_ci_low"], row["diff_ci_high"])),
            Cell(say.score("accuracy", row["paper_wikisql"])),
            Cell(say.score("accuracy", row["paper_mnli"])),
        ]
        for _, row in table.iterrows()
    ]
    first = table.iloc[0]
    caption = (
        f"The paper's Table 5 here: {say.count(first['method_params'])} parameters of LoRA each, "
        f"n = {int(first['n_eval']):,} evaluation rows. Differences are paired; GPT-3's columns are the paper's."
    )
    heads = ["targets", "r", first["metric"], "against q, points", "GPT-3, WikiSQL", "GPT-3, MNLI"]
    return Table(heads, rows, caption)


def table_6_cells(findings: Findings) -> Table | None:
    """r × targets."""
    table = findings.tables.get("table6")
    if table is None or table["targets"].nunique() < 2:
        return None
    rs = sorted(set(table["r"]))
    rows = []
    for targets, of in table.groupby("targets", sort=False):
        by_r = of.set_index("r")
        cells = [_score_cell(by_r.loc[r].reindex([*by_r.columns, "paper_score"])) if r in by_r.index
                 else Cell(say.MISSING) for r in rs]  # fmt: skip
        rows.append([Cell(targets), *cells])
    caption = (
        f"The paper's Table 6 here: {table['metric'].iloc[0]} by r and targets, n = {int(table['n_eval'].iloc[0]):,} "
        "evaluation rows, with 95 % intervals; GPT-3's numbers are in table6.csv."
    )
    return Table(["targets", *(f"r = {r}" for r in rs)], rows, caption)


def table_7_cells(findings: Findings) -> Table | None:
    """Amplification by r."""
    table = findings.tables.get("table7")
    if table is None or table.empty:
        return None
    rs = sorted(set(table["lora_r"]))
    rows = []
    for quantity, words in _QUANTITIES.items():
        cells = [Cell(words)]
        for r in rs:
            row = table[(table["quantity"] == quantity) & (table["lora_r"] == r)].iloc[0]
            small = "" if say.missing(row["paper"]) else f"paper {say.number(row['paper'], 2)}"
            cells.append(Cell(say.with_interval(row["median"], row["ci_low"], row["ci_high"], 2), small))
        rows.append(cells)
    caption = (
        f"The paper's Table 7 here: Frobenius norms, medians over {int(table['n'].max())} matrices with 95 % "
        f"intervals ({table['ci_method'].iloc[0]}); the paper's are of GPT-3's W_q in layer 48."
    )
    return Table(["", *(f"r = {r}" for r in rs)], rows, caption)


def parameter_cells(findings: Findings) -> Table | None:
    """The paper's parameter counts that its own arithmetic does not give, and how many it does."""
    table = findings.tables.get("parameter_counts")
    if table is None or table.empty:
        return None
    told = table["verdict"].value_counts()
    off = table[table["verdict"].isin(["differs", "none"])]
    rows = [
        [
            Cell(f"{row['model']}, {row['name']}", str(row["source"]).split("), ")[-1]),
            Cell(str(row["printed"])),
            Cell(say.count(row["ours"]), "" if say.missing(row["fits"]) else str(row["fits"])),
            Cell(str(row["formula"]), "" if say.missing(row["note"]) else str(row["note"])),
        ]
        for _, row in off.iterrows()
    ]
    same = ", ".join(f"{count} {verdict}" for verdict, count in told.items())
    caption = (
        f"Of {len(table)} parameter counts that the paper prints these do not follow from the architectures; all: "
        f"{same}. Counted on the meta device with the methods' own code; every row is in parameter_counts.csv."
    )
    return Table(["model and method", "printed", "counted", "how"], rows, caption)
