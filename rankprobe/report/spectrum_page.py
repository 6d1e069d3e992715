"""The page of one pair: what rank the update has, where it sits, and what storing it did."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rankprobe.analysis.rank_columns import energy_column
from rankprobe.analysis.spectrum_tables import medians, storage_by_dtype
from rankprobe.report import numbers as say
from rankprobe.report.cells import Cell, Table
from rankprobe.report.page import Page, Section
from rankprobe.report.spectrum_result import SpectrumResult
from rankprobe.report.spectrum_words import DEFINITIONS, change_words, matrices, storage_words
from rankprobe.report.style import Picture

_REASONS, _NAMES = 12, 3
_LAYERS = 100


def write_spectrum(out: Path, result: SpectrumResult, *, settings: dict[str, str]) -> None:
    """Write the pictures into ``figures/`` and report.html and report.md into a folder.

    Parameters
    ----------
    out : Path
    result : SpectrumResult
    settings : dict of str to str
        Shown at the end: the command, say.
    """
    from rankprobe.report.html import write_report
    from rankprobe.report.spectrum_plots import draw_spectrum
    from rankprobe.report.style import save_picture

    pictures = draw_spectrum(result)
    for picture in pictures:
        save_picture(picture, out / "figures")
    write_report(out, spectrum_page(result, pictures, settings=settings))


def spectrum_page(result: SpectrumResult, pictures: list[Picture], *, settings: dict[str, str]) -> Page:
    """Lay out the page."""
    by_name = {picture.name: picture for picture in pictures}

    def section(title: str, *wanted) -> list[Section]:
        found = [by_name.get(w) if isinstance(w, str) and w in _PICTURES else w for w in wanted]
        return [Section(title, blocks)] if (blocks := [b for b in found if b is not None]) else []

    sections = [
        *section("Where the update sits, and its rank", _table(result, "kind"), "storage_rank", "energy_rank",
                 _table(result, "layer")),
        *section("Singular values", "spectra"),
        *section("What storing the weights did", _storage(result)),
        *section("Norms and biases", _vectors(result)),
        *section("Not compared", _left_out(result)),
        Section("What the ranks are", [_definitions()]),
        Section("How this was made", [_settings(result, settings)]),
    ]  # fmt: skip
    alone = f"of the adapter {result.tuned}, without its base"
    which = f"from {result.base} to {result.tuned}" if result.base else alone
    answer = [*change_words(result.ranks, result.energy), *storage_words(result.ranks)]
    answer += [f"{note.rstrip('.')}." for note in result.notes]
    return Page(f"Rank of the update {which}", matrices(len(result.ranks)), answer, sections)


_PICTURES = ("storage_rank", "energy_rank", "spectra")


def _table(result: SpectrumResult, by: str) -> Table | None:
    table = medians(result.ranks, by, outside=True)
    if table.empty or (by == "layer" and len(table) < 2):
        return None
    aware = bool(result.ranks["mp_rank"].notna().any())
    storage = bool(result.ranks["storage_floor"].notna().any())
    relative = bool(result.ranks["relative_change"].notna().any())
    column = energy_column(result.energy)
    rows = []
    for r in table.head(_LAYERS).to_dict("records"):
        row = [
            Cell(str(r[by])), Cell(say.count(r["matrices"])), Cell(say.percent(100 * r["change_share"])),
            *([Cell(say.percent(100 * r["relative_change"]))] if relative else []),
            Cell(say.number(r["stable_rank"])), Cell(say.number(r["effective_rank"])),
            Cell(_count(r[column])), Cell(_count(r["numerical_rank"])),
        ]  # fmt: skip
        if storage:
            row.append(_storage_cell(r))
        if aware:
            row += [Cell(_count(r["mp_rank"])), Cell(_count(r["gd_rank"]))]
            row.append(Cell(say.percent(100 * r["unchanged_fraction"])))
        rows.append(row)
    heads = [
        by, "matrices", "of ‖dW‖²", *(["change"] if relative else []), "stable rank", "effective rank",
        f"energy rank {100 * result.energy:g}", "numerical rank", *(["storage rank"] if storage else []),
        *(["mp rank", "gd rank", "unchanged"] if aware else []),
    ]  # fmt: skip
    caption = (
        f"Medians over the matrices of a {by}; ranks in directions. Of ‖dW‖²: the share of the whole network's squared "
        f"change.{' Change: ‖dW‖/‖W0‖.' if relative else ''} Every matrix is in ranks.csv, every singular value in "
        f"spectra.csv."
    )
    if table["swallowed"].any():
        caption += " Ranks are of the matrices whose update the storage dtype did not swallow."
    if len(table) > _LAYERS:
        caption += f" The first {_LAYERS} of {len(table)} layers."
    return Table(heads, rows, caption)


def _count(median: float) -> str:
    """A median of counts: whole, or a half between two."""
    return say.number(median, 0 if say.missing(median) or float(median).is_integer() else 1)


def _storage_cell(row: dict) -> Cell:
    if row["swallowed"] == row["matrices"]:
        return Cell("swallowed")
    return Cell(_count(row["storage_rank"]), f"swallowed in {row['swallowed']}" if row["swallowed"] else "")


def _storage(result: SpectrumResult) -> Table | None:
    rows = []
    for of in storage_by_dtype(result.ranks):
        part = result.ranks[(result.ranks["dtype_tuned"] == of.dtype) & (result.ranks["storage_floor"] > 0)]
        floors = part["storage_floor"]
        gone = say.percent(100 * of.unchanged_swallowed) if of.swallowed else ""
        rows.append(
            [
                Cell(of.dtype), Cell(say.count(of.matrices)), Cell(say.percent(100 * of.unchanged)),
                Cell(say.count(of.swallowed), f"{gone} of their weights unchanged" if gone else ""),
                Cell(_power(floors.median()), _range(floors)),
                Cell(f"{(part['sigma_max'] / floors).median():.3g}"),
                Cell(say.MISSING if say.missing(of.bulk_to_floor) else f"{of.bulk_to_floor:.3g}"),
            ]
        )  # fmt: skip
    if not rows:
        return None
    heads = ["TUNED's dtype", "matrices", "weights that did not change", "matrices swallowed", "noise floor",
             "σ₁ / floor", "bulk / floor"]  # fmt: skip
    caption = (
        "Medians over the matrices that changed, with the range of the floor in units of σ. Floor: the largest "
        "singular value of uniform rounding noise of that dtype. Swallowed: more than half of the weights that could "
        "have changed did not. A base that the tuning started from is exact, whatever its dtype."
    )
    return Table(heads, rows, caption)


def _power(value: float) -> str:
    """Two digits, with a minus that no line breaks at."""
    return f"{value:.2g}".replace("-", say.MINUS)


def _range(values: pd.Series) -> str:
    """From the least to the largest; nothing where they read the same."""
    least, largest = _power(values.min()), _power(values.max())
    return "" if least == largest else f"{least} to {largest}"


def _vectors(result: SpectrumResult) -> Table | None:
    table = result.vectors
    if table.empty:
        return None
    bias = table["name"].astype(str).str.endswith("bias")
    rows = []
    for what, part in (("biases", table[bias]), ("norms and other vectors", table[~bias])):
        if part.empty:
            continue
        relative = part["relative_change"].dropna()
        largest = part.loc[relative.idxmax()] if relative.any() else None
        rows.append(
            [
                Cell(what), Cell(say.count(len(part))), Cell(say.count((part["change_norm"] == 0).sum())),
                Cell(say.percent(100 * relative.median()) if len(relative) else say.MISSING),
                Cell(say.percent(100 * largest["relative_change"]), largest["name"]) if largest is not None
                else Cell(say.MISSING),
                Cell(f"{part['change_norm'].median():.3g}"),
            ]
        )  # fmt: skip
    heads = ["", "vectors", "that did not change", "‖dw‖/‖w0‖", "largest", "‖dw‖"]
    return Table(heads, rows, "Vectors have no rank: their norms, medians. Each is in vectors.csv.")


def _left_out(result: SpectrumResult) -> Table | None:
    table = result.left_out
    if table.empty:
        return None
    rows = []
    groups = table.groupby("reason", sort=False)["name"]
    for reason, names in list(groups)[:_REASONS]:
        shown = ", ".join(map(str, names.head(_NAMES))) + (", ..." if len(names) > _NAMES else "")
        rows.append([Cell(reason, shown), Cell(say.count(len(names)))])
    more = f" The first {_REASONS} of {groups.ngroups} reasons." if groups.ngroups > _REASONS else ""
    return Table(["why", "tensors"], rows, f"Each is in not_compared.csv.{more}")


def _definitions() -> Table:
    rows = [[Cell(name), Cell(words)] for name, words in DEFINITIONS.items()]
    caption = (
        "σ₁ ≥ σ₂ ≥ ... are the singular values of dW = W1 − W0, m × n, in float64. The last four are for dense updates "
        "alone: factors hold no rounding noise that a product would show."
    )
    return Table(["rank", "number of directions, by what"], rows, caption, 2)


def _settings(result: SpectrumResult, settings: dict[str, str]) -> Table:
    counts = result.ranks["decomposition"].value_counts() if "decomposition" in result.ranks else pd.Series(dtype=int)
    ways = {"gram": "by the Gram matrix", "deflated": "the strong part apart, the rest by its Gram matrix",
            "direct": "directly", "factored": "from factors"}  # fmt: skip
    facts = {
        **settings,
        "decomposed in float64": ", ".join(f"{count} {ways.get(way, way)}" for way, count in counts.items()),
        "storage dtypes": ", ".join(
            f"{count} × {base or 'no base'} → {tuned}"
            for (base, tuned), count in result.ranks.groupby(["dtype_base", "dtype_tuned"], sort=False).size().items()
        ),
    }
    return Table(["what", "value"], [[Cell(key), Cell(value)] for key, value in facts.items() if value], "", 2)
