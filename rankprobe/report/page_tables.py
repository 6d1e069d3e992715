"""The report's tables in words: formatted cells with their small print."""

from __future__ import annotations

import math

import pandas as pd

from rankprobe.report import numbers as say
from rankprobe.report.cells import Cell, Table
from rankprobe.report.comparison import configurations, full_reference, main_metric
from rankprobe.report.early_stop import early_stop_words
from rankprobe.report.findings import Findings
from rankprobe.report.table1 import VARIANT_NAMES
from rankprobe.report.tables import chosen_among
from rankprobe.report.verdicts import EXACT
from rankprobe.tasks.metrics import LOWER_IS_BETTER, truncation_metric

_VERDICTS = {
    "supported": ("✓", "supported"),
    "contradicted": ("✗", "contradicted"),
    "inconclusive": ("?", "inconclusive"),
    "not_run": ("–", "not run"),
}
_DECIMALS = {"points": (1, True), "ratio": (3, False), "k": (0, False)}


def claims_cells(findings: Findings) -> Table:
    rows = []
    claims = findings.tables["claims"]
    # Of a sweep most of the claims about other methods, latency and subspaces cannot be measured: said in a line.
    tested = claims[claims["verdict"] != "not_run"]
    for _, c in (tested if len(tested) else claims).iterrows():
        digits, sign = _decimals(c["unit"], c["measured"])
        measured = say.number(c["measured"], digits, sign=sign)
        exact = EXACT in c["note"].split("; ")  # not by its width: a measured interval may have one value
        ends = EXACT if exact else say.interval(c["ci_low"], c["ci_high"], digits, sign=sign)
        symbol, word = _VERDICTS[c["verdict"]]
        published = max(2, _decimals(c["unit"], c["published"])[0])
        rows.append(
            [
                Cell(c["statement"], c["note"]),
                Cell(word, verdict=c["verdict"], sign=symbol),
                Cell(_with_unit(measured, c["unit"]), ends),
                Cell(say.MISSING if exact or not c["n"] else say.count(c["n"])),
                Cell(_with_unit(say.number(c["published"], published, sign=sign), c["unit"]), c["source"]),
            ]
        )
    caption = (
        "Intervals are two-sided at 95 %; each verdict follows from the interval and a bound fixed beforehand. "
        "Hu et al. 2021 is the LoRA paper, arXiv:2106.09685; published numbers are of other models and tasks."
    )
    if left_out := len(claims) - len(rows):
        claims_are = "claim is" if left_out == 1 else "claims are"
        caption += f" {left_out} more {claims_are} not tested by these runs; tables/claims.csv lists them."
    return Table(["claim", "verdict", "measured", "n", "published"], rows, caption, 2)


def _decimals(unit: str, value: object) -> tuple[int, bool]:
    """Digits behind the point of a value in some unit, and whether it has a sign; two of them count in a small one."""
    if unit in _DECIMALS:
        return _DECIMALS[unit]
    least = 2 if unit == "%" else 1
    if say.missing(value) or not math.isfinite(value) or value == 0:
        return least, False
    return min(6, max(least, 1 - math.floor(math.log10(abs(value))))), False


def _with_unit(text: str, unit: str) -> str:
    return text if unit in ("ratio", "k") or text == say.MISSING else f"{text} {unit}"


def configurations_cells(findings: Findings) -> Table | None:
    methods = findings.tables["methods"]
    if methods.empty:
        return None
    rows = []
    for _, m in methods.iterrows():
        trouble = [f"{m[key]} {word}" for key, word in (("n_diverged", "diverged"), ("n_failed", "failed")) if m[key]]
        if m["method"] == "full":
            gap = Cell("reference")
        elif say.missing(m["diff_vs_full"]):
            gap = Cell(say.MISSING)
        else:
            ends = m["diff_vs_full"], m["diff_ci_low"], m["diff_ci_high"]
            gap = Cell(say.gap(m["metric"], *ends), _text(m["diff_ci_method"]))
        rows.append(
            [
                Cell(say.method_name(m), say.adapted(m)),
                Cell(say.learning_rate(m["lr"])),
                Cell(say.count(m["n_seeds"]), ", ".join(trouble)),
                Cell(
                    say.score(m["metric"], m["accuracy_mean"], m["accuracy_ci_low"], m["accuracy_ci_high"]),
                    _text(m["ci_method"]),
                ),
                gap,
            ]
        )
    first = methods.iloc[0]
    caption = (
        f"{first['metric'].capitalize()} on {first['task']}, n = {int(first['n_eval']):,} evaluation rows, with 95 % "
        f"intervals. Over seeds: how another seed would do on these rows. Over rows: how these very models would do on "
        f"other rows."
    )
    if among := chosen_among(methods):
        caption += f" Claims and pictures take each method's best of several {among} on these rows, which flatters it."
    against = "against full"
    if first["metric"] in LOWER_IS_BETTER:
        caption += f" Of a {first['metric']} less is better."
    else:
        against += ", points"
    return Table(["method", "learning rate", "seeds", first["metric"], against], rows, caption)


