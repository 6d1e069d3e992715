"""Runs of one comparison → the CSV tables that people read: a row a run, a row a configuration, merged spectra."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd

from rankprobe.analysis.rank_columns import INTEGERS
from rankprobe.experiment.spec import SIZES
from rankprobe.report.comparison import (
    configurations,
    difference,
    finished_ok,
    full_reference,
    main_metric,
    mean_score,
    one_comparison,
    standing_for,
)
from rankprobe.report.numbers import size_of, targets_name
from rankprobe.tasks.metrics import LOWER_IS_BETTER

METHOD_COLUMNS = [
    "model",
    "task",
    "method",
    "r",
    "alpha",
    "targets",
    "size",
    "lr",
    "n_seeds",
    "n_eval",
    "trainable_params",
    "head_params",
    "trainable_pct",
    "metric",
    "accuracy_mean",
    "accuracy_ci_low",
    "accuracy_ci_high",
    "ci_method",
    "diff_vs_full",
    "diff_ci_low",
    "diff_ci_high",
    "diff_ci_method",
    "train_time_s",
    "tokens_per_s",
    "peak_memory_bytes",
    "latency_ms",
    "latency_ratio",
    "n_diverged",
    "n_failed",
    "dropout",
    "rslora",
    "split",
    "train_size",
    "epochs",
    "dtype",
    "eval_sha256",
]


# What a trained model has when it is served: the base's modules with values of its own, or modules that were added.
# A prefix is served with longer inputs, which no measurement here has.
_SERVED_AS = {
    "head": "base",
    **dict.fromkeys(("full", "bitfit", "top_layers", "did", "said"), "full"),
    "lora": "lora_merged",
    "adapter_h": "adapter_h",
    "adapter_l": "adapter_l",
}


def runs_table(runs: list[dict]) -> pd.DataFrame:
    """One row a run, failed and diverged ones too.

    Parameters
    ----------
    runs : list of dict
        Of one comparison.
    """
    rows = []
    for run in (r for group in configurations(one_comparison(runs)) for r in group):
        spec, params, times = run["spec"], run.get("params") or {}, run.get("timings") or {}
        metrics, name = run.get("metrics") or {}, main_metric(run)
        rows.append(
            {
                "run_id": run["run_id"],
                "status": run["status"],
                "error": run.get("error"),
                **{key: value for key, value in spec.items() if key != "rank_pattern"},
                "targets": targets_name(spec),
                "eval_sha256": run["task"]["eval_sha256"],
                "n_train": run["task"]["n_train"],
                "n_eval": run["task"]["n_eval"],
                "metric": name,
                "accuracy": metrics.get(name),
                "loss": metrics.get("loss"),
                "total_params": params.get("total"),
                "trainable_params": params.get("trainable"),
                "head_params": params.get("head"),
                **{
                    key: times.get(key)
                    for key in ("train_time_s", "eval_time_s", "steps", "tokens_per_s", "peak_memory_bytes")
                },
                "commit": (run.get("git") or {}).get("commit"),
                "dirty": (run.get("git") or {}).get("dirty"),
            }
        )
    return _integers(
        pd.DataFrame(rows), "r", *SIZES, "steps", "total_params", "trainable_params", "head_params", "peak_memory_bytes"
    )


def methods_table(runs: list[dict], latency: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row a configuration, with intervals and the paired difference to full fine-tuning.

    Parameters
    ----------
    runs : list of dict
        Of one comparison; may be partial.
    latency : DataFrame, optional
        latency.csv. The row shown is the smallest batch's, where added work weighs most (Hu et al. 2021, Table 1).

    Returns
    -------
    DataFrame, columns :data:`METHOD_COLUMNS`
        Scores and differences as fractions; train_time_s and peak_memory_bytes are medians over seeds. Configurations
        without a finished run keep their row: ``n_diverged`` and ``n_failed`` say why their numbers are missing.

    Raises
    ------
    UsageError
        If the runs are of several comparisons, such as two evaluation sets.
    """
    groups = configurations(one_comparison(runs))
    full = full_reference(groups)
    table = pd.DataFrame([_method_row(g, full, latency) for g in groups], columns=METHOD_COLUMNS)
    return _integers(table, "r", "size", "trainable_params", "head_params", "peak_memory_bytes")


def rank_sweep_table(methods: pd.DataFrame) -> pd.DataFrame:
    """The LoRA rows of :func:`methods_table`, by targets and r."""
    return methods[methods["method"] == "lora"].sort_values(["targets", "r", "alpha", "lr"], ignore_index=True)


def merged_ranks(runs: list[dict]) -> pd.DataFrame:
    """ranks.csv of all finished runs, with run_id, method, r and seed."""
    return _merged(finished_ok(one_comparison(runs)), "ranks.csv")


def merged_spectra(runs: list[dict]) -> pd.DataFrame:
    """spectra.csv of the first finished seed for each method, targets and r; the others' stay in their run folders.

    Singular values have six significant digits here: the table is for reading and drawing.
    """
    first = [group[0] for group in standing_for(one_comparison(runs))]
    table = _merged(first, "spectra.csv", ("run_id",))
    if len(table):
        table["sigma"] = [float(f"{s:.6g}") for s in table["sigma"]]
    return table


def merged_truncation(runs: list[dict]) -> pd.DataFrame:
    """truncation.csv of all finished runs that have one, with run_id, method, r and seed."""
    return _merged(finished_ok(one_comparison(runs)), "truncation.csv")


def merged_functional_ranks(runs: list[dict]) -> pd.DataFrame:
    """functional_rank.csv of all finished runs that have one, with run_id, method, r and seed."""
    return _merged(finished_ok(one_comparison(runs)), "functional_rank.csv")


