"""What the report says, as text, tables and pictures; the templates only lay it out."""

from __future__ import annotations

from dataclasses import dataclass, field

from rankprobe.report import verdicts as bounds
from rankprobe.report.answer import answer
from rankprobe.report.findings import Findings
from rankprobe.report.page_tables import (
    Table,
    bad_runs_cells,
    claims_cells,
    configurations_cells,
    cost_cells,
    functional_cells,
    latency_cells,
    provenance_cells,
    ranks_cells,
)
from rankprobe.report.style import Picture

NOT_RUN = "Not run yet."


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, then tables and pictures."""

    title: str
    blocks: list[str | Table | Picture] = field(default_factory=list)


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
    by_name = {picture.name: picture for picture in pictures}

    def blocks(*wanted) -> list:
        found = [by_name.get(w) if isinstance(w, str) else w for w in wanted]
        return [b for b in found if b is not None] or [NOT_RUN]

    sections = [
        Section("Claims", [claims_cells(findings)]),
        Section("What r is needed", blocks("accuracy_by_r", configurations_cells(findings))),
        Section(
            "How low is the rank of dW?",
            blocks("truncation", functional_cells(findings), "energy_rank", "spectra", ranks_cells(findings)),
        ),
        Section("What it costs to train", blocks("accuracy_by_parameters", cost_cells(findings))),
        Section("Latency", blocks("latency", latency_cells(findings))),
        Section(
            "How this was made",
            [_bounds_text(), *([t] if (t := bad_runs_cells(findings)) else []), provenance_cells(findings, settings)],
        ),
    ]
    return Page(title, _subtitle(findings), answer(findings), sections)


def _subtitle(findings: Findings) -> str:
    if not findings.runs:
        return "no finished run"
    run, table = findings.runs[0], findings.tables["runs"]
    good = int((table["status"] == "ok").sum())
    text = f"{run['model']['name']} on {run['task']['name']}, {good} finished runs"
    return text + (f", {len(table) - good} diverged or failed" if good < len(table) else "")


def _bounds_text() -> str:
    return (
        f"A claim is supported where its interval lies inside the bound, contradicted where it lies outside, and inconclusive "
        f"else. Bounds: {bounds.MARGIN_POINTS:g} points for scores; ±{100 * bounds.LATENCY_MARGIN:g} % for latency, judged only "
        f"where two copies of the base agree within ±{100 * bounds.LATENCY_AA_MARGIN:g} %; {bounds.FEW_PARAMETERS_PCT:g} % of "
        f"the parameters; {bounds.LOW_ENERGY_PCT:g} % of the directions for rank by energy; k = {bounds.LOW_FUNCTIONAL_RANK} "
        f"for rank by function. All numbers are in tables/*.csv beside this page, the runs in the run store."
    )
