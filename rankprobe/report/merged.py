"""What each run folder has a table of, of all runs of a comparison together: ranks, spectra, cuts."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

from rankprobe.analysis.rank_columns import INTEGERS
from rankprobe.report.comparison import finished_ok, one_comparison, standing_for


def merged_ranks(runs: list[dict]) -> pd.DataFrame:
    """ranks.csv of all finished runs, with run_id, method, r and seed."""
    return _merged(finished_ok(one_comparison(runs)), "ranks.csv")


def merged_spectra(runs: list[dict]) -> pd.DataFrame:
    """spectra.csv of the first finished seed for each method, targets and r; the others' stay in their run folders.

    Singular values have six significant digits here: the table is for reading and drawing.
    """
    first = [group[0] for group in standing_for(one_comparison(runs))]
    table = _merged(first, "spectra.csv", ("run_id",))
    if len(table):
        table["sigma"] = [float(f"{s:.6g}") for s in table["sigma"]]
    return table


def merged_truncation(runs: list[dict]) -> pd.DataFrame:
    """truncation.csv of all finished runs whose curve is whole, with run_id, method, r and seed."""
    # It grows with each k; functional_rank.csv is written last. Half a curve's largest k is not the whole update.
    whole = [run for run in finished_ok(one_comparison(runs)) if (Path(run["path"]) / "functional_rank.csv").exists()]
    return _merged(whole, "truncation.csv")


def merged_functional_ranks(runs: list[dict]) -> pd.DataFrame:
    """functional_rank.csv of all finished runs that have one, with run_id, method, r and seed."""
    return _merged(finished_ok(one_comparison(runs)), "functional_rank.csv")


def whole_numbers(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Whole numbers that may be missing stay whole numbers in the CSV: ``8``, not ``8.0``."""
    for column in columns:
        if column in table:
            table[column] = pd.to_numeric(table[column]).round().astype("Int64")
    return table


def _merged(runs: list[dict], name: str, keys: tuple[str, ...] = ("run_id", "method", "r", "seed")) -> pd.DataFrame:
    # Files of one header are parsed together: a thousand small ones by themselves take pandas ten times as long.
    bodies: dict[str, list[str]] = {}
    owners: dict[str, list[dict]] = {}
    for run in runs:
        path = Path(run["path"]) / name
        if path.exists():
            header, _, body = path.read_text(encoding="utf-8").partition("\n")
            bodies.setdefault(header, []).append(body)
            owners.setdefault(header, []).extend([run] * body.count("\n"))
    tables = []
    for header, found in bodies.items():
        # functional_rank.csv's "method" is the interval's; in a table of many runs it is how each was trained.
        table = pd.read_csv(io.StringIO("\n".join([header, "".join(found)]))).rename(columns={"method": "ci_method"})
        for place, key in enumerate(keys):
            of = [run["run_id"] if key == "run_id" else run["spec"].get(key) for run in owners[header]]
            table.insert(place, key, of)
        tables.append(table)
    if not tables:
        return pd.DataFrame()
    # Of runs of an earlier version some columns are missing: empty there.
    merged = pd.concat(tables, ignore_index=True)
    place = {run["run_id"]: i for i, run in enumerate(runs)}
    merged = merged.sort_values("run_id", key=lambda ids: ids.map(place), kind="stable", ignore_index=True)
    return whole_numbers(merged, "r", *INTEGERS)
