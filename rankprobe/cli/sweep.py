"""``rankprobe sweep``: many r, several seeds, one table."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import click

from rankprobe.cli import options as o
from rankprobe.cli.tracking import check_trackers, track_option

# What a study file sets.
_OF_A_STUDY = (
    "rs",
    "lrs",
    "targets",
    "alpha",
    "dropout",
    "rslora",
    "seeds",
    "full",
    "head",
    "task",
    "train_size",
    "eval_size",
    "epochs",
    "batch_size",
    "max_length",
    "warmup_ratio",
    "weight_decay",
    "clip_norm",
    "model_dropout",
    "seed",
)


@click.command(
    epilog="\b\nExamples:\n  rankprobe sweep --r 1,2,4 --seeds 2 --task docmatch --train-size 2000 --eval-size 1000\n"
    "  rankprobe sweep --r 8 --targets q,v --targets qkvo --task sst2 --data-dir data/sst2\n"
    "  rankprobe sweep studies/sst2/study.toml --data-dir data --out results/sst2"
)
@click.argument("study_file", metavar="[STUDY.TOML]", required=False, type=click.Path(path_type=Path))
@click.option("--r", "rs", type=o.IntList(), default=(1, 2, 4, 8, 64), show_default="1,2,4,8,64")
@click.option(
    "--targets",
    multiple=True,
    default=("q,v",),
    show_default=True,
    help="q k v o up down gate with commas, qkvo, all, or a regex; repeat for more.",
)
@click.option("--alpha", type=float, default=None, help="LoRA's alpha for every r.  [default: 2r]")
@click.option("--dropout", type=float, default=0.0, show_default=True, help="On LoRA's input.")
@click.option("--rslora", is_flag=True, help="Scale by alpha / sqrt(r) instead of alpha / r.")
@click.option(
    "--lr",
    "lrs",
    multiple=True,
    metavar="[METHOD=]RATE",
    help="lora=2e-3, full=1e-4 or head=1e-2; a rate alone is LoRA's.  [default: tuned for MiniLM on docmatch]",
)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Of every configuration.")
@click.option("--full/--no-full", default=True, show_default=True, help="Full fine-tuning beside it.")
@click.option("--head/--no-head", default=True, show_default=True, help="Head only beside it.")
@click.option(
    "--keep-weights/--drop-weights",
    default=True,
    show_default=True,
    help="Keep what was trained; functional rank needs it.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Tables and report.  [default: results/sweep-NAME]"
)
@o.model_option
@o.task_options
@o.training_options
@o.seed_option
@o.compute_options
@o.runs_option
@track_option
@click.option("--dry-run", is_flag=True, help="Print the runs and stop.")
def sweep(
    study_file: Path | None,
    rs: tuple[int, ...],
    targets: tuple[str, ...],
    lrs: tuple[str, ...],
    seeds: int,
    full: bool,
    head: bool,
    keep_weights: bool,
    out: Path | None,
    trackers: tuple[str, ...],
    dry_run: bool,
    **options,
) -> None:
    """Sweep LoRA's r, with full fine-tuning and head only beside it, and write tables and a report.

    From options, or from a study file: its settings then count, and only --data-dir, file, compute and folder options,
    and --model where it names none, may be given beside it. Tables are renewed after every run; finished runs are not
    redone.
    """
    from rankprobe.cli.progress import reading
    from rankprobe.cli.work import plan_lines, run_studies
    from rankprobe.errors import UsageError, must
    from rankprobe.experiment.study import Configuration, Study
    from rankprobe.experiment.study_file import load_study
    from rankprobe.experiment.sweep import plan_study

    check_trackers(trackers)
    if study_file is not None:
        if typed := o.given(*_OF_A_STUDY):
            raise UsageError(
                must(
                    ", ".join(typed), "be left out beside a study file", study_file, "Write it into a copy of the file"
                )
            )
        study = load_study(study_file)
        if o.given("model"):
            if study.model != Study.model:
                got = f"{options['model']} beside {study_file}, which has {study.model}"
                raise UsageError(must("--model", "be left out where a study file names one", got, "Leave it out"))
            study = replace(study, model=options["model"])
        if study.truncate and not keep_weights:
            raise UsageError(
                must(
                    "--drop-weights",
                    "be for a study without truncate",
                    study_file,
                    "Keep the weights, or set truncate = [] in a copy of the file",
                )
            )
    else:
        lora = {"alpha": options["alpha"], "dropout": options["dropout"], "rslora": options["rslora"], "seeds": seeds}
        rates = rates_of(lrs)
        configurations = [Configuration("full", lr=rates.get("full"), seeds=seeds)] if full else []
        lora["lr"] = rates.get("lora")
        configurations += [Configuration("lora", r=r, targets=t, **lora) for t in targets for r in rs]
        configurations += [Configuration("head", lr=rates.get("head"), seeds=seeds)] if head else []
        settings = o.study_settings(options)
        study = Study(
            settings["task"], tuple(configurations), truncate=("full",) if full and keep_weights else (), **settings
        )
    with reading() as progress:
        planned = plan_study(study, o.place(options), progress=progress)
    if dry_run:
        plan_lines([planned])
        return
    if out is None:
        # Of options alone, a name of its own for each choice: another sweep must not replace this one's tables.
        mark = "" if study_file else "-" + sha256("".join(run.run_id for run in planned.runs).encode()).hexdigest()[:6]
        out = Path("results") / f"sweep-{study.name}{mark}"
    run_studies(
        [planned],
        out,
        name=f"sweep {study.name}",
        title=study.question or f"LoRA's r on {planned.runs[0].task.name}",
        keep_weights=keep_weights,
        track=trackers,
    )


def rates_of(texts: tuple[str, ...]) -> dict[str, float]:
    """``--lr`` options as rates by method."""
    from rankprobe.errors import UsageError, must
    from rankprobe.experiment.study import METHODS

    rates = {}
    for text in texts:
        method, _, rate = text.rpartition("=")
        try:
            rates[method or "lora"] = float(rate)
        except ValueError:
            raise UsageError(must("--lr", "be METHOD=RATE", repr(text), "Pass --lr lora=2e-3, say")) from None
        if (method or "lora") not in METHODS:
            raise UsageError(must("--lr", f"name one of {', '.join(METHODS)}", repr(text), "Pass --lr lora=2e-3, say"))
    return rates