# What makes two rows settings of one configuration.
_CONFIGURATION = ["method", "targets", "r", "size"]


def best_settings(methods: pd.DataFrame) -> pd.DataFrame:
    """Finished rows of :func:`methods_table`, one for each method, targets, r and size: most seeds, best score.

    Where learning rates were tried on these very rows, this favours whatever was tried most often.
    """
    if methods.empty:
        return methods
    done = methods.dropna(subset=["accuracy_mean"])
    less = bool(done["metric"].isin(LOWER_IS_BETTER).any())
    ranked = done.sort_values(["n_seeds", "accuracy_mean"], ascending=[False, less], kind="stable")
    return ranked.drop_duplicates(_CONFIGURATION).sort_index()


def chosen_among(methods: pd.DataFrame) -> str:
    """What :func:`best_settings` chose on the very rows that are shown: ``"learning rates and alphas"``, or nothing."""
    words = {"lr": "learning rates", "alpha": "alphas", "dropout": "dropouts", "rslora": "scalings", "epochs": "epochs"}
    done = methods.dropna(subset=["accuracy_mean"])
    groups = [group for _, group in done.groupby(_CONFIGURATION, dropna=False) if len(group) > 1]
    varied = [word for name, word in words.items() if any(group[name].nunique(dropna=False) > 1 for group in groups)]
    return " and ".join(varied) or ("settings" if groups else "")


def _method_row(group: list[dict], full: list[dict], latency: pd.DataFrame | None) -> dict:
    first, ok = group[0], finished_ok(group)
    spec, task = first["spec"], first["task"]
    row = {
        "model": first["model"]["name"],
        "task": task["name"],
        "metric": main_metric(first),
        "size": size_of(spec),
        "n_seeds": len(ok),
        "n_eval": task["n_eval"],
        "eval_sha256": task["eval_sha256"],
        "n_diverged": sum(run["status"] == "diverged" for run in group),
        "n_failed": sum(run["status"] == "failed" for run in group),
        **{
            name: spec.get(name)
            for name in (
                "method",
                "r",
                "alpha",
                "targets",
                "lr",
                "dropout",
                "rslora",
                "split",
                "train_size",
                "epochs",
                "dtype",
            )
        },
        "targets": targets_name(spec),
    }
    params = next((run["params"] for run in group if run.get("params")), None)
    if params:
        row |= {
            "trainable_params": params["trainable"],
            "head_params": params["head"],
            "trainable_pct": 100 * params["trainable"] / params["total"],
        }
    if not ok:
        return row
    accuracy = mean_score(ok)
    row |= {
        "accuracy_mean": accuracy.estimate,
        "accuracy_ci_low": accuracy.low,
        "accuracy_ci_high": accuracy.high,
        "ci_method": accuracy.method,
    }
    for name in ("train_time_s", "tokens_per_s", "peak_memory_bytes"):
        values = [v for run in ok if (v := (run.get("timings") or {}).get(name)) is not None]
        row[name] = float(np.median(values)) if values else None
    if spec["method"] != "full" and (gap := difference(ok, full)):
        row |= {
            "diff_vs_full": gap.estimate,
            "diff_ci_low": gap.low,
            "diff_ci_high": gap.high,
            "diff_ci_method": gap.method,
        }
    return row | _latency_of(spec, latency)


def _latency_of(spec: dict, latency: pd.DataFrame | None) -> dict:
    """Latency at the smallest batch of what this configuration serves: its own shapes, or the base's."""
    if latency is None or latency.empty:
        return {}
    rows = latency[latency["variant"] == _SERVED_AS.get(spec["method"])]
    if spec["method"] == "lora":
        rows = rows[(rows["r"] == spec["r"]) & (rows["targets"] == spec["targets"])]
    elif spec["method"] in ("adapter_h", "adapter_l") and len(rows):
        rows = rows[rows["bottleneck"] == spec["bottleneck"]]
    if rows.empty:
        return {}
    row = rows.sort_values(["batch", "length"]).iloc[0]
    return {"latency_ms": row["latency_ms"], "latency_ratio": row["ratio"]}


def _merged(runs: list[dict], name: str, keys: tuple[str, ...] = ("run_id", "method", "r", "seed")) -> pd.DataFrame:
    # Files of one header are parsed together: a thousand small ones by themselves take pandas ten times as long.
    bodies: dict[str, list[str]] = {}
    owners: dict[str, list[dict]] = {}
    for run in runs:
        path = Path(run["path"]) / name
        if path.exists():
            header, _, body = path.read_text(encoding="utf-8").partition("\n")
            bodies.setdefault(header, []).append(body)
            owners.setdefault(header, []).extend([run] * body.count("\n"))
    tables = []
    for header, found in bodies.items():
        # functional_rank.csv's "method" is the interval's; in a table of many runs it is how each was trained.
        table = pd.read_csv(io.StringIO("\n".join([header, "".join(found)]))).rename(columns={"method": "ci_method"})
        for place, key in enumerate(keys):
            of = [run["run_id"] if key == "run_id" else run["spec"].get(key) for run in owners[header]]
            table.insert(place, key, of)
        tables.append(table)
    if not tables:
        return pd.DataFrame()
    # Of runs of an earlier version some columns are missing: empty there.
    merged = pd.concat(tables, ignore_index=True)
    place = {run["run_id"]: i for i, run in enumerate(runs)}
    merged = merged.sort_values("run_id", key=lambda ids: ids.map(place), kind="stable", ignore_index=True)
    return _integers(merged, "r", *INTEGERS)


def _integers(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Whole numbers that may be missing stay whole numbers in the CSV: ``8``, not ``8.0``."""
    for column in columns:
        if column in table:
            table[column] = pd.to_numeric(table[column]).round().astype("Int64")
    return table
