"""Pictures of what comes out: accuracy against r and against trainable parameters."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rankprobe.report import numbers as say
from rankprobe.report.comparison import MAIN_TARGETS
from rankprobe.report.findings import Findings
from rankprobe.report.score_bars import (
    cut_words,
    ends,
    has_interval,
    interval_kinds,
    interval_words,
    is_over_seeds,
    shown_methods,
)
from rankprobe.report.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SERIES,
    Picture,
    broken_axis,
    legend_above,
    score_ticks,
)
from rankprobe.report.tables import chosen_among
from rankprobe.tasks.metrics import LOWER_IS_BETTER

# White around a label, for where points of others lie behind it.
_HALO = [withStroke(linewidth=2.5, foreground="white")]
# Against r these have none: a line across the picture, in a band.
_LINES = ("full", "head")
_ELSEWHERE, _BY_MATRIX = "LoRA on other targets", "LoRA, r by matrix"
_LOOKS = {"full": (BLACK, "s"), "lora": (BLUE, "o"), "head": (GREY, "D"), _ELSEWHERE: (BLUE, "x"),
          _BY_MATRIX: (BLUE, "P")}
# Of the methods that LoRA is measured against, in the order that they come in.
_MARKS = [(color, marker) for marker in "^vPXdh" for color in (ORANGE, GREEN, PINK)]
# Points of almost as many parameters would cover each other: they are drawn so many times apart.
_APART = 1.12
# Height of a legend's row, in inches.
_LEGEND_ROW = 0.17


def accuracy_by_r(findings: Findings) -> Picture | None:
    """The main metric of LoRA against r, with full fine-tuning's interval as a band and the trained head as a line."""
    methods = shown_methods(findings.tables["methods"])
    sweep = methods[methods["method"] == "lora"]
    if sweep.empty:
        return None
    full, head = _first(methods, "full"), _first(methods, "head")
    metric = sweep["metric"].iloc[0]
    # Targets with one r alone have no curve; of more than four curves none could be followed.
    rs_of = sweep.groupby("targets", sort=False)["r"].nunique()
    by_place = sorted(rs_of[rs_of > 0].index, key=lambda t: t != MAIN_TARGETS)
    targets = [t for t in by_place if rs_of[t] == 1 == rs_of.max() or rs_of[t] > 1][: len(SERIES)]
    sweep = sweep[sweep["targets"].isin(targets)]
    shown = pd.concat([sweep, methods[methods["method"].isin(_LINES)]])
    log = _by_factors(shown)
    figure, parts = broken_axis(ends(shown, "lora", *_LINES), log=log)
    for (color, marker, line), target in zip(SERIES * 4, targets, strict=False):
        rows = sweep[sweep["targets"] == target].sort_values("r")
        for axes, low, high in parts:
            inside = rows[rows["accuracy_mean"].between(low, high)]
            x = np.log2(inside["r"].astype(float))
            axes.plot(x, inside["accuracy_mean"], line, color=color, zorder=2)
            for xi, (_, row) in zip(x, inside.iterrows(), strict=True):
                _point(axes, xi, row, color, marker)
    for row, color, hatch in ((full, BLACK, "//"), (head, GREY, "..")):
        if row is not None:
            _band(parts, row, color, hatch)
    rs = sorted(set(sweep["r"].astype(int)))
    for axes, _, _ in parts:
        axes.set_xlim(np.log2(rs[0]) - 0.5, np.log2(rs[-1]) + 0.5)
        axes.yaxis.set_major_formatter(score_ticks(metric))
    bottom = parts[-1][0]
    bottom.set_xticks(np.log2(rs), [str(r) for r in rs])
    bottom.set_xlabel("LoRA r (log scale)")
    parts[0][0].set_ylabel(f"{metric} (log scale)" if log else metric)
    looks = zip(SERIES * 4, targets, strict=False)
    series = [Line2D([], [], color=c, marker=m, ls=line, label=f"LoRA on {t}") for (c, m, line), t in looks]
    handles = (series if len(series) > 1 else []) + interval_kinds(sweep)
    if handles:
        # Above the picture: inside it, there is no place that no curve or interval could come to.
        legend_above(figure, handles, handletextpad=0.4, columnspacing=1.2)
    task, n = sweep["task"].iloc[0], int(sweep["n_eval"].iloc[0])
    caption = (
        f"{metric.capitalize()} on {task} ({n:,} evaluation rows) of LoRA on {' and '.join(targets)} against r. "
        f"{_band_words(full, head)} {interval_words(shown, lines=_LINES)} Paired differences to full fine-tuning are "
        f"in the table.{_left_out_words(by_place, targets)}{_choice_words(findings)}{cut_words(shown)}"
    )
    return Picture("accuracy_by_r", f"{metric.capitalize()} against r", figure, caption)


