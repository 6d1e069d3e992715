"""Score against the dimension of a random subspace, with full fine-tuning, the threshold and d90."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from rankprobe.report import numbers as say
from rankprobe.report.style import BLACK, GREEN, GREY, SERIES, WIDTH_IN, Picture, score_ticks


def intrinsic_curve(curve: pd.DataFrame, dimensions: pd.DataFrame) -> Picture | None:
    """Scores by d and seed, their means, and where each method reaches its share of full fine-tuning's score.

    Parameters
    ----------
    curve, dimensions : DataFrame
        From :mod:`rankprobe.report.intrinsic`.
    """
    if curve.empty or dimensions.empty:
        return None
    metric = curve["metric"].iloc[0]
    of_score = dimensions[dimensions["of"] == "score"]
    figure = Figure(figsize=(WIDTH_IN, 3.3), layout="constrained")
    axes = figure.subplots()
    full, threshold = of_score["full"].iloc[0], of_score["threshold"].iloc[0]
    handles = []
    methods = list(dict.fromkeys(curve["method"]))
    least, most = min(float(curve["score"].min()), threshold), max(float(curve["score"].max()), full, threshold)
    span = most - least or 1.0
    for place, ((color, marker, line), method) in enumerate(zip(SERIES, methods, strict=False)):
        of = curve[curve["method"] == method]
        means = of.groupby("d")["score"].mean()
        axes.plot(of["d"], of["score"], ls="none", marker=marker, ms=3.5, color=color, alpha=0.45)
        axes.plot(means.index, means, line, color=color, marker=marker, ms=5)
        handles.append(Line2D([], [], color=color, marker=marker, ls=line, label=method.upper()))
        found = of_score[of_score["method"] == method]
        if len(found) and math.isfinite(found["d"].iloc[0]):
            row, y = found.iloc[0], least - (0.06 + 0.07 * place) * span
            # An open end is drawn as far as anything was measured.
            low = max(row["ci_low"], float(curve["d"].min()))
            high = min(row["ci_high"], float(curve["d"].max()))
            xerr = [[max(row["d"] - low, 0.0)], [max(high - row["d"], 0.0)]]
            axes.errorbar([row["d"]], [y], xerr=xerr, color=color,
                          marker=marker, capsize=3, clip_on=False)  # fmt: skip
            axes.annotate(f"d = {say.count(row['d'])}", (high, y), xytext=(6, 0), textcoords="offset points",
                          fontsize=8, color=color, va="center")  # fmt: skip
    axes.axhline(full, color=BLACK, lw=1.2)
    axes.axhline(threshold, color=GREEN, lw=1.0, ls=(0, (4, 3)))
    share = 100 * of_score["share"].iloc[0]
    for y, text, color in ((full, "full fine-tuning", BLACK), (threshold, f"{share:g} % of it", GREEN)):
        axes.annotate(f"{text}\n{say.score(metric, y)}", (1, y), xytext=(4, 0), xycoords=("axes fraction", "data"),
                      textcoords="offset points", va="center", fontsize=8, color=color)  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: say.count(v)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(least - 0.25 * span, most + 0.08 * span)
    axes.yaxis.set_major_formatter(score_ticks(metric))
    axes.set_xlabel("d, dimensions of the random subspace (log scale)")
    axes.set_ylabel(metric)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    handles.append(Line2D([], [], color=GREY, marker="o", ls="none", ms=3.5, alpha=0.6, label="one seed"))
    figure.legend(handles=handles, loc="outside upper left", ncols=4)
    found = "; ".join(
        f"{row['method'].upper()} {_dimension(row)}"
        for _, row in of_score.iterrows()
    )
    caption = (
        f"{metric.capitalize()} ({int(of_score['n_eval'].iloc[0]):,} evaluation rows) of training in a random subspace "
        f"of d dimensions; D = {say.count(of_score['D'].iloc[0])}. Below, the d that reaches {share:g} % of full "
        f"fine-tuning's score, with its 95 % interval ({of_score['ci_method'].iloc[0]}): {found}."
    )
    return Picture("intrinsic_dimension", "Intrinsic dimension", figure, caption)


def _dimension(row: pd.Series) -> str:
    """d with its interval, infinite where no d that was measured reaches the share; or why there is none."""
    if math.isnan(row["d"]) and not say.missing(row.get("reason")):
        return f"none ({row['reason']})"
    d = row["d"] if math.isfinite(row["d"]) else math.inf
    return say.with_interval(d, row["ci_low"], row["ci_high"], 0)
