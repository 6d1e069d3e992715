"""``rankprobe allocate``: a rank for each matrix, from one run's sensitivity and a budget of parameters."""

from __future__ import annotations

from pathlib import Path

import click

from rankprobe.cli import options as o


@click.command(
    epilog="\b\nExamples:\n"
    "  rankprobe allocate lora-r64-qv-eval-s0-1a2b3c4d5e --budget-r 8\n"
    "  rankprobe allocate runs/full-eval-s0-1a2b3c4d5e --budget 73728 --out allocated\n"
    "  rankprobe allocate full-eval-s0-1a2b3c4d5e --budget-r 8 --targets qkvo --rows 500 --dry-run"
)
@click.argument("run", metavar="RUN")
@click.option("--budget", type=int, default=None, metavar="PARAMS", help="Parameters of all factors together.")
@click.option("--budget-r", type=click.IntRange(min=1), default=None, metavar="R",
              help="As many as LoRA with one r has on q and v.")
@click.option("--targets", default=None,
              help="Share among these matrices only, named as for finetune.  [default: all that RUN changed]")
@click.option("--rows", "count", type=click.IntRange(min=2), default=1024, show_default=True,
              help="Rows to measure on.")
@click.option("--rows-of", type=click.Choice(["tuning", "train"]), default="tuning", show_default=True,
              help="Which rows: never those that RUN is scored on.")
@click.option("--out", type=click.Path(path_type=Path), default=None,
              help="Tables, configs and pictures.  [default: results/allocate-RUN]")
@click.option("--model", default=None, metavar="PATH", help="RUN's base, where its record does not lead to it.")
@o.source_options
@click.option("--threads", type=click.IntRange(1, 1024), default=None, help="CPU threads.  [default: as RUN]")
@o.runs_option
@click.option("--dry-run", is_flag=True, help="Say what would be measured and how long it takes, and stop.")
def allocate(
    run: str, budget: int | None, budget_r: int | None, targets: str | None, count: int, rows_of: str,
    out: Path | None, model: str | None, threads: int | None, runs: Path, dry_run: bool, **options,
) -> None:  # fmt: skip
    """Give each matrix the rank that it needs, within a budget of parameters.

    Of a finished run of full fine-tuning, or of LoRA at a large r, every matrix's update is cut to rank 0, 1, 2, 4, …
    while all others stay whole, and the growth of the loss is measured on rows that the run's score is not reported on.
    The budget is spent rank by rank where a parameter lowers the loss most. What comes out is a config for peft
    (lora_config.json) and a pattern for rankprobe (rank_pattern.json). Stopped, the same command goes on.
    """
    from dataclasses import replace

    from rankprobe.analysis.sensitivity import Z
    from rankprobe.cli.allocate_work import open_run, print_allocation
    from rankprobe.cli.command import command_line
    from rankprobe.cli.progress import TerminalObserver
    from rankprobe.errors import UsageError, must
    from rankprobe.experiment.allocation import allocate_ranks, uniform_size, write_allocation
    from rankprobe.experiment.cut_model import CutModel
    from rankprobe.experiment.output import claim_output
    from rankprobe.experiment.sensitivity import batches_left, estimate_s, measure, plan_work, worth
    from rankprobe.experiment.store import lock, write_table

    if (budget is None) == (budget_r is None):
        got = "both" if budget is not None else "neither"
        raise UsageError(must("allocate", "get --budget or --budget-r", got, "Pass --budget-r 8, say"))
    if budget is not None and budget < 1:
        raise UsageError(must("--budget", "be at least 1", budget, "Pass --budget 73728, say"))
    opened, rows = open_run(run, runs, count=count, rows_of=rows_of, model=model, threads=threads, options=options)
    out = out or Path("results") / f"allocate-{opened.run_id}"
    cut = CutModel(opened, targets)
    budget = uniform_size(cut, budget_r) if budget is None else budget
    cheapest = min(sum(update.site.shape) for update in cut.updates)
    if budget < cheapest:  # before anything is measured
        rule = f"hold a rank of a matrix, {cheapest} parameters at least"
        raise UsageError(must("--budget", rule, budget, f"Pass --budget {cheapest} or more"))
    work = plan_work(cut, rows, out)
    if not dry_run:
        claim_output(out, {"name": f"allocate {opened.run_id}", "command": command_line()})
    seconds = estimate_s(cut, work)
    done = len(work.chunks) - len(work.left)
    click.echo(
        f"{len(work.cuts)} cuts of {len(cut.updates)} matrices on {len(rows.examples):,} {rows.origin} rows, "
        + (f"about {max(1, round(seconds / 60))} min" if work.left else "all measured already")
        + (f"; {done} of {len(work.chunks)} parts are measured already" if work.left and done else ""),
        err=True,
    )
    if rows.trained_on:
        click.echo(f"rankprobe: warning: {opened.run_id} was trained on {rows.trained_on:,} of these rows: what it "
                   "learned by heart counts as sensitivity.", err=True)  # fmt: skip
    growth, se = worth(cut, work)
    if growth < Z * se:
        click.echo(f"rankprobe: warning: without all that {opened.run_id} learned in these matrices its loss grows by "
                   f"{growth:.2g} ± {se:.2g} (s.e.) on {len(work.chunks[0])} rows: no more than noise. So is what "
                   "single matrices are worth: choose a run that has learned the task.", err=True)  # fmt: skip
    if dry_run:
        return
    observer = TerminalObserver(batches_left(work))
    with lock(out):
        with observer.live():
            sensitivity = measure(
                cut, work, observer=observer, renewed=lambda table: write_table(out / "sensitivity.csv", table)
            )
            observer.begin("the loss with all matrices cut at once", 0)
            found = allocate_ranks(cut, work, rows, sensitivity, budget)
        if budget_r is not None:
            found = replace(found, summary=found.summary | {"budget_r": budget_r})
        write_allocation(out, sensitivity, found)
        from rankprobe.report.allocation_plots import allocation_pictures
        from rankprobe.report.style import save_picture

        for picture in allocation_pictures(found.table, found.summary):
            save_picture(picture, out)
        (out / ".lock").unlink(missing_ok=True)
    print_allocation(found, out)
