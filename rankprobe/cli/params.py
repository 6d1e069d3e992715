"""``rankprobe params``: exact parameter counts."""

from __future__ import annotations

from pathlib import Path

import click

from rankprobe.cli import options as o


@click.command(
    epilog="\b\nExamples:\n  rankprobe params --r 1,8,64\n"
    "  rankprobe params --model roberta-base --targets q,v --targets qkvo --r 8\n"
    "  rankprobe params --model gpt3-175b --method lora --method adapter_h --r 1,8 --bottleneck 1,8\n"
    "  rankprobe params --model gpt2-medium --method prefix --prefix-length 5,10 --format csv\n"
    "  rankprobe params --paper"
)
@o.model_option
@click.option(
    "--method", "methods", type=click.Choice(o.METHODS), multiple=True, help="Repeat for more.  [default: all that fit]"
)
@click.option("--targets", multiple=True, default=("q,v",), show_default=True, help="LoRA's. Repeat for more.")
@click.option("--r", "rs", type=o.IntList(), default=(1, 2, 4, 8, 64), show_default="1,2,4,8,64", help="LoRA's.")
@click.option("--bottleneck", type=o.IntList(), default=(16,), show_default="16", help="Of adapter_h and adapter_l.")
@click.option("--prefix-length", type=o.IntList(), default=(16,), show_default="16", help="Of prompt and prefix.")
@click.option("--layers", type=o.IntList(), default=(2,), show_default="2", help="Of top_layers: the last ones.")
@click.option("--d", type=o.IntList(), default=(1000,), show_default="1000", help="Of did and said.")
@click.option("--labels", type=click.IntRange(1, 1_000_000), default=2, show_default=True, help="Classes of the head.")
@click.option(
    "--task-type",
    type=click.Choice(["classification", "lm"]),
    default=None,
    help="Which head the model has.  [default: lm for the paper's GPTs, else classification]",
)
@click.option("--paper", is_flag=True, help="Every count that the LoRA paper prints, beside ours.")
@click.option("--format", "form", type=click.Choice(["table", "csv"]), default="table", show_default=True)
def params(
    model: str,
    methods: tuple[str, ...],
    targets: tuple[str, ...],
    rs: tuple[int, ...],
    labels: int,
    task_type: str | None,
    paper: bool,
    form: str,
    **sizes: tuple[int, ...],
) -> None:
    """Print the trainable parameters of every method on a model.

    The methods are put on the model's shapes on the meta device and what then trains is counted: no weights are
    loaded; of a model's folder the weights' names are read, since a pooler that they lack belongs to the head. The
    paper's models (roberta-base, roberta-large, deberta-v2-xxlarge, gpt2-medium, gpt2-large, gpt3-175b) need no
    download. A method that was not asked for by name is left out where it does not fit.
    """
    if paper:
        _paper(form)
        return
    from rankprobe.cli.show import print_table
    from rankprobe.errors import UsageError
    from rankprobe.experiment.fit import unadapted_note
    from rankprobe.experiment.parameters import meta_model, parameter_table
    from rankprobe.experiment.spec import SIZE_FIELD
    from rankprobe.paper.architectures import PAPER_MODELS, paper_config, paper_problem
    from rankprobe.weights.pretrained import config_folder, load_config

    config = paper_config(model) if model in PAPER_MODELS else load_config(model)
    stored = None if model in PAPER_MODELS else _stored(config_folder(model))
    default = paper_problem(model) if model in PAPER_MODELS else "classification"
    problem = {"classification": "classification", "lm": "language_modelling", None: default}[task_type]
    typed = {*methods} | {m for m, size in SIZE_FIELD.items() if o.given(size)}
    typed |= {"lora"} if o.given("targets", "rs") else set()
    table = parameter_table(
        config,
        num_labels=labels,
        targets=targets,
        rs=rs,
        methods=methods or o.METHODS,
        sizes=sizes,
        problem=problem,
        optional=set(o.METHODS) - typed,
        stored=stored,
    )
    if table.empty:
        raise UsageError(table.attrs["left_out"][0].partition(": ")[2])
    for reason in table.attrs["left_out"]:
        click.echo(f"rankprobe: left out: {reason}", err=True)
    if note := unadapted_note(meta_model(config, problem, labels)):
        click.echo(f"rankprobe: warning: {note}", err=True)
    if form == "csv":
        click.echo(table.to_csv(index=False), nl=False)
        return
    total = int(table["total_params"].iloc[0])
    columns = ["method", "targets", "r", "size", "method_params", "head_params", "trainable_params", "trainable_pct",
               "method_pct"]  # fmt: skip
    print_table(
        table[columns].rename(columns=lambda c: c.replace("_", " ")),
        title=f"{model}: {total:,} parameters",
        notes="size: bottleneck, prefix length, layers or d; method pct: method parameters over the base's, heads left "
        "out",
    )


def _stored(folder: Path) -> frozenset[str] | None:
    """Names of the weights in a folder; None where they are not there, or not to be read: counts do without."""
    from rankprobe.errors import UsageError
    from rankprobe.weights.lacking import stored_names

    try:
        return stored_names(folder)
    except UsageError as error:
        click.echo(f"rankprobe: counted as if the weights were whole: {error}", err=True)
        return None


def _paper(form: str) -> None:
    """Print the paper's counts and ours.

    Raises
    ------
    UsageError
        If options that choose what to count are given too.
    """
    import pandas as pd

    from rankprobe.cli.show import print_table
    from rankprobe.errors import UsageError, must
    from rankprobe.paper.parameter_counts import paper_parameter_counts

    chosen = ("model", "methods", "targets", "rs", "bottleneck", "prefix_length", "layers", "d", "labels", "task_type")
    if extra := o.given(*chosen):
        rule = "be given without options that choose what is counted"
        raise UsageError(must("--paper", rule, " and ".join(extra), "Leave them out"))
    table = paper_parameter_counts()
    if form == "csv":
        click.echo(table.to_csv(index=False), nl=False)
        return
    table["where"] = table["source"].str.rpartition(", ")[2]
    table["ours"] = [f"{row.ours:,}" if pd.notna(row.ours) else row.fits for row in table.itertuples()]
    print_table(
        table[["where", "model", "name", "targets", "r", "size", "printed", "ours", "verdict"]],
        title="Trainable parameters that Hu et al. 2021 (arXiv:2106.09685) print",
        notes="equal: ours rounds to the print; equal in 2^20: it does with M = 2^20; cut: its leading digits; "
        "fits, none: sizes that round to the print where the paper leaves the size out; notes are in --format csv",
    )
