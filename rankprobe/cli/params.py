"""``rankprobe params``: exact parameter counts."""

from __future__ import annotations

import click

from rankprobe.cli import options as o


@click.command(
    epilog="\b\nExamples:\n  rankprobe params --r 1,8,64\n"
    "  rankprobe params --model roberta-base --targets q,v --targets qkvo --r 8\n"
    "  rankprobe params --model gpt2-medium --r 4 --format csv"
)
@o.model_option
@click.option("--targets", multiple=True, default=("q,v",), show_default=True, help="Repeat for more.")
@click.option("--r", "rs", type=o.IntList(), default=(1, 2, 4, 8, 64), show_default="1,2,4,8,64")
@click.option("--labels", type=click.IntRange(min=1), default=2, show_default=True, help="Classes of the head.")
@click.option("--format", "form", type=click.Choice(["table", "csv"]), default="table", show_default=True)
def params(model: str, targets: tuple[str, ...], rs: tuple[int, ...], labels: int, form: str) -> None:
    """Print trainable parameters of full fine-tuning, head only and LoRA.

    Counted on the meta device: no weights are loaded. The paper's models (roberta-base, roberta-large, gpt2-medium,
    gpt2-large) need no download.
    """
    from rankprobe.cli.show import print_table
    from rankprobe.experiment.parameters import parameter_table
    from rankprobe.paper.architectures import PAPER_MODELS, paper_config
    from rankprobe.weights.pretrained import load_config

    config = paper_config(model) if model in PAPER_MODELS else load_config(model)
    table = parameter_table(config, num_labels=labels, targets=list(targets), rs=list(rs))
    if form == "csv":
        click.echo(table.to_csv(index=False), nl=False)
        return
    shown = table.drop(columns=["total_params"]).rename(columns=lambda c: c.replace("_", " "))
    total = int(table["total_params"].iloc[0])
    print_table(
        shown,
        title=f"{model}: {total:,} parameters",
        notes="method pct: method parameters over the base's, heads left out",
    )
