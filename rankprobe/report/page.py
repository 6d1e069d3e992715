"""What the report says, as text, tables and pictures; the templates only lay it out."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from rankprobe.report import verdicts as bounds
from rankprobe.report.answer import answer
from rankprobe.report.cells import Code, Table
from rankprobe.report.collapsed import learned_nothing_text
from rankprobe.report.findings import Findings
from rankprobe.report.intrinsic_cells import beside_cells, dimension_cells
from rankprobe.report.page_tables import (
    bad_runs_cells,
    claims_cells,
    configurations_cells,
    cost_cells,
    functional_cells,
    latency_cells,
    provenance_cells,
    ranks_cells,
)
from rankprobe.report.paper_cells import (
    parameter_cells,
    table_2_cells,
    table_5_cells,
    table_6_cells,
    table_7_cells,
)
from rankprobe.report.predicted_plots import predicted_cells
from rankprobe.report.rank_cells import answer_blocks
from rankprobe.report.rate_cells import rates_cells
from rankprobe.report.style import Picture
from rankprobe.report.table1_cells import table_1_cells

NOT_RUN = "Not run yet."


@dataclass(frozen=True)
class Link:
    """A way to another page of the same report: the folder of that page, relative to this one's."""

    text: str
    folder: str


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, links, tables and pictures."""

    title: str
    blocks: list[str | Link | Table | Code | Picture] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """A report: title, the answer, sections."""

    title: str
    subtitle: str
    answer: list[str]
    sections: list[Section]


def make_page(findings: Findings, pictures: list[Picture], *, title: str, settings: dict) -> Page:
    """Lay out one comparison.

    Parameters
    ----------
    findings : Findings
    pictures : list of Picture
    title : str
    settings : dict of str to str
        What the caller wants told, such as the command.
    """
    by_name = {each.name: each for each in pictures}
    picture = by_name.get

    def blocks(*wanted: str | Table | Code | Picture | None) -> list:
        return [b for b in wanted if b is not None] or [NOT_RUN]

    sections = [
        Section("Claims", [claims_cells(findings)]),
        Section(
            "What r is needed",
            blocks(
                *answer_blocks(findings),
                picture("accuracy_by_r"),
                configurations_cells(findings),
                learned_nothing_text(findings),
            ),
        ),
        *_predicted(findings, by_name),
        Section(
            "How low is the rank of dW?",
            blocks(
                picture("truncation"),
                functional_cells(findings),
                picture("energy_rank"),
                picture("spectra"),
                ranks_cells(findings),
            ),
        ),
        Section("What it costs to train", blocks(picture("accuracy_by_parameters"), cost_cells(findings))),
        Section("Latency", blocks(picture("latency"), latency_cells(findings))),
        *_papers_tables(findings, by_name),
        *([Section("Learning rates", [rates])] if (rates := rates_cells(findings)) else []),
        Section(
            "How this was made",
            [_bounds_text(), *([t] if (t := bad_runs_cells(findings)) else []), provenance_cells(findings, settings)],
        ),
    ]
    return Page(title, _subtitle(findings), answer(findings), sections)


def _predicted(findings: Findings, pictures: dict[str, Picture]) -> list[Section]:
    """What one run says of every r; none where no run was cut, or there is no sweep to hold it against."""
    cells = predicted_cells(findings)
    found = [b for b in (pictures.get("predicted_curve"), cells) if b is not None]
    return [Section("What one run foresees of every r", found)] if cells is not None else []


def _papers_tables(findings: Findings, pictures: dict[str, Picture]) -> list[Section]:
    """The paper's own tables and figures; none where nothing of them was asked for."""
    parts = {
        "Methods beside LoRA (Table 2)": (table_2_cells(findings),),
        "Which matrices (Table 5)": (table_5_cells(findings),),
        "r by targets (Table 6)": (table_6_cells(findings),),
        "What dW amplifies (Table 7)": (pictures.get("table7"), table_7_cells(findings)),
        "What r = 8 and r = 64, and two seeds, share (Figures 3 and 4)": (
            pictures.get("figure3"),
            pictures.get("figure4"),
        ),
        "Directions that W0 did not have": (pictures.get("intruders"),),
        "Latency of adapters (Table 1)": (pictures.get("table1"), table_1_cells(findings)),
        "Intrinsic dimension": (
            pictures.get("intrinsic_dimension"),
            dimension_cells(findings.tables.get("intrinsic_dimension", pd.DataFrame())),
            beside_cells(findings.tables.get("intrinsic_comparison", pd.DataFrame())),
        ),
        "Parameter counts that the paper prints": (parameter_cells(findings),),
    }
    return [Section(title, found) for title, blocks in parts.items() if (found := [b for b in blocks if b is not None])]


def index_page(parts: list[tuple[str, Findings]], *, title: str) -> Page:
    """The page above several comparisons, which share no table: each with its answer and the way to its own page.

    Parameters
    ----------
    parts : list of (folder name, Findings)
    title : str
    """
    sections = [
        Section(_subtitle(findings), [*answer(findings), Link("Tables and pictures", folder)])
        for folder, findings in parts
    ]
    words = f"{len(parts)} comparisons: models, rows or settings differ between them, so their numbers share no table."
    return Page(title, f"{len(parts)} comparisons", [words], sections)


def other_tasks(parts: list[tuple[str, Findings]]) -> Section:
    """The way from the page of the main comparison to those of the others."""
    blocks = [
        block
        for folder, findings in parts
        for block in (f"{_subtitle(findings)}.", Link("Tables and pictures", folder))
    ]
    return Section("Other tasks", blocks)


def what_of(findings: Findings) -> str:
    """The model and the rows of a comparison."""
    run = findings.runs[0]
    rows = " (tuning rows)" if run["spec"]["split"] == "tuning" else ""
    return f"{run['model']['name']} on {run['task']['name']}{rows}"


def _subtitle(findings: Findings) -> str:
    if not findings.runs:
        return "no finished run"
    table = findings.tables["runs"]
    good = int((table["status"] == "ok").sum())
    text = f"{what_of(findings)}, {good} finished run{'s' if good != 1 else ''}"
    return text + (f", {len(table) - good} diverged or failed" if good < len(table) else "")


def _bounds_text() -> str:
    return (
        f"A claim is supported where its interval lies inside the bound, contradicted where it lies outside, and "
        f"inconclusive else. Bounds: {bounds.MARGIN_POINTS:g} points for scores; ±{100 * bounds.LATENCY_MARGIN:g} % "
        f"for merged LoRA's latency, judged only where two copies of the base agree within "
        f"±{100 * bounds.LATENCY_AA_MARGIN:g} %; unmerged LoRA's must lie above 1 and outside what two copies show; "
        f"{bounds.FEW_PARAMETERS_PCT:g} % of the parameters; {bounds.LOW_ENERGY_PCT:g} % of the directions for rank by "
        f"energy; k = {bounds.LOW_FUNCTIONAL_RANK} for rank by function. All numbers are in tables/*.csv beside this "
        f"page, the runs in the run store."
    )
