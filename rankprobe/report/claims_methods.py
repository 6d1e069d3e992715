"""Claims about LoRA beside the other methods, about which matrices to adapt, and about r on other targets."""

from __future__ import annotations

import math

from rankprobe.experiment.spec import METHODS
from rankprobe.report.claims_scores import metric_note, unless_nothing_to_lose
from rankprobe.report.comparison import (
    MAIN_TARGETS,
    configurations,
    difference,
    finished_ok,
    lora_groups,
    main_lora,
    standing,
    standing_for,
)
from rankprobe.report.numbers import method_name, targets_name
from rankprobe.report.verdicts import MARGIN_POINTS, PAPER, Evidence, claim_row, in_points, three_seeds

OTHERS = tuple(m for m in METHODS if m not in ("full", "head", "lora", "did", "said"))
_NAMES = {
    "bitfit": "BitFit",
    "top_layers": "the last two layers",
    "adapter_h": "Adapter-H",
    "adapter_l": "Adapter-L",
    "prompt": "PreEmbed",
    "prefix": "PreLayer",
}
# (one, other): the paper's Table 5 has the first above the second at one budget.
_BUDGET_PAIRS = (("q,v", "q"), ("q,v", "v"), ("q,k,v,o", "q"))
_SMALL_R_TARGETS = ("q", "q,k,v,o")


def other_methods(evidence: Evidence) -> list[dict]:
    """``lora-vs-METHOD``: the configuration that stands for LoRA is not more than the margin below each other method.

    Of several sizes of a method the one of most seeds, then of the best score.
    """
    main, groups = main_lora(evidence.runs), standing_for(evidence.runs)
    rows = []
    for method in OTHERS:
        of = [group for group in groups if group[0]["spec"]["method"] == method]
        other = max(of, key=standing, default=[])
        name = method_name(other[0]["spec"]) if other else _NAMES[method]
        bleu = method in ("top_layers", "adapter_l")
        printed = _bleu if bleu else _accuracy
        row = claim_row(
            f"lora-vs-{method.replace('_', '-')}",
            f"{PAPER}, {'Table 3: GPT-2 M, BLEU' if bleu else 'Table 4: GPT-3, WikiSQL and MNLI'}",
            f"LoRA ({_setting(main)}) is not more than {MARGIN_POINTS:g} points below {name}",
            "points",
            published=printed(evidence, "lora") - printed(evidence, method),
            measured=in_points(difference(main, other)),
            region=(-MARGIN_POINTS, math.inf),
            note=metric_note(evidence),
        )
        rows.append(three_seeds(unless_nothing_to_lose(row, evidence), main, other))
    return rows


def one_budget(evidence: Evidence) -> list[dict]:
    """``table5-A-vs-B``: at one number of parameters, adapting A scores above adapting B."""
    groups = budget_groups(evidence.runs)
    rows = []
    for one, other in _BUDGET_PAIRS:
        a, b = groups.get(one, []), groups.get(other, [])
        published = _table(evidence, "Table 5", one) - _table(evidence, "Table 5", other)
        row = claim_row(
            f"table5-{_short(one)}-vs-{_short(other)}",
            f"{PAPER}, Table 5: GPT-3, mean of WikiSQL and MNLI",
            f"At one budget of parameters LoRA on {one} scores above LoRA on {other}",
            "points",
            published=published,
            measured=in_points(difference(a, b)),
            region=(0, math.inf),
            note=metric_note(evidence),
        )
        rows.append(three_seeds(row, a, b))
    return rows


def small_r_elsewhere(evidence: Evidence) -> list[dict]:
    """``table6-r1-TARGETS``: r = 1 is not more than the margin below r = 64 on these targets."""
    rows = []
    for targets in _SMALL_R_TARGETS:
        groups = lora_groups(evidence.runs, targets)
        a, b = groups.get(1, []), groups.get(64, [])
        published = _table(evidence, "Table 6", targets, 1) - _table(evidence, "Table 6", targets, 64)
        row = claim_row(
            f"table6-r1-{_short(targets)}",
            f"{PAPER}, Table 6: GPT-3, mean of WikiSQL and MNLI",
            f"r = 1 suffices on {targets}: not more than {MARGIN_POINTS:g} points below r = 64",
            "points",
            published=published,
            measured=in_points(difference(a, b)),
            region=(-MARGIN_POINTS, math.inf),
            note=metric_note(evidence),
        )
        rows.append(three_seeds(unless_nothing_to_lose(row, evidence), a, b))
    return rows


def budget_groups(runs: list[dict]) -> dict[str, list[dict]]:
    """Finished LoRA runs by targets, those of as many parameters as the configuration that stands for LoRA on q,v."""
    main = main_lora([run for run in runs if run["spec"].get("targets") == MAIN_TARGETS])
    found: dict[str, list[dict]] = {}
    for group in configurations(runs) if main else []:
        ok = finished_ok(group)
        if ok and ok[0]["spec"]["method"] == "lora" and ok[0]["params"]["method"] == main[0]["params"]["method"]:
            targets = targets_name(ok[0]["spec"])
            found[targets] = max(found.get(targets, []), ok, key=standing)
    return found


def _setting(group: list[dict]) -> str:
    spec = group[0]["spec"] if group else {"r": 8, "targets": MAIN_TARGETS}
    return f"r = {spec['r']} on {spec['targets']}"


def _short(targets: str) -> str:
    return targets.replace(",", "")


def _accuracy(evidence: Evidence, method: str) -> float:
    """Mean of WikiSQL and MNLI in Table 4, of the method's row with the fewest parameters."""
    rows = evidence.published
    if rows.empty:
        return math.nan
    rows = rows[rows["source"].str.endswith("Table 4") & (rows["method"] == method) & (rows["metric"] == "accuracy")]
    rows = rows[rows["trainable_params"] == rows["trainable_params"].min()]
    return float(rows["value"].mean()) if len(rows) == 2 else math.nan


def _bleu(evidence: Evidence, method: str) -> float:
    """BLEU of GPT-2 M in Table 3, of the method's row with the fewest parameters."""
    rows = evidence.published
    if rows.empty:
        return math.nan
    rows = rows[rows["source"].str.endswith("Table 3") & (rows["method"] == method) & (rows["metric"] == "bleu")]
    rows = rows[rows["model"] == "GPT-2 medium"].sort_values("trainable_params")
    return float(rows["value"].iloc[0]) if len(rows) else math.nan


def _table(evidence: Evidence, table: str, targets: str, r: int | None = None) -> float:
    """Mean of WikiSQL and MNLI of one setting in Table 5 or 6."""
    rows = evidence.published
    if rows.empty:
        return math.nan
    rows = rows[rows["source"].str.endswith(table) & (rows["targets"] == targets) & (rows["metric"] == "accuracy")]
    if r is not None:
        rows = rows[rows["r"] == r]
    return float(rows["value"].mean()) if len(rows) == 2 else math.nan
