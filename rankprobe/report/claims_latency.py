"""Claims about latency: each judged beside what the machine sees between two copies of one model."""

from __future__ import annotations

import math

import pandas as pd

from rankprobe.report.stats import Estimate
from rankprobe.report.verdicts import (
    LATENCY_AA_MARGIN,
    LATENCY_MARGIN,
    PAPER,
    Evidence,
    claim_row,
    verdict,
)

_VARIANTS = {"lora_merged": "merged", "lora_unmerged": "unmerged"}


def latency(evidence: Evidence) -> list[dict]:
    table = evidence.latency
    shapes = [] if table is None or table.empty else sorted(set(zip(table["batch"], table["length"], strict=True)))
    rows = []
    for variant, word in _VARIANTS.items():
        merged = variant == "lora_merged"
        statement = "Merged LoRA adds no latency" if merged else "Unmerged LoRA adds latency"
        source = f"{PAPER}, section 4.1 and Table 1" if merged else "context: LoRA as trained, before merging"
        region = (1 - LATENCY_MARGIN, 1 + LATENCY_MARGIN) if merged else (1.0, math.inf)
        for batch, length in shapes:
            rows.append(
                _latency_row(
                    table,
                    variant,
                    batch,
                    length,
                    region,
                    source,
                    f"{statement} (batch {batch}, length {length})",
                    1.0 if merged else math.nan,
                )
            )
        if not shapes:
            rows.append(claim_row(f"{word}-latency", source, statement, "ratio", published=1.0 if merged else math.nan))
    return rows


def _latency_row(
    table: pd.DataFrame,
    variant: str,
    batch: int,
    length: int,
    region: tuple[float, float],
    source: str,
    statement: str,
    published: float,
) -> dict:
    shape = table[(table["batch"] == batch) & (table["length"] == length)]
    found, same = shape[shape["variant"] == variant], shape[shape["variant"] == "base_copy"]
    measured, note, blind = None, "", True
    if not found.empty:
        one = found.iloc[0]
        measured = Estimate(
            one["ratio"],
            one["ratio_ci_low"],
            one["ratio_ci_high"],
            f"median of {int(one['n'])} rounds, {one['ci_method']}",
            int(one["n"]),
        )
        note = "no second copy of the base was timed"
    if not same.empty:
        low, high = same.iloc[0]["ratio_ci_low"], same.iloc[0]["ratio_ci_high"]
        if variant == "lora_merged":
            # To find no difference, the machine must be able to see one.
            blind = verdict(low, high, (1 - LATENCY_AA_MARGIN, 1 + LATENCY_AA_MARGIN)) != "supported"
        else:
            # A difference larger than any between two copies is seen, however noisy the machine.
            blind = measured is None or (measured.low <= high and low <= measured.high)
        note = f"A/A {low:.3f} to {high:.3f}" + (": this machine cannot tell such differences apart" if blind else "")
    row = claim_row(
        f"{_VARIANTS[variant]}-latency-b{batch}-l{length}",
        source,
        statement,
        "ratio",
        published=published,
        measured=measured,
        region=region,
        note=note,
    )
    if blind and row["verdict"] != "not_run":
        row["verdict"] = "inconclusive"
    return row
