"""What ``rankprobe allocate`` reads before and prints after."""

from __future__ import annotations

from pathlib import Path

import click

from rankprobe.analysis.spectrum_tables import in_order
from rankprobe.cli import options as o
from rankprobe.cli.progress import reading
from rankprobe.cli.show import print_table
from rankprobe.errors import UsageError, must
from rankprobe.experiment.allocation import PATTERN_FILE, AllocatedRanks
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.reopen import reopen, task_name
from rankprobe.experiment.sensitivity import Rows, pick_rows
from rankprobe.tasks.load import load_task
from rankprobe.weights.run_folder import read_run, run_folder, trained_weights


def open_run(
    where: str, runs: Path, *, count: int, rows_of: str, model: str | None, threads: int | None, options: dict
) -> tuple[PlannedRun, Rows]:
    """A run that can be cut, and the rows to cut it on.

    Raises
    ------
    UsageError
        If there is no such run, or it has no weights, before any data are read.
    """
    folder = run_folder(where, runs)
    record = None if folder is None else read_run(folder)
    if record is None:
        rule = f"be a run's folder, or a name in the run store {runs}"
        raise UsageError(must("RUN", rule, where, "Pass a folder with run.json, or --runs"))
    trained_weights(record)
    own_files = o.given("train_file", "eval_file", "text_column", "label_column")
    files = o.file_spec(options | {"task": "files"}) if own_files else None
    with reading() as progress:
        run = reopen(folder, runs, model=model, data_dir=options["data_dir"], files=files, threads=threads,
                     progress=progress)  # fmt: skip
        tuning = None
        if rows_of == "tuning" and run.task.split != "tuning":
            tuning = load_task(task_name(run.spec.task), data_dir=options["data_dir"], files=files, split="tuning")
        elif rows_of == "tuning" and o.given("rows_of"):
            tuning = run.task  # refused below, with the reason
    return run, pick_rows(run, tuning, count)


def print_allocation(found: AllocatedRanks, out: Path) -> None:
    """Ranks by layer and kind, what the check says, and how to train with them."""
    grid = found.table.assign(layer=found.table["layer"].astype(int)).pivot_table(
        index="layer", columns="kind", values="r", aggfunc="sum", min_count=1
    )
    grid = grid[in_order(found.table["kind"])].astype("Int64").reset_index()
    summary = found.summary
    one = f", where one r for all would be {summary['uniform_r']}" if summary["uniform_r"] else ""
    click.echo(f"{summary['parameters']:,} of {summary['budget']:,} parameters are spent{one}.\n")
    print_table(grid, title="r by layer and kind")
    check = found.check.rename(columns={"increase": "loss grows by", "se": "± s.e.", "additive": "sum of single cuts"})
    notes = "Cutting a trained update is not training at its rank: this check ranks patterns, it foresees no scores."
    title = f"With every dW cut at once, on the same {summary['rows']:,} {summary['rows_of']} rows"
    print_table(check.drop(columns="rows"), title=title, notes=notes)
    if summary["slack"] > 0:
        click.echo(f"No other ranks within this budget are worth more than {summary['slack']:.2g} more.")
    unshown = int((found.table["sensitivity"] == 0).sum())
    if unshown:
        click.echo(f"{unshown} of {len(found.table)} matrices: leaving out their dW costs less than twice its standard "
                   "error. Among ranks worth nothing, the energy decides.")  # fmt: skip
    r = summary.get("budget_r") or max(1, summary["uniform_r"])
    # alpha goes with r, and what the run had is kept: the same training as the config's.
    alpha = "" if summary["alpha_over_r"] == 2 else f" --alpha {summary['alpha_over_r'] * r:g}"
    config = found.config
    dropout = f" --dropout {config['lora_dropout']:g}" if config["lora_dropout"] else ""
    rslora = " --rslora" if config["use_rslora"] else ""
    click.echo(f"\nTo train with them: rankprobe finetune --r {r} --targets '{found.targets}'{alpha}{dropout}{rslora} "
               f"--rank-pattern {out / PATTERN_FILE}")  # fmt: skip
    click.echo("or in peft: LoraConfig(**json.load(open('lora_config.json')))")
    if summary["parameters_in_peft"] != summary["parameters"]:
        click.echo(f"PEFT adapts a fused matrix as one, with the ranks of its parts together: that config trains "
                   f"{summary['parameters_in_peft']:,} parameters, not {summary['parameters']:,}.")  # fmt: skip
    click.echo(str(out), err=True)
