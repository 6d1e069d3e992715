"""``rankprobe intrinsic-dim``: in how small a random subspace does training still work?"""

from __future__ import annotations

from pathlib import Path

import click

from rankprobe.cli import options as o


@click.command(
    "intrinsic-dim",
    epilog="\b\nExamples:\n  rankprobe intrinsic-dim --task docmatch --train-size 4000 --eval-size 4000\n"
    "  rankprobe intrinsic-dim --task sst2 --data-dir data --method did --d-max 10000 --lr did=3e-2 --lr full=5e-5",
)
@click.option("--method", "methods", default="did,said", show_default=True, help="did, said, or both.")
@click.option("--d-min", type=int, default=100, show_default=True, help="Smallest d of the grid.")
@click.option("--d-max", type=int, default=100_000, show_default=True, help="Largest d of the grid.")
@click.option("--points-per-decade", type=int, default=3, show_default=True, help="Of the log grid.")
@click.option("--tolerance", type=float, default=1.25, show_default=True, help="Bisect d to within this factor.")
@click.option("--share", type=float, default=0.9, show_default=True, help="Of full fine-tuning's score: d90 at 0.9.")
@click.option("--seeds", type=int, default=2, show_default=True, help="Of every d, at least 2.")
@click.option("--lr", "lrs", multiple=True, metavar="METHOD=RATE", help="did=3e-2, say.  [default: tuned on docmatch]")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="[default: results/intrinsic-dim-TASK-MARK]")
@click.option("--functional-rank/--no-functional-rank", default=True, show_default=True,
              help="Measure that of full fine-tuning's dW too, at the end.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the grid and what is done already, and stop.")
@o.model_option
@o.task_options
@o.training_options
@o.seed_option
@o.compute_options
@o.jobs_option
@o.runs_option
def intrinsic_dim(
    methods: str, d_min: int, d_max: int, points_per_decade: int, tolerance: float, share: float, seeds: int,
    lrs: tuple[str, ...], out: Path | None, functional_rank: bool, dry_run: bool, **options,
) -> None:  # fmt: skip
    """Find the intrinsic dimension of a task: d90 by DID and SAID.

    Trains in random subspaces of d dimensions (Fastfood), d on a log grid from below and then bisected, beside full
    fine-tuning, and gives the smallest d that reaches 90 % of its score, with an interval, beside LoRA's number of
    parameters and the rank of full fine-tuning's dW. Tables are renewed after every run; finished runs are not redone.
    """
    from rankprobe.cli.command import command_line
    from rankprobe.cli.executors import executor
    from rankprobe.cli.intrinsic_work import render_intrinsic, show_dimensions
    from rankprobe.cli.progress import TerminalObserver, reading, say_record
    from rankprobe.cli.show import raise_bad
    from rankprobe.cli.sweep import rates_of
    from rankprobe.experiment.configuration import Configuration
    from rankprobe.experiment.intrinsic import finished_intrinsic, plan_intrinsic, run_intrinsic
    from rankprobe.experiment.output import hold_output, marked
    from rankprobe.experiment.study import Study
    from rankprobe.experiment.study_file import study_toml
    from rankprobe.experiment.unmeasured import unless_given_up

    settings = o.study_settings(options)
    study = Study(f"intrinsic-dim-{settings['task']}", (Configuration("full"),), truncate=(), **settings)
    with reading() as progress:
        sweep = plan_intrinsic(
            study, o.place(options), methods=tuple(dict.fromkeys(m for m in methods.split(",") if m)), d_min=d_min,
            d_max=d_max, points_per_decade=points_per_decade, tolerance=tolerance, share=share, seeds=seeds,
            lrs=rates_of(lrs, ("did", "said", "full", "head")), progress=progress,
        )  # fmt: skip
    if dry_run:
        done = len(finished_intrinsic(sweep))
        grid = ", ".join(f"{d:,}" for d in sweep.ds)
        what = f"{', '.join(sweep.methods)} at d = {grid}, {seeds} seeds"
        click.echo(f"{what}, then bisection to a factor of {tolerance:g}")
        click.echo(f"{len(sweep.reference.runs)} runs of full fine-tuning and the head alone; {done} runs are done")
        return
    if out is None:
        run = sweep.reference.runs[0]
        asked = repr((sweep.methods, sweep.ds, sweep.tolerance, sweep.share, seeds, sorted(sweep.lrs.items())))
        out = marked(study.name, study_toml(study), asked, run.task.sha256, run.source.sha256)
    plan = {"name": f"intrinsic-dim {settings['task']}", "command": command_line(), "inputs": study.name}
    with hold_output(out, plan):
        if sweep.untuned:
            click.echo(f"rankprobe: warning: {sweep.untuned}.", err=True)
        observer = TerminalObserver(sweep.steps_left)
        records, bad, given_up = {}, {}, []
        with executor(options) as by, observer.live():
            work = run_intrinsic(sweep, functional_rank=functional_rank, observer=observer, executor=by)
            for record in unless_given_up(work, given_up):
                say_record(observer, record, again=record["run_id"] in records)
                records[record["run_id"]] = record
                if record["status"] != "ok":
                    bad[record["run_id"]] = record
                render_intrinsic(out, sweep, list(records), figures=False)
            observer.begin("tables, picture and page", 0)
            dimensions = render_intrinsic(out, sweep, list(records), command=plan["command"])
    if len(dimensions):
        show_dimensions(dimensions)
        click.echo(f"{out / 'report.html'}")
    raise_bad(bad.values(), len(records), options["runs"])
    if given_up:
        raise given_up[0]
