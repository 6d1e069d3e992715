"""Claims about LoRA against what was measured: each verdict follows from an interval and a bound fixed beforehand."""

from __future__ import annotations

import math

import pandas as pd

from rankprobe.report.comparison import (
    configurations,
    difference,
    full_reference,
    lora_groups,
    main_lora,
    main_metric,
    something_to_lose,
)
from rankprobe.report.stats import Estimate, bootstrap_median
from rankprobe.report.verdicts import (
    CLAIM_COLUMNS,
    FEW_PARAMETERS_PCT,
    LATENCY_AA_MARGIN,
    LATENCY_MARGIN,
    LOW_ENERGY_PCT,
    LOW_FUNCTIONAL_RANK,
    MARGIN_POINTS,
    REFERENCE_R,
    SMALL_R,
    Evidence,
    claim_row,
    gpt3_mean,
    in_points,
    published_value,
    verdict,
)

_PAPER = "Hu et al. 2021"  # arXiv:2106.09685
_VARIANTS = {"lora_merged": "merged", "lora_unmerged": "unmerged"}


def claims_table(evidence: Evidence) -> pd.DataFrame:
    """Every claim with what is published, what is measured, its interval and the verdict.

    Parameters
    ----------
    evidence : Evidence
        May be partial: a claim whose data are missing is ``not_run``.

    Returns
    -------
    DataFrame, columns :data:`CLAIM_COLUMNS`
        Differences of scores are in points (hundredths), latencies as ratios to the base model.
    """
    rows = [
        _vignette(),
        _lora_equals_full(evidence),
        *_small_r(evidence),
        _trainable(evidence),
        *_latency(evidence),
        _low_energy_rank(evidence),
        _low_functional_rank(evidence),
    ]
    table = pd.DataFrame(rows, columns=CLAIM_COLUMNS)
    if evidence.runs and evidence.runs[0]["spec"]["split"] == "tuning":
        # Settings were chosen on these very rows: whatever looks best here is flattered.
        on_rows = table["unit"] != "ratio"
        on_rows &= ~table["claim_id"].isin(["vignette-parameters", "trainable-parameters"])
        table.loc[on_rows, "verdict"] = "not_run"
        table.loc[on_rows, "note"] = "tuning rows, on which settings are chosen: no verdict"
    return table


def _vignette() -> dict:
    import torch

    from rankprobe.methods.lora import LoRALayer
    from rankprobe.weights.architecture import WeightSite

    base = torch.nn.Linear(512, 512, bias=False)
    full = base.weight.numel()
    layer = LoRALayer(base, [WeightSite("weight", None, "other", (512, 512))], 16, 32.0, False, 0.0, torch.Generator())
    lora = sum(p.numel() for p in layer.parameters() if p.requires_grad)
    share = 100 * lora / full
    return claim_row(
        "vignette-parameters",
        "LoRA vignette",
        "LoRA with r = 16 on a 512 × 512 matrix trains 6.25 % of its weights",
        "%",
        published=6.25,
        measured=Estimate(share, share, share, "exact", 1),
        region=(6.25, 6.25),
        note=f"{lora:,} of {full:,}, counted in a layer",
    )


def _lora_equals_full(evidence: Evidence) -> dict:
    group = main_lora(evidence.runs)
    spec = group[0]["spec"] if group else {"r": 8, "targets": "q,v"}
    gap = difference(group, full_reference(configurations(evidence.runs)))
    base = published_value(evidence, model="RoBERTa base", method="full", task="GLUE average")
    lora = published_value(evidence, model="RoBERTa base", method="lora", task="GLUE average")
    row = claim_row(
        "lora-equals-full",
        f"{_PAPER}, Table 2: RoBERTa base, mean of GLUE",
        f"LoRA (r = {spec['r']} on {spec['targets']}) equals full fine-tuning within {MARGIN_POINTS:g} points",
        "points",
        published=lora - base,
        measured=in_points(gap),
        region=(-MARGIN_POINTS, MARGIN_POINTS),
        note=_metric_note(evidence),
    )
    return _unless_nothing_to_lose(row, evidence)


