"""Tables of an intrinsic dimension: d90 by method, the curve, and d90 beside other measures of how little it takes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from rankprobe.analysis.bootstrap import accuracy
from rankprobe.analysis.intrinsic_dimension import intrinsic_dimension
from rankprobe.report.claims_rank import full_energy_shares, functional_ranks
from rankprobe.report.comparison import MAIN_TARGETS, finished_ok, lora_groups, main_metric, predictions
from rankprobe.report.tables import merged_ranks
from rankprobe.tasks.metrics import score

CURVE = ["method", "d", "seed", "lr", "metric", "score", "loss", "train_time_s", "run_id"]
DIMENSIONS = ["method", "share", "of", "d", "ci_low", "ci_high", "d_below", "d_above", "threshold", "full", "n_eval",
              "n_seeds", "D", "d_pct", "ci_method"]  # fmt: skip
BESIDE = ["measure", "value", "ci_low", "ci_high", "unit", "note"]


def curve_table(runs: list[dict]) -> pd.DataFrame:
    """intrinsic_curve.csv: a row a finished run in a random subspace.

    Parameters
    ----------
    runs : list of dict
        run.json contents with ``path``.
    """
    rows = [
        {
            "method": run["spec"]["method"],
            "d": run["spec"]["d"],
            "seed": run["spec"]["seed"],
            "lr": run["spec"]["lr"],
            "metric": main_metric(run),
            "score": run["metrics"][main_metric(run)],
            "loss": run["metrics"].get("loss"),
            "train_time_s": run["timings"].get("train_time_s"),
            "run_id": run["run_id"],
        }
        for run in finished_ok(runs)
        if run["spec"]["method"] in ("did", "said")
    ]
    return pd.DataFrame(rows, columns=CURVE).sort_values(["method", "d", "seed"], ignore_index=True)


def dimensions_table(runs: list[dict], share: float = 0.9) -> pd.DataFrame:
    """intrinsic_dimension.csv: a row a method, for a share of the score and for the same share of the gain.

    Parameters
    ----------
    runs : list of dict
        Of one sweep: random subspaces, full fine-tuning and the head alone, on the same rows.
    share : float

    Returns
    -------
    DataFrame, columns :data:`DIMENSIONS`
        ``D`` is the encoder's number of weights, ``d_pct`` d in percent of it.
    """
    ok = [run for run in finished_ok(runs) if predictions(run) is not None]
    full = [run for run in ok if run["spec"]["method"] == "full"]
    head = [run for run in ok if run["spec"]["method"] == "head"]
    rows = []
    for method in ("did", "said"):
        of = [run for run in ok if run["spec"]["method"] == method]
        if not of or not full:
            continue
        found = {d: [_predicted(run) for run in of if run["spec"]["d"] == d] for d in {r["spec"]["d"] for r in of}}
        labels = predictions(full[0])["label"].to_numpy()
        D = full[0]["params"]["total"] - full[0]["params"]["head"]
        for base in ([], [_predicted(run) for run in head]) if head else ([],):
            result = intrinsic_dimension(labels, found, [_predicted(run) for run in full], _score_of(full[0]), share,
                                         head=base)  # fmt: skip
            row = result.row()
            rows.append({**row, "ci_method": row["method"], "method": method, "D": D, "d_pct": 100 * result.d / D})
    return pd.DataFrame(rows, columns=DIMENSIONS)


def beside_table(dimensions: pd.DataFrame, runs: list[dict]) -> pd.DataFrame:
    """comparison.csv: d90 beside LoRA's parameters and beside the energy and functional ranks of full fine-tuning's dW.

    Parameters
    ----------
    dimensions : DataFrame
        From :func:`dimensions_table`.
    runs : list of dict
        Of the same comparison: the sweep's and, where they are there, LoRA's.
    """
    rows = [
        {
            "measure": f"{row['method'].upper()}, {100 * row['share']:g} % of the {row['of']}",
            "value": row["d"],
            "ci_low": row["ci_low"],
            "ci_high": row["ci_high"],
            "unit": "parameters",
            "note": f"of {row['D']:,}; threshold {row['threshold']:.3f}",
        }
        for _, row in dimensions.iterrows()
    ]
    for r, group in sorted(lora_groups(runs, MAIN_TARGETS).items()):
        metric = main_metric(group[0])
        mean = float(np.mean([run["metrics"][metric] for run in group]))
        rows.append({"measure": f"LoRA, r = {r} on {MAIN_TARGETS}", "value": group[0]["params"]["method"],
                     "unit": "parameters", "note": f"{metric} {mean:.3f}"})  # fmt: skip
    ranks = merged_ranks(runs)
    shares = full_energy_shares(ranks, runs)
    if len(shares):
        k = float(shares["energy_rank_90"].median())
        rows.append({"measure": "dW's energy_rank_90, median of the blocks' matrices", "value": k, "unit": "directions",
                     "note": f"of {int(shares['p'].median())}"})  # fmt: skip
        full = ranks[ranks["name"].isin(shares["name"])].drop_duplicates("name").set_index("name")
        sides = full.loc[shares["name"], ["m", "n"]].sum(axis=1).to_numpy()
        rows.append({"measure": "parameters of the best rank-k parts that hold 90 % of the energy",
                     "value": float((shares["energy_rank_90"].to_numpy() * sides).sum()), "unit": "parameters",
                     "note": f"{len(shares)} matrices"})  # fmt: skip
    for found in functional_ranks(runs)[:1]:
        if found.get("k"):
            rows.append({"measure": "dW's functional rank, 90 % of the gain", "value": found["k"],
                         "ci_low": found["ci_low"], "ci_high": found["ci_high"], "unit": "directions",
                         "note": f"{found['method']}, one seed"})  # fmt: skip
    return pd.DataFrame(rows, columns=BESIDE)


def _predicted(run: dict) -> np.ndarray:
    return predictions(run)["prediction"].to_numpy()


def _score_of(run: dict):
    metric = main_metric(run)
    if metric == "accuracy":
        return accuracy  # the bootstrap resamples counts for this very function
    return lambda labels, predicted: score((metric,), labels, predicted)[metric]


def said_over_did(dimensions: pd.DataFrame) -> tuple[float, float, float]:
    """SAID's d over DID's, by score, with the interval that follows from both; NaN where one is missing."""
    by = dimensions[dimensions["of"] == "score"].set_index("method")
    if not {"did", "said"} <= set(by.index):
        return math.nan, math.nan, math.nan
    did, said = by.loc["did"], by.loc["said"]
    if not (math.isfinite(did["d"]) and math.isfinite(said["d"])):
        return math.nan, math.nan, math.nan
    return said["d"] / did["d"], said["ci_low"] / did["ci_high"], said["ci_high"] / did["ci_low"]


def write_tables(out: Path, tables: dict[str, pd.DataFrame]) -> None:
    """Each as NAME.csv, whole or not at all."""
    from rankprobe.experiment.store import write_table

    for name, table in tables.items():
        write_table(out / f"{name}.csv", table)
