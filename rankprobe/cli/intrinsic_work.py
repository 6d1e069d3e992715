"""From an intrinsic dimension's runs to its folder: tables, picture and page."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pandas as pd

from rankprobe.cli.show import print_table
from rankprobe.errors import UsageError
from rankprobe.experiment.intrinsic import IntrinsicSweep
from rankprobe.experiment.store import load_runs
from rankprobe.report.html import write_report
from rankprobe.report.intrinsic import beside_table, curve_table, dimensions_table, write_tables
from rankprobe.report.intrinsic_cells import beside_cells, dimension_cells
from rankprobe.report.intrinsic_plots import intrinsic_curve
from rankprobe.report.numbers import count
from rankprobe.report.page import Page, Section
from rankprobe.report.style import save_picture, style


def render_intrinsic(
    out: Path, sweep: IntrinsicSweep, run_ids: list[str], *, figures: bool = True, command: str = ""
) -> pd.DataFrame:
    """Write the tables (with figures, the picture and pages too) of what is finished; the table of dimensions."""
    store = sweep.place.runs
    runs = load_runs(store / run_id for run_id in run_ids)
    # LoRA's runs on the very same rows, if the store has any, are what d90 is set beside.
    others = _of_the_same(store, runs)
    dimensions = dimensions_table(runs, sweep.share)
    tables = {"intrinsic_curve": curve_table(runs), "intrinsic_dimension": dimensions,
              "comparison": beside_table(dimensions, [*runs, *others])}  # fmt: skip
    write_tables(out, tables)
    if figures and len(dimensions):
        with style():
            picture = intrinsic_curve(tables["intrinsic_curve"], dimensions)
        save_picture(picture, out / "figures")
        first = runs[0]
        blocks = [picture, dimension_cells(dimensions), beside_cells(tables["comparison"])]
        sections = [Section("How small a subspace is enough", [b for b in blocks if b is not None]),
                    Section("How this was made", [f"Command: {command}"])]  # fmt: skip
        title = f"Intrinsic dimension of {first['task']['name']} for {first['model']['name']}"
        subtitle = f"{len(runs)} finished runs, {first['task']['n_train']:,} training rows"
        write_report(out, Page(title, subtitle, answer(dimensions), sections))
    return dimensions


def answer(dimensions: pd.DataFrame) -> list[str]:
    """A sentence a method and share, with its interval."""
    sentences = []
    for _, row in dimensions.iterrows():
        of = "full fine-tuning's score" if row["of"] == "score" else "what full fine-tuning gains over the head"
        name, share = row["method"].upper(), f"{100 * row['share']:g} % of {of}"
        if math.isnan(row["d"]):
            sentences.append(f"No d of {name} can be given for {share}: {row['reason']}.")
        elif math.isinf(row["d"]):
            above = f" (95 % interval from {count(row['ci_low'])} on)" if row["ci_low"] < row["d_below"] else ""
            sentences.append(f"{name} reaches {share} at no d measured, up to {count(row['d_below'])}{above}.")
        else:
            why = f"; {row['reason']}" if row["reason"] else ""
            sentences.append(
                f"{name} reaches {share} from d = {count(row['d'])} [{count(row['ci_low'])}, {count(row['ci_high'])}] "
                f"on, {row['d_pct']:.2g} % of {count(row['D'])} weights{why}."
            )
    return sentences


def show_dimensions(dimensions: pd.DataFrame) -> None:
    """Print the table of dimensions."""
    left_out = ["ci_method", "D", "n_eval", "over_did", "over_did_ci_low", "over_did_ci_high"]
    shown = dimensions.drop(columns=left_out).rename(columns=lambda c: c.replace("_", " "))
    print_table(shown, title="Smallest d for a share of full fine-tuning's score, or of its gain over the head")


def _of_the_same(store: Path, runs: list[dict]) -> list[dict]:
    """Finished LoRA runs in a store on the model, rows and settings of some runs."""
    if not runs:
        return []
    first = runs[0]
    found = []
    for folder in sorted(store.glob("lora-*")):
        with contextlib.suppress(UsageError):  # a damaged record is of a run that this command does not do
            found += load_runs([folder])
    same = ("model", "task")
    return [
        run for run in found
        if run["status"] == "ok" and run["kind"] == "train"
        and all(run[key].get("sha256") == first[key].get("sha256") for key in same)
        and run["task"]["eval_sha256"] == first["task"]["eval_sha256"]
        and all(run["spec"].get(key) == first["spec"].get(key) for key in ("dtype", "epochs", "max_length", "split",
                                                                           "device", "threads", "batch_size"))
    ]  # fmt: skip
