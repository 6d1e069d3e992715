"""The page of a comparison: what X and Y share, said, drawn and tabulated."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rankprobe.analysis.compare_tables import Comparison, across_layers, by_kind
from rankprobe.experiment.store import write_atomic, write_table
from rankprobe.report import numbers as say
from rankprobe.report.cells import Cell, Table
from rankprobe.report.page import Page, Section
from rankprobe.report.style import Picture

TABLES = {
    "compare.csv": "matrices",
    "overlap.csv": "overlap",
    "angles.csv": "angles",
    "amplification.csv": "amplification",
    "intruders.csv": "intruders",
    "intruder_cosines.csv": "cosines",
    "layers.csv": "layers",
    "skipped.csv": "skipped",
}
_SIDES = {"X": "X", "Y": "Y"}


def write_tables(out: Path, comparison: Comparison) -> None:
    """Write every table that has a row, each whole or not at all, and take away an earlier call's that has none.

    Of one input with itself φ and angles are 1 and 0 whatever it holds: they are left out.
    """
    for name, field in TABLES.items():
        table = getattr(comparison, field)
        if table.empty or (comparison.same and field in ("overlap", "angles")):
            (out / name).unlink(missing_ok=True)
        elif field == "overlap":  # a row a cell: six digits are enough, and keep a large model's file in bounds
            write_atomic(out / name, table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
        else:
            write_table(out / name, table)


def write_comparison(out: Path, comparison: Comparison, *, settings: dict[str, str]) -> None:
    """Write the pictures into ``figures/`` and report.html and report.md into a folder.

    Parameters
    ----------
    out : Path
    comparison : Comparison
    settings : dict of str to str
        Shown at the end: the command, say.
    """
    # Imported here: the tables need no matplotlib.
    from rankprobe.report.compare_plots import draw_comparison
    from rankprobe.report.html import write_report
    from rankprobe.report.style import save_picture

    pictures = draw_comparison(comparison)
    for picture in pictures:
        save_picture(picture, out / "figures")
    write_report(out, comparison_page(comparison, pictures, settings=settings))


def comparison_page(comparison: Comparison, pictures: list[Picture], *, settings: dict[str, str]) -> Page:
    """Lay out the page."""
    by_name = {picture.name: picture for picture in pictures}

    def section(title: str, *wanted) -> list[Section]:
        found = [by_name.get(w) if isinstance(w, str) else w for w in wanted]
        return [Section(title, blocks)] if (blocks := [b for b in found if b is not None]) else []

    x, y = comparison.labels
    shared = () if comparison.same else ("overlap", "overlap_by_layer", _kinds(comparison), _best(comparison))
    sections = [
        *section("What X and Y share", *shared),
        *section("Layers against layers", "layers", _layers(comparison)),
        *section("Amplification of W0", _amplification(comparison)),
        *section("Intruder dimensions", "intruders", _intruders(comparison)),
        Section("How this was made", [_method(comparison), *([_skipped(comparison)] if len(comparison.skipped) else []),
                                      _settings(comparison, settings)]),
    ]
    title = f"The layers of {x}, compared" if comparison.same else f"What {x} and {y} share"
    n = len(comparison.matrices)
    return Page(title, f"X = {x}, Y = {y}; {n} {'matrix' if n == 1 else 'matrices'}, {_of(comparison)}",
                answer(comparison), sections)


def answer(comparison: Comparison, *, notes: bool = True) -> list[str]:
    """What was found, in sentences, each number beside what chance gives; then, unless told not to, the notes."""
    table, said = comparison.matrices, []
    n = len(table)
    if n and not comparison.same:
        above = int((table["phi_min_min"] > table["phi_min_min_random_high"]).sum())
        first = int((table["phi_1_1"] > table["phi_1_1_random_high"]).sum())
        said.append(
            f"φ is the share of their directions that two updates have in common, from 0 to 1. With all directions of "
            f"the smaller side φ = {_phi(table['phi_min_min'].median())} in the median of {n} "
            f"{'matrix' if n == 1 else 'matrices'}, where random subspaces have "
            f"{_phi(table['phi_min_min_random_mean'].median())}; {above} of {n} lie above the 95 % interval of chance."
        )
        said.append(
            f"The first direction of each alone: φ(1, 1) = {_phi(table['phi_1_1'].median())} in the median (random "
            f"{_phi(table['phi_1_1_random_mean'].median())}), {first} of {n} above chance."
        )
    grids = across_layers(comparison)
    for row in grids.itertuples():
        mean = say.number(row.mean_phi, max(3, _digits(row.random_mean)))
        verdict = ("above" if row.mean_phi > row.random_high else "below" if row.mean_phi < row.random_low
                   else "no different from")
        said.append(
            f"{row.kind}, {row.which}: mean φ({row.r}, {row.r}) over {row.pairs} pairs of layers is {mean}, "
            f"{verdict} chance ({_chance(row.random_mean, row.random_low, row.random_high)})."
        )
    amplified = comparison.amplification
    if len(amplified):
        factors = [f"{side} {part['factor'].median():.2g}" for side, part in _sides(comparison, amplified)]
        said.append(f"Amplification of what W0 has on dW's directions, median factor: {', '.join(factors)}.")
    if len(comparison.intruders):
        rows = comparison.intruders
        counts = [f"{side} {int(part['intruders'].sum())}" for side, part in _sides(comparison, rows)]
        control = int(rows[~rows["side"].isin(list(_SIDES))]["intruders"].sum())
        k, matrices = int(rows["k"].max()), rows["name"].nunique()
        said.append(
            f"Intruder dimensions among the {k} leading left singular vectors of W1, over {matrices} matrices: "
            f"{', '.join(counts)}; W0 against itself {control}."
        )
    if not notes:
        return said
    return [*said, *(f"{note}." for note in comparison.notes)] or ["Nothing was compared yet."]


def _sides(comparison: Comparison, table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """X's and Y's rows; X's alone where both are one input."""
    wanted = ["X"] if comparison.same else ["X", "Y"]
    return [(side, table[table["side"] == side]) for side in wanted if (table["side"] == side).any()]


