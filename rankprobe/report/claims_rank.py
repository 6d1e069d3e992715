"""Claims about the rank of full fine-tuning's dW: by its energy, and by what the task needs of it."""

from __future__ import annotations

import math

import pandas as pd

from rankprobe.report.comparison import configurations, full_reference, main_lora
from rankprobe.report.stats import Estimate, bootstrap_median
from rankprobe.report.verdicts import LOW_ENERGY_PCT, LOW_FUNCTIONAL_RANK, PAPER, RANK_OVER_R, Evidence, claim_row


def low_energy_rank(evidence: Evidence) -> dict:
    shares = full_energy_shares(evidence.ranks, evidence.runs)
    measured, note = None, ""
    if len(shares):
        measured = bootstrap_median(shares["pct"])
        note = f"median {shares['energy_rank_90'].median():.4g} directions of min(m, n) = {int(shares['p'].median())}"
    return claim_row(
        "dw-low-rank-by-energy",
        "Aghajanyan et al. 2020 and " + PAPER + "; against it Biderman et al. 2024",
        f"Full fine-tuning's dW has low rank: {LOW_ENERGY_PCT:g} % of its directions hold 90 % of the energy",
        "% of min(m, n)",
        measured=measured,
        region=(0, LOW_ENERGY_PCT),
        note=note,
    )


def full_energy_shares(ranks: pd.DataFrame, runs: list[dict]) -> pd.DataFrame:
    """energy_rank_90 of full fine-tuning's block matrices, a row a matrix, mean over seeds.

    Parameters
    ----------
    ranks : DataFrame
        From :func:`rankprobe.report.merged.merged_ranks`.
    runs : list of dict
        The comparison.

    Returns
    -------
    DataFrame
        name, layer, kind, energy_rank_90, p = min(m, n), pct = 100 energy_rank_90 / p.
    """
    if ranks.empty:
        return pd.DataFrame(columns=["name", "layer", "kind", "energy_rank_90", "p", "pct"])
    full = [run["run_id"] for run in full_reference(configurations(runs))]
    blocks = ranks[ranks["run_id"].isin(full) & ranks["layer"].notna() & ~ranks["kind"].isin(["embed", "other"])]
    blocks = blocks.assign(p=blocks[["m", "n"]].min(axis=1))
    found = blocks.groupby(["name", "layer", "kind", "p"], sort=False, as_index=False)["energy_rank_90"].mean()
    return found.assign(pct=100 * found["energy_rank_90"] / found["p"])


def functional_ranks(runs: list[dict], *, rule: str = "rest_tuned", q: float = 0.9) -> list[dict]:
    """The functional rank rows of full fine-tuning's finished runs, one a seed."""
    rows = []
    for run in full_reference(configurations(runs)):
        for row in (run.get("analysis") or {}).get("functional_rank", []):
            if row["rule"] == rule and math.isclose(row["q"], q):
                rows.append(row)
    return rows


def low_functional_rank(evidence: Evidence) -> dict:
    rows = functional_ranks(evidence.runs)
    found = [r for r in rows if r.get("k") is not None and not math.isnan(r["k"])]
    measured, note = None, ""
    if found:
        ks = sorted(r["k"] for r in found)
        seeds = f", the widest of {len(found)} seeds" if len(found) > 1 else ", one seed"
        measured = Estimate(
            ks[(len(ks) - 1) // 2],
            min(r["ci_low"] for r in found),
            max(r["ci_high"] for r in found) if len(found) == len(rows) else math.inf,
            found[0]["method"] + seeds,
            int(found[0]["n"]),
        )
        note = "head, embeddings, norms and biases stay tuned"
    elif rows:
        measured = Estimate(math.nan, -math.inf, math.inf, rows[0]["method"], int(rows[0]["n"]))
        note = rows[0].get("reason") or "no functional rank could be read off"
    return claim_row(
        "dw-low-rank-by-function",
        "Aghajanyan et al. 2020 and " + PAPER,
        f"Full fine-tuning's dW has low rank: its best rank-{LOW_FUNCTIONAL_RANK} part keeps 90 % of the gain",
        "k",
        measured=measured,
        region=(0, LOW_FUNCTIONAL_RANK),
        note=note,
    )


def rank_over_r(evidence: Evidence) -> dict:
    """``full-rank-over-lora-r``: Biderman et al.'s claim against low rank."""
    shares, main = full_energy_shares(evidence.ranks, evidence.runs), main_lora(evidence.runs)
    measured, note, r = None, "", 8
    if len(shares) and main:
        r = main[0]["spec"]["r"]
        measured = bootstrap_median(shares["energy_rank_90"] / r)
        note = f"median {shares['energy_rank_90'].median():.4g} directions hold 90 % of the energy"
    published = evidence.published
    of = published[published["source"].str.startswith("Biderman")] if len(published) else published
    return claim_row(
        "full-rank-over-lora-r",
        "Biderman et al. 2024 (10 to 100 times); against low rank",
        f"90 % of the energy of full fine-tuning's dW takes at least {RANK_OVER_R:g} times LoRA's r = {r}",
        "times",
        published=float(of["value"].min()) if len(of) else math.nan,
        measured=measured,
        region=(RANK_OVER_R, math.inf),
        note=note,
    )


def energy_over_function(evidence: Evidence) -> dict:
    """``energy-rank-over-functional-rank``: what this project found, that energy asks for more than accuracy does."""
    shares = full_energy_shares(evidence.ranks, evidence.runs)
    rows = functional_ranks(evidence.runs)
    found = [row for row in rows if row.get("k") and math.isfinite(row["k"])]
    measured, note = None, ""
    if len(shares) and rows and not found:
        # Measured, and no rank came of it: nothing is known of the ratio.
        measured = Estimate(math.nan, -math.inf, math.inf, rows[0]["method"], rows[0]["n"])
        note = rows[0].get("reason") or ""
    elif len(shares) and found:
        energy = bootstrap_median(shares["energy_rank_90"])
        ks = sorted(row["k"] for row in found)
        k, low = ks[(len(ks) - 1) // 2], min(r["ci_low"] for r in found)
        # A seed without a functional rank could have any.
        high = max(r["ci_high"] for r in found) if len(found) == len(rows) else math.inf
        # Where one of the two ends is open, so is the ratio's; a ratio of two counts is at least 0.
        least = max(energy.low, 0.0) / high if math.isfinite(high) else 0.0
        measured = Estimate(
            energy.estimate / k, least, energy.high / max(low, 1),
            f"the ends of both intervals; {energy.method}; {found[0]['method']}", energy.n,
        )  # fmt: skip
        note = f"{energy.estimate:.4g} directions hold 90 % of the energy, k = {k:g} keeps 90 % of the gain"
    return claim_row(
        "energy-rank-over-functional-rank",
        "found here",
        "90 % of the energy of full fine-tuning's dW takes more directions than 90 % of what it gains",
        "times",
        measured=measured,
        region=(1.0, math.inf),
        note=note,
    )
