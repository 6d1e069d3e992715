"""The answer of a rank sweep in one sentence, and what to know beside it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from rankprobe.report import numbers as say
from rankprobe.report.equivalence import NO, NOT_TESTED, YES
from rankprobe.report.power import OUTSIDE, ROWS, TOO_MANY
from rankprobe.report.rank_table import ALIKE, LEFT_OUT, REFERENCE, RELATIVE
from rankprobe.tasks.metrics import LOWER_IS_BETTER


@dataclass(frozen=True)
class Asked:
    """What a rank sweep was asked.

    Attributes
    ----------
    reference : str
        What all others are compared with, as a sentence names it: ``"full fine-tuning"``, ``"r = 64 (the largest)"``.
    stands_in : bool
        Whether that is a LoRA configuration in place of full fine-tuning.
    metric : str
    margin, alpha, power : float
    one_sided : bool
        Only not to be worse, rather than equivalent.
    n_rows : int
        Evaluation rows.
    """

    reference: str
    stands_in: bool
    metric: str
    margin: float
    alpha: float
    power: float
    one_sided: bool
    n_rows: int

    @property
    def limit(self) -> str:
        """The margin in words: ``2 points``."""
        if self.metric in LOWER_IS_BETTER:
            return f"{100 * self.margin:g} % in {self.metric}"
        return say.margin_in_points(round(100 * self.margin, 9))

    @property
    def claim(self) -> str:
        """What is to be shown of an r, after "is": ``equivalent to full fine-tuning within 2 points``."""
        if self.one_sided:
            return f"not worse than {self.reference} by more than {self.limit}"
        return f"equivalent to {self.reference} within {self.limit}"


def sentence(table: pd.DataFrame, asked: Asked) -> str:
    """The answer.

    Parameters
    ----------
    table : DataFrame
        As :func:`rankprobe.report.rank_table.table` makes it, with ``equivalent`` filled in.
    asked : Asked
    """
    rows = table[table["equivalent"] != REFERENCE]
    tested = rows[rows["equivalent"] != LEFT_OUT].sort_values("r", ascending=False)
    passed, failed = tested[tested["equivalent"] == YES], tested[tested["equivalent"] == NO]
    if len(passed):
        best = passed.iloc[-1]
        shown = f"{_seeds(best)}; difference {_gap(best)}, {_level(best)}"
        start = f"r = {best['r']} is the smallest r {asked.claim} ({shown})"
        if len(failed):
            return f"{start}; {_of_next(failed.iloc[0], asked)}."
        return f"{start}; no smaller r was tried." if best["r"] == rows["r"].min() else f"{start}."
    if tested.empty:
        return _nothing_tested(rows, asked)
    first = tested.iloc[0]
    if all(_worse(row, asked) for _, row in tested.iterrows()):
        best = tested.loc[_merit(tested).idxmax()]
        return (
            f"No r tested is within {asked.limit} of {asked.reference}: the best, r = {best['r']}, differs by "
            f"{_gap(best)} ({_seeds(best)}; {_level(best)})."
        )
    largest = "the largest that could be tested" if rows["r"].max() > first["r"] else "the largest tested"
    if _better(first, asked):
        return (
            f"Not shown with {_seeds(first)} that any r is {asked.claim}: r = {first['r']}, {largest}, is "
            f"better by more than that ({_gap(first)}, {_level(first)})."
        )
    return (
        f"Not shown with {_seeds(first)} that any r is {asked.claim}: r = {first['r']}, {largest}, differs by "
        f"{_gap(first)} ({_level(first)}); {_more(first, asked)}."
    )


def notes(table: pd.DataFrame, asked: Asked) -> tuple[str, ...]:
    """What to know beside the answer, a sentence each.

    Parameters
    ----------
    table : DataFrame
    asked : Asked
    """
    found = []
    something = table["equivalent"].isin((YES, NO)).any()  # else the sentence itself says why nothing is tested
    if asked.stands_in:
        found.append(
            f"No full fine-tuning has finished: {asked.reference} stands in for it, and whether any r is as good as "
            "full fine-tuning is not known."
        )
    for _, row in table.iterrows():
        name = asked.reference if row["equivalent"] == REFERENCE else f"r = {row['r']}"
        if row["n_diverged"]:
            of = f"Of {name} {row['n_diverged']} of {row['n_seeds'] + row['n_diverged']} seeds diverged"
            left = "it is left out, since those that did not are the lucky ones"
            if row["equivalent"] == REFERENCE:
                left = "the others are compared with those that did not"
            found.append(f"{of}; {left}.")
        elif row["equivalent"] == LEFT_OUT and something:
            common = "1 seed" if row["n_pairs"] == 1 else "no seed"
            found.append(f"r = {row['r']} has {common} in common with {asked.reference} and is left out.")
        elif row["equivalent"] not in (REFERENCE, LEFT_OUT) and row["n_pairs"] < row["n_seeds"]:
            found.append(
                f"r = {row['r']} is compared on {row['n_pairs']} of its {row['n_seeds']} seeds, the common ones."
            )
    alone = table[(table["equivalent"] == NOT_TESTED) & (table["p_equivalent"] <= asked.alpha)]
    if len(alone):
        names = ", ".join(f"r = {r}" for r in alone["r"])
        found.append(f"Taken alone {names} would pass; after a larger r has failed that is a hint, not a finding.")
    return tuple(found)


def _of_next(row: pd.Series, asked: Asked) -> str:
    """What keeps the next smaller r from it."""
    if outside(row, asked):
        word = "worse" if _worse(row, asked) else "better"
        return f"r = {row['r']} is {word} by more than that ({_gap(row)})"
    return f"of r = {row['r']} it is not shown ({_gap(row)}); {_more(row, asked)}"


def _nothing_tested(rows: pd.DataFrame, asked: Asked) -> str:
    if rows.empty:
        return f"Nothing is compared with {asked.reference} yet."
    if (rows["n_diverged"] > 0).all():
        return f"Which r is {asked.claim} cannot be told: of each r a seed diverged."
    one = rows[rows["n_pairs"] == 1].sort_values("r")
    if one.empty:
        return f"Which r is {asked.claim} is not known yet: no r has a seed in common with {asked.reference}."
    row = one.iloc[-1]
    return (
        f"Not shown with 1 seed that any r is {asked.claim}: r = {row['r']} differs by {_gap(row)} ({_level(row)} "
        "over rows), and what another seed would do is not known; 2 more seeds would begin to tell."
    )


def _more(row: pd.Series, asked: Asked) -> str:
    if not say.missing(row["more_seeds"]):
        n = int(row["more_seeds"])
        return (
            f"{n} more seed{'' if n == 1 else 's'} would show it if the difference stays (power "
            f"{100 * asked.power:g} %)"
        )
    return {
        OUTSIDE: "no number of seeds would show it while the difference stays",
        ROWS: f"no number of seeds would show it on these {asked.n_rows:,} rows, more rows could",
        ALIKE: "all seeds and rows are alike, which leaves nothing to judge chance by",
        TOO_MANY: "it would take more than 100 seeds",
    }[row["more_seeds_note"]]


def _merit(rows: pd.DataFrame) -> pd.Series:
    """More is better."""
    return rows["diff"].where(rows["diff_scale"] != RELATIVE, -rows["diff"])


def _bounds(asked: Asked) -> tuple[float, float]:
    """A difference this low or lower, or this high or higher, is outside; of a perplexity as a relative change."""
    return (1 / (1 + asked.margin) - 1 if asked.metric in LOWER_IS_BETTER else -asked.margin), asked.margin


def outside(row: pd.Series, asked: Asked) -> bool:
    """Whether a row's whole interval lies beyond the margin."""
    return _worse(row, asked) or _better(row, asked)


def _worse(row: pd.Series, asked: Asked) -> bool:
    low, high = _bounds(asked)
    return bool(row["diff_low"] > high if asked.metric in LOWER_IS_BETTER else row["diff_high"] < low)


def _better(row: pd.Series, asked: Asked) -> bool:
    low, high = _bounds(asked)
    return bool(row["diff_high"] < low if asked.metric in LOWER_IS_BETTER else row["diff_low"] > high)


def _gap(row: pd.Series) -> str:
    unit = "%" if row["diff_scale"] == RELATIVE else "points"
    values = (100 * row[name] if not say.missing(row[name]) else None for name in ("diff", "diff_low", "diff_high"))
    return say.with_interval(*values, unit=unit, sign=True)


def _seeds(row: pd.Series) -> str:
    return f"{row['n_pairs']} seeds"


def _level(row: pd.Series) -> str:
    """Wider than 1 - 2 alpha where the best of several settings stands for an r."""
    return f"{100 * row['diff_level']:.3g} % interval"
