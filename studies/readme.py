"""Write the README's results from results/: the text between its two markers. A test checks that it is up to date.

python studies/readme.py
"""

from pathlib import Path

import pandas as pd

from rankprobe.report import numbers as say
from rankprobe.report.findings import Findings
from rankprobe.report.page_tables import claims_cells

ROOT = Path(__file__).resolve().parents[1]
SMALL, SST2 = "results/reproduce-paper-small", "results/rank-sst2"
BEGIN, END = "<!-- results: begin", "<!-- results: end -->"
PICTURES = (
    ("accuracy_by_r", "Accuracy against r, with full fine-tuning's band"),
    ("truncation", "Accuracy against kept rank, beside the energy of dW"),
    ("energy_rank", "energy_rank_90 of full fine-tuning's dW, by layer and kind"),
)


def methods(folder: str) -> list[str]:
    """Markdown lines of one methods.csv."""
    table = pd.read_csv(ROOT / folder / "tables" / "methods.csv")
    lines = ["| method | seeds | trained parameters | accuracy | against full, points |", "|-|-|-|-|-|"]
    for _, row in table.iterrows():
        name = say.method_name(row) + (f" on {row['targets']}" if row["method"] == "lora" else "")
        accuracy = say.score(row["metric"], row["accuracy_mean"], row["accuracy_ci_low"], row["accuracy_ci_high"])
        alone = row["method"] == "full"
        gap = "" if alone else say.points(row["diff_vs_full"], row["diff_ci_low"], row["diff_ci_high"])
        share = f"{say.count(row['trainable_params'])} ({say.percent(row['trainable_pct'])})"
        lines.append(f"| {name} | {row['n_seeds']} | {share} | {accuracy} | {gap} |")
    return lines


def claims() -> list[str]:
    """Markdown lines of claims.csv: every claim that was tested."""
    table = claims_cells(Findings([], {"claims": pd.read_csv(ROOT / SMALL / "tables" / "claims.csv")}))
    rows = [
        f"| {claim.text} | {measured.text} {measured.small} | {verdict.text} |"
        for claim, verdict, measured, *_ in table.rows
    ]
    return ["| claim | measured | verdict |", "|-|-|-|", *rows]


def answer() -> list[str]:
    """The sentences that the report opens with."""
    text = (ROOT / SMALL / "report.md").read_text(encoding="utf-8")
    sentences = text.split("## Claims")[0].split("\n\n", 2)[2].strip()
    return [f"> {line}".rstrip() for line in sentences.splitlines()]


def block() -> str:
    """The README's text between the markers."""
    runs = pd.read_csv(ROOT / SMALL / "tables" / "runs.csv")
    first = runs.iloc[0]
    sst2 = pd.read_csv(ROOT / SST2 / "tables" / "runs.csv").iloc[0]
    lines = [
        f"{first['model']} on {first['task']}: {first['n_train']:,} training pairs, "
        f"{first['n_eval']:,} evaluation pairs, "
        f"{first['epochs']} epochs, {first['dtype']}. Intervals are 95 %. Everything: [report.md]({SMALL}/report.md).",
        "",
        *answer(),
        "",
        *methods(SMALL),
        "",
        *claims(),
        "",
    ]
    lines += [f"![{caption}]({SMALL}/figures/{name}.svg)" for name, caption in PICTURES]
    lines += [
        "",
        f"The same on SST-2 (first 4,000 training sentences, whole dev set, {sst2['dtype']}; every rate chosen from "
        "three; "
        f"[study](studies/rank-sst2/README.md), [report]({SST2}/report.md)):",
        "",
        *methods(SST2),
    ]
    return "\n".join(lines)


def updated(text: str) -> str:
    """The README with the block renewed."""
    head, rest = text.split(BEGIN, 1)
    marker, rest = rest.split("\n", 1)
    return f"{head}{BEGIN}{marker}\n{block()}\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(updated(readme.read_text(encoding="utf-8")), encoding="utf-8")
