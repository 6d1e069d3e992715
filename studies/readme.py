"""Write the README's results from results/: the text between its two markers. A test checks that it is up to date.

python studies/readme.py
"""

from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
SMALL, SST2 = "results/reproduce-paper-small", "results/rank-sst2"
BEGIN, END = "<!-- results: begin", "<!-- results: end -->"
PICTURES = (
    ("accuracy_by_r", "Accuracy against r, with full fine-tuning's band"),
    ("truncation", "Accuracy against kept rank, beside the energy of dW"),
    ("energy_rank", "energy_rank_90 of full fine-tuning's dW, by layer and kind"),
)


def interval(low: float, high: float, form: str) -> str:
    """``[low, high]``, empty where there is none."""
    return "" if pd.isna(low) else f" [{low:{form}}, {high:{form}}]"


def methods(folder: str) -> list[str]:
    """Markdown lines of one methods.csv."""
    table = pd.read_csv(ROOT / folder / "tables" / "methods.csv")
    lines = ["| method | seeds | trained parameters | accuracy, % | against full, points |", "|-|-|-|-|-|"]
    for row in table.itertuples():
        name = {"full": "full fine-tuning", "head": "head only"}.get(
            row.method
        ) or f"LoRA r = {int(row.r)} on {row.targets}"
        accuracy = (
            f"{100 * row.accuracy_mean:.1f}{interval(100 * row.accuracy_ci_low, 100 * row.accuracy_ci_high, '.1f')}"
        )
        gap = (
            ""
            if pd.isna(row.diff_vs_full) or row.method == "full"
            else (f"{100 * row.diff_vs_full:+.1f}{interval(100 * row.diff_ci_low, 100 * row.diff_ci_high, '+.1f')}")
        )
        share = f"{row.trainable_params:,} ({row.trainable_pct:.3g} %)"
        lines.append(f"| {name} | {row.n_seeds} | {share} | {accuracy} | {gap} |")
    return lines


def claims() -> list[str]:
    """Markdown lines of claims.csv: every claim that was tested."""
    table = pd.read_csv(ROOT / SMALL / "tables" / "claims.csv")
    lines = ["| claim | measured | verdict |", "|-|-|-|"]
    for row in table[table["verdict"] != "not_run"].itertuples():
        unit = {"points": " points", "ratio": "", "%": " %", "directions": ""}.get(row.unit, f" {row.unit}")
        form = ".3f" if row.unit == "ratio" else ".3g"
        measured = (
            "" if pd.isna(row.measured) else f"{row.measured:{form}}{interval(row.ci_low, row.ci_high, form)}{unit}"
        )
        lines.append(f"| {row.statement} | {measured} | {row.verdict} |")
    return lines


def answer() -> list[str]:
    """The sentences that the report opens with."""
    text = (ROOT / SMALL / "report.md").read_text(encoding="utf-8")
    sentences = text.split("## Claims")[0].split("\n\n", 2)[2].strip()
    return [f"> {line}".rstrip() for line in sentences.splitlines()]


def block() -> str:
    """The README's text between the markers."""
    runs = pd.read_csv(ROOT / SMALL / "tables" / "runs.csv")
    first = runs.iloc[0]
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
        "The same on SST-2 (first 4,000 training sentences, whole dev set; every rate chosen from three; "
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
