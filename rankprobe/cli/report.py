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
    import gc

    from rankprobe.cli.render import render
    from rankprobe.errors import UsageError, must
    from rankprobe.experiment.output import study_plan
    from rankprobe.experiment.store import finished

    plan = study_plan(folder)
    # Without any the old tables would be replaced by empty ones.
    if not any(finished(runs / str(run_id)) for run_id in plan["runs"]):
        rule = f"hold runs that {folder / 'plan.json'} names"
        raise UsageError(must("--runs", rule, runs, "Pass the store that they were made in"))
    gc.disable()  # of 1,000 runs, looking for cycles again and again takes a tenth of the time, and finds little
    try:
        found = render(folder, plan, runs)
    finally:
        gc.enable()
    if not found:
        got = "what it showed before, which stays until one of them ends well"
        raise UsageError(must(f"{folder}", "have a finished run of its new plan", got, "Go on with the sweep"))
    click.echo(f"{folder / 'report.html'}")
