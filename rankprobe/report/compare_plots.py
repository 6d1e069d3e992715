"""Pictures of a comparison: φ grids beside their chance level, φ by layer and kind, layers by layers, intruders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rankprobe.analysis.spectrum_tables import KINDS
from rankprobe.report.style import BLUE, GREY, ORANGE, WIDTH_IN, Picture, style

if TYPE_CHECKING:  # what compares needs torch, what draws does not
    from rankprobe.analysis.compare_tables import Comparison

_CHANCE = "#c9c9c9"
_GRIDS, _LAYER_PANELS = 4, 6
_RANDOM_WORDS = "grey: not above the 95 % interval of random subspaces"


def draw_comparison(comparison: Comparison) -> list[Picture]:
    """Every picture for which there are data.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    list of Picture
        Each with its caption; not saved yet. Of one input with itself φ by matrix is 1 and not drawn.
    """
    drawers = (overlap_grids, overlap_by_layer, layer_grids, intruder_cosines)
    with style():
        return [picture for draw in drawers if (picture := draw(comparison)) is not None]


def chosen_matrices(matrices: pd.DataFrame, most: int) -> list[str]:
    """Some matrices for pictures: of each kind the same number, from layers that are evenly spaced.

    Parameters
    ----------
    matrices : DataFrame
        name, layer, kind.
    most : int
        How many at most.
    """
    inside = matrices[matrices["layer"].notna() & matrices["kind"].isin(KINDS)]
    pool = inside if len(inside) else matrices
    kinds = [k for k in KINDS if k in set(pool["kind"])] or list(dict.fromkeys(pool["kind"]))
    kinds = kinds[:most]
    each = most // len(kinds)
    names = []
    for kind in kinds:
        mine = list(pool.loc[pool["kind"] == kind, "name"])
        count = min(each, len(mine))
        names += [mine[(2 * i + 1) * len(mine) // (2 * count)] for i in range(count)]
    return names


def overlap_grids(comparison: Comparison) -> Picture | None:
    """φ(i, j) of some matrices (the paper's figure 3), and beside each grid φ against its random level."""
    if comparison.same or comparison.matrices.empty:
        return None
    table = comparison.matrices
    names = chosen_matrices(table, _GRIDS)
    grids = {name: part for name, part in comparison.overlap.groupby("name", observed=True) if name in names}
    if len(table) > len(names) and all(len(grid) == 1 for grid in grids.values()):
        return None  # one number a matrix: the picture by layer and kind has them all
    top = rounded_up(max(float(grid["phi"].max()) for grid in grids.values()))
    figure = Figure(figsize=(WIDTH_IN, 0.5 + 2.15 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False, width_ratios=(1.15, 1))
    for (left, right), name in zip(panels, names, strict=True):
        row = table[table["name"] == name].iloc[0]
        values = {c: grids[name].pivot(index="i", columns="j", values=c).to_numpy()
                  for c in ("phi", "random_mean", "random_low", "random_high")}
        shape = values["phi"].shape
        image = phi_map(left, values["phi"], values["phi"] > values["random_high"], top)
        left.set_title(_short(row))
        left.set_ylabel("i, of X")
        right.set_title(" ")
        # Along the diagonal, then along the longer side: the random mean is k / n all the way.
        k = np.arange(1, max(shape) + 1)
        at = np.minimum(k, shape[0]) - 1, np.minimum(k, shape[1]) - 1
        right.fill_between(k, values["random_low"][at], values["random_high"][at], color=GREY, alpha=0.3, lw=0,
                           step="mid" if len(k) == 1 else None)
        right.plot(k, values["random_mean"][at], color=GREY, ls="--", marker="_" if len(k) == 1 else "")
        if len(k) == 1:
            right.vlines(k, values["random_low"][at], values["random_high"][at], color=GREY, lw=5, alpha=0.5)
        right.plot(k, values["phi"][at], color=BLUE, marker="o", markersize=4 if len(k) <= 16 else 2)
        right.set_ylim(0, 1.06 * max(top, float(values["random_high"][at].max())))
        right.set_xlim(0.5, len(k) + 0.5)
        right.set_xticks(_ticks(len(k)))
        right.set_ylabel("φ")
        right.grid()
        right.set_axisbelow(True)
    panels[-1, 0].set_xlabel("j, of Y")
    panels[-1, 1].set_xlabel("k directions of each side")
    bar = figure.colorbar(image, ax=list(panels[:, 0]), aspect=12 * len(names), pad=0.02)
    bar.set_label("φ(i, j)")
    handles = [
        mpl.lines.Line2D([], [], color=BLUE, marker="o", ms=4, label="φ"),
        mpl.lines.Line2D([], [], color=GREY, ls="--", label="random subspaces, mean"),
        Patch(facecolor=_CHANCE, label="their 95 % interval; left: φ is not above it"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=1.6, columnspacing=1.2)
    which = "all" if len(names) == len(table) else f"{len(names)} of {len(table)}"
    spaced = "" if len(names) == len(table) else ", the same number of each kind, from evenly spaced layers"
    caption = (
        f"φ(i, j) of the first i directions of X ({comparison.labels[0]}) and the first j of Y "
        f"({comparison.labels[1]}), {_words(comparison.of)}; {which} matrices{spaced} ({', '.join(names)}). "
        f"Left: cells in grey are not above the 95 % interval of random subspaces. Right: φ with k directions of each "
        f"side (all it has, where those are fewer) and what random subspaces have there. Exact for these weights; the "
        f"interval is one of chance."
    )
    return Picture("overlap", "What X and Y share", figure, caption)


def overlap_by_layer(comparison: Comparison) -> Picture | None:
    """φ with all directions of the smaller side, by layer and kind."""
    table = comparison.matrices
    table = table[table["layer"].notna() & table["kind"].isin(KINDS)]
    if comparison.same or table["layer"].nunique() < 2:
        return None
    kinds = [k for k in KINDS if k in set(table["kind"])]

    def grid(column: str) -> np.ndarray:
        return table.pivot_table(index="layer", columns="kind", values=column, aggfunc="mean")[kinds].to_numpy(float)

    phi, high = grid("phi_min_min"), grid("phi_min_min_random_high")
    layers = sorted(set(table["layer"].astype(int)))
    tall = len(layers) > 24
    figure = Figure(figsize=(WIDTH_IN, 1.0 + (0.13 if tall else 0.3) * len(layers)), layout="constrained")
    axes = figure.subplots()
    top = rounded_up(float(np.nanmax(phi)))
    image = phi_map(axes, phi, phi > high, top)
    axes.set_xticks(range(1, len(kinds) + 1), kinds)
    step = -(-len(layers) // 24)
    axes.set_yticks(range(1, len(layers) + 1, step), layers[::step])
    if not tall:
        digits = 2 if top > 0.2 else 3
        for (a, b), value in np.ndenumerate(phi):
            if np.isfinite(value):
                dark = value > high[a, b] and value < 0.6 * top
                axes.text(b + 1, a + 1, f"{value:.{digits}f}", ha="center", va="center", fontsize=8,
                          color="white" if dark else "black")
    axes.set_xlabel("kind of matrix")
    axes.set_ylabel("layer")
    figure.colorbar(image, ax=axes, aspect=15, label="φ")
    sizes = sorted({(int(a), int(b)) for a, b in zip(table["r_x"], table["r_y"], strict=True)})
    mean = table["phi_min_min_random_mean"]
    level = " to ".join(dict.fromkeys(f"{value:.2g}" for value in (mean.min(), mean.max())))
    directions = ", ".join(f"{min(s)}" for s in sizes[:4]) + (", ..." if len(sizes) > 4 else "")
    caption = (
        f"φ(k, k) with k = {directions} directions, all that the smaller side has, {len(table)} matrices; at random "
        f"{level} on average, {_RANDOM_WORDS}."
    )
    return Picture("overlap_by_layer", "What X and Y share, by layer and kind", figure, caption)


def layer_grids(comparison: Comparison) -> Picture | None:
    """φ(r, r) of every layer of X with every layer of Y, a panel a kind of matrix."""
    table = comparison.layers
    if table.empty:
        return None
    groups = dict(list(table.groupby("matrix", sort=False)))
    shown = dict(list(groups.items())[:_LAYER_PANELS])
    many = table if not comparison.same else table[table["layer_x"] != table["layer_y"]]
    top = rounded_up(float(many[many["matrix"].isin(list(shown))]["phi"].max()))
    columns = min(len(shown), 2 if len(shown) in (2, 4) else 3)
    rows = -(-len(shown) // columns)
    side = (WIDTH_IN - 0.9) / max(columns, 2)
    figure = Figure(figsize=(WIDTH_IN, 0.5 + (side + 0.1) * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, part in zip(panels, shown.values(), strict=False):
        phi, high = (part.pivot(index="layer_x", columns="layer_y", values=c) for c in ("phi", "random_high"))
        grid = phi.to_numpy(float, copy=True)
        if comparison.same:
            np.fill_diagonal(grid, np.nan)
        image = phi_map(axes, grid, phi.to_numpy() > high.to_numpy(), top, aspect="equal")
        layers, step = list(phi.index), -(-len(phi) // (12 if columns < 3 else 8))
        places = range(1, len(layers) + 1, step)
        axes.set_xticks(places, layers[::step])
        axes.set_yticks(places, layers[::step])
        first = part.iloc[0]
        axes.set_title(f"{first['kind']}, r = {int(first['r'])}")
        axes.set_xlabel("layer of Y")
        axes.set_ylabel("layer of X")
    for axes in panels[len(shown):]:
        axes.set_visible(False)
    bar = figure.colorbar(image, ax=list(panels), aspect=25, pad=0.02)
    bar.set_label("φ(r, r)")
    levels = sorted({(row.random_mean, row.random_low, row.random_high) for row in table.itertuples()})
    for mean, _, high in levels[:1] if len(levels) == 1 else []:
        bar.ax.axhline(mean, color="white", lw=1, ls="--")
        bar.ax.axhline(high, color="white", lw=1)
    said = "; ".join(f"{mean:.3g} [{low:.3g}, {high:.3g}]" for mean, low, high in levels[:3])
    left_out = f" {len(shown)} of {len(groups)} kinds are drawn." if len(shown) < len(groups) else ""
    diagonal = " The diagonal, a layer with itself, is 1 and left white." if comparison.same else ""
    caption = (
        f"φ(r, r) between layers of X ({comparison.labels[0]}) and of Y ({comparison.labels[1]}), "
        f"{_words(comparison.of)}. Random subspaces: mean and 95 % interval {said}"
        f"{', marked on the scale' if len(levels) == 1 else ''}; {_RANDOM_WORDS}.{diagonal}{left_out}"
    )
    return Picture("layers", "Layers against layers", figure, caption)


def intruder_cosines(comparison: Comparison) -> Picture | None:
    """Largest cosine of each of W1's leading left singular vectors with any of W0's."""
    table = comparison.cosines
    if table.empty:
        return None
    looks = {"X": (BLUE, "o", "-"), "Y": (ORANGE, "s", "--")}
    figure = Figure(figsize=(WIDTH_IN, 2.9), layout="constrained")
    axes = figure.subplots()
    sides = [s for s in ("X", "Y", *sorted(set(table["side"]) - {"X", "Y"})) if s in set(table["side"])]
    if comparison.same:
        sides.remove("Y")
    for at, side in enumerate(sides):
        color, marker, line = looks.get(side, (GREY, "^", ":"))
        by = table[table["side"] == side].groupby("index")["cosine"]
        middle = by.median()
        x = middle.index + 0.12 * (at - (len(sides) - 1) / 2)
        axes.vlines(x, by.min(), by.max(), color=color, lw=3, alpha=0.25)
        label = {"X": f"X: {comparison.labels[0]}", "Y": f"Y: {comparison.labels[1]}"}.get(side, f"{side} with itself")
        axes.plot(x, middle, color=color, marker=marker, ls=line, ms=4, label=label)
    eps = float(comparison.intruders["eps"].iloc[0])
    axes.axhline(eps, color="black", lw=0.8, ls=(0, (1, 1.5)), label=f"{eps:g}: below are intruders")
    axes.set_ylim(-0.02, 1.04)
    axes.set_xlabel("left singular vector of W1 (of W0 for the control)")
    axes.set_xticks(_ticks(int(table["index"].max())))
    axes.set_ylabel("largest |cosine| with W0's")
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=2 if max(map(len, comparison.labels)) > 24 else 4)
    caption = (
        f"Largest |cosine| of each leading left singular vector of W1 with any left singular vector of W0: median and "
        f"range over {table['name'].nunique()} matrices. W0 against itself, by two decompositions, is the control."
    )
    return Picture("intruders", "Directions that W0 did not have", figure, caption)


def phi_map(axes, values: np.ndarray, above: np.ndarray, top: float, aspect: str = "auto"):
    """Cells from (1, 1) at the upper left; grey where a value is not above chance, white where there is none."""
    colors = mpl.colormaps["viridis"]
    scale = Normalize(0, top)
    pixels = colors(scale(np.nan_to_num(values)))
    pixels[~above] = mpl.colors.to_rgba(_CHANCE)
    pixels[np.isnan(values)] = (1, 1, 1, 1)
    rows, columns = values.shape
    # Enlarged first: viewers of SVG smooth small images.
    pixels = pixels.repeat(max(1, 512 // rows), axis=0).repeat(max(1, 512 // columns), axis=1)
    axes.imshow(pixels, aspect=aspect, interpolation="none", extent=(0.5, columns + 0.5, rows + 0.5, 0.5))
    axes.set_xticks(_ticks(columns))
    axes.set_yticks(_ticks(rows))
    axes.tick_params(length=0)
    return mpl.cm.ScalarMappable(scale, colors)


def _ticks(count: int) -> list[int]:
    """Places to label among 1 .. count: 1, and multiples of a round number.

    >>> _ticks(3), _ticks(64)
    ([1, 2, 3], [1, 8, 16, 24, 32, 40, 48, 56, 64])
    """
    step = next(step for step in (1, 2, 4, 8, 16, 32, 10 ** len(str(count))) if count <= 10 * step)
    return sorted({1, *range(step, count + 1, step)})


def rounded_up(value: float) -> float:
    """The end of a colour scale: the next round number, at most 1."""
    step = 10.0 ** np.floor(np.log10(max(value, 1e-3))) / 5
    return min(1.0, step * float(np.ceil(max(value, step) / step - 1e-9)))


def _short(row: pd.Series) -> str:
    where = f"layer {int(row['layer'])}, " if not pd.isna(row["layer"]) else ""
    return f"{where}{row['kind']} ({row['m']:,} × {row['n']:,})"


def _words(of: str) -> str:
    return {
        "right": "right singular vectors of dW",
        "left": "left singular vectors of dW",
        "A": "right singular vectors of the factors A",
    }[of]