def accuracy_by_parameters(findings: Findings) -> Picture | None:
    """The main metric against the number of trained parameters, head included, on a log axis."""
    methods = shown_methods(findings.tables["methods"]).dropna(subset=["trainable_params"])
    if methods.empty:
        return None
    metric = methods["metric"].iloc[0]
    log = _by_factors(methods)
    figure, parts = broken_axis(ends(methods, *methods["method"].unique()), log=log)
    loras = methods[methods["method"] == "lora"]
    main = MAIN_TARGETS if MAIN_TARGETS in set(loras["targets"]) else next(iter(loras["targets"]), None)
    crowded = loras["targets"].nunique() > 1
    sparse = not crowded and set(methods["method"]) <= {"full", "head", "lora"}
    series = {}
    spare = iter(_MARKS)
    for (_, row), x in zip(methods.iterrows(), _set_apart(methods["trainable_params"]), strict=True):
        axes = next(a for a, low, high in parts if low <= row["accuracy_mean"] <= high)
        kind = row["method"] if row["method"] in ("full", "head", "lora") else say.method_name(row)
        if kind == "lora" and row["targets"] != main:
            kind = _BY_MATRIX if say.is_by_matrix(row["targets"]) else _ELSEWHERE
        if kind in _LOOKS:
            color, marker = _LOOKS[kind]
        else:
            color, marker = series[kind][:2] if kind in series else next(spare)
        _point(axes, x, row, color, marker)
        if kind in ("full", "head") and sparse:  # at the far ends of the axis: beside the point, towards the middle
            side = -1 if kind == "full" else 1
            place = {"ha": "right" if side < 0 else "left", "va": "center", "textcoords": "offset points"}
            axes.annotate(say.method_name(row), (x, row["accuracy_mean"]), xytext=(8 * side, 0), fontsize=8,
                          color=color, **place)  # fmt: skip
        elif kind == "lora":
            top = row["accuracy_ci_high"] if has_interval(row) else row["accuracy_mean"]
            # Among the points of other targets there is room for the number alone.
            label, name = (row["r"], f"LoRA on {main}, r above") if crowded else (f"r = {row['r']}", f"LoRA on {main}")
            axes.annotate(f"{label}", (x, top), xytext=(0, 4), fontsize=8, color=color, textcoords="offset points",
                          ha="center", va="bottom", zorder=4, path_effects=_HALO)  # fmt: skip
            series[kind] = color, marker, name
        else:
            series[kind] = color, marker, say.method_name(row) if kind in ("full", "head") else kind
    handles = [Line2D([], [], ls="none", marker=m, color=c, label=label) for c, m, label in series.values()]
    handles = (handles if len(handles) > 1 else []) + interval_kinds(methods)
    if handles:
        columns = legend_above(figure, handles, handletextpad=0.2, columnspacing=1.4)
        # What a legend of many rows takes is not to come out of the axes.
        figure.set_figheight(figure.get_figheight() + _LEGEND_ROW * max(0, math.ceil(len(handles) / columns) - 3))
    for axes, low, high in parts:
        axes.set_ylim(low, high * (high / low) ** 0.1 if log else high + 0.1 * (high - low))  # for the labels
        axes.set_xscale("log")
        axes.yaxis.set_major_formatter(score_ticks(metric))
    bottom = parts[-1][0]
    spread = methods["trainable_params"].astype(float)
    bottom.set_xlim(spread.min() / 2.2, spread.max() * 2.2)
    if spread.max() / spread.min() < 10:  # methods of one budget: there may be no power of ten in sight
        bottom.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _short_count(v)))
    bottom.xaxis.set_minor_locator(NullLocator())
    bottom.set_xlabel("trainable parameters, head included (log scale)")
    parts[0][0].set_ylabel(f"{metric} (log scale)" if log else metric)
    task, n = methods["task"].iloc[0], int(methods["n_eval"].iloc[0])
    total = methods.loc[methods["method"] == "full", "trainable_params"]
    model = methods["model"].iloc[0] + (f" ({say.count(total.iloc[0])} parameters)" if len(total) else "")
    caption = (
        f"{metric.capitalize()} on {task} ({n:,} evaluation rows) against how many parameters of {model} are trained. "
        f"{interval_words(methods)}{_choice_words(findings)}"
    )
    if _set_apart(methods["trainable_params"]) != methods["trainable_params"].astype(float).tolist():
        caption += " Points of almost as many parameters stand side by side; the table has the counts."
    caption += cut_words(methods)
    return Picture("accuracy_by_parameters", f"{metric.capitalize()} against trainable parameters", figure, caption)


