"""The paper's Tables 2, 5 and 6 on this model and these tasks, tidy, with the paper's own numbers beside."""

from __future__ import annotations

import math

import pandas as pd

from rankprobe.report.claims_methods import budget_groups
from rankprobe.report.comparison import MAIN_TARGETS, difference, lora_groups, main_metric, mean_score
from rankprobe.report.tables import best_settings

_SCORE = ["metric", "n_seeds", "n_eval", "score", "ci_low", "ci_high", "ci_method"]
_PAPER = ["paper_wikisql", "paper_mnli"]
TABLE_2 = ["method", "r", "size", "targets", "trainable_params", "head_params", "latency_ratio", "task", *_SCORE,
           "diff_vs_full", "diff_ci_low", "diff_ci_high", "paper_model", "paper_score"]  # fmt: skip
TABLE_5 = ["targets", "r", "method_params", *_SCORE, "diff_vs_q", "diff_ci_low", "diff_ci_high", *_PAPER]
TABLE_6 = ["targets", "r", "method_params", *_SCORE, *_PAPER]
# The one parameter count of the paper's RoBERTa base rows that stands for a method here.
_TABLE_2_MODEL = "RoBERTa base"


def table_2(methods: list[pd.DataFrame], published: pd.DataFrame) -> pd.DataFrame:
    """Methods × tasks: scores, parameters and latency.

    Parameters
    ----------
    methods : list of DataFrame
        methods.csv of every task's comparison.
    published : DataFrame
        From :func:`rankprobe.paper.published.published`.

    Returns
    -------
    DataFrame, columns :data:`TABLE_2`
        A row a configuration and task; ``paper_score`` is RoBERTa base's on that task, where the paper has the method
        and the task, in the units of ``score``.
    """
    rows = []
    for table in methods:
        for _, m in best_settings(table).iterrows():
            row = {name: m[name] for name in TABLE_2 if name in m}
            row |= {"score": m["accuracy_mean"], "ci_low": m["accuracy_ci_low"], "ci_high": m["accuracy_ci_high"]}
            rows.append(row | {"paper_model": _TABLE_2_MODEL, "paper_score": _glue(published, m)})
    table = pd.DataFrame(rows, columns=TABLE_2)
    table.loc[table["paper_score"].isna(), "paper_model"] = None
    return table


def table_5(runs: list[dict], published: pd.DataFrame) -> pd.DataFrame:
    """Which matrices to adapt under one budget of parameters, that of the LoRA configuration that stands for it.

    Parameters
    ----------
    runs : list of dict
        Of one comparison.
    published : DataFrame

    Returns
    -------
    DataFrame, columns :data:`TABLE_5`
        A row a choice of targets, the fewest first; empty while no two are there. Differences are paired, to q alone.
    """
    groups = budget_groups(runs)
    rows = []
    for targets in sorted(groups, key=lambda text: (text.count(","), "qkvo".find(text[0]), text)):
        group = groups[targets]
        gap = difference(group, groups.get("q", [])) if targets != "q" else None
        row = {"targets": targets, "r": group[0]["spec"]["r"], "method_params": group[0]["params"]["method"]}
        if gap is not None:
            row |= {"diff_vs_q": gap.estimate, "diff_ci_low": gap.low, "diff_ci_high": gap.high}
        rows.append(row | _score(group) | _gpt3(published, "Table 5", targets, None))
    return pd.DataFrame(rows if len(rows) > 1 else [], columns=TABLE_5)


def table_6(runs: list[dict], published: pd.DataFrame) -> pd.DataFrame:
    """r × targets.

    Parameters
    ----------
    runs : list of dict
        Of one comparison.
    published : DataFrame

    Returns
    -------
    DataFrame, columns :data:`TABLE_6`
        A row a choice of targets and r, for the targets of the paper's table: q; q and v; all four.
    """
    rows = []
    for targets in ("q", MAIN_TARGETS, "q,k,v,o"):
        for r, group in sorted(lora_groups(runs, targets).items()):
            row = {"targets": targets, "r": r, "method_params": group[0]["params"]["method"]}
            rows.append(row | _score(group) | _gpt3(published, "Table 6", targets, r))
    return pd.DataFrame(rows, columns=TABLE_6)


def _score(group: list[dict]) -> dict:
    found = mean_score(group)
    return {
        "metric": main_metric(group[0]),
        "n_seeds": len(group),
        "n_eval": group[0]["task"]["n_eval"],
        "score": found.estimate,
        "ci_low": found.low,
        "ci_high": found.high,
        "ci_method": found.method,
    }


def _gpt3(published: pd.DataFrame, table: str, targets: str, r: int | None) -> dict:
    """GPT-3's two accuracies of a setting, as fractions."""
    if published.empty:
        return {}
    rows = published[published["source"].str.endswith(table) & (published["targets"] == targets)]
    if r is not None:
        rows = rows[rows["r"] == r]
    values = rows[rows["metric"] == "accuracy"].set_index("task")["value"]
    return {f"paper_{task}": values[task] / 100 for task in ("wikisql", "mnli") if task in values.index}


def _glue(published: pd.DataFrame, row: pd.Series) -> float:
    """RoBERTa base's score of the method on the task, of the row with the fewest parameters."""
    if published.empty:
        return math.nan
    of = published[published["source"].str.endswith("Table 2") & (published["model"] == _TABLE_2_MODEL)]
    of = of[(of["method"] == row["method"]) & (of["task"] == row["task"]) & (of["metric"] == row["metric"])]
    return float(of.sort_values("trainable_params")["value"].iloc[0]) / 100 if len(of) else math.nan
