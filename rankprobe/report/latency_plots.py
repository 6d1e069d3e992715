"""Pictures of latency: ratios to the base's, and Table 1's overheads beside the paper's."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rankprobe.report import numbers as say
from rankprobe.report.findings import Findings
from rankprobe.report.style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, WIDTH_IN, Picture
from rankprobe.report.table1 import VARIANT_NAMES
from rankprobe.report.verdicts import LATENCY_MARGIN

_LOOKS = {
    "base_copy": (GREY, "D"),
    "full": (BLACK, "s"),
    "lora_merged": (BLUE, "o"),
    "lora_unmerged": (ORANGE, "^"),
    "adapter_l": (PINK, "v"),
    "adapter_h": (BLACK, "P"),
    "prefix": (GREEN, "X"),
    "prompt": (GREEN, "h"),
}


def latency_ratios(findings: Findings) -> Picture | None:
    """Latency of each variant over the base's, a panel a shape; the grey band is what the machine cannot tell apart."""
    table = findings.tables["latency"]
    if table.empty:
        return None
    table = table[table["variant"] != "base"]
    columns = ("ratio", "ratio_ci_low", "ratio_ci_high")
    figure, _, _ = _panels(table, columns, 1.0, LATENCY_MARGIN, 3)
    figure.supxlabel("latency over the base model's, same round", fontsize=9)
    first = table.iloc[0]
    lora = table.dropna(subset=["r"])
    what = f"LoRA r = {int(lora['r'].iloc[0])} on {lora['targets'].iloc[0]}; " if len(lora) else ""
    caption = (
        f"Latency ratios: median of {_rounds(table)} interleaved rounds, bars are 95 % intervals "
        f"({first['ci_method']}). {what}"
        f"{first['dtype']}, {first['device']}, {int(first['threads'])} threads. Hatched: the interval between two "
        f"copies of one model, which this machine cannot tell apart. Dashed: ±{100 * LATENCY_MARGIN:g} %."
    )
    return Picture("latency", "Latency", figure, caption)


def table_1_picture(findings: Findings) -> Picture | None:
    """Table 1's overheads, where it was measured."""
    table = findings.tables.get("table1")
    return None if table is None or table.empty else draw_table_1(table)


def draw_table_1(table: pd.DataFrame) -> Picture:
    """What each variant adds in percent, a panel a shape, with the paper's figure as an open marker.

    Parameters
    ----------
    table : DataFrame
        From :func:`rankprobe.report.table1.table_1`.
    """
    table = table[table["variant"] != "base"]
    columns = ("overhead_pct", "overhead_ci_low", "overhead_ci_high")
    figure, panels, variants = _panels(table, columns, 0.0, 100 * LATENCY_MARGIN, 1, sign=True)
    look = {"ls": "none", "marker": "o", "ms": 5, "mfc": "white", "mec": GREEN, "mew": 1.2}
    for axes, shape in zip(panels, _shapes(table), strict=True):
        paper = _of_shape(table, shape)["paper_overhead_pct"].drop("base_copy", errors="ignore").dropna()
        for variant, overhead in paper.items():
            axes.plot([overhead], [variants.index(variant) + 0.3], **look)
    panels[0].set_ylim(len(variants) - 0.5, -0.75)
    figure.supxlabel("added to the base's latency in the same round, %", fontsize=9)
    handle = Line2D([], [], label="the paper's, GPT-2 medium on a Quadro RTX 8000", **look)
    figure.legend(handles=[handle], loc="outside upper right", handletextpad=0.2)
    first = table.iloc[0]
    threads = f", {int(first['threads'])} threads" if first["device"] == "cpu" else ""
    caption = (
        f"Table 1 of Hu et al. 2021 on {first['model']} with random weights: median of {_rounds(table)} interleaved "
        f"rounds, bars are 95 % intervals ({first['ci_method']}). LoRA r = {int(first['r'])} on {first['targets']}; "
        f"{first['dtype']} on {first['device_name']}{threads}. Hatched: the interval between two copies of one model, "
        f"which this machine cannot tell apart. Dashed: ±{100 * LATENCY_MARGIN:g} %."
    )
    return Picture("table1", "Latency that methods add (Table 1)", figure, caption)


def _panels(
    table: pd.DataFrame, columns: tuple[str, str, str], base: float, margin: float, digits: int, *, sign: bool = False
):
    """A panel a shape with a row a variant.

    Parameters
    ----------
    table : DataFrame
        Without the base's rows.
    columns : (str, str, str)
        The value's, and its interval's.
    base, margin : float
        Where the base is on the axis, and how far from it the dashed lines are.
    digits, sign
        Of the numbers above the points.

    Returns
    -------
    (Figure, array of Axes, list of str)
        The last: variants from top to bottom.
    """
    shapes, variants = _shapes(table), [v for v in _LOOKS if v in set(table["variant"])]
    figure = Figure(figsize=(WIDTH_IN, 1.0 + 0.4 * len(variants)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(shapes), sharey=True, sharex=True))
    for axes, shape in zip(panels, shapes, strict=True):
        rows = _of_shape(table, shape)[list(columns)]
        if "base_copy" in rows.index:
            axes.axvspan(*rows.loc["base_copy"].iloc[1:], facecolor="#e4e4e4", edgecolor="#bdbdbd", hatch="///", lw=0)
        axes.axvline(base, color=BLACK, lw=0.9)
        for edge in (base - margin, base + margin):
            axes.axvline(edge, color=GREEN, lw=0.9, ls=(0, (4, 3)))
        for y, variant in enumerate(variants):
            if variant in rows.index:
                (at, low, high), (color, marker) = rows.loc[variant], _LOOKS[variant]
                around = [[at - low], [high - at]]
                axes.errorbar([at], [y], xerr=around, color=color, marker=marker, ms=4.5, capsize=4, lw=1.2)
                look = {"ha": "center", "fontsize": 8, "bbox": {"facecolor": "white", "lw": 0, "pad": 0.6}}
                text = say.number(at, digits, sign=sign)
                axes.annotate(text, (at, y), xytext=(0, 6), textcoords="offset points", **look)
        axes.set_title(f"batch {shape[0]}, length {shape[1]}", fontweight="normal")
        axes.grid(axis="x")
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(variants)), [VARIANT_NAMES[v] for v in variants])
    panels[0].set_ylim(len(variants) - 0.6, -0.75)
    panels[0].margins(x=0.12)
    return figure, panels, variants


def _of_shape(table: pd.DataFrame, shape: tuple[int, int]) -> pd.DataFrame:
    return table[(table["batch"] == shape[0]) & (table["length"] == shape[1])].set_index("variant")


def _shapes(table: pd.DataFrame) -> list[tuple[int, int]]:
    return list(dict.fromkeys(zip(table["batch"], table["length"], strict=True)))


def _rounds(table: pd.DataFrame) -> str:
    rounds = sorted(set(table["n"].astype(int)))
    return f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
