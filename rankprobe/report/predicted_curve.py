"""The score against r predicted from one run, by cutting its dW to rank k, beside the sweep that trained at each r."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from rankprobe.errors import UsageError, must
from rankprobe.report.verdicts import MARGIN_POINTS
from rankprobe.tasks.metrics import LOWER_IS_BETTER

RULE = "rest_tuned"
COLUMNS = [
    "source", "source_method", "source_r", "source_seed", "targets", "r", "predicted", "predicted_ci_low",
    "predicted_ci_high", "predicted_ci_method", "measured", "measured_ci_low", "measured_ci_high", "n_seeds", "error",
    "error_ci_low", "error_ci_high", "error_ci_method", "own",
]  # fmt: skip
SUMMARY_COLUMNS = [
    "source", "source_method", "source_r", "source_seed", "targets", "n_rs", "mean_error", "mean_abs_error",
    "max_abs_error", "n_inside", "margin_points", "predicted_r", "measured_r", "agree",
]  # fmt: skip
_MOVER = "MOVER of the two intervals, as if independent"


def predicted_curve(truncation: pd.DataFrame, sweep: pd.DataFrame) -> pd.DataFrame:
    """What one run's cut updates say of each r, and what training at that r gave.

    Parameters
    ----------
    truncation : DataFrame
        One run's rows of truncation.csv with its ``run_id``, ``method``, ``r`` and ``seed``; of the rule ``rest_tuned``
        those are taken.
    sweep : DataFrame
        Rows of rank_sweep.csv for one choice of targets, one an r.

    Returns
    -------
    DataFrame, columns :data:`COLUMNS`
        A row an r. ``error`` is predicted - measured in the score's units. ``own`` marks the r of the run itself, whose
        prediction is no prediction. Without one for an r above the run's own, or of a run that has no such k.

    Raises
    ------
    UsageError
        If the rows are of several runs, or an r comes twice.

    Notes
    -----
    Between two measured ks the score is interpolated linearly in log2 k. The error's interval joins the two: Zou &
    Donner's MOVER (2008, Statistics in Medicine 27, 1693-1702), which for equal widths is the root of the sum of their
    squares. Both scores are of the same evaluation rows, which independent intervals overstate: the interval is rather
    too wide. An interval of the prediction over evaluation rows holds no luck of the training seed; the sweep's, from
    three seeds on, does.

    Cutting is not training. A matrix trained at r = k may spend its k directions on what the cut one spread over more,
    and the head and all other weights here were tuned beside the whole update: at small k the prediction is rather low.
    Full fine-tuning's dW is cut in all matrices of the blocks, where a sweep adapts some: its curve can end higher than
    any r of the sweep.
    """
    rows = truncation[truncation["rule"] == RULE].sort_values("k")
    if rows["run_id"].nunique() > 1:
        got = f"{rows['run_id'].nunique()} runs"
        raise UsageError(must("the truncation curve", "be of one run", got, "Pass one run's rows"))
    if sweep["r"].duplicated().any():
        got = f"r = {int(sweep['r'][sweep['r'].duplicated()].iloc[0])} twice"
        raise UsageError(must("the sweep", "have one row for each r", got, "Pass one choice of targets and rates"))
    if rows.empty or sweep.empty:
        return pd.DataFrame(columns=COLUMNS)
    source = rows.iloc[0]
    of_lora = source["method"] == "lora"
    own_r = int(source["r"]) if of_lora else None
    found = []
    for _, row in sweep.sort_values("r").iterrows():
        r = int(row["r"])
        line = {
            "source": source["run_id"], "source_method": source["method"], "source_r": own_r,
            "source_seed": int(source["seed"]), "targets": row["targets"], "r": r, "measured": row["accuracy_mean"],
            "measured_ci_low": row["accuracy_ci_low"], "measured_ci_high": row["accuracy_ci_high"],
            "n_seeds": row["n_seeds"], "own": of_lora and r == own_r,
        }  # fmt: skip
        found.append(line | _at(rows, r))
        found[-1] |= _error(found[-1])
    table = pd.DataFrame(found, columns=COLUMNS)
    table["source_r"] = table["source_r"].astype("Int64")
    return table


def prediction_summary(
    curve: pd.DataFrame, *, whole: float, reference: float | None = None, margin_points: float = MARGIN_POINTS
) -> dict:
    """How far a predicted curve is off, and whether it names the same smallest r.

    Parameters
    ----------
    curve : DataFrame
        From :func:`predicted_curve`.
    whole : float
        The run's own score, nothing cut.
    reference : float, optional
        The measured score that an r has to come up to: full fine-tuning's, say. The default is the largest r's.
    margin_points : float
        How much below an r still suffices, in hundredths of the score.

    Returns
    -------
    dict, keys :data:`SUMMARY_COLUMNS`
        Errors over the rs that were predicted, the run's own left out: ``n_inside`` of ``n_rs`` have an error whose
        interval holds 0. ``predicted_r``: the smallest r of the sweep that is predicted not more than the margin below
        ``whole``; ``measured_r``: the smallest that was measured not more than it below ``reference``; None where no r
        is. Both are of point estimates and no proof of equivalence.
    """
    first = curve.iloc[0]
    told = curve.dropna(subset=["predicted", "measured"])
    errors = told.loc[~told["own"].astype(bool)]
    error = errors["error"].to_numpy(dtype=float)
    inside = (errors["error_ci_low"] <= 0) & (errors["error_ci_high"] >= 0)
    margin = margin_points / 100
    reference = float(told["measured"].iloc[-1]) if reference is None and len(told) else reference
    predicted, measured = (
        _first_r(told, column, None if level is None else level - margin)
        for column, level in (("predicted", whole), ("measured", reference))
    )
    return {
        **{name: first[name] for name in ("source", "source_method", "source_r", "source_seed", "targets")},
        "n_rs": len(errors),
        "mean_error": float(error.mean()) if len(error) else math.nan,
        "mean_abs_error": float(np.abs(error).mean()) if len(error) else math.nan,
        "max_abs_error": float(np.abs(error).max()) if len(error) else math.nan,
        "n_inside": int(inside.sum()),
        "margin_points": margin_points,
        "predicted_r": predicted,
        "measured_r": measured,
        "agree": predicted == measured,
    }


def predicted_curves(
    truncation: pd.DataFrame,
    sweep: pd.DataFrame,
    targets_of: Mapping[str, str | None],
    *,
    margin_points: float = MARGIN_POINTS,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every run that was cut against the sweep: predicted_curve.csv and predicted_summary.csv.

    Parameters
    ----------
    truncation : DataFrame
        Of one comparison, with run_id, method, r and seed; may be empty.
    sweep : DataFrame
        rank_sweep.csv, one row for each targets and r; may be empty.
    targets_of : mapping of str to str
        Targets of the LoRA runs that were cut, by run_id.
    margin_points : float
        As for :func:`prediction_summary`.

    Returns
    -------
    curves, summary : DataFrame
        Of a LoRA run against the sweep on its targets, of full fine-tuning against every sweep; sweeps of one r are
        left out. Empty where the table's score is not what updates are cut by (a language model's perplexity).
    """
    curves, summary = [], []
    comparable = len(truncation) and len(sweep) and not sweep["metric"].isin(LOWER_IS_BETTER).any()
    for run_id in dict.fromkeys(truncation["run_id"]) if comparable else ():
        rows = truncation[(truncation["run_id"] == run_id) & (truncation["rule"] == RULE)]
        if rows.empty:
            continue
        for targets in dict.fromkeys(sweep["targets"]):
            mine = sweep[sweep["targets"] == targets].dropna(subset=["accuracy_mean"])
            of_others = rows["method"].iloc[0] == "lora" and targets != targets_of.get(run_id)
            if mine["r"].nunique() < 2 or of_others:
                continue
            curve = predicted_curve(rows, mine)
            if curve["predicted"].isna().all():
                continue
            curves.append(curve)
            whole = float(rows.sort_values("k")["accuracy"].iloc[-1])
            summary.append(prediction_summary(curve, whole=whole, margin_points=margin_points))
    if not curves:
        return pd.DataFrame(), pd.DataFrame()
    table = pd.DataFrame(summary, columns=SUMMARY_COLUMNS)
    for column in ("source_r", "predicted_r", "measured_r"):
        table[column] = table[column].astype("Int64")
    return pd.concat(curves, ignore_index=True), table