def functional_cells(findings: Findings) -> Table | None:
    rules = {
        "rest_tuned": "head, embeddings, norms and biases stay tuned",
        "rest_base": "all of that but the head reset to W0",
    }
    measured = [
        (run["spec"], row)
        for run in findings.runs
        if run["status"] == "ok"
        for row in (run.get("analysis") or {}).get("functional_rank", [])
    ]
    if not measured:
        return None
    shares = sorted({row["q"] for _, row in measured})
    lines: dict[tuple[str, str], dict[float, Cell]] = {}
    for spec, row in measured:
        known = not say.missing(row.get("k"))
        text = say.with_interval(row["k"], row["ci_low"], row["ci_high"], 0) if known else say.MISSING
        line = lines.setdefault(
            (f"{say.method_name(spec)}, seed {spec['seed']}", rules.get(row["rule"], row["rule"])), {}
        )
        line[row["q"]] = Cell(text, "" if known else _text(row.get("reason")))
    rows = [[Cell(*key), *(line.get(q, Cell(say.MISSING)) for q in shares)] for key, line in lines.items()]
    made = sorted({f"{row['method'].split(',')[0]}, n = {int(row['n']):,}" for _, row in measured})
    main = main_metric(findings.runs[0])
    metric = truncation_metric(main)
    of = "" if metric == main else f" in {metric.replace('_', ' ')}"
    caption = (
        f"Functional rank: the smallest measured k whose best rank-k part of every dW reaches that share of the "
        f"gain{of}, with 95 % intervals ({'; '.join(made)})."
    )
    return Table(["run", *(f"k for {100 * q:g} % of the gain" for q in shares)], rows, caption)


def ranks_cells(findings: Findings) -> Table | None:
    ranks = findings.tables["ranks"]
    if ranks.empty:
        return None
    kinds = [k for k in ("q", "k", "v", "o", "gate", "up", "down") if k in set(ranks["kind"])]
    columns = ["relative_change", "stable_rank", "energy_rank_50", "energy_rank_90", "energy_rank_99"]
    # These columns alone: thousands of rows are taken apart below.
    blocks = ranks.loc[ranks["kind"].isin(kinds) & ranks["layer"].notna(), ["run_id", "kind", *columns]]
    if blocks.empty:
        return None
    groups = configurations(findings.runs)
    group_of = {run["run_id"]: place for place, group in enumerate(groups) for run in group}
    alike = blocks.groupby([blocks["run_id"].map(group_of), "kind"])
    medians, sizes, all_seeds = alike[columns].median(), alike.size(), alike["run_id"].nunique()
    rows = []
    for key in ((place, kind) for place in range(len(groups)) for kind in kinds):
        if key not in sizes.index:
            continue
        spec, median, seeds = groups[key[0]][0]["spec"], medians.loc[key], all_seeds[key]
        rows.append(
            [
                Cell(say.method_name(spec), f"on {say.targets_name(spec)}" if spec["method"] == "lora" else ""),
                Cell(key[1]),
                Cell(f"{sizes[key] // seeds} × {seeds} seed{'s' if seeds > 1 else ''}"),
                Cell(say.percent(100 * median["relative_change"])),
                Cell(say.number(median["stable_rank"])),
                *(Cell(say.number(median[c], 0)) for c in columns[2:]),
            ]
        )
    heads = ["method", "kind", "matrices", "‖dW‖/‖W0‖", "stable rank", "50 % of Σσ²", "90 % of Σσ²", "99 % of Σσ²"]
    return Table(heads, rows, "Medians over layers and seeds; how many directions hold that share of the energy.", 2)


