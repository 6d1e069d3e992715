"""Tables and summaries on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from rankprobe.errors import WorkError, must
from rankprobe.experiment.store import ERROR_FILE


def print_table(table: pd.DataFrame, *, title: str, notes: str | None = None) -> None:
    """Print a DataFrame for people: thousands separated, four significant digits, empty where there is no value.

    Headers wrap where the terminal is narrow; numbers and words do not. Where that is not enough columns stand closer,
    and what is wider still goes past the edge: rich would cut the last columns off without a word.
    """
    out = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", caption=notes, caption_justify="left")
    for name in table.columns:
        cells = [_cell(value) for value in table[name]]
        number = pd.api.types.is_numeric_dtype(table[name])
        longest = max(len(word) for cell in (str(name), *cells) for word in cell.split() or [""])
        out.add_column(str(name), justify="right" if number else "left", overflow="fold", min_width=min(longest, 44))
    for row in table.itertuples(index=False):
        out.add_row(*(_cell(value) for value in row))
    console = Console(width=None if Console().is_terminal else 140)
    if _drawn_width(console, out) > console.width:
        out.padding, out.collapse_padding, out.pad_edge = (0, 1), True, False
    while (width := _drawn_width(console, out)) > console.width:
        console.width = width
    console.print(out)


def _drawn_width(console: Console, table: Table) -> int:
    """Cells of the widest line before the console crops it: columns' least widths can add up to more than there are."""
    drawn = "".join(segment.text for segment in console.render(table))
    return max(cell_len(line) for line in drawn.splitlines())


def run_summary(record: dict, folder: Path) -> None:
    """The figures of one run and where its files are."""
    lines = [f"{record['run_id']}: {record['status']}"]
    if record.get("metrics"):
        n = record["task"]["n_eval"]
        scores = ", ".join(f"{name} {value:.4f}" for name, value in record["metrics"].items() if value is not None)
        lines.append(f"  {scores} on {n:,} rows of {record['task']['name']} ({record['task']['split']} rows)")
    if record["status"] != "failed":
        params, timings = record["params"], record["timings"]
        share = params["trainable"] / params["total"]
        lines.append(
            f"  {params['trainable']:,} of {params['total']:,} parameters trained "
            f"({share:.2%}; head {params['head']:,})"
        )
        peak, pack = timings["peak_memory_bytes"], record.get("pack")
        memory = f"peak memory {peak / 2**20:,.0f} MiB" if peak is not None else "peak memory not seen alone"
        packed = f"; its share of {pack['size']} runs trained together" if pack else ""
        lines.append(
            f"  {timings['steps']:,} steps in {timings['train_time_s']:.1f} s, "
            f"{timings['tokens_per_s']:,.0f} tokens/s, {memory}{packed}"
        )
        if ended := best_epoch(record):
            lines.append(f"  {ended}, by the loss on {record['early_stop']['n_rows']:,} tuning rows")
    lines.append(f"  {folder}")
    console = Console()
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def best_epoch(record: dict) -> str:
    """``best epoch 4 of 5``, where tuning rows may stop the run; else empty."""
    found = record.get("early_stop") or {}
    return f"best epoch {found['best_epoch']} of {len(found['held_out_losses'])}" if found.get("best_epoch") else ""


def problem(record: dict, folder: Path) -> str:
    """What went wrong in a run that diverged or failed, in one line."""
    if record["status"] == "diverged":
        return f"{record['run_id']} diverged: {record['error']}"
    error = " ".join(str(record["error"]).split())[:300]
    return must(record["run_id"], "end without an error", error, f"See {folder / ERROR_FILE}")


def raise_bad(bad: Iterable[dict], total: int, runs: Path) -> None:
    """Say that some of a command's runs came to nothing, and why the first of them did.

    Raises
    ------
    WorkError
        If there are any.
    """
    records = list(bad)
    if records:
        why = problem(records[0], runs / records[0]["run_id"])
        raise WorkError(f"{len(records)} of {total} runs diverged or failed. {why}")


def _cell(value: object) -> str:
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
