"""From finished runs to a folder that people read: tables, pictures, report.md and report.html."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from rankprobe.experiment.store import write_table
from rankprobe.report.comparison import comparisons
from rankprobe.report.findings import Findings, find


def build_report(
    runs: list[dict],
    latency: pd.DataFrame | None,
    published: pd.DataFrame,
    out: Path,
    *,
    title: str,
    settings: dict,
    figures: bool = True,
) -> None:
    """Write ``tables/`` and, with figures, ``figures/``, report.md and report.html into a folder.

    Parameters
    ----------
    runs : list of dict
        run.json contents, each with ``path``, its folder. May be partial: what is missing is said to be not run yet.
    latency : DataFrame or None
        latency.csv of the model.
    published : DataFrame
        From :func:`rankprobe.paper.published.published`, handed in by the caller.
    out : Path
        Made where it is not there. Each file is replaced whole, so that it can be read at any moment.
    title : str
    settings : dict of str to str
        Shown at the end of the report: the command, say.
    figures : bool
        False writes the tables alone, in a second or so: for a refresh after each run.

    Notes
    -----
    Runs on different models, rows or settings never meet in a table: each such comparison gets a folder of its own
    inside ``out``.
    """
    parts = comparisons(runs) or [[]]
    for part in parts:
        folder = out if len(parts) == 1 else out / _slug(part, parts)
        found = find(part, latency, published)
        for name, table in found.tables.items():
            if len(table.columns):
                write_table(folder / "tables" / f"{name}.csv", table)
        if figures:
            write_pages(folder, found, title=title, settings=settings)
    if figures and len(parts) > 1:
        pass


def write_pages(folder: Path, found: Findings, *, title: str, settings: dict) -> None:
    """Draw one comparison's pictures and write its pages."""
    # Half a second of imports that a refresh of the tables, after each run, need not wait for.
    from rankprobe.report.html import write_report
    from rankprobe.report.page import make_page
    from rankprobe.report.plots import draw_pictures
    from rankprobe.report.style import save_picture

    pictures = draw_pictures(found)
    for picture in pictures:
        save_picture(picture, folder / "figures")
    write_report(folder, make_page(found, pictures, title=title, settings=settings))


def _slug(part: list[dict], parts: list[list[dict]]) -> str:
    """A folder name for one of several comparisons: model, task, split, and a number where those are not enough."""

    def name(p: list[dict]) -> str:
        spec = p[0]["spec"]
        return re.sub(r"[^A-Za-z0-9.@_-]+", "-", f"{p[0]['model']['name']}-{spec['task']}-{spec['split']}")

    same = [p for p in parts if name(p) == name(part)]
    return name(part) if len(same) == 1 else f"{name(part)}-{1 + [p is part for p in same].index(True)}"