def _small_r(evidence: Evidence) -> list[dict]:
    main = main_lora(evidence.runs)
    targets = main[0]["spec"]["targets"] if main else "q,v"
    groups = lora_groups(evidence.runs, targets)
    full = full_reference(configurations(evidence.runs))
    others = [("full", "full fine-tuning", full, "Table 4", ("full", None))]
    others += [(f"r{big}", f"r = {big}", groups.get(big, []), "Table 6", ("lora", big)) for big in REFERENCE_R]
    rows = []
    for r in SMALL_R:
        for key, name, other, table, theirs in others:
            published = gpt3_mean(evidence, table, "lora", r) - gpt3_mean(evidence, table, *theirs)
            where = "section 7.2" if math.isnan(published) else f"{table}: GPT-3, mean of WikiSQL and MNLI"
            row = claim_row(
                f"small-r{r}-vs-{key}",
                f"{_PAPER}, {where}",
                f"r = {r} suffices: not more than {MARGIN_POINTS:g} points below {name}",
                "points",
                published=published,
                measured=in_points(difference(groups.get(r, []), other)),
                region=(-MARGIN_POINTS, math.inf),
                note=_metric_note(evidence),
            )
            rows.append(_unless_nothing_to_lose(row, evidence))
    return rows


def _trainable(evidence: Evidence) -> dict:
    group = main_lora(evidence.runs)
    published = [
        published_value(evidence, "trainable_params", model="RoBERTa base", method=m, task="GLUE average")
        for m in ("lora", "full")
    ]
    measured, note, name = None, "", "LoRA"
    if group:
        params = group[0]["params"]
        share = 100 * params["trainable"] / params["total"]
        measured = Estimate(share, share, share, "exact", 1)
        note = f"{params['trainable']:,} of {params['total']:,}, {params['head']:,} of them the head"
        name = f"LoRA (r = {group[0]['spec']['r']} on {group[0]['spec']['targets']})"
    return claim_row(
        "trainable-parameters",
        f"{_PAPER}, Table 2: RoBERTa base",
        f"{name} trains at most {FEW_PARAMETERS_PCT:g} % of the model's parameters",
        "%",
        published=100 * published[0] / published[1],
        measured=measured,
        region=(0, FEW_PARAMETERS_PCT),
        note=note,
    )


def _latency(evidence: Evidence) -> list[dict]:
    table = evidence.latency
    shapes = [] if table is None or table.empty else sorted(set(zip(table["batch"], table["length"], strict=True)))
    rows = []
    for variant, word in _VARIANTS.items():
        merged = variant == "lora_merged"
        statement = "Merged LoRA adds no latency" if merged else "Unmerged LoRA adds latency"
        source = f"{_PAPER}, section 4.1 and Table 1" if merged else "context: LoRA as trained, before merging"
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


def _low_energy_rank(evidence: Evidence) -> dict:
    shares = full_energy_shares(evidence.ranks, evidence.runs)
    measured, note = None, ""
    if len(shares):
        measured = bootstrap_median(shares["pct"])
        note = f"median {shares['energy_rank_90'].median():g} directions of min(m, n) = {int(shares['p'].median())}"
    return claim_row(
        "dw-low-rank-by-energy",
        "Aghajanyan et al. 2020 and " + _PAPER + "; against it Biderman et al. 2024",
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
        From :func:`rankprobe.report.tables.merged_ranks`.
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


def _low_functional_rank(evidence: Evidence) -> dict:
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
        "Aghajanyan et al. 2020 and " + _PAPER,
        f"Full fine-tuning's dW has low rank: its best rank-{LOW_FUNCTIONAL_RANK} part keeps 90 % of the gain",
        "k",
        measured=measured,
        region=(0, LOW_FUNCTIONAL_RANK),
        note=note,
    )


def _unless_nothing_to_lose(row: dict, evidence: Evidence) -> dict:
    """Equality is evidence only where full fine-tuning beats a trained head; see :func:`something_to_lose`."""
    gain = something_to_lose(evidence.runs)
    if gain is None or math.isnan(gain.low) or row["verdict"] == "not_run":
        return row
    gain = in_points(gain)
    text = f"full gains {gain.estimate:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}] points over the head alone"
    if gain.low > MARGIN_POINTS:
        return row | {"note": f"{row['note']}; {text}"} if row["claim_id"] == "lora-equals-full" else row
    note = f"{row['note']}; {text}, too little or too uncertain for equality to mean anything"
    return row | {"note": note, "verdict": "inconclusive" if row["verdict"] == "supported" else row["verdict"]}


def _metric_note(evidence: Evidence) -> str:
    run = evidence.runs[0] if evidence.runs else None
    return f"{main_metric(run)} on {run['task']['name']}" if run else ""
