"""What sweep and reproduce-paper share: doing planned studies with a bar, renewing the tables as runs end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from rankprobe.cli.command import command_line
from rankprobe.cli.progress import TerminalObserver
from rankprobe.cli.show import print_table, problem
from rankprobe.errors import UsageError, WorkError, must
from rankprobe.experiment.latency import LatencyPlan, execute_latency
from rankprobe.experiment.output import claim_output, read_plan
from rankprobe.experiment.store import finished, load_runs, read_latency
from rankprobe.experiment.sweep import PlannedStudy, run_study
from rankprobe.paper.published import published
from rankprobe.report.report import build_report


def plan_lines(studies: Sequence[PlannedStudy], latency: LatencyPlan | None = None) -> None:
    """Print what would be done."""
    import pandas as pd

    from rankprobe.experiment.parameters import parameter_counts

    rows = []
    for study in studies:
        counts = parameter_counts(study.runs)
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
                "done": "yes" if finished(run.folder) else "",
            }
            for run in study.runs
        ]
    left = sum(study.steps_left for study in studies)
    print_table(pd.DataFrame(rows), title=f"{len(rows)} runs, {left:,} optimiser steps left")
    for study in studies:
        for run in study.truncate:
            click.echo(f"functional rank of {run.run_id}")
    if latency is not None:
        click.echo(f"latency at (batch, length) = {', '.join(map(str, latency.spec.shapes))}")


def run_studies(
    studies: Sequence[PlannedStudy],
    out: Path,
    *,
    name: str,
    title: str,
    latency: LatencyPlan | None = None,
    measure_latency: bool = True,
    keep_weights: bool = True,
    everything: Sequence[PlannedStudy] | None = None,
) -> None:
    """Do what is left, with a progress bar; tables are renewed after every run, pictures and pages at the end.

    ``everything`` holds all the studies that the folder is about, where ``studies`` is only the part to do now: what
    else is finished already is reported too.

    Raises
    ------
    UsageError
        If the folder is not to be written to.
    WorkError
        If a run diverged or failed; all others are done and reported first.
    """
    plan = {
        "name": name,
        "title": title,
        "command": command_line(),
        "runs": [run.run_id for study in everything or studies for run in study.runs],
        "latency": latency.run_id if latency else None,
        "note": "; ".join(dict.fromkeys(study.untuned for study in studies if study.untuned)),
    }
    runs_folder = (everything or studies)[0].runs[0].folder.parent
    if out.resolve().is_relative_to(runs_folder.resolve()):
        raise UsageError(must("--out", f"be outside the run store {runs_folder}", out, "Pass another --out"))
    earlier = read_plan(out) if out.is_dir() else None
    claim_output(out, plan)
    if earlier and not set(earlier["runs"]) <= set(plan["runs"]):
        click.echo(f"rankprobe: warning: {out} showed other runs; its tables are replaced, the runs stay in "
                   f"{runs_folder}.", err=True)
    if plan["note"]:
        click.echo(f"rankprobe: warning: {plan['note']}.", err=True)
    observer = TerminalObserver(sum(study.steps_left for study in studies))
    bad = {}
    with observer.live():
        for study in studies:
            for round_ in study.rounds():
                said: set[str] = set()
                for record in run_study(round_, keep_weights=keep_weights, observer=observer):
                    _say(observer, record, again=record["run_id"] in said)
                    said.add(record["run_id"])
                    if record["status"] != "ok":
                        bad[record["run_id"]] = record
                    render(out, plan, runs_folder, figures=False)
                if measure_latency:
                    # After the first round: every table has its first row by then, and a killed job still has latency.
                    _latency(latency, observer)
                    measure_latency = False
        if measure_latency:
            _latency(latency, observer)
        observer.begin("tables, pictures and pages", 0)
        render(out, plan, runs_folder)
    click.echo(f"{out / 'report.html'}")
    if bad:
        first = next(iter(bad.values()))
        why = problem(first, runs_folder / first["run_id"])
        raise WorkError(f"{len(bad)} of {len(plan['runs'])} runs diverged or failed. {why}")


def render(out: Path, plan: dict, runs_folder: Path, *, figures: bool = True) -> None:
    """Write tables (and pictures and pages) from the finished runs that a plan names."""
    runs = load_runs(runs_folder / run_id for run_id in plan["runs"])
    latency = read_latency(runs_folder / plan["latency"]) if plan.get("latency") else None
    settings = {"command": plan["command"]} | ({"learning rates": plan["note"]} if plan.get("note") else {})
    build_report(runs, latency, published(), out, title=plan["title"], settings=settings, figures=figures)


def paper_lines(scale) -> None:
    """Print the plan of a scale whose models are not at hand: settings and parameter counts, from the meta device."""
    import pandas as pd

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


def _latency(plan: LatencyPlan | None, observer: TerminalObserver) -> None:
    if plan is not None:
        observer.begin("latency", 0)
        execute_latency(plan, observer=observer)


def _say(observer: TerminalObserver, record: dict, *, again: bool) -> None:
    if again:  # a run comes a second time when its functional rank is there
        observer.say(f"{record['run_id']}: functional rank measured")
        return
    metric = record["task"]["metrics"][0]
    if record["status"] == "ok":
        seconds = f"{record['timings']['train_time_s']:.0f} s of training"
        observer.say(f"{record['run_id']}: {metric} {record['metrics'][metric]:.4f}, {seconds}")
    else:
        observer.say(f"{record['run_id']}: {record['status']}: {record['error']}")