def _kinds(comparison: Comparison) -> Table | None:
    if comparison.matrices.empty:
        return None
    rows = []
    for row in by_kind(comparison).itertuples():
        rows.append([
            Cell(row.kind), Cell(say.count(row.matrices)), Cell(f"{row.r_x:g}"), Cell(f"{row.r_y:g}"),
            Cell(_phi(row.phi_1_1)), Cell(_phi(row.phi_min_min), f"random {_phi(row.phi_min_min_random_mean)}"),
            Cell(f"{row.above_random} of {row.matrices}"), Cell(say.number(row.angle_min_deg, 1)),
            Cell(say.percent(100 * row.share_x_in_y)), Cell(say.percent(100 * row.share_y_in_x)),
        ])
    heads = ["kind", "matrices", "directions of X", "of Y", "φ(1, 1)", "φ, all of the smaller side", "above chance",
             "smallest angle, degrees", "X's energy in Y's span", "Y's in X's"]
    caption = (
        "Medians over the matrices of a kind. The energy is that of the leading part of dW; at random the share is the "
        "number of the other side's directions over all there are. Every matrix is in compare.csv, every φ(i, j) in "
        "overlap.csv and every principal angle in angles.csv, each with what random subspaces have."
    )
    return Table(heads, rows, caption)


def _best(comparison: Comparison) -> Table | None:
    """The matrices that share most, measured from chance."""
    table = comparison.matrices
    if len(table) < 2:
        return None
    excess = table["best_phi"] - table["best_phi_random_mean"]
    rows = [
        [Cell(r.name), Cell(f"({r.best_i}, {r.best_j})"),
         Cell(_phi(r.best_phi),
              f"random {_chance(r.best_phi_random_mean, r.best_phi_random_low, r.best_phi_random_high)}"),
         Cell(say.number(r.angle_min_deg, 1), f"random {say.number(r.angle_min_random_mean, 1)}")]
        for r in table.assign(excess=excess).nlargest(5, "excess").itertuples(index=False)
    ]
    caption = f"The five of {len(table)} matrices whose φ exceeds chance the most, and where; intervals are of chance."
    return Table(["matrix", "(i, j)", "φ(i, j)", "smallest angle, degrees"], rows, caption)


def _layers(comparison: Comparison) -> Table | None:
    grids = across_layers(comparison)
    if grids.empty:
        return None
    rows = [
        [Cell(f"{r.kind}: {r.which}", r.matrix), Cell(say.count(r.pairs)), Cell(say.count(r.r)),
         Cell(say.number(r.mean_phi, max(3, _digits(r.random_mean)))),
         Cell(_chance(r.random_mean, r.random_low, r.random_high)), Cell(say.percent(100 * r.above)),
         Cell(_phi(r.largest_phi), f"layers {r.layer_x} and {r.layer_y}")]
        for r in grids.itertuples()
    ]
    caption = (
        "Mean φ(r, r) over pairs of layers. Chance: the mean of so many pairs of random subspaces, its 95 % interval; "
        "of single pairs 2.5 % would lie above their own interval."
    )
    heads = ["kind", "pairs", "r", "mean φ", "chance", "pairs above chance", "largest φ"]
    return Table(heads, rows, caption)


