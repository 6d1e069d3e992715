"""Runs of one comparison → the CSV tables that people read: a row a run, a row a configuration."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rankprobe.experiment.spec import SIZES
from rankprobe.report.comparison import (
    configurations,
    difference,
    finished_ok,
    full_reference,
    main_metric,
    mean_score,
    one_comparison,
    paired_runs,
)
from rankprobe.report.early_stop import EARLY_STOP, early_stop_columns
from rankprobe.report.merged import whole_numbers
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
    "diff_n_seeds",
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
_SERVED_AS = {
    "head": "base",
    **dict.fromkeys(("full", "bitfit", "top_layers", "did", "said"), "full"),
    "lora": "lora_merged",
    "adapter_h": "adapter_h",
    "adapter_l": "adapter_l",
    "prefix": "prefix",
    "prompt": "prompt",
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
                **{key: value for key, value in spec.items() if key not in ("rank_pattern", *EARLY_STOP)},
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
                **early_stop_columns(run),
                "commit": (run.get("git") or {}).get("commit"),
                "dirty": (run.get("git") or {}).get("dirty"),
            }
        )
    return whole_numbers(
        pd.DataFrame(rows), "r", *SIZES, "steps", "total_params", "trainable_params", "head_params",
        "peak_memory_bytes", "patience", "n_tuning", "epochs_trained", "best_epoch",
    )  # fmt: skip


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
        Scores and differences as fractions, ``diff_n_seeds`` the pairs of runs that a difference is of; train_time_s,
        tokens_per_s and peak_memory_bytes are medians over seeds, packed runs left out. Configurations without a
        finished run keep their row: ``n_diverged`` and ``n_failed`` say why their numbers are missing.

    Raises
    ------
    UsageError
        If the runs are of several comparisons, such as two evaluation sets.
    """
    groups = configurations(one_comparison(runs))
    full = full_reference(groups)
    table = pd.DataFrame([_method_row(g, full, latency) for g in groups], columns=METHOD_COLUMNS)
    return whole_numbers(table, "r", "size", "trainable_params", "head_params", "diff_n_seeds", "peak_memory_bytes")


def rank_sweep_table(methods: pd.DataFrame) -> pd.DataFrame:
    """The LoRA rows of :func:`methods_table`, by targets and r."""
    return methods[methods["method"] == "lora"].sort_values(["targets", "r", "alpha", "lr"], ignore_index=True)


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
    # A packed run's time is its share of the pack's, which no lone run's is to be compared with.
    alone = [run for run in ok if not run.get("pack")]
    for name in ("train_time_s", "tokens_per_s", "peak_memory_bytes"):
        values = [v for run in alone if (v := (run.get("timings") or {}).get(name)) is not None]
        row[name] = float(np.median(values)) if values else None
    if spec["method"] != "full" and (gap := difference(ok, full)):
        row |= {
            "diff_vs_full": gap.estimate,
            "diff_ci_low": gap.low,
            "diff_ci_high": gap.high,
            "diff_ci_method": gap.method,
            "diff_n_seeds": len(paired_runs(ok, full)),
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
    elif spec["method"] in ("prefix", "prompt") and len(rows):
        rows = rows[rows["prefix_length"] == spec["prefix_length"]]
    if rows.empty:
        return {}
    row = rows.sort_values(["batch", "length"]).iloc[0]
    return {"latency_ms": row["latency_ms"], "latency_ratio": row["ratio"]}
