"""``rankprobe reproduce-paper``: the main job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from rankprobe.cli import options as o
from rankprobe.cli.tracking import check_trackers, track_option
from rankprobe.errors import UsageError, must


@click.command(
    "reproduce-paper",
    epilog="\b\nExamples:\n  rankprobe reproduce-paper --scale smoke\n"
    "  rankprobe reproduce-paper --only dw-low-rank-by-function\n"
    "  rankprobe reproduce-paper --scale medium --only table7\n"
    "  rankprobe reproduce-paper --scale paper --dry-run",
)
@click.option(
    "--scale",
    type=click.Choice(["smoke", "small", "medium", "paper"]),
    default="small",
    show_default=True,
    help="smoke: a few minutes. small: MiniLM on docmatch, 13 minutes on 2 cores with bfloat16, 50 without. "
    "medium: Tables 1, 2, 5, 6, 7, Figures 3, 4 of the paper on MiniLM, hours. paper: RoBERTa on GLUE, for a GPU.",
)
@click.option(
    "--only",
    default=None,
    metavar="CLAIM",
    help="Do only what this claim needs (a claim_id of claims.csv), or this table or figure: table7.",
)
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), default=None, help="Begin nothing new after.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="[default: results/reproduce-paper-SCALE]")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default=None, help="Folder with GLUE's files (medium, paper)."
)
@o.seed_option
@o.compute_options
@o.jobs_option
@o.runs_option
@track_option("OUT/trackers")
@click.option("--dry-run", is_flag=True, help="Print the runs and their parameter counts, and stop.")
def reproduce_paper(
    scale: str, only: str | None, hours: float | None, out: Path | None, dry_run: bool, **options
) -> None:
    """Test the LoRA paper's claims: train, decompose, time, compare, report.

    Fine-tunes one pretrained model fully and with LoRA at several r, takes the SVD of every dW, measures accuracy
    against kept rank and latency, and writes tables, pictures, report.html and claims.csv with a verdict a claim.
    Tables and pages are renewed as runs end; killed at any moment, the same command goes on where it stopped.
    """
    from rankprobe.paper.reproduce import check_measured, load_scale, needs_of, only_what_is_needed

    check_trackers(options["trackers"])
    chosen = load_scale(scale, seed=options["seed"])
    needs = needs_of(only) if only is not None else None
    if dry_run and scale == "paper":
        if only is not None:
            rule = "be left out with --scale paper and --dry-run, which looks at no model"
            raise UsageError(must("--only", rule, repr(only), "Leave one of them out"))
        from rankprobe.cli.plan_lines import paper_lines

        paper_lines(chosen)
        return
    from rankprobe.cli.executors import executor
    from rankprobe.cli.plan_lines import plan_lines
    from rankprobe.cli.progress import reading
    from rankprobe.cli.reproduce_extras import extras, pair_plans
    from rankprobe.cli.work import run_studies
    from rankprobe.experiment.latency import plan_latency
    from rankprobe.experiment.sweep import plan_study
    from rankprobe.tasks.load import GLUE_TASKS, needs_files

    place = o.place({**options})
    studies = chosen.studies
    if scale == "medium" and options["data_dir"] is None:
        left_out = [study.task for study in studies if study.task in GLUE_TASKS]
        studies = tuple(study for study in studies if study.task not in GLUE_TASKS)
        click.echo(f"rankprobe: without --data-dir {', '.join(left_out)} are left out.", err=True)
    # A folder of files is for the tasks that read one; given to a scale that has none, it is the user's mistake.
    no_files = replace(place, data_dir=None) if scale == "medium" else place
    with reading() as progress:
        everything = [
            plan_study(study, place if needs_files(study.task) else no_files, progress=progress) for study in studies
        ]
    latency = plan_latency(
        everything[0].runs[0].source,
        place.runs,
        r=chosen.latency_r,
        targets="q,v",
        shapes=chosen.shapes,
        budget_s=chosen.latency_budget_s,
        dtype=place.dtype,
        device=place.device,
        threads=place.threads,
        bottlenecks=chosen.latency_bottlenecks and (chosen.latency_bottlenecks,) * len(chosen.shapes),
        prefix_length=chosen.latency_prefix,
    )
    whole = scale != "paper"
    # Every claim of the whole paper but Table 2 is about one task; the others are as many comparisons of their own.
    one_task = everything[0].runs[0].task.name if whole and only != "table2" else None
    todo = [only_what_is_needed(planned, needs, one_task) for planned in everything] if needs else everything
    if needs:
        pairs = {plan.name for plan in pair_plans(everything, no_files)} if chosen.pairs else set()
        check_measured(only, needs, everything, chosen, pairs)
    # The first run of the comparison that the paper's own tables are of: one that this call has.
    main = next((run for study in todo for run in study.runs), everything[0].runs[0])
    beside = extras(chosen, everything, no_files, needs) if scale != "paper" else []
    if dry_run:
        weights_of = {run_id for extra in beside for run_id in extra.weights_of}
        plan_lines(todo, latency if needs is None or needs.latency else None, beside, weights_of=weights_of)
        return
    model, task = everything[0].runs[0].source.name, everything[0].runs[0].task.name
    title = f"Is LoRA as good as full fine-tuning? {model} on {task}" if whole else "LoRA on GLUE, RoBERTa base"
    with executor(options) as by:
        run_studies(
            todo,
            out or Path("results") / f"reproduce-paper-{scale}",
            name=f"reproduce-paper {scale}",
            title=title,
            latency=latency,
            measure_latency=needs is None or needs.latency,
            everything=everything,
            extras=beside,
            main=main.run_id if whole else None,
            hours=hours,
            executor=by,
            paper=whole,
            settings={"margin": everything[0].study.margin},
            track=options["trackers"],
        )
