"""The answer in three sentences, from the numbers: what r is needed, whether LoRA is as good, what it costs."""

from __future__ import annotations

import pandas as pd

from rankprobe.report import numbers as say
from rankprobe.report.claims_rank import functional_ranks
from rankprobe.report.comparison import (
    configurations,
    full_reference,
    main_lora,
    main_metric,
    nothing_to_lose,
)
from rankprobe.report.findings import Findings
from rankprobe.report.stats import MIN_SEEDS
from rankprobe.report.tables import best_settings
from rankprobe.report.verdicts import MARGIN_POINTS, verdict
from rankprobe.tasks.metrics import LOWER_IS_BETTER


def answer(findings: Findings) -> list[str]:
    """Three sentences, each with its interval; an open question is called open.

    Parameters
    ----------
    findings : Findings

    Returns
    -------
    list of str
        Plain text.
    """
    if not findings.runs:
        return ["No run has finished yet."]
    if main_metric(findings.runs[0]) in LOWER_IS_BETTER:
        return [_perplexities(findings), _cost(findings)]
    return [_what_r(findings), _as_good(findings), _cost(findings)]


def _perplexities(findings: Findings) -> str:
    """What r is equivalent, its margin a ratio; what each reaches, and by how much LoRA's best r differs from full."""
    metric, task = main_metric(findings.runs[0]), findings.runs[0]["task"]["name"]
    methods = best_settings(findings.tables["methods"])
    lora = methods[methods["method"] == "lora"]
    full = methods[methods["method"] == "full"].dropna(subset=["accuracy_mean"])
    if lora.empty or full.empty:
        return f"How LoRA compares with full fine-tuning on {task} is not known yet."
    best = lora.loc[lora["accuracy_mean"].idxmin()]
    gap = say.gap(metric, best["diff_vs_full"], best["diff_ci_low"], best["diff_ci_high"])
    settled = findings.answers.get(best["targets"])
    first = f"LoRA on {best['targets']}: {settled.text} " if settled and settled.several_seeds else ""
    return (
        f"{first}On {task} LoRA with r = {best['r']} on {best['targets']} reaches a {metric} of "
        f"{say.score(metric, best['accuracy_mean'])} against {say.score(metric, full['accuracy_mean'].iloc[0])} with "
        f"full fine-tuning, a paired difference of {gap}{_one_seed(best)}; less is better."
    )


def _what_r(findings: Findings) -> str:
    task = findings.runs[0]["task"]["name"]
    group = main_lora(findings.runs)
    if not group:
        return f"What r {task} needs is not known yet: no LoRA run has finished."
    methods = best_settings(findings.tables["methods"])
    rows = methods[(methods["method"] == "lora") & (methods["targets"] == group[0]["spec"]["targets"])]
    rows = rows.dropna(subset=["diff_ci_low"]).sort_values("r")
    targets = group[0]["spec"]["targets"]
    settled = findings.answers.get(targets)
    if rows.empty:
        if settled and settled.several_seeds:  # against the largest r, which the sentence names
            return f"On {task}, LoRA on {targets}: {settled.text[0].lower()}{settled.text[1:]}"
        return (
            f"What r {task} needs is not known yet: full fine-tuning, which it is measured against, has not finished."
        )
    margin = 100 * settled.asked.margin if settled else MARGIN_POINTS
    nothing = nothing_to_lose(findings.gain, margin / 100)
    if settled and not nothing:
        return f"On {task}, LoRA on {targets}: {settled.text[0].lower()}{settled.text[1:].removesuffix('.')}" + (
            "." if settled.several_seeds else f"{_functional(findings)}."
        )
    best = rows.loc[rows["diff_vs_full"].idxmax()]
    enough = _down_to_the_first_that_fails(rows, margin)
    if nothing:
        sentence = f"What r {task} needs cannot be told from these runs: {_little_gain(findings, margin)}"
    elif len(enough):
        row = enough.iloc[-1]
        sentence = (
            f"On {task} r = {row['r']} is enough: {_against_full(row, methods)}, not more than the margin of "
            f"{margin:g} below it"
        )
    elif (100 * rows["diff_ci_high"] < -margin).all():
        sentence = f"On {task} no r that was tried is enough: "
        sentence += f"the best, r = {best['r']}, reaches {_against_full(best, methods)}"
    else:
        tried, within = ", ".join(str(r) for r in dict.fromkeys(rows["r"])), say.margin_in_points(margin)
        sentence = (
            f"What r {task} needs is not settled: no r of {tried} is shown to stay within {within} of "
            f"full fine-tuning, and the best, r = {best['r']}, reaches {_against_full(best, methods)}"
        )
    return f"{sentence}{_functional(findings)}."


def _little_gain(findings: Findings, margin: float) -> str:
    """That full fine-tuning gains too little over the head, or that its gain is too uncertain; margin in points."""
    gain = findings.gain
    over = "over a trained head on the frozen model"
    if 100 * gain.high <= margin:
        return f"full fine-tuning itself gains only {say.points(*gain[:3])} points {over}"
    more = say.margin_in_points(margin)
    gained = f"it gains {say.points(*gain[:3])} points"
    return f"it is not shown that full fine-tuning gains more than {more} {over} ({gained})"


