"""Everything that one comparison found: its runs and all tables made from them."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from rankprobe.report.claims import claims_table
from rankprobe.report.tables import (
    merged_functional_ranks,
    merged_ranks,
    merged_spectra,
    merged_truncation,
    methods_table,
    rank_sweep_table,
    runs_table,
)
from rankprobe.report.verdicts import Evidence


@dataclass(frozen=True)
class Findings:
    """All tables of one comparison, by the name of their CSV file. A table is empty while its data are missing.

    Attributes
    ----------
    runs : list of dict
        run.json contents with ``path``.
    tables : dict of str to DataFrame
        runs, methods, rank_sweep, claims, ranks, spectra, truncation, functional_rank, latency.
    """

    runs: list[dict]
    tables: dict[str, pd.DataFrame]


def find(runs: list[dict], latency: pd.DataFrame | None, published: pd.DataFrame) -> Findings:
    """All tables of one comparison."""
    methods, ranks = methods_table(runs, latency), merged_ranks(runs)
    tables = {
        "runs": runs_table(runs),
        "methods": methods,
        "rank_sweep": rank_sweep_table(methods),
        "claims": claims_table(Evidence(runs, methods, ranks, latency, published)),
        "ranks": ranks,
        "spectra": merged_spectra(runs),
        "truncation": merged_truncation(runs),
        "functional_rank": merged_functional_ranks(runs),
        "latency": pd.DataFrame() if latency is None else latency,
    }
    return Findings(runs, tables)
