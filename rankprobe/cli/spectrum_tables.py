"""Ranks on a terminal: by kind and by layer, or every matrix; for programs, as CSV or JSON."""

from __future__ import annotations

import click
import pandas as pd

from rankprobe.analysis.rank_columns import energy_column
from rankprobe.analysis.spectrum_tables import medians, swallowed
from rankprobe.cli.show import print_table
from rankprobe.report.spectrum_words import change_words, storage_words


def print_ranks(ranks: pd.DataFrame, *, by: str | None, form: str, energy: float, title: str) -> None:
    """Print ranks.csv on stdout.

    Parameters
    ----------
    ranks : DataFrame
        From :func:`rankprobe.analysis.spectrum_tables.read_ranks`.
    by : str or None
        ``kind``, ``layer`` or ``matrix``. None: kind, and in a table for people both kind and layer.
    form : str
        ``table``, ``csv`` or ``json``.
    energy : float
        Share whose energy rank a table for people shows.
    title : str
    """
    if form != "table":
        table = ranks if by == "matrix" else medians(ranks, by or "kind", outside=True)
        if form == "csv":
            click.echo(table.to_csv(index=False, lineterminator="\n"), nl=False)
        else:
            click.echo(table.to_json(orient="records", indent=1, double_precision=15))
        return
    if by == "matrix":
        note = _note(ranks, energy)
        print_table(_shown(ranks.assign(shape=_shapes(ranks)), ["name", "shape"], energy), title=title, notes=note)
    else:
        kinds = medians(ranks, "kind", outside=True)
        layers = medians(ranks, "layer")
        note = f"medians over the matrices of a {by or 'kind or layer'}; {_note(ranks, energy)}"
        if by != "layer":
            single = by is None and len(layers) < 2
            print_table(_shown(kinds, ["kind", "matrices", "of ‖dW‖² %"], energy), title=f"{title}, by kind",
                        notes=note if by or single else None)  # fmt: skip
        if by == "layer" or (by is None and len(layers) > 1):
            print_table(_shown(layers, ["layer", "matrices", "of ‖dW‖² %"], energy), title=f"{title}, by layer",
                        notes=note)  # fmt: skip
    for line in (*change_words(ranks, energy), *storage_words(ranks)):
        click.echo(line)


def _shown(table: pd.DataFrame, first: list[str], energy: float) -> pd.DataFrame:
    """The columns that people see, under names of one short word a line; those without any value are left out."""
    gone = swallowed(table) if "name" in table else table["swallowed"] == table["matrices"]
    columns = {
        "change %": 100 * table["relative_change"],
        "stable rank": table["stable_rank"],
        f"energy rank {100 * energy:g}": table[energy_column(energy)],
        "num. rank": table["numerical_rank"],
        "storage rank": table["storage_rank"],
        "mp rank": table["mp_rank"],
        "gd rank": table["gd_rank"],
        "same %": 100 * table["unchanged_fraction"],
    }
    if "change_share" in table:
        table = table.assign(**{"of ‖dW‖² %": 100 * table["change_share"]})
    shown = table[first].copy()
    for name, values in columns.items():
        if "rank" in name and gone.any():
            values = values.astype("float64").mask(gone)
            if name == "storage rank":
                values = values.map(lambda k: f"{_short(k):g}").mask(gone, "swallowed")
        if values.notna().any():
            shown[name] = values.map(_short) if values.dtype == "float64" else values
    # A line a word: where all columns would not fit side by side, the last ones would be cut off.
    return shown.rename(columns=lambda name: name.replace(" ", "\n"))


def _short(value: float) -> float:
    """Three significant digits, and whole numbers as they are."""
    return value if pd.isna(value) or float(value).is_integer() else float(f"{value:.3g}")


def _shapes(ranks: pd.DataFrame) -> pd.Series:
    return ranks["m"].astype(str) + "×" + ranks["n"].astype(str)


def _note(ranks: pd.DataFrame, energy: float) -> str:
    words = ["change: ‖dW‖/‖W0‖"] if ranks["relative_change"].notna().any() else []
    told = not swallowed(ranks).all()
    if told:
        words += [f"energy rank {100 * energy:g}: directions that hold {100 * energy:g} % of Σσ²", "num.: numerical"]
    if ranks["storage_floor"].notna().any():
        words.append("storage: above the noise of rounding to the storage dtype")
    if told and ranks["mp_rank"].notna().any():
        words.append("mp, gd: above white noise (Marchenko-Pastur, Gavish-Donoho)")
    if ranks["unchanged_fraction"].notna().any():
        words.append("same: weights that did not change")
    return "; ".join(words)