def _down_to_the_first_that_fails(rows: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Rows by r, the largest first, as far as each is not more than the margin below full fine-tuning."""
    ordered = rows.sort_values("r", ascending=False)
    passed = 100 * ordered["diff_ci_low"] >= -margin
    return ordered[passed.cummin()]


def _against_full(row: pd.Series, methods: pd.DataFrame) -> str:
    full = methods[methods["method"] == "full"].iloc[0]
    return (
        f"{say.score(row['metric'], row['accuracy_mean'])} against {say.score(full['metric'], full['accuracy_mean'])} "
        f"with full fine-tuning, a paired difference of "
        f"{say.points(row['diff_vs_full'], row['diff_ci_low'], row['diff_ci_high'])} points{_one_seed(row)}"
    )


def _one_seed(row: pd.Series) -> str:
    """Said of a row of methods.csv whose difference to full fine-tuning is of one seed, however many it has itself."""
    return "" if say.missing(row["diff_n_seeds"]) or row["diff_n_seeds"] > 1 else " (one seed)"


def _functional(findings: Findings) -> str:
    found = [row for row in functional_ranks(findings.runs) if not say.missing(row.get("k"))]
    if not found:
        return ""
    k = say.with_interval(found[0]["k"], found[0]["ci_low"], found[0]["ci_high"], 0)
    return f"; of full fine-tuning's own dW, the best rank-k part keeps 90 % of the gain from k = {k} on"


def _as_good(findings: Findings) -> str:
    row = _claim(findings, "lora-equals-full")
    group = main_lora(findings.runs)
    if row is None or row["verdict"] == "not_run" or not group:
        return "Whether LoRA is as good as full fine-tuning here is not known yet."
    spec = group[0]["spec"]
    name = f"LoRA with r = {spec['r']} on {spec['targets']}"
    gap = f"{say.with_interval(row['measured'], row['ci_low'], row['ci_high'], sign=True)} points"
    settled = findings.answers.get(spec["targets"])
    margin = round(100 * settled.asked.margin, 9) if settled else MARGIN_POINTS
    outcome = row["verdict"] if margin == MARGIN_POINTS else _at_margin(findings, row, margin)
    within = say.margin_in_points(margin)
    if outcome == "supported":
        return f"{name} is as good as full fine-tuning here, within {within}: it differs by {gap}."
    if outcome == "contradicted":
        word = "better" if row["measured"] > 0 else "worse"
        return f"{name} is {word} than full fine-tuning here by more than {within}: it differs by {gap}."
    if row["ci_low"] >= -margin and row["ci_high"] <= margin:
        if not nothing_to_lose(findings.gain, margin / 100):
            return f"{name} differs from full fine-tuning by {gap}, but with fewer than 3 seeds that may be their luck."
        gain = findings.gain
        be = "is" if 100 * gain.high <= margin else "may be"
        return (
            f"{name} differs from full fine-tuning by {gap}, which means little where a trained head {be} nearly as "
            "good."
        )
    return (
        f"Whether {name} is as good as full fine-tuning here is not settled: it differs by {gap}, and the margin is "
        f"±{margin:g}."
    )


def _at_margin(findings: Findings, row: dict, margin: float) -> str:
    """The verdict on "as good as full fine-tuning" at a margin of the study's own; the claim's is for the paper's."""
    sides = main_lora(findings.runs), full_reference(configurations(findings.runs))
    common = set.intersection(*({run["spec"]["seed"] for run in side} for side in sides))
    if len(common) < MIN_SEEDS:
        return "inconclusive"
    found = verdict(row["ci_low"], row["ci_high"], (-margin, margin))
    # As in unless_nothing_to_lose: what is worse than the margin stays worse, whatever the head does.
    return "inconclusive" if found == "supported" and nothing_to_lose(findings.gain, margin / 100) else found


def _cost(findings: Findings) -> str:
    group, methods = main_lora(findings.runs), best_settings(findings.tables["methods"])
    if not group:
        return "What LoRA costs has not been measured yet."
    spec = group[0]["spec"]
    mine = methods[
        (methods["method"] == "lora") & (methods["r"] == spec["r"]) & (methods["targets"] == spec["targets"])
    ]
    row = mine.iloc[0]
    full = methods[methods["method"] == "full"].dropna(subset=["train_time_s"])
    words = f"{say.method_name(spec)} trains {say.percent(row['trainable_pct'])} of the parameters"
    if len(full) and not say.missing(row["train_time_s"]):
        time = full["train_time_s"].iloc[0]
        words += f" in {row['train_time_s'] / time:.2f} times the time ({say.duration(row['train_time_s'])} against "
        words += f"{say.duration(time)})"
    return f"{words}; {_latency(findings)}."


def _latency(findings: Findings) -> str:
    claims = findings.tables["claims"]
    parts = []
    for word in ("merged", "unmerged"):
        rows = claims[claims["claim_id"].str.startswith(f"{word}-latency-b") & (claims["verdict"] != "not_run")]
        if rows.empty:
            continue
        row = rows.iloc[0]
        shape = row["statement"][row["statement"].rindex("(") + 1 : -1]
        ratio = say.with_interval(row["measured"], row["ci_low"], row["ci_high"], 3)
        told = {
            "merged": {
                "supported": "merged, it adds no latency",
                "contradicted": "merged, its latency is not the base's",
            },
            "unmerged": {
                "supported": "not merged, it adds latency",
                "contradicted": "not merged, it adds no latency either",
            },
        }[word].get(
            row["verdict"], f"what it adds in latency {'' if word == 'merged' else 'not '}merged is not settled"
        )
        parts.append(f"{told} ({ratio} times the base's" + (f" at {shape})" if word == "merged" else ")"))
    return ", ".join(parts) if parts else "its latency has not been measured yet"


def _claim(findings: Findings, claim_id: str) -> pd.Series | None:
    claims = findings.tables["claims"]
    rows = claims[claims["claim_id"] == claim_id]
    return rows.iloc[0] if len(rows) else None
