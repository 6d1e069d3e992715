"""Table 1 of the LoRA paper, measured here: what methods add to the base's latency, beside the paper's own figures."""

from __future__ import annotations

import math

import pandas as pd

from rankprobe.report import numbers as say

VARIANT_NAMES = {
    "base": "base",
    "base_copy": "second copy of the base (A/A)",
    "full": "full fine-tuning",
    "lora_merged": "LoRA, merged",
    "lora_unmerged": "LoRA, not merged",
    "adapter_l": "Adapter-L",
    "adapter_h": "Adapter-H",
    "prefix": "PreLayer",
    "prompt": "PreEmbed",
}
TABLE_1 = [
    "model", "variant", "batch", "length", "bottleneck", "method_params", "n", "latency_ms", "ci_low", "ci_high",
    "ratio", "ratio_ci_low", "ratio_ci_high", "overhead_pct", "overhead_ci_low", "overhead_ci_high", "paper_model",
    "paper_latency_ms", "paper_overhead_pct", "ci_method", "r", "targets", "dtype", "device", "device_name", "threads",
]  # fmt: skip
# The paper's first row serves full fine-tuning, whose model is the base's, and merged LoRA.
_PAPER_METHODS = {
    "base": "full",
    "lora_merged": "lora merged",
    "adapter_l": "adapter_l",
    "adapter_h": "adapter_h",
}


def table_1(latency: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Overheads in percent of the base's latency beside what the paper prints.

    Parameters
    ----------
    latency : DataFrame
        From :func:`rankprobe.experiment.latency.execute_latency` with adapters; empty gives an empty table.
    published : DataFrame
        From :func:`rankprobe.paper.published.published`, handed in by the caller; may be empty.

    Returns
    -------
    DataFrame, columns :data:`TABLE_1`
        A row a shape and variant. ``overhead_pct = 100 (ratio - 1)`` with its interval; ``paper_overhead_pct`` is
        ``100 (t / t_base - 1)`` of the paper's own times, as it prints it; both are empty where the paper has no such
        variant (unmerged LoRA).
    """
    if latency.empty:
        return pd.DataFrame(columns=TABLE_1)
    table = latency.copy()
    for name, of in (
        ("overhead_pct", "ratio"),
        ("overhead_ci_low", "ratio_ci_low"),
        ("overhead_ci_high", "ratio_ci_high"),
    ):
        table[name] = 100 * (table[of] - 1)
    paper = [paper_latency(published, row.variant, row.batch, row.length) for row in table.itertuples()]
    table["paper_latency_ms"] = [time for time, _ in paper]
    table["paper_overhead_pct"] = [overhead for _, overhead in paper]
    table["paper_model"] = ["GPT-2 medium" if math.isfinite(time) else None for time, _ in paper]
    return table[TABLE_1]


def paper_latency(published: pd.DataFrame, variant: str, batch: int, length: int) -> tuple[float, float]:
    """The paper's latency in ms of a variant at a shape, and what it adds in percent; NaN where it has none.

    The percentage is the printed one, or 0 for the row that the others are compared with.
    """
    method = _PAPER_METHODS.get(variant)
    if method is None or published.empty:
        return math.nan, math.nan
    rows = published[published["source"].str.endswith("Table 1") & (published["method"] == method)]
    rows = rows[rows["task"] == f"batch {batch}, length {length}"].set_index("metric")["value"]
    if "latency" not in rows:
        return math.nan, math.nan
    return float(rows["latency"]), float(rows["slowdown"]) if method.startswith("adapter") else 0.0


def printed_table(table: pd.DataFrame) -> pd.DataFrame:
    """Table 1 for a terminal: a row a shape and variant, intervals beside their values.

    Parameters
    ----------
    table : DataFrame
        From :func:`table_1`.

    Returns
    -------
    DataFrame
        Columns variant, shape (batch x length), bottleneck, parameters, n, latency ms, ratio, overhead %, paper %.
    """
    rows = []
    for row in table.itertuples():
        base, digits = row.variant == "base", 1 if row.latency_ms < 1000 else 0
        rows.append(
            {
                "variant": row.variant,
                "shape": f"{row.batch} x {row.length}",
                "bottleneck": row.bottleneck,
                "parameters": row.method_params,
                "n": row.n,
                "latency ms": say.with_interval(row.latency_ms, row.ci_low, row.ci_high, digits),
                "ratio": "1" if base else say.with_interval(row.ratio, row.ratio_ci_low, row.ratio_ci_high, 3),
                "overhead %": say.MISSING
                if base
                else say.with_interval(row.overhead_pct, row.overhead_ci_low, row.overhead_ci_high, 1, sign=True),
                "paper %": say.MISSING if base else say.number(row.paper_overhead_pct, 1, sign=True),
            }
        )
    shown = pd.DataFrame(rows)
    shown["bottleneck"] = pd.array(shown["bottleneck"], dtype="Int64")
    return shown
