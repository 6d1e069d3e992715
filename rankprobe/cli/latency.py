"""``rankprobe latency``: does a merged LoRA cost time? Does an unmerged one?"""

from __future__ import annotations

import click

from rankprobe.cli import options as o


@click.command(
    epilog="\b\nExamples:\n  rankprobe latency --shapes 1x32,8x64 --budget 20\n"
    "  rankprobe latency --model roberta-base-folder --r 64 --targets qkvo --format csv"
)
@o.model_option
@click.option("--r", type=int, default=8, show_default=True)
@click.option("--targets", default="q,v", show_default=True, help="As for finetune.")
@click.option(
    "--shapes", default="1x32,8x64,32x64", show_default=True, metavar="BxL,...", help="Batch times length in tokens."
)
@click.option("--budget", type=click.FloatRange(min=1), default=60.0, show_default=True, help="Seconds for all shapes.")
@click.option("--format", "form", type=click.Choice(["table", "csv"]), default="table", show_default=True)
@o.compute_options
@o.runs_option
def latency(model: str, r: int, targets: str, shapes: str, budget: float, form: str, **options) -> None:
    """Time the base, a second copy of it, a fully tuned copy, and LoRA merged and unmerged.

    All are interleaved in random order in one process. The second copy (A/A) shows what this machine cannot tell
    apart. Absolute times are hints; the ratios to the base are the result.
    """
    import re

    from rankprobe.cli.progress import TerminalObserver
    from rankprobe.cli.show import print_table
    from rankprobe.errors import UsageError, must
    from rankprobe.experiment.latency import execute_latency, plan_latency
    from rankprobe.weights.source import find_model

    pairs = [re.fullmatch(r"(\d+)x(\d+)", part.strip()) for part in shapes.split(",")]
    if not all(pairs):
        raise UsageError(
            must("shapes", "be batch x length pairs with commas between", repr(shapes), "Pass 1x32,8x64, say")
        )
    place = o.place(options)
    plan = plan_latency(
        find_model(model),
        place.runs,
        r=r,
        targets=targets,
        budget_s=budget,
        dtype=place.dtype,
        shapes=tuple((int(p[1]), int(p[2])) for p in pairs),
        device=place.device,
        threads=place.threads,
    )
    observer = TerminalObserver(0)
    with observer.live():
        observer.begin("latency", 0)
        table = execute_latency(plan, observer=observer, again=True)
    if form == "csv":
        click.echo(table.to_csv(index=False), nl=False)
        return
    columns = ["variant", "batch", "length", "n", "latency_ms", "ratio", "ratio_ci_low", "ratio_ci_high"]
    print_table(
        table[columns].round(4),
        title=f"{plan.source.name}, r={r}, {plan.spec.dtype} on {plan.spec.device}",
        notes=f"intervals: {table['ci_method'].iloc[0]}; ratios to the base of the same round",
    )
