"""Claims about scores: is LoRA as good as full fine-tuning, does a small r suffice, how little is trained."""

from __future__ import annotations

import math

from rankprobe.report.comparison import (
    configurations,
    difference,
    full_reference,
    lora_groups,
    main_lora,
    main_metric,
)
from rankprobe.report.stats import Estimate
from rankprobe.report.verdicts import (
    EXACT,
    FEW_PARAMETERS_PCT,
    MARGIN_POINTS,
    PAPER,
    REFERENCE_R,
    SMALL_R,
    Evidence,
    claim_row,
    gpt3_mean,
    in_points,
    published_value,
    three_seeds,
)
from rankprobe.weights.rank_pattern import factor_shapes


def vignette() -> dict:
    lora, full = sum(m * n for m, n in factor_shapes((512, 512), 16)), 512 * 512
    share = 100 * lora / full
    return claim_row(
        "vignette-parameters",
        "LoRA vignette",
        "LoRA with r = 16 on a 512 × 512 matrix trains 6.25 % of its weights",
        "%",
        published=6.25,
        measured=Estimate(share, share, share, EXACT, 1),
        region=(6.25, 6.25),
        note=f"{lora:,} of {full:,}, counted in the factors that a layer is made with",
    )


def lora_equals_full(evidence: Evidence) -> dict:
    group = main_lora(evidence.runs)
    spec = group[0]["spec"] if group else {"r": 8, "targets": "q,v"}
    full = full_reference(configurations(evidence.runs))
    base = published_value(evidence, model="RoBERTa base", method="full", task="GLUE average")
    lora = published_value(evidence, model="RoBERTa base", method="lora", task="GLUE average")
    row = claim_row(
        "lora-equals-full",
        f"{PAPER}, Table 2: RoBERTa base, mean of GLUE",
        f"LoRA (r = {spec['r']} on {spec['targets']}) equals full fine-tuning within {MARGIN_POINTS:g} points",
        "points",
        published=lora - base,
        measured=in_points(difference(group, full)),
        region=(-MARGIN_POINTS, MARGIN_POINTS),
        note=metric_note(evidence),
    )
    return three_seeds(unless_nothing_to_lose(row, evidence), group, full)


def small_r(evidence: Evidence) -> list[dict]:
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
                f"{PAPER}, {where}",
                f"r = {r} suffices: not more than {MARGIN_POINTS:g} points below {name}",
                "points",
                published=published,
                measured=in_points(difference(groups.get(r, []), other)),
                region=(-MARGIN_POINTS, math.inf),
                note=metric_note(evidence),
            )
            rows.append(three_seeds(unless_nothing_to_lose(row, evidence), groups.get(r, []), other))
    return rows


def trainable(evidence: Evidence) -> dict:
    group = main_lora(evidence.runs)
    published = [
        published_value(evidence, "trainable_params", model="RoBERTa base", method=m, task="GLUE average")
        for m in ("lora", "full")
    ]
    measured, note, name = None, "", "LoRA"
    if group:
        params = group[0]["params"]
        share = 100 * params["trainable"] / params["total"]
        measured = Estimate(share, share, share, EXACT, 1)
        note = f"{params['trainable']:,} of {params['total']:,}, {params['head']:,} of them the head"
        name = f"LoRA (r = {group[0]['spec']['r']} on {group[0]['spec']['targets']})"
    return claim_row(
        "trainable-parameters",
        f"{PAPER}, Table 2: RoBERTa base",
        f"{name} trains at most {FEW_PARAMETERS_PCT:g} % of the model's parameters",
        "%",
        published=100 * published[0] / published[1],
        measured=measured,
        region=(0, FEW_PARAMETERS_PCT),
        note=note,
    )


def unless_nothing_to_lose(row: dict, evidence: Evidence, *, what: str = "equality") -> dict:
    """``what`` is evidence only where full fine-tuning beats a trained head; see :attr:`Evidence.gain`."""
    gain = evidence.gain
    if gain is None or math.isnan(gain.low) or row["verdict"] == "not_run":
        return row
    gain = in_points(gain)
    text = f"full gains {gain.estimate:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}] points over the head alone"
    if gain.low > MARGIN_POINTS:
        return row | {"note": f"{row['note']}; {text}"} if row["claim_id"] == "lora-equals-full" else row
    note = f"{row['note']}; {text}, too little or too uncertain for {what} to mean anything"
    return row | {"note": note, "verdict": "inconclusive" if row["verdict"] == "supported" else row["verdict"]}


def metric_note(evidence: Evidence) -> str:
    run = evidence.runs[0] if evidence.runs else None
    return f"{main_metric(run)} on {run['task']['name']}" if run else ""
