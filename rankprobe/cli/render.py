"""A folder's tables, pictures and pages from the runs that its plan names, and when they are due to be made again."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd

from rankprobe.cli.shown import SHOWS, replaced
from rankprobe.experiment.output import claim_output
from rankprobe.experiment.pair_files import read_pairs
from rankprobe.experiment.store import load_runs, read_latency
from rankprobe.paper.published import published
from rankprobe.report.answer import answer
from rankprobe.report.cells import Code
from rankprobe.report.equivalence import MARGIN
from rankprobe.report.findings import Findings, Measured
from rankprobe.report.intrinsic import curve_table, dimensions_table
from rankprobe.report.rank_cells import answer_blocks
from rankprobe.report.report import build_report, clear_report
from rankprobe.report.table1 import table_1

# Between two renewals lies this many times what one takes.
_REST = 20.0


class Renewal:
    """When files that a reader may look at are due to be written again: at most a twentieth of the time goes into it.

    Parameters
    ----------
    least_s : float
        Not more often than this.
    """

    def __init__(self, *, least_s: float = 0.0) -> None:
        self._least, self._began = least_s, 0.0
        self._next = time.monotonic() + least_s

    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._next

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        now = time.monotonic()
        self._next = now + max(self._least, _REST * (now - self._began))


def render(out: Path, plan: dict, runs_folder: Path, *, figures: bool = True) -> list[tuple[str, Findings]]:
    """Write tables (and pictures and pages) from the finished runs that a plan names; what they say, by folder.

    Where the folder shows other runs (see :mod:`rankprobe.cli.shown`) nothing is written until there is one to show
    instead; they are taken away then.
    """
    runs = load_runs(runs_folder / run_id for run_id in plan["runs"])
    if SHOWS in plan:
        if not replaced(plan, runs):
            return []
        clear_report(out)
        del plan[SHOWS]
        claim_output(out, plan)
    latency = read_latency(runs_folder / plan["latency"]) if plan.get("latency") else None
    settings = {"command": plan["command"]} | ({"learning rates": plan["note"]} if plan.get("note") else {})
    return build_report(runs, latency, published(), out, title=plan["title"], settings=settings, figures=figures,
                        more=measured(plan, runs_folder, counts=figures), main=plan.get("main"),
                        margin=plan.get("margin", MARGIN))  # fmt: skip


def answer_lines(found: list[tuple[str, Findings]]) -> list[str]:
    """What a report's runs answer, a paragraph each: the page's sentences, its notes, the config for peft."""
    lines = []
    for slug, findings in found:
        if not findings.runs or findings.runs[0]["spec"]["split"] == "tuning":
            continue
        lines += [f"{slug}: {sentence}" if slug else sentence for sentence in answer(findings)]
        for block in answer_blocks(findings):
            if isinstance(block, Code):
                lines[-1] += f" {block.text}"
            elif isinstance(block, str):
                lines.append(block)
    return lines


def measured(plan: dict, runs_folder: Path, *, counts: bool) -> Measured | None:
    """What a plan measured beside trainings; None where it is a sweep's, which has no such part.

    ``counts``: the paper's parameter counts beside ours too, which take half a minute to count.
    """
    if not plan.get("paper", plan.get("main")):  # plans of earlier versions have a main run where they are the paper's
        return None
    parameter_counts = pd.DataFrame()
    if counts:
        from rankprobe.paper.parameter_counts import paper_parameter_counts  # torch

        parameter_counts = paper_parameter_counts()
    pairs = {name: runs_folder / run_id for name, run_id in (plan.get("pairs") or {}).items()}
    table1 = read_latency(runs_folder / plan["table1"]) if plan.get("table1") else None
    subspaces = load_runs(runs_folder / run_id for run_id in plan.get("intrinsic") or [])
    return Measured(
        table1=pd.DataFrame() if table1 is None else table_1(table1, published()),
        pairs=read_pairs(pairs),
        intrinsic=dimensions_table(subspaces),
        intrinsic_curve=curve_table(subspaces),
        parameter_counts=parameter_counts,
    )
