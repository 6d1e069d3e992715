"""Tables and summaries on a terminal."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table


def print_table(table: pd.DataFrame, *, title: str, notes: str | None = None) -> None:
    """Print a DataFrame for people: thousands separated, six significant digits, empty where there is no value."""
    out = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", caption=notes, caption_justify="left")
    for name in table.columns:
        number = pd.api.types.is_numeric_dtype(table[name])
        out.add_column(str(name), justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in table.itertuples(index=False):
        out.add_row(*(_cell(value) for value in row))
    Console(width=None if Console().is_terminal else 140).print(out)


def run_summary(record: dict, folder: Path) -> None:
    """The figures of one run and where its files are."""
    params, timings = record["params"], record["timings"]
    lines = [f"{record['run_id']}: {record['status']}"]
    if record["metrics"]:
        n = record["task"]["n_eval"]
        scores = ", ".join(f"{name} {value:.4f}" for name, value in record["metrics"].items() if value is not None)
        lines.append(f"  {scores} on {n:,} rows of {record['task']['name']} ({record['task']['split']} rows)")
    share = params["trainable"] / params["total"]
    lines.append(f"  {params['trainable']:,} of {params['total']:,} parameters trained ({share:.2%}; head {params['head']:,})")
    lines.append(f"  {timings['steps']:,} steps in {timings['train_time_s']:.1f} s, {timings['tokens_per_s']:,.0f} tokens/s, "
                 f"peak memory {timings['peak_memory_bytes'] / 2**20:,.0f} MiB")
    lines.append(f"  {folder}")
    console = Console()
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _cell(value: object) -> str:
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
