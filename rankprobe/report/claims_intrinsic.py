"""Claims about the intrinsic dimension (Aghajanyan et al. 2020)."""

from __future__ import annotations

import math

from rankprobe.analysis.intrinsic_dimension import HEAD_PASSES
from rankprobe.report.claims_scores import unless_nothing_to_lose
from rankprobe.report.comparison import main_lora
from rankprobe.report.stats import Estimate
from rankprobe.report.verdicts import LOW_DIMENSION_PCT, Evidence, claim_row

_SOURCE = "Aghajanyan et al. 2020"  # arXiv:2012.13255
# RoBERTa base on MRPC: d90 by DID and by SAID, of 125M weights.
_MODEL, _TASK, _WEIGHTS = "RoBERTa base", "mrpc", 125e6


def intrinsic(evidence: Evidence) -> list[dict]:
    """Three claims; ``not_run`` while no dimension was measured. d90 is of the score, as in the source.

    An interval with an open end (no d that was measured reaches the threshold, or all do) gives a verdict where its
    other end decides. Where full fine-tuning is not shown to gain on the head alone, or the head reaches the threshold
    by itself, a small d says nothing of training in a subspace, and nothing is supported.
    """
    table = evidence.intrinsic
    by = table[table["of"] == "score"].set_index("method") if len(table) else table
    did, said = (by.loc[method] if method in by.index else None for method in ("did", "said"))
    main = main_lora(evidence.runs)
    parameters = main[0]["params"]["method"] if main else math.nan
    printed = {method: _published(evidence, method) for method in ("did", "said")}
    of_lora = f"LoRA r = {main[0]['spec']['r']} on {main[0]['spec']['targets']} has {parameters:,}" if main else ""
    rows = [
        claim_row(
            "intrinsic-dimension-did",
            f"{_SOURCE}, Table 1: {_MODEL} on MRPC",
            f"d90 (DID) is at most {LOW_DIMENSION_PCT:g} % of the encoder's weights",
            "%",
            published=100 * printed["did"] / _WEIGHTS,
            measured=None if did is None else _estimate(did, 100 / did["D"]),
            region=(0.0, LOW_DIMENSION_PCT),
            note=_note(did),
        ),
        claim_row(
            "intrinsic-dimension-said-below-did",
            f"{_SOURCE}, Table 1: {_MODEL} on MRPC",
            "Structure helps: d90 by SAID is below d90 by DID",
            "times",
            published=printed["said"] / printed["did"],
            measured=None if did is None or said is None else _estimate(said, 1.0, "over_did"),
            region=(0.0, 1.0),
            note="" if did is None or said is None else f"SAID: {_note(said)}; DID: {_note(did)}",
        ),
        claim_row(
            "intrinsic-dimension-below-lora",
            f"{_SOURCE}; the reason that Hu et al. 2021 gives for LoRA",
            "d90 (DID) is below LoRA's own number of parameters",
            "times",
            measured=None if did is None or not main else _estimate(did, 1 / parameters),
            region=(0.0, 1.0),
            note="" if did is None or not main else f"{of_lora}; {_note(did)}",
        ),
    ]
    passed = any(row is not None and row["reason"] == HEAD_PASSES for row in (did, said))
    return [_unless_the_head(unless_nothing_to_lose(row, evidence, what="d90"), passed) for row in rows]


def _unless_the_head(row: dict, passed: bool) -> dict:
    """No support from a threshold that the head alone reaches; the note has said so."""
    return row | {"verdict": "inconclusive"} if passed and row["verdict"] == "supported" else row


def _estimate(row, scale: float, of: str = "") -> Estimate | None:
    """A row's d, or its ratio, with its interval; None where it is no number."""
    value, low, high = row[of or "d"], *(row[f"{of}_{end}" if of else end] for end in ("ci_low", "ci_high"))
    if math.isnan(low) or math.isnan(high):
        return None
    return Estimate(scale * value, scale * low, scale * high, row["ci_method"], int(row["n_eval"]))


def _note(row) -> str:
    if row is None:
        return ""
    d = f"{row['d']:,.0f}" if math.isfinite(row["d"]) else "none"
    why = f" ({row['reason']})" if row["reason"] else ""
    return f"d90 {d}{why} of {row['D']:,}, {int(row['n_seeds'])} seeds"


def _published(evidence: Evidence, method: str) -> float:
    rows = evidence.published
    if rows.empty:
        return math.nan
    rows = rows[rows["source"].str.startswith("Aghajanyan") & (rows["model"] == _MODEL) & (rows["task"] == _TASK)]
    rows = rows[rows["method"] == method]
    return float(rows["value"].iloc[0]) if len(rows) else math.nan
