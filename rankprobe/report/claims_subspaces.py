"""Claims about LoRA's directions: Table 7, Figures 3 and 4, and intruder dimensions. Intervals are over matrices."""

from __future__ import annotations

import math

import pandas as pd

from rankprobe.report.stats import Estimate, bootstrap_median
from rankprobe.report.subspaces import amplified, counted, mean_of, printed
from rankprobe.report.verdicts import (
    AMPLIFIED,
    FEW_INTRUDERS,
    NOT_EMPHASISED,
    PAPER,
    SHARED_DIRECTION,
    Evidence,
    claim_row,
)

_AGAINST = "Shuttleworth et al. 2024"  # arXiv:2410.21228
_TABLE_7 = f"{PAPER}, Table 7: GPT-3, W_q of layer 48"


def subspaces(evidence: Evidence) -> list[dict]:
    """Every claim about directions; ``not_run`` while its pair of runs was not compared."""
    return [*_figures(evidence), *_table_7(evidence), *_intruders(evidence)]


def _figures(evidence: Evidence) -> list[dict]:
    top, note3 = None, ""
    if (pair := evidence.pairs.get("r8-r64")) is not None:
        phi = pair["compare"]["phi_1_1"]
        top = bootstrap_median(phi)
        note3 = f"above {SHARED_DIRECTION:g} in {int((phi > SHARED_DIRECTION).sum())} of {len(phi)} matrices"
    above, note4 = None, ""
    if (pair := evidence.pairs.get("r64-seeds")) is not None:
        overlap = pair["overlap"]
        k = min(8, int(overlap[["i", "j"]].max().min()))
        of = overlap[(overlap["i"] == k) & (overlap["j"] == k)]
        above = bootstrap_median(of["phi"] - of["random_mean"])
        note4 = (
            f"φ({k}, {k}) {of['phi'].median():.3f}, at random {of['random_mean'].median():.3f}; above random's "
            f"interval in {int((of['phi'] > of['random_high']).sum())} of {len(of)} matrices"
        )
    return [
        claim_row(
            "figure3-shared-direction",
            f"{PAPER}, Figure 3: GPT-3",
            f"LoRA with r = 8 and r = 64 share the top direction of A: φ(1, 1) is above {SHARED_DIRECTION:g}",
            "φ",
            published=SHARED_DIRECTION,
            measured=top,
            region=(SHARED_DIRECTION, 1.0),
            note=note3,
        ),
        claim_row(
            "figure4-seeds-share",
            f"{PAPER}, Figure 4: GPT-3",
            "Two seeds of LoRA with r = 64 share more directions than random subspaces do: φ above random's mean",
            "φ",
            measured=above,
            region=(0.0, 1.0),
            note=note4,
        ),
    ]


def _table_7(evidence: Evidence) -> list[dict]:
    found = amplified(evidence.pairs)
    r4, r64 = found.get(4), found.get(64)

    def ratio(rows: pd.DataFrame | None, one: str, other: str) -> Estimate | None:
        return None if rows is None else bootstrap_median(rows[one] / rows[other])

    def of_paper(one: str, other: str) -> float:
        return printed(evidence.published, one, 4) / printed(evidence.published, other, 4)

    falls = None
    if r4 is not None and r64 is not None:
        both = r4.merge(r64, on="name", suffixes=("_4", "_64"))
        falls = bootstrap_median(both["factor_4"] / both["factor_64"])
    amplification = [printed(evidence.published, "amplification", r) for r in (4, 64)]
    return [
        claim_row(
            "table7-correlated",
            _TABLE_7,
            "W0 is larger on the directions of dW (r = 4) than on random ones",
            "times",
            published=of_paper("norm_on_dW", "norm_on_random"),
            measured=ratio(r4, "on_update", "on_random"),
            region=(1.0, math.inf),
        ),
        claim_row(
            "table7-not-emphasised",
            _TABLE_7,
            f"W0 is less than {NOT_EMPHASISED:g} times as large on the directions of dW (r = 4) as on its own top ones",
            "times",
            published=of_paper("norm_on_dW", "norm_on_W"),
            measured=ratio(r4, "on_update", "on_base"),
            region=(0.0, NOT_EMPHASISED),
        ),
        claim_row(
            "table7-amplified",
            _TABLE_7,
            f"dW (r = 4) is more than {AMPLIFIED:g} times what W0 has on its directions",
            "times",
            published=amplification[0],
            measured=None if r4 is None else bootstrap_median(r4["factor"]),
            region=(AMPLIFIED, math.inf),
        ),
        claim_row(
            "table7-falls-with-r",
            _TABLE_7,
            "r = 4 amplifies more than r = 64",
            "times",
            published=amplification[0] / amplification[1],
            measured=falls,
            region=(1.0, math.inf),
        ),
    ]


def _intruders(evidence: Evidence) -> list[dict]:
    by_run = counted(evidence.pairs)
    lora = {r: rows for (method, r, _), rows in reversed(by_run.items()) if method == "lora"}
    full = next((rows for (method, _, _), rows in by_run.items() if method == "full"), None)

    def more(one: pd.DataFrame | None, other: pd.DataFrame | None) -> Estimate | None:
        if one is None or other is None:
            return None
        both = one.merge(other, on="name", suffixes=("_one", "_other"))
        gap = both["intruders_one"] - both["intruders_other"]
        if gap.empty:
            return None
        found = mean_of(gap, int(one["k"].iloc[0]))
        # No difference anywhere says as little of the one side as of the other.
        low = -found.high if (gap == 0).all() else found.low
        return found._replace(low=low, method=f"paired, {found.method}")

    def told(rows: pd.DataFrame | None) -> str:
        return "" if rows is None else f"{rows['intruders'].mean():.2f} of {int(rows['k'].iloc[0])}"

    return [
        claim_row(
            "intruders-lora",
            f"{_AGAINST}; against LoRA",
            "LoRA with r = 1 leaves more intruder dimensions than full fine-tuning in the same matrices",
            "a matrix",
            measured=more(lora.get(1), full),
            region=(0.0, math.inf),
            note=f"LoRA {told(lora.get(1))}, full {told(full)}" if full is not None and 1 in lora else "",
        ),
        claim_row(
            "intruders-full",
            f"{_AGAINST}; against LoRA",
            f"Full fine-tuning leaves almost no intruder dimensions: fewer than {FEW_INTRUDERS:g} a matrix",
            "a matrix",
            measured=None if full is None else mean_of(full["intruders"], int(full["k"].iloc[0])),
            region=(0.0, FEW_INTRUDERS),
        ),
        claim_row(
            "intruders-by-r",
            f"{_AGAINST}; against LoRA",
            "LoRA with r = 1 leaves more intruder dimensions than with r = 64",
            "a matrix",
            measured=more(lora.get(1), lora.get(64)),
            region=(0.0, math.inf),
            note=f"r = 1 {told(lora.get(1))}, r = 64 {told(lora.get(64))}" if {1, 64} <= set(lora) else "",
        ),
    ]
