"""``rankprobe status``: how far a sweep is, from another terminal."""

from __future__ import annotations

from pathlib import Path

import click

from rankprobe.cli import options as o


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
    from rankprobe.experiment.store import read_record
    from rankprobe.report.numbers import duration
    from rankprobe.report.progress import progress_line, progress_table

    plan = study_plan(folder)
    records = [record for run_id in plan["runs"] if (record := read_record(runs / run_id))]
    live = read_live(folder)
    click.echo(progress_line(plan, records))
    table = progress_table(plan, records)
    if len(table):
        print_table(table, title="")
    if live is None or not live.works:
        if len({record["run_id"] for record in records if record["status"] != "failed"}) < len(plan["runs"]):
            click.echo(f"No process works on it. Go on with: {plan.get('command')}")
        return
    for line in live.now:
        click.echo(f"now: {line}")
    eta = f"ETA {duration(live.eta_s)}" if live.eta_s is not None else "ETA unknown"
    click.echo(f"{live.done:,} of {live.total:,} steps of this call, {eta} (process {live.pid} on {live.host})")
