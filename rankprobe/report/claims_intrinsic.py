"""Claims about the intrinsic dimension (Aghajanyan et al. 2020)."""

from __future__ import annotations

import math

from rankprobe.report.comparison import main_lora
from rankprobe.report.intrinsic import said_over_did
from rankprobe.report.stats import Estimate
from rankprobe.report.verdicts import LOW_DIMENSION_PCT, Evidence, claim_row

_SOURCE = "Aghajanyan et al. 2020"  # arXiv:2012.13255
# RoBERTa base on MRPC: d90 by DID and by SAID, of 125M weights.
_MODEL, _TASK, _WEIGHTS = "RoBERTa base", "mrpc", 125e6


def intrinsic(evidence: Evidence) -> list[dict]:
    """Three claims; ``not_run`` while no dimension was measured. d90 is of the score, as in the source."""
    table = evidence.intrinsic
    by = table[table["of"] == "score"].set_index("method") if len(table) else table
    did = by.loc["did"] if "did" in by.index else None
    main = main_lora(evidence.runs)
    parameters = main[0]["params"]["method"] if main else math.nan
    printed = {m: _published(evidence, m) for m in ("did", "said")}
    ratio = Estimate(*said_over_did(table), "the ends of both intervals", len(by)) if len(table) else None
    return [
        claim_row(
            "intrinsic-dimension-did",
            f"{_SOURCE}, Table 1: {_MODEL} on MRPC",
            f"d90 (DID) is at most {LOW_DIMENSION_PCT:g} % of the encoder's weights",
            "%",
            published=100 * printed["did"] / _WEIGHTS,
            measured=_estimate(did, 100 / did["D"]) if did is not None else None,
            region=(0.0, LOW_DIMENSION_PCT),
            note=_note(did),
        ),
        claim_row(
            "intrinsic-dimension-said-below-did",
            f"{_SOURCE}, Table 1: {_MODEL} on MRPC",
            "Structure helps: d90 by SAID is below d90 by DID",
            "times",
            published=printed["said"] / printed["did"],
            measured=None if ratio is None or math.isnan(ratio.estimate) else ratio,
            region=(0.0, 1.0),
        ),
        claim_row(
            "intrinsic-dimension-below-lora",
            f"{_SOURCE}; the reason that Hu et al. 2021 gives for LoRA",
            "d90 (DID) is below LoRA's own number of parameters",
            "times",
            measured=_estimate(did, 1 / parameters) if did is not None and main else None,
            region=(0.0, 1.0),
            note="" if did is None or not main else f"LoRA r = {main[0]['spec']['r']} has {parameters:,}; {_note(did)}",
        ),
    ]


def _estimate(row, scale: float) -> Estimate | None:
    if math.isnan(row["ci_low"]):
        return None
    return Estimate(scale * row["d"], scale * row["ci_low"], scale * row["ci_high"], row["ci_method"], row["n_eval"])


def _note(row) -> str:
    if row is None:
        return ""
    d = f"{row['d']:,.0f}" if math.isfinite(row["d"]) else f"above {row['d_below']:,.0f}, the largest d tried"
    return f"d90 {d} of {row['D']:,}, {int(row['n_seeds'])} seeds"


def _published(evidence: Evidence, method: str) -> float:
    rows = evidence.published
    if rows.empty:
        return math.nan
    rows = rows[rows["source"].str.startswith("Aghajanyan") & (rows["model"] == _MODEL) & (rows["task"] == _TASK)]
    rows = rows[rows["method"] == method]
    return float(rows["value"].iloc[0]) if len(rows) else math.nan
