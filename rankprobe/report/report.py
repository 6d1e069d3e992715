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
    found = [("" if len(parts) == 1 else _slug(part, parts), find(part, latency, published)) for part in parts]
    for slug, findings in found:
        for name, table in findings.tables.items():
            if len(table.columns):
                write_table(out / slug / "tables" / f"{name}.csv", table)
    if figures:
        write_pages(out, found, title=title, settings=settings)


def write_pages(out: Path, found: list[tuple[str, Findings]], *, title: str, settings: dict) -> None:
    """Draw every comparison's pictures and write its pages, and one above them where there are several."""
    # Imported here: a refresh of the tables after each run need not wait for seaborn.
    from rankprobe.report.html import write_report
    from rankprobe.report.page import index_page, make_page
    from rankprobe.report.plots import draw_pictures
    from rankprobe.report.style import save_picture

    for slug, findings in found:
        pictures = draw_pictures(findings)
        for picture in pictures:
            save_picture(picture, out / slug / "figures")
        write_report(out / slug, make_page(findings, pictures, title=title, settings=settings))
    if len(found) > 1:
        write_report(out, index_page(found, title=title))


def _slug(part: list[dict], parts: list[list[dict]]) -> str:
    """A folder name for one of several comparisons: model, task, split, and a number where those are not enough."""

    def name(p: list[dict]) -> str:
        spec = p[0]["spec"]
        return re.sub(r"[^A-Za-z0-9.@_-]+", "-", f"{p[0]['model']['name']}-{spec['task']}-{spec['split']}")

    same = [p for p in parts if name(p) == name(part)]
    return name(part) if len(same) == 1 else f"{name(part)}-{1 + [p is part for p in same].index(True)}"