def _set_apart(counts: pd.Series) -> list[float]:
    """Places on a log axis, in the counts' order: those within a factor of each other stand side by side around it."""
    places = counts.astype(float).to_numpy(copy=True)
    logs = np.log(places)
    order = np.argsort(logs, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(logs[order]) > np.log(_APART)) + 1)
    for group in groups:
        if len(group) > 1:
            beside = (np.arange(len(group)) - (len(group) - 1) / 2) * np.log(_APART)
            places[group] = np.exp(logs[group].mean() + beside)
    return places.tolist()


def _by_factors(methods: pd.DataFrame) -> bool:
    """Whether scores are to be compared by their ratios: perplexities that differ by more than a factor of two."""
    means = methods["accuracy_mean"].dropna()
    return methods["metric"].iloc[0] in LOWER_IS_BETTER and means.max() > 2 * means.min()


def _first(methods: pd.DataFrame, method: str) -> pd.Series | None:
    rows = methods[methods["method"] == method]
    return None if rows.empty else rows.iloc[0]


def _left_out_words(every: list[str], drawn: list[str]) -> str:
    left = [target for target in every if target not in drawn and not say.is_by_matrix(target)]
    return f" In the table alone: LoRA on {'; '.join(left)}." if left else ""


def _choice_words(findings: Findings) -> str:
    """Said where settings were chosen on the rows shown."""
    among = chosen_among(findings.tables["methods"])
    return f" Of several {among} the best on these rows is shown, which flatters it." if among else ""


def _point(axes, x: float, row: pd.Series, color: str, marker: str) -> None:
    """A value with its interval: filled where the interval is over seeds, open where it is over evaluation rows."""
    mean, low, high = row["accuracy_mean"], row["accuracy_ci_low"], row["accuracy_ci_high"]
    around = [[mean - low], [high - mean]] if has_interval(row) else None
    face = color if is_over_seeds(row["ci_method"]) else "white"
    axes.errorbar(
        [x], [mean], yerr=around, color=color, marker=marker, markerfacecolor=face, capsize=3, lw=1.2, zorder=3
    )


def _band(parts, row: pd.Series, color: str, hatch: str) -> None:
    """A line at the mean, the interval as a hatched band, and name and value at the right edge."""
    axes = next(a for a, low, high in parts if low <= row["accuracy_mean"] <= high)
    ends = row["accuracy_ci_low"], row["accuracy_ci_high"]
    if has_interval(row):
        axes.axhspan(*ends, facecolor=color, alpha=0.10, lw=0, zorder=0)
        axes.axhspan(*ends, facecolor="none", edgecolor=color, alpha=0.3, hatch=hatch, lw=0, zorder=0)
    axes.axhline(row["accuracy_mean"], color=color, lw=1.2, ls="-" if row["method"] == "full" else ":", zorder=1)
    text = f"{say.method_name(row)}\n{say.score(row['metric'], row['accuracy_mean'])}"
    axes.annotate(
        text.replace(" fine-tuning", "\nfine-tuning"),
        (1, row["accuracy_mean"]),
        xytext=(4, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=color,
    )


def _band_words(full: pd.Series | None, head: pd.Series | None) -> str:
    words = []
    if full is not None:
        words.append(f"{'Hatched band' if has_interval(full) else 'Solid'}: full fine-tuning.")
    if head is not None:
        words.append("Dotted: only the head is trained.")
    return " ".join(words)


def _short_count(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
