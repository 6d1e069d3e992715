"""Claims about latency: each judged beside what the machine sees between two copies of one model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from rankprobe.report.stats import Estimate
from rankprobe.report.table1 import paper_latency
from rankprobe.report.verdicts import (
    LATENCY_AA_MARGIN,
    LATENCY_MARGIN,
    PAPER,
    Evidence,
    claim_row,
    verdict,
)

_NONE_ADDED, _SOME_ADDED = (1 - LATENCY_MARGIN, 1 + LATENCY_MARGIN), (1.0, math.inf)


@dataclass(frozen=True)
class _Claim:
    """What is claimed of a variant at every shape; its ids end with the shape."""

    variant: str
    claim_id: str
    source: str
    statement: str
    region: tuple[float, float]


_OF_THE_MODEL = (
    _Claim("lora_merged", "merged-latency", f"{PAPER}, section 4.1 and Table 1", "Merged LoRA adds no latency",
           _NONE_ADDED),
    _Claim("lora_unmerged", "unmerged-latency", "context: LoRA as trained, before merging",
           "Unmerged LoRA adds latency", _SOME_ADDED),
)  # fmt: skip
_OF_TABLE_1 = (
    _Claim("lora_merged", "table1-merged", f"{PAPER}, Table 1", "Merged LoRA adds no latency to a GPT-2", _NONE_ADDED),
    _Claim("lora_unmerged", "table1-unmerged", "context: LoRA as trained, before merging",
           "Unmerged LoRA adds latency to a GPT-2", _SOME_ADDED),
    _Claim("adapter_l", "table1-adapter-l", f"{PAPER}, Table 1", "Adapter-L adds latency to a GPT-2", _SOME_ADDED),
    _Claim("adapter_h", "table1-adapter-h", f"{PAPER}, Table 1", "Adapter-H adds latency to a GPT-2", _SOME_ADDED),
)  # fmt: skip


def latency(evidence: Evidence) -> list[dict]:
    """The claims about the comparison's model, and those about Table 1's."""
    rows = []
    for claim in _OF_THE_MODEL:
        published = 1.0 if claim.region == _NONE_ADDED else math.nan
        rows += _at_every_shape(claim, evidence.latency, lambda batch, length, published=published: published)
    for claim in _OF_TABLE_1:

        def published(batch: int, length: int, variant: str = claim.variant) -> float:
            return 1 + paper_latency(evidence.published, variant, batch, length)[1] / 100

        rows += _at_every_shape(claim, evidence.table1, published)
    return rows


def _at_every_shape(claim: _Claim, table: pd.DataFrame | None, published: Callable[[int, int], float]) -> list[dict]:
    if table is None or table.empty:
        alone = 1.0 if claim.region == _NONE_ADDED else math.nan
        return [claim_row(claim.claim_id, claim.source, claim.statement, "ratio", published=alone)]
    shapes = sorted(set(zip(table["batch"], table["length"], strict=True)))
    return [_judged(claim, table, batch, length, published(batch, length)) for batch, length in shapes]


def _judged(claim: _Claim, table: pd.DataFrame, batch: int, length: int, published: float) -> dict:
    shape = table[(table["batch"] == batch) & (table["length"] == length)]
    found, same = shape[shape["variant"] == claim.variant], shape[shape["variant"] == "base_copy"]
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
        if claim.region == _NONE_ADDED:
            # To find no difference, the machine must be able to see one.
            blind = verdict(low, high, (1 - LATENCY_AA_MARGIN, 1 + LATENCY_AA_MARGIN)) != "supported"
        else:
            # A difference larger than any between two copies is seen, however noisy the machine.
            blind = measured is None or (measured.low <= high and low <= measured.high)
        note = f"A/A {low:.3f} to {high:.3f}" + (": this machine cannot tell such differences apart" if blind else "")
    if measured is not None and "device_name" in shape:
        # Published is GPT-2 medium on another machine: what was timed here is said beside it.
        one = found.iloc[0]
        weights = " with random weights" if claim in _OF_TABLE_1 else ""
        note = f"{one['model']}{weights}, {one['dtype']} on {one['device_name']}; {note}"
    row = claim_row(
        f"{claim.claim_id}-b{batch}-l{length}",
        claim.source,
        f"{claim.statement} (batch {batch}, length {length})",
        "ratio",
        published=published,
        measured=measured,
        region=claim.region,
        note=note,
    )
    if blind and row["verdict"] != "not_run":
        row["verdict"] = "inconclusive"
    return row
