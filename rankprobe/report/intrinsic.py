"""Tables of an intrinsic dimension: d90 by method, the curve, and d90 beside other measures of how little it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from rankprobe.analysis.bootstrap import accuracy
from rankprobe.analysis.crossing import reaches
from rankprobe.analysis.intrinsic_dimension import intrinsic_dimensions
from rankprobe.experiment.store import write_table
from rankprobe.report.claims_rank import full_energy_shares, functional_ranks
from rankprobe.report.comparison import MAIN_TARGETS, finished_ok, lora_groups, main_metric
from rankprobe.report.merged import merged_ranks
from rankprobe.report.predictions import predictions
from rankprobe.tasks.metrics import score

CURVE = ["method", "d", "seed", "lr", "metric", "score", "loss", "train_time_s", "run_id"]
DIMENSIONS = ["method", "share", "of", "d", "ci_low", "ci_high", "d_below", "d_above", "threshold", "full", "n_eval",
              "n_seeds", "D", "d_pct", "reason", "over_did", "over_did_ci_low", "over_did_ci_high",
              "ci_method"]  # fmt: skip
BESIDE = ["measure", "value", "ci_low", "ci_high", "unit", "score", "reaches", "note"]
METHODS = ("did", "said")


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
        if run["spec"]["method"] in METHODS
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
        ``D`` is the encoder's number of weights, ``d_pct`` d in percent of it; ``over_did`` is SAID's d over DID's.
    """
    ok = [run for run in finished_ok(runs) if predictions(run) is not None]
    full, head, *subspaces = ([run for run in ok if run["spec"]["method"] == m] for m in ("full", "head", *METHODS))
    curves = {m: _by_d(of) for m, of in zip(METHODS, subspaces, strict=True) if of}
    if not curves or not full:
        return pd.DataFrame(columns=DIMENSIONS)
    labels = predictions(full[0]).label
    D = full[0]["params"]["total"] - full[0]["params"]["head"]
    found = intrinsic_dimensions(labels, curves, [_predicted(run) for run in full], _score_of(full[0]), share,
                                 head=[_predicted(run) for run in head])  # fmt: skip
    rows = []
    for result in found:
        row = result.row()
        of_did = result.curve == "said"  # of a sweep of SAID alone there is no ratio: NaN
        over = {f"over_did{end}": row[f"ratio{end}"] if of_did else np.nan for end in ("", "_ci_low", "_ci_high")}
        rows.append({**row, **over, "ci_method": row["method"], "method": result.curve, "D": D,
                     "d_pct": 100 * result.d / D})  # fmt: skip
    return pd.DataFrame(rows, columns=DIMENSIONS)


def beside_table(dimensions: pd.DataFrame, runs: list[dict]) -> pd.DataFrame:
    """comparison.csv: d90 beside LoRA's parameters and beside the energy and functional ranks of full fine-tuning's dW.

    Parameters
    ----------
    dimensions : DataFrame
        From :func:`dimensions_table`.
    runs : list of dict
        Of the same comparison: the sweep's and, where they are there, LoRA's.

    Returns
    -------
    DataFrame, columns :data:`BESIDE`
        ``reaches`` says of LoRA which bars its mean score is above: the share of the score, of the gain, of both.
    """
    rows = [
        {
            "measure": f"{row['method'].upper()}, {100 * row['share']:g} % of the {row['of']}",
            "value": row["d"],
            "ci_low": row["ci_low"],
            "ci_high": row["ci_high"],
            "unit": "parameters",
            "score": row["threshold"],
            "note": "; ".join(part for part in (f"of {row['D']:,} weights", row["reason"]) if part),
        }
        for _, row in dimensions.iterrows()
    ]
    bars = dict(zip(dimensions["of"], dimensions["threshold"], strict=True))
    named: set[str] = set()
    for r, group in sorted(lora_groups(runs, MAIN_TARGETS).items()):
        mean = float(np.mean([run["metrics"][main_metric(run)] for run in group]))
        reached = [of for of, bar in bars.items() if reaches(mean, bar)]
        first = [of for of in reached if of not in named]
        named |= set(first)
        rows.append(
            {
                "measure": f"LoRA, r = {r} on {MAIN_TARGETS}",
                "value": group[0]["params"]["method"],
                "unit": "parameters",
                "score": mean,
                "reaches": " and ".join(reached),
                "note": f"the smallest r that reaches the {' and the '.join(first)}" if first else "",
            }
        )
    return pd.DataFrame([*rows, *_ranks_of_dw(runs)], columns=BESIDE)


def _ranks_of_dw(runs: list[dict]) -> list[dict]:
    """Energy and functional rank of full fine-tuning's dW, and how many numbers their matrices take."""
    rows = []
    ranks = merged_ranks(runs)
    shares = full_energy_shares(ranks, runs)
    sides = np.zeros(0)
    if len(shares):
        full = ranks[ranks["name"].isin(shares["name"])].drop_duplicates("name").set_index("name")
        sides = full.loc[shares["name"], ["m", "n"]].sum(axis=1).to_numpy()
        ks = shares["energy_rank_90"].to_numpy()
        rows.append({"measure": "dW's energy_rank_90, median of the blocks' matrices", "value": float(np.median(ks)),
                     "unit": "directions", "note": f"of {int(shares['p'].median())}"})  # fmt: skip
        rows.append({"measure": "Best parts of dW that hold 90 % of the energy", "value": float((ks * sides).sum()),
                     "unit": "parameters", "note": f"k (m + n) over {len(shares)} matrices"})  # fmt: skip
    found = [row for row in functional_ranks(runs) if row.get("k")]
    for row in found[:1]:
        rows.append({"measure": "dW's functional rank, 90 % of the gain", "value": row["k"], "ci_low": row["ci_low"],
                     "ci_high": row["ci_high"], "unit": "directions", "note": "one seed; head, embeddings, norms and "
                     "biases stay tuned"})  # fmt: skip
        if len(sides):
            low, k, high = (row[name] * sides.sum() for name in ("ci_low", "k", "ci_high"))
            rows.append({"measure": "Best parts of dW that keep 90 % of the gain", "value": k, "ci_low": low,
                         "ci_high": high, "unit": "parameters",
                         "note": f"k (m + n) over {len(shares)} matrices"})  # fmt: skip
    return rows


def _by_d(runs: list[dict]) -> dict[int, list[np.ndarray]]:
    found: dict[int, list[np.ndarray]] = {}
    for run in runs:
        found.setdefault(run["spec"]["d"], []).append(_predicted(run))
    return found


def _predicted(run: dict) -> np.ndarray:
    return predictions(run).prediction


def _score_of(run: dict):
    metric = main_metric(run)
    if metric == "accuracy":
        return accuracy  # the bootstrap resamples counts for this very function
    return lambda labels, predicted: score((metric,), labels, predicted)[metric]


def write_tables(out: Path, tables: dict[str, pd.DataFrame]) -> None:
    """Each as NAME.csv, whole or not at all."""
    for name, table in tables.items():
        write_table(out / f"{name}.csv", table)
