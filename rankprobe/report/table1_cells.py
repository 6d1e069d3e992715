"""Table 1 in words: a row a variant, a column a shape, the paper's overhead in small print."""

from __future__ import annotations

import pandas as pd

from rankprobe.report import numbers as say
from rankprobe.report.cells import Cell, Table
from rankprobe.report.findings import Findings
from rankprobe.report.table1 import VARIANT_NAMES


def table_1_cells(findings: Findings) -> Table | None:
    """Overheads with their intervals; None while nothing is measured.

    Parameters
    ----------
    findings : Findings
        With :func:`rankprobe.report.table1.table_1` as its table ``table1``.
    """
    table = findings.tables.get("table1")
    if table is None or table.empty:
        return None
    shapes = list(dict.fromkeys(zip(table["batch"], table["length"], strict=True)))
    rows = []
    for variant in dict.fromkeys(table["variant"]):
        of = table[table["variant"] == variant].set_index(["batch", "length"])
        line = [Cell(VARIANT_NAMES.get(variant, variant), _parameters(variant, of))]
        line += [_cell(variant, of.loc[shape]) if shape in of.index else Cell(say.MISSING) for shape in shapes]
        rows.append(line)
    first, rounds = table.iloc[0], sorted(set(table["n"].astype(int)))
    n = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    caption = (
        f"What each variant adds to the base's latency, in %: of ratios within a round, median of n = {n} rounds "
        f"interleaved in one process, with 95 % intervals ({first['ci_method']}); the base's row is its latency. "
        f"{first['model']} with random weights, LoRA r = {int(first['r'])} on {first['targets']}, one forward pass "
        f"with the logits of the last position, {first['dtype']} on {first['device_name']}"
        f"{_threads(first)}. The paper's numbers: GPT-2 medium on an NVIDIA Quadro RTX 8000."
    )
    return Table(["variant", *(f"batch {batch}, length {length}" for batch, length in shapes)], rows, caption)


def _cell(variant: str, row: pd.Series) -> Cell:
    known = not say.missing(row["paper_latency_ms"])
    if variant == "base":
        paper = f"paper: {say.number(row['paper_latency_ms'])} ms" if known else ""
        return Cell(say.with_interval(row["latency_ms"], row["ci_low"], row["ci_high"], 1, unit="ms"), paper)
    ends = row["overhead_pct"], row["overhead_ci_low"], row["overhead_ci_high"]
    paper = f"paper: {say.number(row['paper_overhead_pct'], sign=True)} %" if known and variant != "base_copy" else ""
    return Cell(say.with_interval(*ends, 1, unit="%", sign=True), paper)


def _parameters(variant: str, rows: pd.DataFrame) -> str:
    """What the variant's method trains; of adapters a count for each shape."""
    if variant == "base_copy":
        return ""
    counts = " / ".join(say.count(count) for count in dict.fromkeys(rows["method_params"]))
    return f"{counts} parameters" + (", all" if variant == "base" else " trained")


def _threads(row: pd.Series) -> str:
    return f", {int(row['threads'])} threads" if row["device"] == "cpu" else ""
