"""Which pictures a report has, in its order."""

from __future__ import annotations

from rankprobe.report.findings import Findings
from rankprobe.report.intrinsic_plots import intrinsic_curve
from rankprobe.report.latency_plots import latency_ratios, table_1_picture
from rankprobe.report.predicted_plots import predicted_picture
from rankprobe.report.rank_plots import energy_heat_map, spectra, truncation_beside_energy
from rankprobe.report.score_plots import accuracy_by_parameters, accuracy_by_r
from rankprobe.report.style import Picture, style
from rankprobe.report.subspace_plots import figure_3, figure_4, intruders_by_r, table_7_dots


def draw_pictures(findings: Findings) -> list[Picture]:
    """Every picture for which there are data.

    Parameters
    ----------
    findings : Findings

    Returns
    -------
    list of Picture
        Each with its caption; not saved yet.
    """
    drawers = (
        accuracy_by_r,
        predicted_picture,
        truncation_beside_energy,
        spectra,
        energy_heat_map,
        accuracy_by_parameters,
        latency_ratios,
        table_1_picture,
        table_7_dots,
        figure_3,
        figure_4,
        intruders_by_r,
        _dimension,
    )
    with style():
        return [picture for draw in drawers if (picture := draw(findings)) is not None]


def _dimension(findings: Findings) -> Picture | None:
    tables = findings.tables
    if "intrinsic_curve" not in tables:
        return None
    return intrinsic_curve(tables["intrinsic_curve"], tables["intrinsic_dimension"])
