"""The answer of a rank sweep on the page: a table for each choice of targets, and what to know beside it."""

from __future__ import annotations

import pandas as pd

from rankprobe.report import numbers as say
from rankprobe.report.cells import Cell, Code, Table
from rankprobe.report.equivalence import NO, NOT_TESTED, YES
from rankprobe.report.findings import Findings
from rankprobe.report.lora_config import answered_config, as_python
from rankprobe.report.rank_answer import RankAnswer
from rankprobe.report.rank_table import LEFT_OUT, REFERENCE
from rankprobe.report.rank_words import outside
from rankprobe.report.rate_cells import end_of_grid_note

_OUTCOMES = {
    YES: ("supported", "✓", "equivalent"),
    NO: ("inconclusive", "?", "not shown"),
    NOT_TESTED: ("not_run", "–", "not tested"),
    LEFT_OUT: ("not_run", "–", "left out"),
}


def answer_blocks(findings: Findings) -> list[str | Table | Code]:
    """For each choice of targets the sentence (one alone is the page's own), its notes, the table, the config for peft.

    The config where an r is named. Before them, once, which rates may not be the best, with one seed too.
    """
    at_end = end_of_grid_note(findings)
    blocks: list[str | Table | Code] = [at_end] if at_end else []
    for targets, found in findings.answers.items():
        if not found.several_seeds:
            continue
        if len(findings.answers) > 1:
            blocks.append(f"LoRA on {targets}: {found.text}")
        if found.notes:
            blocks.append(" ".join(found.notes))
        blocks.append(_cells(targets, found))
        if answered := answered_config(findings.runs, targets, found, findings.gain):
            blocks.append(f"For peft, at a peak learning rate of {say.learning_rate(answered.lr)}:")
            blocks.append(Code(as_python(answered.config)))
            if answered.note:
                blocks.append(answered.note)
    return blocks


def _cells(targets: str, found: RankAnswer) -> Table:
    rows = [_row(row, found) for _, row in found.table.iterrows()]
    asked = found.asked
    own = 100 * (1 - 2 * asked.alpha)
    several = any(_is_wider(row, found) for _, row in found.table.iterrows())
    wider = ", wider where the best of several settings stands for an r, whose p is multiplied by their number"
    caption = (
        f"LoRA on {targets} against {asked.reference}, margin {asked.limit}. Equivalence by two one-sided tests "
        f"(Schuirmann's TOST, 1987), each at {100 * asked.alpha:g} %, for other seeds and other rows, from the largest "
        f"r down to the first that fails: a fixed order needs no correction (Maurer, Hothorn & Lehmacher 1995). The "
        f"interval of the difference is the tests' own, {own:g} %{wider * several}. p different: whether there "
        f"is any difference at all, with Holm's correction over the rows (1979)."
    )
    gap = "difference, %" if asked.metric == "perplexity" else "difference, points"
    heads = ["method", "seeds", asked.metric, gap, "p equivalent", "verdict", "p different", "more seeds"]
    return Table(heads, rows, caption)


def _is_wider(row: pd.Series, found: RankAnswer) -> bool:
    """Whether the row's interval is of a higher level than the tests' own."""
    return not say.missing(row["diff_level"]) and row["diff_level"] > 1 - 2 * found.asked.alpha + 1e-9


def _row(row: pd.Series, found: RankAnswer) -> list[Cell]:
    score = Cell(say.score(row["metric"], row["mean"], row["ci_low"], row["ci_high"]))
    trouble = f"{row['n_diverged']} diverged" if row["n_diverged"] else ""
    asked = found.asked
    first = [Cell(row["label"]), Cell(say.count(row["n_seeds"]), trouble), score]
    if row["equivalent"] == REFERENCE:
        return [*first, Cell("reference"), *(Cell("") for _ in range(4))]
    # A difference of scores in points, a perplexity's in percent of the other's: hundredths both.
    ends = (None if say.missing(row[name]) else 100 * row[name] for name in ("diff", "diff_low", "diff_high"))
    verdict, sign, word = _OUTCOMES[row["equivalent"]]
    if row["equivalent"] == NO and outside(row, asked):
        verdict, sign, word = "contradicted", "✗", "outside"
    more = say.count(row["more_seeds"]) if not say.missing(row["more_seeds"]) else ""
    return [
        *first,
        Cell(say.with_interval(*ends, sign=True), f"{100 * row['diff_level']:.3g} %" if _is_wider(row, found) else ""),
        Cell(_p(row["p_equivalent"])),
        Cell(word, verdict=verdict, sign=sign),
        Cell(_p(row["p_different_holm"])),
        Cell(more),
    ]


def _p(value: object) -> str:
    """A p-value to two digits; below a thousandth that it is.

    >>> _p(0.0321), _p(0.00001), _p(None)
    ('0.032', '< 0.001', '–')
    """
    if say.missing(value):
        return say.MISSING
    return "< 0.001" if value < 0.001 else f"{value:.2g}"
