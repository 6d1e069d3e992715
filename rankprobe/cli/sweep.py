"""``rankprobe sweep``: many r, several seeds, one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rankprobe.cli import options as o
from rankprobe.cli.tracking import check_trackers, track_option

if TYPE_CHECKING:
    from rankprobe.experiment.study import Study

# What a study file sets.
_OF_A_STUDY = (
    "rs",
    "lrs",
    "targets",
    "alphas",
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
    "tune",
    "tuning_size",
    "patience",
    "margin",
)


@click.command(
    epilog="\b\nExamples:\n  rankprobe sweep --r 1,2,4 --seeds 2 --task docmatch --train-size 2000 --eval-size 1000\n"
    "  rankprobe sweep --r 8 --targets q,v --targets qkvo --task sst2 --data-dir data/sst2\n"
    "  rankprobe sweep studies/sst2/study.toml --data-dir data --out results/sst2\n"
    "  rankprobe sweep --r 1,2,4,8 --seeds 3 --tune 0.5,1,2 --jobs 4"
)
@click.argument("study_file", metavar="[STUDY.TOML]", required=False, type=click.Path(path_type=Path))
@click.option("--r", "rs", type=o.IntList(), default=(1, 2, 4, 8, 64), show_default="1,2,4,8,64")
@click.option(
    "--targets",
    multiple=True,
    default=("q,v",),
    show_default=True,
    help="q k v o up down gate with commas, all, or a regex; several choices by commas between groups (qv,qkvo), or "
    "by repeating it.",
)
@click.option(
    "--alpha",
    "alphas",
    default="2r",
    show_default=True,
    help="LoRA's alpha, a number or a multiple of r; 16,2r for both.",
)
@click.option("--dropout", type=float, default=0.0, show_default=True, help="On LoRA's input.")
@click.option("--rslora", is_flag=True, help="Scale by alpha / sqrt(r) instead of alpha / r.")
@click.option(
    "--lr",
    "lrs",
    multiple=True,
    metavar="[METHOD=]RATE",
    help="lora=2e-3, full=1e-4 or head=1e-2; a rate alone is LoRA's.  [default: tuned for MiniLM on docmatch]",
)
@click.option(
    "--tune",
    type=o.FloatList(),
    default=(),
    help="Factors of each configuration's rate, 0.5,1,2: it takes the one of lowest loss on tuning rows.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.02,
    show_default=True,
    help="What an r may differ by from full fine-tuning to be as good; 0.02 is two points.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Of every configuration.")
@click.option("--full/--no-full", default=True, show_default=True, help="Full fine-tuning beside it.")
@click.option("--head/--no-head", default=True, show_default=True, help="Head only beside it.")
@click.option(
    "--keep-weights/--drop-weights",
    default=True,
    show_default=True,
    help="Keep what was trained. Said outright, finished runs that dropped it are done again.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Tables and report.  [default: results/sweep-NAME]"
)
@o.model_option
@o.task_options
@o.training_options
@o.early_stop_options
@o.seed_option
@o.compute_options
@o.executor_options
@click.option(
    "--pack",
    metavar="auto|off|N",
    default=None,
    help="Train up to N LoRA runs as one; auto measures whether that pays.  [default: auto on a GPU, else off]",
)
@o.runs_option
@track_option("OUT/trackers")
@click.option("--dry-run", is_flag=True, help="Print the runs and how long they will take, and stop.")
def sweep(study_file: Path | None, keep_weights: bool, out: Path | None, dry_run: bool, **options) -> None:
    """Sweep LoRA's r, with full fine-tuning and head only beside it, and say which r to take.

    From options, or from a study file: its settings then count, and only --data-dir, file, compute and folder options,
    and --model where it names none, may be given beside it. Options alone print the study file that they make. Tables
    are renewed as runs end; finished runs are not redone.
    """
    from rankprobe.cli.executors import check_executor, executor
    from rankprobe.cli.plan_lines import plan_lines
    from rankprobe.cli.progress import reading
    from rankprobe.cli.sweep_plan import plan_sweep
    from rankprobe.cli.work import run_studies
    from rankprobe.experiment.output import marked, read_plan
    from rankprobe.experiment.pack_choice import choose_pack, parse_pack, settled_pack, some_packed
    from rankprobe.experiment.study_file import study_toml

    check_trackers(options["trackers"])
    check_executor(options)
    parse_pack(options["pack"] or "off")
    if study_file is not None:
        studies = _from_file(study_file, options, keep_weights)
    else:
        studies = (_from_options(options, keep_weights),)
        click.echo(study_toml(studies[0]))
    place = o.place(options)
    with reading() as progress:
        plan = plan_sweep(studies, place, progress=progress)
    need_weights = keep_weights and bool(o.given("keep_weights"))
    if dry_run:
        named, waiting, not_chosen = plan.named()
        weights_of = {run.run_id for planned in named for run in planned.runs} if need_weights else ()
        choosing = plan.now if plan.later else []
        plan_lines([*choosing, *named], time_it=True, follow=waiting, weights_of=weights_of)
        for error in not_chosen:
            click.echo(f"rankprobe: warning: {error}", err=True)
        return
    first = studies[0]
    if out is None:
        run, name = plan.now[-1].runs[0], f"sweep-{first.name}"
        of_options = marked(name, study_toml(first), run.task.sha256, run.source.sha256)
        out = Path("results") / name if study_file else of_options
    earlier = read_plan(out) or {}
    pack = settled_pack(
        options["pack"],
        earlier.get("pack"),
        default="off" if place.device == "cpu" else "auto",
        choose=lambda: choose_pack(plan.to_time, say=lambda line: click.echo(f"rankprobe: {line}", err=True)),
        packed=lambda: some_packed(earlier, place.runs),
    )
    with executor(options) as chosen:
        run_studies(
            plan.now,
            out,
            name=f"sweep {first.name}",
            title=first.question or f"LoRA's r on {plan.now[0].runs[0].task.name}",
            keep_weights=keep_weights,
            need_weights=need_weights,
            executor=chosen,
            then=plan.later,
            settings={"margin": first.margin, "pack": pack},
            pack=pack,
            track=options["trackers"],
        )


def _from_options(options: dict, keep_weights: bool) -> Study:
    """The study that options alone make."""
    from rankprobe.experiment.configuration import Configuration
    from rankprobe.experiment.study import Study
    from rankprobe.weights.targets import target_choices

    seeds, rates = options["seeds"], rates_of(options["lrs"], ("lora", "full", "head"), alone="lora")
    same = {"dropout": options["dropout"], "rslora": options["rslora"], "seeds": seeds, "lr": rates.get("lora")}
    configurations = [Configuration("full", lr=rates.get("full"), seeds=seeds)] if options["full"] else []
    configurations += [
        Configuration("lora", r=r, targets=targets, alpha=alpha.strip(), **same)
        for text in options["targets"]
        for targets in target_choices(text)
        for alpha in options["alphas"].split(",")
        for r in options["rs"]
    ]
    configurations += [Configuration("head", lr=rates.get("head"), seeds=seeds)] if options["head"] else []
    settings = o.study_settings(options)
    return Study(
        settings["task"],
        tuple(dict.fromkeys(configurations)),
        truncate=("full",) if options["full"] and keep_weights else (),
        tune=options["tune"],
        margin=options["margin"],
        **settings,
    )


def _from_file(study_file: Path, options: dict, keep_weights: bool) -> tuple[Study, ...]:
    """A file's studies, with the model that an option may add; refuses the other options."""
    from rankprobe.errors import UsageError, must
    from rankprobe.experiment.study_file import load_studies

    studies = load_studies(study_file, model=options["model"] if o.given("model") else None)
    if typed := o.given(*_OF_A_STUDY):
        next_step = "Write it into a copy of the file"
        raise UsageError(must(", ".join(typed), "be left out beside a study file", study_file, next_step))
    if not keep_weights and any(study.truncate for study in studies):
        next_step = "Keep the weights, or set truncate = [] in a copy of the file"
        raise UsageError(must("--drop-weights", "be for a study without truncate", study_file, next_step))
    return studies


def rates_of(texts: tuple[str, ...], methods: tuple[str, ...], *, alone: str | None = None) -> dict[str, float]:
    """``--lr`` options as rates by method.

    Parameters
    ----------
    texts : tuple of str
        ``METHOD=RATE``.
    methods : tuple of str
        Those that the command trains.
    alone : str, optional
        The method whose rate one without a name is.

    Raises
    ------
    UsageError
        If a text is neither, or names another method: its rate would be for nothing.
    """
    from rankprobe.errors import UsageError, must

    rates, next_step = {}, f"Pass --lr {methods[0]}=2e-3, say"
    for text in texts:
        method, _, rate = text.rpartition("=")
        method = method or alone
        try:
            if method is None:
                raise ValueError
            rates[method] = float(rate)
        except ValueError:
            raise UsageError(must("--lr", "be METHOD=RATE", repr(text), next_step)) from None
        if method not in methods:
            raise UsageError(must("--lr", f"name one of {', '.join(methods)}", repr(text), next_step))
    return rates
