"""``rankprobe status``: how far a sweep is, from another terminal."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rankprobe.cli import options as o

if TYPE_CHECKING:
    from rankprobe.experiment.live import Live


@click.command(epilog="\b\nExamples:\n  rankprobe status results/sweep-rank-docmatch\n"
               "  watch rankprobe status results/reproduce-paper-medium")  # fmt: skip
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@o.runs_option
def status(folder: Path, runs: Path) -> None:
    """Say how far the sweep is that writes into DIR: runs done, scores so far, what is being done now, ETA.

    Reads only, at any moment, from any terminal that sees DIR and the run store.
    """
    from rankprobe.cli.show import print_table
    from rankprobe.experiment.live import read_live
    from rankprobe.experiment.output import study_plan
    from rankprobe.experiment.store import load_runs
    from rankprobe.report.numbers import duration
    from rankprobe.report.progress import progress_line, progress_table

    plan = study_plan(folder)
    records = load_runs(runs / run_id for run_id in plan["runs"])
    live = read_live(folder)
    click.echo(progress_line(plan, records))
    if not runs.is_dir():
        click.echo(f"There is no run store {runs} here: pass the sweep's own, --runs DIR.")
    table = progress_table(plan, records)
    if len(table):
        print_table(table, title="")
    if live is None or not live.works:
        if len({record["run_id"] for record in records if record["status"] != "failed"}) < len(plan["runs"]):
            click.echo(f"No process works on it. Go on with: {_again(plan, live, folder, runs)}")
        return
    for line in live.now:
        click.echo(f"now: {line}")
    eta = f"ETA {duration(live.eta_s)}" if live.eta_s is not None else "ETA unknown"
    click.echo(f"{live.done:,} of {live.total:,} steps of this call, {eta} (process {live.pid} on {live.host})")


def _again(plan: dict, live: Live | None, folder: Path, runs: Path) -> str:
    """The command as it was typed, where it was killed and that is on record; else as far as the plan has it."""
    if live is not None and live.command:
        here = live.directory == os.getcwd()
        return live.command if here else f"{live.command}, in {live.directory}"
    places = shlex.join(["--out", str(folder), "--runs", str(runs)])
    return f"{plan.get('command')} {places}, with the same --data-dir or files where there were any"
