"""Bars around scores in pictures: which points have one, how far it may reach, and what is said of them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from rankprobe.report import numbers as say
from rankprobe.report.stats import NO_INTERVAL
from rankprobe.report.style import GREY
from rankprobe.report.tables import best_settings

# An interval may reach beyond all means by this share of their spread, or by so many half intervals of the usual width.
_ROOM, _NARROW = 0.2, 3.0
_ENDS = ["accuracy_ci_low", "accuracy_ci_high"]


def shown_methods(methods: pd.DataFrame) -> pd.DataFrame:
    """The best settings; where there is no interval to draw, both of its ends are NaN.

    Parameters
    ----------
    methods : DataFrame
        As :func:`rankprobe.report.tables.methods_table` makes it. Where all resamples are alike it has the bounds of
        the score in the interval's place, of which a perplexity has none above.
    """
    methods = best_settings(methods)
    none = (methods["ci_method"] == NO_INTERVAL) | ~np.isfinite(methods[_ENDS].astype(float)).all(axis=1)
    return methods.assign(**methods[_ENDS].mask(none))


def has_interval(row: pd.Series) -> bool:
    """Whether a row of :func:`shown_methods` has a bar."""
    return not say.missing(row["accuracy_ci_high"])


def is_over_seeds(method: object) -> bool:
    """Whether an interval's method is Student's t over seeds; else it is over evaluation rows.

    >>> is_over_seeds("t over 3 seeds"), is_over_seeds("BCa bootstrap over 600 eval rows")
    (True, False)
    """
    return str(method).startswith("t ")


def ends(methods: pd.DataFrame, *kinds: str) -> list[float]:
    """What has to be in the picture: all means of these methods, and their intervals as far as they may reach."""
    rows = methods[methods["method"].isin(kinds)]
    values = rows[["accuracy_mean", *_ENDS]].to_numpy(dtype=float).ravel()
    return np.clip(values[np.isfinite(values)], *_reach(rows)).tolist()


def cut_words(rows: pd.DataFrame) -> str:
    """Said where an interval reaches beyond the picture."""
    low, high = _reach(rows)
    outside = (rows["accuracy_ci_low"] < low) | (rows["accuracy_ci_high"] > high)
    return " An interval that leaves the picture is wider than it." if outside.any() else ""


def interval_kinds(methods: pd.DataFrame) -> list[Line2D]:
    """Filled and open markers for the legend, where LoRA has intervals of both kinds."""
    kinds = {is_over_seeds(method) for method in _of_bars(methods[methods["method"] == "lora"])}
    if len(kinds) < 2:
        return []
    looks = (("interval over seeds", GREY), ("interval over evaluation rows", "white"))
    return [Line2D([], [], ls="none", marker="o", color=GREY, markerfacecolor=face, label=text) for text, face in looks]


def interval_words(methods: pd.DataFrame, *, lines: Collection[str] = ()) -> str:
    """What bars and bands are, for the rows in the picture, and why some have none.

    Parameters
    ----------
    methods : DataFrame
        Rows of :func:`shown_methods`.
    lines : collection of str
        Methods that are drawn as a line in a band, not as a point with a bar.
    """
    kinds = _of_bars(methods)
    over_seeds, over_rows = ([m for m in kinds if is_over_seeds(m) == seeds] for seeds in (True, False))
    words = []
    if over_seeds:
        words.append(f"filled: {', '.join(over_seeds)}")
    if over_rows:
        words.append(f"open: {', '.join(over_rows)}, one or two seeds")
    bare = methods[methods["accuracy_ci_high"].isna()]
    if not words:
        return f"No intervals: {_why(bare, 'all resamples of the rows score alike', 'predictions are not at hand')}."
    return f"Bars are 95 % intervals ({'; '.join(words)}).{_bare_words(bare, lines)}"


def _bare_words(bare: pd.DataFrame, lines: Collection[str]) -> str:
    """Of rows without an interval, why they have none; empty where there are no such rows."""
    if bare.empty:
        return ""
    is_line = bare["method"].isin(lines)
    things = _those({"point without a bar": ~is_line, "line without a band": is_line})
    why = _why(bare, "scores alike on every resample of the rows", "has no predictions at hand")
    return f" A {' or a '.join(things)} {why}."


def _why(bare: pd.DataFrame, alike: str, not_here: str) -> str:
    """Which of two reasons, or both, rows without an interval have."""
    without_predictions = bare["ci_method"].str.startswith("no ")
    return ", or ".join(_those({alike: ~without_predictions, not_here: without_predictions}))


def _those(rows: dict[str, pd.Series]) -> list[str]:
    """The words that hold of any row."""
    return [words for words, hold in rows.items() if hold.any()]


def _of_bars(methods: pd.DataFrame) -> list[str]:
    """How the intervals were made that are drawn, each once."""
    return list(dict.fromkeys(methods.loc[methods["accuracy_ci_high"].notna(), "ci_method"]))


def _reach(rows: pd.DataFrame) -> tuple[float, float]:
    """How far intervals may go: one of three unlike seeds would press all others into a line."""
    means = rows["accuracy_mean"].to_numpy(dtype=float)
    halves = rows["accuracy_ci_high"].to_numpy(dtype=float) - means
    halves = halves[np.isfinite(halves)]
    room = max(_ROOM * np.ptp(means), _NARROW * (np.median(halves) if len(halves) else 0.0))
    return float(means.min() - room), float(means.max() + room)