def cost_cells(findings: Findings) -> Table | None:
    methods = findings.tables["methods"].dropna(subset=["trainable_params"])
    if methods.empty:
        return None
    rows = [
        [
            Cell(say.method_name(m), f"on {m['targets']}" if m["method"] == "lora" else ""),
            Cell(say.count(m["trainable_params"])),
            Cell(say.percent(m["trainable_pct"])),
            Cell(say.duration(m["train_time_s"])),
            Cell(say.count(m["tokens_per_s"])),
            Cell(say.memory(m["peak_memory_bytes"])),
        ]
        for _, m in methods.iterrows()
    ]
    heads = ["method", "trainable parameters", "of the model", "training time", "tokens/s", "peak memory"]
    heads_of = sorted({int(h) for h in methods["head_params"]})
    caption = (
        f"The head, {' or '.join(map(say.count, heads_of))} parameters, is trained by every method and counted. Times "
        f"and memory are medians over seeds on the device named below; they have no interval."
    )
    if any(run.get("pack") for run in findings.runs):
        caption += " Runs that were trained packed, several at once, have no time of their own and are left out."
    return Table(heads, rows, caption)


def latency_cells(findings: Findings) -> Table | None:
    latency = findings.tables["latency"]
    if latency.empty:
        return None
    shapes = list(dict.fromkeys(zip(latency["batch"], latency["length"], strict=True)))
    rows = []
    for variant in dict.fromkeys(latency["variant"]):
        line = [Cell(VARIANT_NAMES.get(variant, variant))]
        for batch, length in shapes:
            of = latency[(latency["variant"] == variant) & (latency["batch"] == batch) & (latency["length"] == length)]
            line.append(_latency_cell(of.iloc[0]) if len(of) else Cell(say.MISSING))
        rows.append(line)
    first, rounds = latency.iloc[0], sorted(set(latency["n"].astype(int)))
    n = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    caption = (
        f"Ratio to the base within a round, median of n = {n} rounds "
        f"interleaved in one process, with 95 % intervals ({first['ci_method']}); below it the latency itself. "
        f"{first['dtype']} on {first['device']}, {int(first['threads'])} threads."
    )
    return Table(["variant", *(f"batch {batch}, length {length}" for batch, length in shapes)], rows, caption)


def _latency_cell(row: pd.Series) -> Cell:
    ratio = say.with_interval(row["ratio"], row["ratio_ci_low"], row["ratio_ci_high"], 3)
    time = say.with_interval(row["latency_ms"], row["ci_low"], row["ci_high"], 2, unit="ms")
    return Cell("1" if row["variant"] == "base" else ratio, time)


def bad_runs_cells(findings: Findings) -> Table | None:
    runs = findings.tables["runs"]
    bad = runs[runs["status"] != "ok"] if len(runs) else runs
    if bad.empty:
        return None
    rows = [[Cell(r["run_id"]), Cell(r["status"]), Cell(_text(r["error"]))] for _, r in bad.iterrows()]
    return Table(
        ["run", "status", "error"], rows, "Runs that did not end well; they are counted above and have no numbers.", 3
    )


def provenance_cells(findings: Findings, settings: dict) -> Table:
    facts = [(str(key), str(value)) for key, value in settings.items()]
    if findings.runs:
        reference = full_reference(configurations(findings.runs))
        run = (reference or findings.runs)[0]
        spec, task, model = run["spec"], run["task"], run["model"]
        facts += [
            ("model", f"{model['name']}, sha256 {model['sha256'][:12]}"),
            (
                "task",
                f"{task['name']}, {task['n_train']:,} training rows, {task['n_eval']:,} evaluation rows, "
                f"evaluation sha256 {task['eval_sha256'][:12]}",
            ),
            (
                "training",
                f"{spec['epochs']} epochs, batch {spec['batch_size']}, at most {spec['max_length']} tokens, AdamW, "
                f"warmup {spec['warmup_ratio']:g}, weight decay {spec['weight_decay']:g}, {spec['dtype']}",
            ),
            ("early stop", early_stop_words(findings.runs)),
            (
                "device",
                ", ".join(
                    sorted(
                        {f"{r['device'].get('name', spec['device'])}, {spec['threads']} threads" for r in findings.runs}
                    )
                ),
            ),
            ("commits", ", ".join(_commits(findings.runs))),
            ("versions", ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items())),
        ]
        if task.get("majority") is not None:
            facts.append(("majority class", say.score("accuracy", task["majority"])))
    rows = [[Cell(key), Cell(value)] for key, value in facts if value]
    return Table(["what", "value"], rows, "", 2)


def _commits(runs: list[dict]) -> list[str]:
    found = {(g["commit"][:10], bool(g.get("dirty"))) for run in runs if (g := run.get("git") or {}).get("commit")}
    return [commit + (" with uncommitted changes" if dirty else "") for commit, dirty in sorted(found)]


def _text(value: object) -> str:
    return "" if value is None or pd.isna(value) else str(value)
