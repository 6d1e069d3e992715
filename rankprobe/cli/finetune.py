"""``rankprobe finetune``: one run."""

from __future__ import annotations

import click

from rankprobe.cli import options as o
from rankprobe.cli.options import METHODS
from rankprobe.cli.tracking import check_trackers, track_option, track_run


@click.command(
    epilog="\b\nExamples:\n  rankprobe finetune --method lora --r 8 --task docmatch-smoke --train-size 500 --epochs 1\n"
    "  rankprobe finetune --method full --task sst2 --data-dir data/sst2\n"
    "  rankprobe finetune --method adapter_h --bottleneck 16 --task docmatch --train-size 4000\n"
    "  rankprobe finetune --task files --train a.csv --eval b.csv --text review --label stars"
)
@click.option("--method", type=click.Choice(METHODS), default="lora", show_default=True)
@click.option("--r", type=int, default=None, help="LoRA's r.  [default: 8]")
@o.size_options
@o.lora_options
@click.option("--rank-pattern", default=None, metavar="FILE.json",
              help="LoRA's r by matrix: rank_pattern.json of rankprobe allocate; --r is for those it does not name.")
@click.option("--lr", type=float, default=None, help="Peak learning rate.  [default: tuned for MiniLM on docmatch]")
@o.model_option
@o.task_options
@o.training_options
@o.early_stop_options
@o.seed_option
@o.compute_options
@o.runs_option
@track_option("RUNS/trackers")
@click.option(
    "--truncate/--no-truncate", default=False, help="Measure functional rank too: accuracy against kept rank."
)
def finetune(
    method: str, r: int | None, rank_pattern: str | None, lr: float | None, truncate: bool, **options
) -> None:  # fmt: skip
    """Fine-tune a model once, fully, with LoRA or another method, and decompose its dW.

    The run's folder holds run.json, predictions.csv, history.csv, what was trained (a LoRA adapter in PEFT's format),
    and ranks.csv and spectra.csv where matrices were. A finished run is not redone.

    \b
    full        every parameter          adapter_h  Houlsby's adapters, two a block
    lora        B and A of the targets   adapter_l  Lin's adapters, one a block
    head        the head alone           prompt     trained embeddings before the text (PreEmbed)
    bitfit      biases                   prefix     trained activations in every block (PreLayer)
    top_layers  the last blocks          did, said  a random subspace of d dimensions
    """
    from rankprobe.cli.progress import TerminalObserver, reading
    from rankprobe.cli.show import problem, run_summary
    from rankprobe.errors import UsageError, WorkError, must
    from rankprobe.experiment.configuration import Configuration
    from rankprobe.experiment.executors import InTurn
    from rankprobe.experiment.spec import SIZES
    from rankprobe.experiment.store import load_runs
    from rankprobe.experiment.study import Study
    from rankprobe.experiment.study_file import read_rank_pattern
    from rankprobe.experiment.sweep import plan_study, run_study

    check_trackers(options["trackers"])
    if method == "lora":
        lora = {
            "r": 8 if r is None else r,
            "alpha": options["alpha"],
            "targets": options["targets"],
            "dropout": options["dropout"],
            "rslora": options["rslora"],
            "rank_pattern": read_rank_pattern(rank_pattern),
        }
    elif typed := o.given("r", "alpha", "targets", "dropout", "rslora", "rank_pattern"):
        raise UsageError(
            must(
                " and ".join(typed),
                "be left out unless the method is lora",
                f"--method {method}",
                "Leave them out, or pass --method lora",
            )
        )
    else:
        lora = {}
    if truncate and method not in ("full", "lora"):
        rule = "be of a method that changes matrices of the model, full or lora"
        raise UsageError(must("--truncate", rule, f"--method {method}", "Leave it out"))
    configuration = Configuration(method, lr=lr, **lora, **{name: options[name] for name in SIZES})
    name = method if method == "full" else f"lora-r{configuration.r}"
    study = Study("finetune", (configuration,), truncate=(name,) if truncate else (), **o.study_settings(options))
    with reading() as progress:
        planned = plan_study(study, o.place(options), progress=progress)
    if planned.untuned:
        click.echo(f"rankprobe: warning: {planned.untuned}.", err=True)
    wanted = [run.run_id for run in planned.runs]  # what was trained is what this command is for
    observer = TerminalObserver(planned.steps_left(wanted))
    with observer.live():
        records = list(run_study(planned, weights_of=wanted, observer=observer, executor=InTurn(wait=False)))
    folder = planned.runs[0].folder
    for line in track_run(folder, options["trackers"], folder.parent / "trackers"):
        click.echo(f"rankprobe: warning: {line}.", err=True)
    run_summary(records[0], folder)
    for found in load_runs([folder])[:1]:
        for row in found["analysis"].get("functional_rank", []):
            interval = f"[{row['ci_low']:g}, {row['ci_high']:g}]" if row["k"] is not None else row["reason"]
            what = f"functional rank at {row['q']:.0%} of the gain ({row['rule']})"
            click.echo(f"  {what}: {'none,' if row['k'] is None else format(row['k'], 'g')} {interval}")
    if records[0]["status"] != "ok":
        raise WorkError(problem(records[0], folder))
