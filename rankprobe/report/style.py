"""How every picture looks, and how it is stored."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rankprobe.report import numbers as say

# Okabe & Ito's colours, told apart under every common colour blindness; each series has its own marker besides.
BLUE, ORANGE, GREEN, PINK, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6E6E6E", "#222222"
SERIES = ((BLUE, "o", "-"), (ORANGE, "s", "--"), (GREEN, "^", "-."), (PINK, "D", ":"))
_DPI = 200
_BESIDE_LABELS = ("handlelength", "handletextpad", "columnspacing", "borderpad")
WIDTH_IN = 6.5  # the text width of a printed page: fonts keep their size there
_STYLE = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "legend.frameon": False,
    "font.family": "DejaVu Sans",  # matplotlib brings it: the same picture on every machine
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "figure.facecolor": "white",
    "lines.linewidth": 1.4,
    "lines.markersize": 5.5,
    "hatch.linewidth": 0.8,
    "svg.fonttype": "path",
    "svg.hashsalt": "rankprobe",  # element ids, and so files, repeat
}


@dataclass(frozen=True)
class Picture:
    """A figure with its words.

    Attributes
    ----------
    name : str
        File name without its ending.
    title : str
    figure : Figure
    caption : str
        What is shown, n, and how intervals were made.
    """

    name: str
    title: str
    figure: Figure
    caption: str


@contextmanager
def style() -> Iterator[None]:
    """Fonts, colours and repeatable files; every figure is made and saved inside."""
    with mpl.rc_context({**sns.axes_style("ticks"), **_STYLE}):
        yield


def save_picture(picture: Picture, folder: Path) -> None:
    """Write NAME.svg and NAME.png, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((f"{picture.name}.svg", svg(picture.figure)), (f"{picture.name}.png", png(picture.figure))):
        temporary = folder / f".{name}.tmp"
        temporary.write_bytes(content)
        os.replace(temporary, folder / name)


@lru_cache(maxsize=32)
def svg(figure: Figure) -> bytes:
    """The figure as SVG, drawn once for its file and for the page.

    Text is drawn as paths, so that it looks the same without our fonts.
    """
    buffer = io.BytesIO()
    with style():
        _lay_out(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue()


def _lay_out(figure: Figure) -> None:
    """Work out where everything goes, once and for all: savefig would draw all of it for that, for each file anew."""
    engine, dpi = figure.get_layout_engine(), figure.dpi
    if engine is None:
        return
    FigureCanvasSVG(figure)  # texts are as wide as this canvas says
    figure.set_dpi(72)  # an SVG's own
    engine.execute(figure)
    figure.set_dpi(dpi)
    figure.set_layout_engine("none")


def png(figure: Figure) -> bytes:
    """The figure as PNG at 200 dots an inch, laid out as its SVG is."""
    svg(figure)
    buffer, dpi = io.BytesIO(), figure.dpi
    with style():
        figure.set_dpi(_DPI)
        # Not savefig, which draws once more only to find out where everything goes.
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
        figure.set_dpi(dpi)
    return buffer.getvalue()


def score_ticks(metric: str) -> FuncFormatter:
    """Labels of a score axis: percent for a share of rows, plain numbers for a correlation."""
    if say.is_share(metric):
        return FuncFormatter(lambda v, _: f"{100 * v:.4g} %")
    return FuncFormatter(lambda v, _: f"{v:.4g}")


def legend_above(figure: Figure, handles: Sequence[Artist], *, columns: int = 3, **looks) -> int:
    """A legend above the picture with as many columns, up to ``columns``, as its labels leave room for; how many.

    Parameters
    ----------
    figure : Figure
    handles : sequence of Artist
        With labels.
    columns : int
    **looks
        ``handletextpad``, ``columnspacing``: as for matplotlib's legend, in font sizes.
    """
    size = FontProperties(size=mpl.rcParams["legend.fontsize"]).get_size_in_points()
    looks = {name: looks.get(name, mpl.rcParams[f"legend.{name}"]) for name in _BESIDE_LABELS}
    widths = [TextPath((0, 0), handle.get_label(), size=size).get_extents().width for handle in handles]
    beside = size * (looks["handlelength"] + looks["handletextpad"])
    for n in range(min(columns, len(handles)), 0, -1):
        of_columns = [max(part) + beside for part in np.array_split(widths, n)]  # filled as matplotlib fills them
        between = size * (looks["columnspacing"] * (n - 1) + 2 * looks["borderpad"])
        if n == 1 or sum(of_columns) + between <= 72 * figure.get_figwidth():
            figure.legend(handles=handles, loc="outside upper left", ncols=n, **looks)
            return n
    return 1


def broken_axis(values: list[float], *, height: float = 3.1, log: bool = False):
    """A figure with one y axis, or with two where some values lie far below the rest: the gap would flatten all else.

    Parameters
    ----------
    values : list of float
        Everything that has to be visible: points and ends of intervals.
    height : float
        Inches.
    log : bool
        One logarithmic axis instead, for what differs by factors; values below all positive ones are left out.

    Returns
    -------
    (Figure, list of (Axes, low, high))
        Upper axes first; a value belongs to the axes whose bounds hold it.
    """
    figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
    if log:
        positive = [value for value in values if value > 0]
        low, high = min(positive), max(positive)
        axes, pad = figure.subplots(), (high / low) ** 0.08
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        return figure, _gridded([(axes, low / pad, high * pad)])
    ordered = sorted(values)
    gaps = [(b - a, i) for i, (a, b) in enumerate(itertools.pairwise(ordered))]
    gap, at = max(gaps, default=(0.0, 0))
    upper, lower = ordered[at + 1 :], ordered[: at + 1]
    spread, low_spread = (part[-1] - part[0] if part else 0.0 for part in (upper, lower))
    if not upper or gap < 1.2 * max(spread, low_spread, 0.05):
        pad = 0.08 * max(ordered[-1] - ordered[0], 0.01)
        axes = figure.subplots()
        parts = [(axes, ordered[0] - pad, ordered[-1] + pad)]
    else:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
        pad, low_pad = 0.08 * max(spread, 0.01), max(0.08 * spread, 0.6 * low_spread)
        parts = [(top, upper[0] - pad, upper[-1] + pad), (bottom, lower[0] - low_pad, lower[-1] + low_pad)]
        top.spines["bottom"].set_visible(False)
        top.tick_params(bottom=False, which="both")
        bottom.locator_params(axis="y", nbins=2)
        tick = {
            "marker": [(-1, -0.6), (1, 0.6)],
            "markersize": 7,
            "linestyle": "none",
            "color": "#444444",
            "clip_on": False,
        }
        top.plot([0], [0], transform=top.transAxes, **tick)
        bottom.plot([0], [1], transform=bottom.transAxes, **tick)
    return figure, _gridded(parts)


def _gridded(parts: list[tuple]) -> list[tuple]:
    """Axes with their bounds set and a grid behind what is drawn."""
    for axes, low, high in parts:
        axes.set_ylim(low, high)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
    return parts