def _amplification(comparison: Comparison) -> Table | None:
    table = comparison.amplification
    if table.empty:
        return None
    rows = []
    for side, part in _sides(comparison, table):
        for kind, one in part.groupby("kind", sort=False):
            m = one[["r", "base_norm", "update_norm", "on_update", "on_base", "on_random", "factor"]].median()
            rows.append([Cell(f"{side}: {kind}"), Cell(say.count(len(one))), Cell(f"{m['r']:g}"),
                         *(Cell(f"{m[c]:.3g}") for c in ("base_norm", "update_norm", "on_update", "on_base",
                                                        "on_random", "factor"))])
    heads = ["", "matrices", "r", "‖W0‖", "‖dW_r‖", "W0 on dW's directions", "on its own", "on random ones", "factor"]
    caption = (
        "Frobenius norms, medians over the matrices of a kind (the rows of Hu et al. 2021, table 7): "
        "‖UᵀW0Vᵀ‖ with the r leading directions of dW, of W0 itself, and of random ones. Factor = ‖dW_r‖ / ‖UᵀW0Vᵀ‖. "
        "Every matrix is in amplification.csv."
    )
    return Table(heads, rows, caption)


def _intruders(comparison: Comparison) -> Table | None:
    table = comparison.intruders
    if table.empty:
        return None
    rows = []
    hidden = ["Y"] if comparison.same else []
    for (side, kind), one in table[~table["side"].isin(hidden)].groupby(["side", "kind"], sort=False):
        name = side if side in _SIDES else f"{side} (control)"
        rows.append([Cell(f"{name}: {kind}"), Cell(say.count(len(one))), Cell(say.count(one["k"].max())),
                     Cell(say.count(one["intruders"].sum())), Cell(f"{one['intruders'].mean():.2g}"),
                     Cell(f"{one['cosine_min'].min():.2f}")])
    rows.sort(key=lambda row: row[0].text.startswith("W0"))
    eps = table["eps"].iloc[0]
    caption = (
        f"Left singular vectors of W1, among its k leading ones, whose largest |cosine| with any of W0's is below "
        f"{eps:g} (Shuttleworth et al. 2024). Every cosine is in intruder_cosines.csv."
    )
    return Table(["", "matrices", "k", "intruders", "a matrix", "least cosine"], rows, caption)


def _skipped(comparison: Comparison) -> Table:
    counts = comparison.skipped["reason"].value_counts()
    names = comparison.skipped.groupby("reason")["name"].first()
    rows = [[Cell(reason, f"{names[reason]}{', ...' if count > 1 else ''}"), Cell(say.count(count))]
            for reason, count in counts.head(8).items()]
    return Table(["not compared", "matrices"], rows, "Each is named in skipped.csv.")


def _method(comparison: Comparison) -> str:
    return (
        f"Directions: {_of(comparison)}; of a dense dW the 64 leading ones unless told otherwise, of an adapter all "
        f"that it has. φ(X, Y, i, j) = ‖X_iᵀ Y_j‖² / min(i, j). The random level is the exact mean for uniformly "
        f"random subspaces, the interval that of a Beta law with the exact variance; angles of random subspaces are "
        f"drawn. Decomposed in float64."
    )


def _settings(comparison: Comparison, settings: dict[str, str]) -> Table:
    return Table(["setting", "value"], [[Cell(key), Cell(value)] for key, value in settings.items()], "", 2)


def _of(comparison: Comparison) -> str:
    return {"right": "right singular vectors of dW", "left": "left singular vectors of dW",
            "A": "right singular vectors of the factors A"}[comparison.of]


def _phi(value: float) -> str:
    return say.number(value, _digits(value))


def _chance(mean: float, low: float, high: float) -> str:
    # A digit more where two would round a bound to the mean, and a value above chance to chance itself.
    return say.with_interval(mean, low, high, max(3, _digits(mean)))


def _digits(value: float) -> int:
    return 2 if value >= 0.1 else 3 if value >= 0.02 else 4
