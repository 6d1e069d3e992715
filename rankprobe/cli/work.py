"""What sweep and reproduce-paper share: doing planned studies with a bar, renewing the tables as runs end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import pandas as pd

from rankprobe.cli.command import command_line
from rankprobe.cli.progress import TerminalObserver, say_record
from rankprobe.cli.show import print_table, problem
from rankprobe.cli.tracking import track_run
from rankprobe.errors import UsageError, WorkError, must
from rankprobe.experiment.latency import LatencyPlan, execute_latency
from rankprobe.experiment.output import claim_output, read_plan
from rankprobe.experiment.pairs import read_pairs
from rankprobe.experiment.store import finished, load_runs, read_latency
from rankprobe.experiment.sweep import PlannedStudy, run_study
from rankprobe.paper.parameter_counts import paper_parameter_counts
from rankprobe.paper.published import published
from rankprobe.report.findings import Measured
from rankprobe.report.intrinsic import curve_table, dimensions_table
from rankprobe.report.report import build_report
from rankprobe.report.table1 import table_1


def plan_lines(
    studies: Sequence[PlannedStudy], latency: LatencyPlan | None = None, extras: Sequence[Extra] = ()
) -> None:
    """Print what would be done."""
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
    for line in (line for extra in extras for line in extra.lines):
        click.echo(line)


@dataclass(frozen=True)
class Extra:
    """A measurement beside the trainings.

    Attributes
    ----------
    after : int
        It is done when so many of the studies are.
    entry : dict
        What the plan has of it, so that a report can be made again: ``{"pairs": {"r8-r64": run_id}}``.
    run : callable
        ``run(observer, stop)``; yields when tables are worth renewing.
    lines : tuple of str
        What a dry run says of it; none where there is nothing to do now.
    """

    after: int
    entry: dict
    run: Callable[[TerminalObserver, Callable[[], bool]], Iterator[None]]
    lines: tuple[str, ...] = ()


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
    extras: Sequence[Extra] = (),
    main: str | None = None,
    hours: float | None = None,
    track: Sequence[str] = (),
) -> None:
    """Do what is left, with a progress bar; tables are renewed after every run, pictures and pages at the end.

    ``everything`` holds all the studies that the folder is about, where ``studies`` is only the part to do now: what
    else is finished already is reported too. ``main`` is the run_id of any run of the comparison that the report is
    about. After ``hours`` nothing new is begun. ``track`` names trackers that finished runs go to.

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
        "main": main,
    }
    for extra in extras:
        for key, value in extra.entry.items():
            plan[key] = {**plan[key], **value} if isinstance(value, dict) and key in plan else value
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
    ends = None if hours is None else time.monotonic() + 3600 * hours

    def stop() -> bool:
        return ends is not None and time.monotonic() > ends

    bad = {}
    with observer.live():
        for number, study in enumerate(studies):
            for round_ in study.rounds():
                said: set[str] = set()
                for record in run_study(round_, keep_weights=keep_weights, observer=observer, stop=stop):
                    say_record(observer, record, again=record["run_id"] in said)
                    said.add(record["run_id"])
                    for line in track_run(runs_folder / record["run_id"], track, out / "trackers"):
                        observer.say(f"rankprobe: warning: {line}.")
                    if record["status"] != "ok":
                        bad[record["run_id"]] = record
                    render(out, plan, runs_folder, figures=False)
                if measure_latency and not stop():
                    # After the first round: every table has its first row by then, and a killed job still has latency.
                    _latency(latency, observer)
                    measure_latency = False
            for extra in extras:
                if extra.after == number + 1:
                    for _ in extra.run(observer, stop):
                        claim_output(out, plan)  # an extra's entry may have grown
                        render(out, plan, runs_folder, figures=False)
        if measure_latency and not stop():
            _latency(latency, observer)
        observer.begin("tables, pictures and pages", 0)
        render(out, plan, runs_folder)
    click.echo(f"{out / 'report.html'}")
    if stop():
        done = sum(bool(finished(runs_folder / run_id)) for run_id in plan["runs"])
        click.echo(f"Stopped after {hours:g} hours with {done} of {len(plan['runs'])} runs; the same command goes on.")
    if bad:
        first = next(iter(bad.values()))
        why = problem(first, runs_folder / first["run_id"])
        raise WorkError(f"{len(bad)} of {len(plan['runs'])} runs diverged or failed. {why}")


def render(out: Path, plan: dict, runs_folder: Path, *, figures: bool = True) -> None:
    """Write tables (and pictures and pages) from the finished runs that a plan names."""
    runs = load_runs(runs_folder / run_id for run_id in plan["runs"])
    latency = read_latency(runs_folder / plan["latency"]) if plan.get("latency") else None
    settings = {"command": plan["command"]} | ({"learning rates": plan["note"]} if plan.get("note") else {})
    build_report(runs, latency, published(), out, title=plan["title"], settings=settings, figures=figures,
                 more=measured(plan, runs_folder, counts=figures), main=plan.get("main"))  # fmt: skip


def measured(plan: dict, runs_folder: Path, *, counts: bool) -> Measured | None:
    """What a plan measured beside trainings; None where it is a sweep's, which has no such part.

    ``counts``: the paper's parameter counts beside ours too, which take half a minute to count.
    """
    if not plan.get("main"):
        return None
    counts = paper_parameter_counts() if counts else pd.DataFrame()
    pairs = {name: runs_folder / run_id for name, run_id in (plan.get("pairs") or {}).items()}
    table1 = read_latency(runs_folder / plan["table1"]) if plan.get("table1") else None
    subspaces = load_runs(runs_folder / run_id for run_id in plan.get("intrinsic") or [])
    return Measured(
        table1=pd.DataFrame() if table1 is None else table_1(table1, published()),
        pairs=read_pairs(pairs),
        intrinsic=dimensions_table(subspaces),
        intrinsic_curve=curve_table(subspaces),
        parameter_counts=counts,
    )


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


def _latency(plan: LatencyPlan | None, observer: TerminalObserver) -> None:
    if plan is not None:
        observer.begin("latency", 0)
        execute_latency(plan, observer=observer)
