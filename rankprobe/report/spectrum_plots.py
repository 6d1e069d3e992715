"""Pictures of one pair: ranks by layer and kind, and spectra with the noise of storing the weights."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from rankprobe.analysis.rank_columns import energy_column
from rankprobe.analysis.spectrum_tables import in_order, swallowed
from rankprobe.report.matrix_plots import Floor, heat_map
from rankprobe.report.matrix_plots import spectra as draw_spectra
from rankprobe.report.spectrum_result import SpectrumResult
from rankprobe.report.spectrum_words import matrices
from rankprobe.report.style import Picture, style

_PANELS = 9
_MARKED = "swallowed by the storage dtype"
_SHOWN_BELOW = 30.0  # a noise floor farther below the values than this would take the picture from them
_DECADES = 1e9


def draw_spectrum(result: SpectrumResult) -> list[Picture]:
    """Every picture for which there are data; not saved yet."""
    with style():
        found = [storage_map(result), energy_map(result), spectra(result)]
    return [picture for picture in found if picture is not None]


def energy_map(result: SpectrumResult) -> Picture | None:
    """The energy rank by layer and kind; None where no block's matrix has one that says something."""
    column, percent = energy_column(result.energy), f"{100 * result.energy:g} %"
    rows = _in_layers(result.ranks)
    rows = rows.assign(rank=rows[column].astype("float64").mask(swallowed(rows)))
    if not rows["rank"].any():
        return None
    # Of factors, min(m, n) says nothing: a colour for a direction.
    figure, caption = _rank_map(rows, share=(rows["source"] == "dense").any())
    caption = f"{column} of dW: how many singular directions hold {percent} of Σσ². {caption}"
    return Picture("energy_rank", f"Energy rank ({percent}) by layer and kind", figure, caption)


def storage_map(result: SpectrumResult) -> Picture | None:
    """storage_rank by layer and kind, where noise was drawn and it says more than that all stands above it."""
    rows = _in_layers(result.ranks)
    rows = rows[rows["storage_floor"].notna()]
    rows = rows.assign(rank=rows["storage_rank"].astype("float64"))
    if not rows["rank"].any() or (rows["rank"] == rows["p"]).all():
        return None
    dtypes = " and ".join(dict.fromkeys(rows["dtype_tuned"]))
    figure, caption = _rank_map(rows, share=False)
    caption = (
        f"storage_rank of dW: how many singular directions stand above the noise of rounding to {dtypes}. {caption}"
    )
    return Picture("storage_rank", "Directions above the storage noise, by layer and kind", figure, caption)


def _rank_map(rows: pd.DataFrame, *, share: bool) -> tuple[Figure, str]:
    """A heat map of ``rank``, coloured by its share of min(m, n) or by itself, and the caption's words about it."""
    counts, gone = _grid(rows, rows["rank"]), swallowed(rows)
    texts = counts.map(lambda k: "" if pd.isna(k) else f"{k:g}")
    # A cell without a number is swallowed where it has a matrix, and nothing where it has none.
    texts = texts.where(counts.notna() | _grid(rows, rows["p"]).isna(), "–")
    if share:
        shares = _grid(rows, 100 * rows["rank"] / rows["p"])
        figure = heat_map(shares, texts, label="% of min(m, n)", top=float(shares.max(axis=None)), marked=_MARKED)
        of = f"Numbers are directions out of min(m, n) = {_sizes(rows)}, colour is their share"
    else:
        figure = heat_map(counts, texts, label="directions", top=max(1.0, float(counts.max(axis=None))), marked=_MARKED)
        of = f"Numbers and colours are directions, of min(m, n) = {_sizes(rows)}"
    most = int(rows.groupby(["layer", "kind"]).size().max())
    several = f", medians where a cell has several (up to {most})" if most > 1 else ""
    caption = f"{of}; {matrices(len(rows))}{several}. Exact for these weights: no interval."
    if gone.any():
        dtypes = " and ".join(dict.fromkeys(rows.loc[gone, "dtype_tuned"]))
        caption += (
            f" Grey: {dtypes} swallowed the update, more than half of the weights did not change ({gone.sum()} of "
            f"{matrices(len(rows))})."
        )
    return figure, caption


