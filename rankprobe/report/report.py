"""From finished runs to a folder that people read: tables, pictures, report.md and report.html."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pandas as pd

from rankprobe.experiment.output import PLAN_FILE
from rankprobe.experiment.store import write_atomic, write_table
from rankprobe.experiment.tuning import tuning_table
from rankprobe.report.comparison import comparisons, main_lora
from rankprobe.report.equivalence import MARGIN
from rankprobe.report.findings import Findings, Measured, find
from rankprobe.report.lora_config import answered_config
from rankprobe.report.paper_tables import table_2

# Every table and picture that some folder has.
TABLES = (
    "runs", "methods", "rank_sweep", "rank_answer", "claims", "ranks", "spectra", "truncation", "functional_rank",
    "latency", "predicted_curve", "predicted_summary", "table1", "table2", "table5", "table6", "table7", "figure3",
    "figure4", "intruders", "intrinsic_dimension", "intrinsic_curve", "intrinsic_comparison", "parameter_counts",
    "tuning",
)  # fmt: skip
PICTURES = (
    "accuracy_by_r", "predicted_curve", "truncation", "spectra", "energy_rank", "accuracy_by_parameters", "latency",
    "table1", "table7", "figure3", "figure4", "intruders", "intrinsic_dimension",
)  # fmt: skip


def build_report(
    runs: list[dict],
    latency: pd.DataFrame | None,
    published: pd.DataFrame,
    out: Path,
    *,
    title: str,
    settings: dict,
    figures: bool = True,
    more: Measured | None = None,
    main: str | None = None,
    margin: float = MARGIN,
) -> list[tuple[str, Findings]]:
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
    more : Measured, optional
        What else was measured; it belongs to the main comparison.
    main : str, optional
        The run_id of any run of the comparison that the report is about. It is written into ``out`` itself, with the
        way to the others; without it several comparisons are equals.
    margin : float
        What an r may differ by from full fine-tuning to be as good, as a fraction.

    Returns
    -------
    list of (str, Findings)
        Of each comparison, its folder's name inside ``out``, empty for the one that is in ``out`` itself.

    Notes
    -----
    A table that these runs do not have is left as it is: in a clone, which lacks predictions, what they made stays.

    Runs on different models, rows or settings never meet in a table, but for Table 2, which has a row for each method
    and task: each such comparison gets a folder of its own inside ``out``.
    """
    parts = comparisons(runs) or [[]]
    first = next((part for part in parts if any(run["run_id"] == main for run in part)), None)
    if first is None and main is not None:
        # That run is still to be done: where others of the only comparison on evaluation rows are, it is theirs.
        reported = [part for part in parts if part and part[0]["spec"]["split"] != "tuning"]
        first = reported[0] if len(reported) == 1 else None
    if first is not None:
        parts = [first, *(part for part in parts if part is not first)]
    alone = len(parts) == 1
    found = []
    for part in parts:
        top = alone or part is first
        mine = more if part is first or (first is None and alone) else None
        found.append(("" if top else _slug(part, parts), find(part, latency, published, mine, margin=margin)))
    if first is not None and more is not None:
        found[0][1].tables["table2"] = table_2([findings.tables["methods"] for _, findings in found], published)
    tried = [run for part in parts for run in part if run["spec"]["split"] == "tuning"]
    if first is not None and tried:
        found[0][1].tables["tuning"] = tuning_table(tried)
    for slug, findings in found:
        for name, table in findings.tables.items():
            if len(table.columns):
                write_table(out / slug / "tables" / f"{name}.csv", table)
        _write_config(out / slug / "lora_config.json", findings)
    if figures:
        write_pages(out, found, title=title, settings=settings)
    return found


def clear_report(out: Path) -> None:
    """Take away a folder's tables, pictures and pages, before it shows other runs: some they would not replace.

    A folder inside it that has a plan of its own is another report's and stays.
    """
    parts = {path.parent.parent for path in out.glob("*/tables/runs.csv")}
    others = [folder for folder in sorted(parts) if not (folder / PLAN_FILE).exists()]
    for folder in [*others, out]:
        for name in TABLES:
            (folder / "tables" / f"{name}.csv").unlink(missing_ok=True)
        for name in PICTURES:
            for suffix in ("svg", "png"):
                (folder / "figures" / f"{name}.{suffix}").unlink(missing_ok=True)
        for name in ("report.md", "report.html", "lora_config.json"):
            (folder / name).unlink(missing_ok=True)
    for folder in others:
        for path in (folder / "tables", folder / "figures", folder):
            with contextlib.suppress(OSError):  # not there, or holding a file of the user's own
                path.rmdir()


def _write_config(path: Path, findings: Findings) -> None:
    """lora_config.json of the first answer that names an r, the headline's if it does; taken away where none does."""
    main = main_lora(findings.runs)
    answers = sorted(findings.answers.items(), key=lambda item: not main or item[0] != main[0]["spec"]["targets"])
    configs = (answered_config(findings.runs, targets, found, findings.gain) for targets, found in answers)
    config = next((config for config in configs if config), None)
    if config is not None:
        write_atomic(path, json.dumps(config.config, indent=1) + "\n")
    else:
        path.unlink(missing_ok=True)


def write_pages(out: Path, found: list[tuple[str, Findings]], *, title: str, settings: dict) -> None:
    """Draw every comparison's pictures and write its pages, and one above them where there are several equals."""
    # Imported here: a refresh of the tables after each run need not wait for seaborn.
    from rankprobe.report.html import write_report
    from rankprobe.report.page import index_page, make_page, other_tasks, what_of
    from rankprobe.report.plots import draw_pictures
    from rankprobe.report.style import save_picture

    has_main = not found[0][0]
    for slug, findings in found:
        pictures = draw_pictures(findings)
        for picture in pictures:
            save_picture(picture, out / slug / "figures")
        # The title is the main comparison's own question.
        named = what_of(findings) if has_main and slug else title
        page = make_page(findings, pictures, title=named, settings=settings)
        if has_main and not slug and len(found) > 1:
            page.sections.insert(-1, other_tasks(found[1:]))
        write_report(out / slug, page)
    if len(found) > 1 and not has_main:
        write_report(out, index_page(found, title=title))


def _slug(part: list[dict], parts: list[list[dict]]) -> str:
    """A folder name for one of several comparisons: model, task, split, and a number where those are not enough."""

    def name(p: list[dict]) -> str:
        spec = p[0]["spec"]
        return re.sub(r"[^A-Za-z0-9.@_-]+", "-", f"{p[0]['model']['name']}-{spec['task']}-{spec['split']}")

    same = [p for p in parts if name(p) == name(part)]
    return name(part) if len(same) == 1 else f"{name(part)}-{1 + [p is part for p in same].index(True)}"
