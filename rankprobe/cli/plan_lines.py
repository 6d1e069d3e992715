"""What ``--dry-run`` prints: runs, their parameters and how long they will take."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import click
import pandas as pd

from rankprobe.cli.show import print_table
from rankprobe.experiment.latency import LatencyPlan
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.sweep import PlannedStudy
from rankprobe.report.numbers import duration

if TYPE_CHECKING:
    from rankprobe.cli.work import Extra


def plan_lines(
    studies: Sequence[PlannedStudy],
    latency: LatencyPlan | None = None,
    extras: Sequence[Extra] = (),
    *,
    time_it: bool = False,
    follow: Sequence[PlannedStudy] = (),
    weights_of: Collection[str] = (),
) -> None:
    """Print what would be done, and what will ``follow`` at rates that this chooses.

    ``weights_of``: run ids of those that are done again where they dropped what they trained.

    ``time_it``: how long it will take too, from a few steps of each kind of run.
    """
    from rankprobe.experiment.fit import parameter_counts

    rows: list[dict] = []
    todo: list[PlannedRun] = []
    for study in studies:
        counts = parameter_counts(study.runs)
        left = study.left(weights_of)
        todo += left
        rows += [
            {
                "run": run.run_id,
                "what": run.spec.label,
                "task": run.task.name,
                "train": len(run.task.train),
                "eval": len(run.task.eval),
                "lr": run.spec.lr,
                "steps": run.steps,
                "trained": counts[run.run_id],
                "dtype": run.spec.dtype,
                "done": "" if run in left else "yes",
            }
            for run in study.runs
        ]
    steps_left = sum(run.steps for run in todo)
    print_table(pd.DataFrame(rows), title=f"{len(rows)} runs, {steps_left:,} optimiser steps left")
    for study in studies:
        for run in study.truncate:
            click.echo(f"functional rank of {run.run_id}")
    if latency is not None:
        click.echo(f"latency at (batch, length) = {', '.join(map(str, latency.spec.shapes))}")
    for line in (line for extra in extras for line in extra.lines):
        click.echo(line)
    then = [run for study in follow for run in study.runs]
    if then:
        steps = sum(run.steps for run in then)
        click.echo(f"then, at the rates that these choose, {len(then)} runs of {steps:,} optimiser steps")
    if time_it and (todo or then):
        from rankprobe.experiment.probe import expected_seconds

        seconds = sum(expected_seconds([*todo, *then]).values())
        click.echo(f"about {duration(seconds)} in all, one after the other, by a few steps of each method")


def paper_lines(scale) -> None:
    """Print the plan of a scale whose models are not at hand: settings and parameter counts, from the meta device."""
    from rankprobe.experiment.parameters import parameter_table
    from rankprobe.paper.architectures import paper_config

    labels = {"mnli": 3, "stsb": 1}
    rows = []
    for study in scale.studies:
        for c in study.configurations:
            counts = (
                parameter_table(
                    paper_config(study.model),
                    num_labels=labels.get(study.task, 2),
                    targets=[c.targets or "q,v"],
                    rs=[c.r or 1],
                )
                .set_index("method")
                .loc[c.method]
            )
            rows.append(
                {
                    "task": study.task,
                    "model": study.model,
                    "method": c.method,
                    "r": c.r,
                    "alpha": c.alpha,
                    "targets": c.targets,
                    "lr": c.lr,
                    "epochs": study.epochs,
                    "batch": study.batch_size,
                    "length": study.max_length,
                    "seeds": c.seeds,
                    "method_params": int(counts["method_params"]),
                    "trainable": int(counts["trainable_params"]),
                }
            )
    table = pd.DataFrame(rows)
    table["r"] = table["r"].astype("Int64")
    print_table(table, title=f"{table['seeds'].sum()} runs; needs a GPU, the hub and the extra 'hub'")
    click.echo(f"latency at (batch, length) = {', '.join(map(str, scale.shapes))}")
