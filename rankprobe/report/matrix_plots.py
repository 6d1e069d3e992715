"""Pictures of many matrices at once: a heat map by layer and kind, and spectra, a panel a kind and a line a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, NullLocator

from rankprobe.analysis.spectrum_tables import in_order
from rankprobe.report.style import BLACK, GREY, ORANGE, WIDTH_IN

_MANY_LAYERS = 24  # beyond it cells are too low for numbers
_SEVERAL_DECADES = 1e3
_FEW_VALUES = 64
_NOTHING = "#dedede"


@dataclass(frozen=True)
class Floor:
    """A noise floor in a panel: its least and its largest value among the panel's matrices."""

    low: float
    high: float


def heat_map(
    shares: pd.DataFrame, texts: pd.DataFrame, *, label: str, top: float | None = None, marked: str = ""
) -> Figure:
    """Matrices by layer and kind, coloured by a share and annotated where there is room.

    Parameters
    ----------
    shares : DataFrame, a row a layer and a column a kind
        NaN where there is no such matrix, or it has no value: see texts.
    texts : DataFrame, likewise
        What a cell says; ``–`` in a cell without a share marks it grey.
    label : str
        Of the colour scale.
    top : float, optional
        End of the colour scale.  The default is the largest share.
    marked : str
        What grey cells are, for the legend.
    """
    grid = shares.astype(float)
    layers, kinds = [int(layer) for layer in grid.index], list(grid.columns)
    tall = len(layers) > _MANY_LAYERS
    figure = Figure(figsize=(WIDTH_IN, 1.0 + (0.1 if tall else 0.3) * max(len(layers), 3)), layout="constrained")
    axes = figure.subplots()
    sns.heatmap(
        grid,
        ax=axes,
        cmap="viridis",
        # One colour all over, where every share is the same, needs a scale all the same.
        vmin=0 if top is not None or np.nanmin(grid) == np.nanmax(grid) else None,
        vmax=top,
        annot=None if tall else texts.where(texts != "–", "").to_numpy(),
        fmt="",
        annot_kws={"fontsize": 8.5},
        linewidths=0.8 if not tall else 0.2,
        linecolor="white",
        cbar_kws={"label": label, "aspect": 15},
    )
    grey = np.argwhere((texts == "–").to_numpy())
    for i, j in grey:
        axes.add_patch(mpl.patches.Rectangle((j, i), 1, 1, facecolor=_NOTHING, edgecolor="white", lw=0.8, hatch="///"))
    if len(grey) and marked:
        patch = Patch(facecolor=_NOTHING, edgecolor="white", hatch="///", label=marked)
        figure.legend(handles=[patch], loc="outside upper left")
    axes.set_xlabel("kind of matrix")
    axes.set_ylabel("layer")
    axes.tick_params(axis="both", length=0)
    axes.tick_params(axis="y", rotation=0)
    axes.set_xticks(np.arange(len(kinds)) + 0.5, kinds, rotation=0)
    step = -(-len(layers) // _MANY_LAYERS)
    axes.set_yticks(np.arange(0, len(layers), step) + 0.5, layers[::step])
    return figure


def spectra(
    lines: pd.DataFrame,
    looks: Mapping[str, Mapping],
    labels: Mapping[str, str],
    *,
    bottom: float | None = None,
    floors: Mapping[str, Floor] | None = None,
    floor_label: str = "",
) -> Figure:
    """Singular values on log axes, a panel a kind, a line a matrix, coloured by layer.

    Parameters
    ----------
    lines : DataFrame
        name, kind, layer (may be missing), index, sigma > 0, look.
    looks : mapping of str to line properties
        By look.
    labels : mapping of str to str
        What a look stands for in the legend, in its order; one alone has no legend.
    bottom : float, optional
        Lower end of the axis, where smaller values would flatten all others.
    floors : mapping of str to Floor, optional
        Noise floors by kind.
    floor_label : str
    """
    kinds = in_order(lines["kind"])
    layers = sorted(set(lines["layer"].dropna().astype(int)))
    columns = min(3, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(WIDTH_IN, (0.7 + 1.95 * rows) if rows > 1 else 3.1), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    shades = mpl.colormaps["viridis"]
    scale = Normalize(layers[0], max(layers[-1], layers[0] + 1)) if layers else None
    for axes, kind in zip(panels, kinds, strict=False):
        mine = lines[lines["kind"] == kind]
        if floors and kind in floors:
            low, high = floors[kind].low, floors[kind].high
            axes.axhspan(low, high, color=ORANGE, alpha=0.35, lw=0)
            axes.axhline(high, color=ORANGE, lw=0.9)
        for (look, _), line in mine.groupby(["look", "name"], sort=False):
            layer = line["layer"].iloc[0]
            color = GREY if pd.isna(layer) else shades(0.92 * scale(int(layer)))
            axes.plot(line["index"], line["sigma"], color=color, **looks[look])
        axes.set_title(kind)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid()
        axes.set_axisbelow(True)
    for axes in panels[len(kinds) :]:
        axes.set_visible(False)
    for place, axes in enumerate(panels[: len(kinds)]):
        # A shared axis has its numbers in the lowest row only: above a panel that is not there, they come one up.
        axes.tick_params(labelbottom=place + columns >= len(kinds))
    _limits(panels[0], lines, bottom)
    figure.supxlabel("index of the singular value (log scale)", fontsize=9)
    figure.supylabel("singular value σ of dW (log scale)", fontsize=9)
    if len(layers) > 1:
        bar = figure.colorbar(
            mpl.cm.ScalarMappable(scale, mpl.colors.ListedColormap(shades(np.linspace(0, 0.92, 256)))),
            ax=list(panels),
            aspect=30,
            pad=0.01,
            ticks=layers if len(layers) <= 12 else None,
        )
        bar.set_label("layer")
    handles = [Line2D([], [], color=BLACK, label=label, **looks[look]) for look, label in labels.items()]
    if floors:
        handles.append(Patch(facecolor=mpl.colors.to_rgba(ORANGE, 0.35), edgecolor=ORANGE, lw=0.9, label=floor_label))
    if handles:
        figure.legend(handles=handles, loc="outside upper left", ncols=2)
    return figure


def _limits(axes, lines: pd.DataFrame, bottom: float | None) -> None:
    """Limits and ticks that also read where all values lie within one decade, or within twenty."""
    top, low = float(lines["sigma"].max()), bottom or float(lines["sigma"].min())
    if bottom is not None:
        axes.set_ylim(bottom=bottom)
    if top / low > 10:
        axes.yaxis.set_major_locator(LogLocator(numticks=7))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if top / low > _SEVERAL_DECADES:  # ticks between would be lines a point apart, and most of the time to draw
        axes.yaxis.set_minor_locator(NullLocator())
    longest = int(lines["index"].max())
    if longest == 1:
        axes.set_xlim(0.5, 2)
    if longest <= _FEW_VALUES:  # of an adapter: decades alone would leave one tick, and matplotlib's filling collides
        axes.set_xticks([2**i for i in range(longest.bit_length())], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
    else:
        axes.xaxis.set_minor_formatter(NullFormatter())
