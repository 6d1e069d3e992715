"""An extraction on a terminal: what was kept, what is beside it, what is lost, and how it is loaded."""

from __future__ import annotations

from pathlib import Path

import click
import pandas as pd

from rankprobe.analysis.extract import Extraction
from rankprobe.analysis.extract_text import loading_code, size_words, sorts_of
from rankprobe.cli.show import print_table

_MANY = 8  # rows of a table of what is lost


def print_extraction(done: Extraction, *, base: str, out: Path | None) -> None:
    """Print an extraction for people.

    Parameters
    ----------
    done : Extraction
    base : str
        BASE as it was typed.
    out : Path or None
        The adapter's folder as it was typed.
    """
    summary = done.summary
    of = f"{summary['tuned']} − {summary['base']}" if summary["base"] else summary["tuned"]
    print_table(_by_kind(done.table), title=f"{of}, {summary['rule']}")
    if done.beside:
        beside = pd.DataFrame(sorts_of(done.beside)).rename(columns={"change": "norm of their change"})
        beside = beside.dropna(axis="columns", how="all")  # of an adapter alone no change is known
        print_table(beside, title="Carried beside the factors")
    if done.lost:
        lost = pd.DataFrame(done.lost).rename(columns={"name": "what", "change": "norm of its change"})
        more = f"and {len(lost) - _MANY} more" if len(lost) > _MANY else None
        lost = lost.sort_values("norm of its change", ascending=False, kind="stable")[:_MANY]
        print_table(lost, title="Not carried", notes=more)
    for line in _sums(done):
        click.echo(line)
    click.echo("\n" + "\n".join(loading_code(summary, base=base, folder=str(out or "ADAPTER"))))


def _by_kind(table: pd.DataFrame) -> pd.DataFrame:
    """A row a kind and one for all; the shares are of all energy of its matrices."""
    rows = [_sum(kind, part) for kind, part in table.groupby("kind", sort=False)]
    return pd.DataFrame([*rows, *([_sum("all", table)] if len(rows) > 1 else [])])


def _sum(kind: str, part: pd.DataFrame) -> dict:
    total = float((part["fro_norm"] ** 2).sum())
    kept = float((part["kept_energy"].fillna(0).astype(float) * part["fro_norm"] ** 2).sum())
    low, high = part["r"].min(), part["r"].max()
    return {
        "kind": kind,
        "matrices": len(part),
        "r": f"{low}" if low == high else f"{low}–{high}",
        "kept energy %": 100 * kept / total if total else None,
        "parameters": int(part["parameters"].sum()),
    }


def _sums(done: Extraction) -> list[str]:
    summary = done.summary
    lines = [
        f"{summary['parameters']:,} parameters in factors and {summary['beside_parameters']:,} beside: "
        f"{size_words(summary)}.",
        f"The factors hold {summary['kept_energy']:.2%} of the matrices' Σσ², the adapter {summary['kept_of_all']:.2%} "
        "of all change that was measured.",
    ]
    if summary["budget_slack"] is not None:
        lines.append(f"No other ranks within this budget hold more than {summary['budget_slack']:.2g} of Σσ² more.")
    if done.left_out:
        names = ", ".join(done.left_out[:3]) + (", …" if len(done.left_out) > 3 else "")
        lines.append(f"Left out as asked, and not measured: {len(done.left_out)} ({names}).")
    return [*lines, *(f"Note: {note.rstrip('.')}." for note in done.notes)]