def _at(rows: pd.DataFrame, r: int) -> dict:
    """The cut run's score at k = r, between two ks interpolated; empty above the largest."""
    ks = rows["k"].to_numpy(dtype=float)
    if r > ks[-1]:
        return {}
    exact = rows[rows["k"] == r]
    if len(exact):
        row = exact.iloc[0]
        names = ("accuracy", "ci_low", "ci_high")
        values, method = [float(row[name]) for name in names], row["ci_method"]
    else:
        at = int(np.searchsorted(ks, r))
        places = np.where(ks > 0, np.log2(np.maximum(ks, 1)), -1.0)
        values = [float(np.interp(math.log2(r), places, rows[name])) for name in ("accuracy", "ci_low", "ci_high")]
        method = f"{rows['ci_method'].iloc[0]}, interpolated between k = {ks[at - 1]:g} and {ks[at]:g}"
    return dict(zip(("predicted", "predicted_ci_low", "predicted_ci_high"), values, strict=True)) | {
        "predicted_ci_method": method
    }


def _error(line: dict) -> dict:
    if "predicted" not in line or pd.isna(line["measured"]):
        return {}
    predicted, measured = line["predicted"], line["measured"]
    low, high = line["predicted_ci_low"], line["predicted_ci_high"]
    measured_low, measured_high = line["measured_ci_low"], line["measured_ci_high"]
    error = predicted - measured
    above, below = measured_high - measured, measured - measured_low
    if measured_high >= 1:  # cut where scores end, which is no reason to know the error better
        above = max(above, below)
    return {
        "error": error,
        "error_ci_low": error - math.hypot(predicted - low, above),
        "error_ci_high": error + math.hypot(high - predicted, below),
        "error_ci_method": _MOVER,
    }


def _first_r(rows: pd.DataFrame, column: str, least: float | None) -> int | None:
    """The smallest r whose score reaches a level; a rounding's width below it counts as reached."""
    enough = rows[rows[column] >= least - 1e-9] if least is not None else rows[:0]
    return int(enough["r"].min()) if len(enough) else None
