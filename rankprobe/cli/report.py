"""``rankprobe report``: tables, pictures and pages again from finished runs."""

from __future__ import annotations

from pathlib import Path

import click

from rankprobe.cli import options as o


@click.command(epilog="\b\nExample:\n  rankprobe report results/reproduce-paper-small")
@click.argument("folder", type=click.Path(path_type=Path))
@o.runs_option
def report(folder: Path, runs: Path) -> None:
    """Write DIR's tables, pictures and report again, from the runs that its plan names."""
    from rankprobe.cli.work import render
    from rankprobe.errors import UsageError, must
    from rankprobe.experiment.output import read_plan
    from rankprobe.experiment.store import finished

    plan = read_plan(folder)
    if plan is None:
        raise UsageError(
            must("DIR", "be an output folder of sweep or reproduce-paper", folder, "Pass one with plan.json")
        )
    if "inputs" in plan:  # of spectrum or compare, whose pages are made from the weights
        rule, next_step = "be an output folder of sweep or reproduce-paper", f"Run again: {plan.get('command')}"
        raise UsageError(must("DIR", rule, f"{folder}, the {plan['name']}", next_step))
    named = plan.get("runs")
    # Without any the old tables would be replaced by empty ones.
    if not isinstance(named, list) or not any(finished(runs / str(run_id)) for run_id in named):
        rule = f"hold runs that {folder / 'plan.json'} names"
        raise UsageError(must("--runs", rule, runs, "Pass the store that they were made in"))
    render(folder, plan, runs)
    click.echo(f"{folder / 'report.html'}")