def spectra(result: SpectrumResult) -> Picture | None:
    """Singular values by kind, with the storage noise's floor."""
    where = result.ranks.drop_duplicates("name").set_index("name")
    kinds = in_order(result.ranks["kind"])[:_PANELS]
    lines = result.spectra[result.spectra["sigma"] > 0].join(
        where[["layer", "kind", "m", "n", "source", "storage_floor", "dtype_tuned"]], on="name"
    )
    lines = lines[lines["kind"].isin(kinds)]
    if lines.empty:
        return None
    looks = {
        "dense": {"ls": "-", "lw": 1.0},
        "factored": {"ls": "--", "lw": 0.9, "marker": "o", "markersize": 3.2},
    }
    sources = [s for s in looks if (lines["source"] == s).any()]
    labels = {"dense": "dense dW", "factored": "factored dW"} if len(sources) > 1 else {}
    bottom, cut = _bottom(lines)
    floors, words = _floors(lines, bottom)
    if floors:
        bottom = min(bottom, min(floor.low for floor in floors.values()) / 1.3)
    dtypes = " and ".join(dict.fromkeys(lines.loc[lines["storage_floor"].notna(), "dtype_tuned"]))
    figure = draw_spectra(
        lines.rename(columns={"source": "look"}),
        {s: looks[s] for s in sources},
        {s: labels[s] for s in sources if s in labels},
        bottom=bottom if cut or floors else None,
        floors=floors,
        floor_label=f"noise floor: σ₁ of rounding to {dtypes}",
    )
    drawn = matrices(lines["name"].nunique())
    caption = (
        f"All singular values of dW, a panel a kind of matrix and a line a matrix ({drawn}), thinned to what the "
        f"picture can show. Exact for these weights: no interval.{words}"
    )
    if still := int((result.ranks["sigma_max"] == 0).sum()):
        caption += f" {'One that' if still == 1 else f'{still:,} that'} did not change: no line."
    if lines["layer"].isna().any() and lines["layer"].notna().any():
        caption += " Grey lines are outside the blocks."
    if cut:
        caption += f" The least values, down to {lines['sigma'].min():.0e}, lie below the axis."
    if len(set(result.ranks["kind"])) > _PANELS:
        caption += f" {_PANELS} of {len(set(result.ranks['kind']))} kinds are drawn."
    return Picture("spectra", "Singular values of dW", figure, caption)


def _in_layers(ranks: pd.DataFrame) -> pd.DataFrame:
    return ranks[ranks["layer"].notna()].assign(p=ranks[["m", "n"]].min(axis=1))


def _grid(rows: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """The median value by layer and kind; NaN where there is none."""
    grid = values.groupby([rows["layer"].astype(int), rows["kind"]]).median().unstack()
    return grid.sort_index()[in_order(rows["kind"])].astype("float64")


def _bottom(lines: pd.DataFrame) -> tuple[float, bool]:
    """Lower end of the axis, and whether values lie below: the last few of a square matrix would flatten the rest."""
    p = lines[["m", "n"]].min(axis=1)
    bulk = lines.loc[(lines["index"] <= 0.97 * p) | (lines["index"] == 1), "sigma"]
    bottom = max(float(bulk.min()), float(lines["sigma"].max()) / _DECADES) / 1.5
    return bottom, float(lines["sigma"].min()) < bottom / 5


def _floors(lines: pd.DataFrame, bottom: float) -> tuple[dict[str, Floor], str]:
    """Floors that fit into the picture, and the caption's words about them."""
    rows = lines.drop_duplicates("name")
    rows = rows[rows["storage_floor"] > 0]
    if rows.empty:
        return {}, ""
    floors = {
        kind: Floor(float(part.min()), float(part.max()))
        for kind, part in rows.groupby("kind", sort=False)["storage_floor"]
    }
    low, high = min(f.low for f in floors.values()), max(f.high for f in floors.values())
    dtypes = " and ".join(dict.fromkeys(rows["dtype_tuned"]))
    if low < bottom / _SHOWN_BELOW:
        around = f"{low:.0e}" if f"{low:.0e}" == f"{high:.0e}" else f"{low:.0e} to {high:.0e}"
        return {}, f" The noise of rounding to {dtypes} ({around}) lies far below the axis."
    return floors, (
        f" Band: the largest singular value of the noise of rounding to {dtypes}, the range over the panel's matrices; "
        f"what is below is not told from rounding."
    )


def _sizes(rows: pd.DataFrame) -> str:
    p = sorted(set(rows["p"].astype(int)))
    return ", ".join(map(str, p[:6])) + (", ..." if len(p) > 6 else "")
