"""``rankprobe latency``: does a merged LoRA cost time? Does an unmerged one? Do adapters?"""

from __future__ import annotations

import re
from pathlib import Path

import click

from rankprobe.cli import options as o
from rankprobe.errors import UsageError, must

_BUDGET_S, _TABLE1_BUDGET_S = 60.0, 300.0
# Of one shape: beyond it a typing error is likelier than a wish.
_MOST_TOKENS = 10_000_000


@click.command(
    epilog="\b\nExamples:\n  rankprobe latency --shapes 1x32,8x64 --budget 20\n"
    "  rankprobe latency --model roberta-base-folder --r 64 --targets qkvo --format csv\n"
    "  rankprobe latency --r 8 --bottlenecks 14 6 --prefix-length 32\n"
    "  rankprobe latency --table1\n"
    "  rankprobe latency --table1 --full --shapes 1x128 --out results/table1"
)
@o.model_option
@click.option("--r", type=int, default=8, show_default=True)
@click.option("--targets", default="q,v", show_default=True, help="As for finetune.")
@click.option(
    "--bottlenecks", type=int, nargs=2, default=None, metavar="L H", help="Time Adapter-L and Adapter-H of these too."
)
@click.option("--prefix-length", type=int, default=None, help="With --bottlenecks: time PreLayer and PreEmbed too.")
@click.option(
    "--shapes",
    default=None,
    metavar="BxL,...",
    help="Batch times length in tokens.  [default: 1x32,8x64,32x64; with --table1 the paper's]",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=1),
    default=None,
    help=f"Seconds for all shapes; each has 6 rounds at least.  [default: {_BUDGET_S:g}; with --table1 "
    f"{_TABLE1_BUDGET_S:g}]",
)
@click.option(
    "--table1",
    is_flag=True,
    help="Table 1 of the LoRA paper: LoRA and adapters on GPT-2 medium's architecture with random weights, in float32 "
    "unless --dtype says otherwise; on a CPU on a quarter of its depth and width.",
)
@click.option("--full", is_flag=True, help="With --table1: GPT-2 medium on a CPU too: 9 GB for the models, hours.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="With --table1: a folder for table1.csv and a picture."
)
@click.option("--format", "form", type=click.Choice(["table", "csv"]), default="table", show_default=True)
@o.compute_options
@o.runs_option
def latency(
    model: str,
    r: int,
    targets: str,
    bottlenecks: tuple[int, int] | None,
    prefix_length: int | None,
    shapes: str | None,
    budget: float | None,
    table1: bool,
    full: bool,
    out: Path | None,
    form: str,
    **options,
) -> None:
    """Time the base, a second copy of it, a fully tuned copy, and LoRA merged and unmerged.

    All are interleaved in random order in one process. The second copy (A/A) shows what this machine cannot tell
    apart. Absolute times are hints; the ratios to the base are the result. Stopped at any moment, the same command
    goes on with the shapes that are left.
    """
    wanted = None if shapes is None else _shapes(shapes)
    if table1:
        if extra := o.given("model", "r", "targets", "bottlenecks", "prefix_length"):
            rule = "be given without options that choose the model and the methods"
            raise UsageError(must("--table1", rule, " and ".join(extra), "Leave them out: they are the paper's"))
        _table_1(wanted, budget or _TABLE1_BUDGET_S, full, out, form, options)
        return
    if extra := o.given("full", "out"):
        raise UsageError(must(" and ".join(extra), "come with --table1", "no --table1", "Add it, or leave this out"))
    from rankprobe.cli.show import print_table
    from rankprobe.experiment.latency import plan_latency
    from rankprobe.weights.source import find_model

    place = o.place(options)
    wanted = wanted or ((1, 32), (8, 64), (32, 64))
    plan = plan_latency(
        find_model(model),
        place.runs,
        r=r,
        targets=targets,
        budget_s=budget or _BUDGET_S,
        dtype=place.dtype,
        shapes=wanted,
        device=place.device,
        threads=place.threads,
        bottlenecks=bottlenecks and (bottlenecks,) * len(wanted),
        prefix_length=prefix_length,
    )
    table = _measured(plan)
    if form == "csv":
        click.echo(table.to_csv(index=False), nl=False)
        return
    columns = ["variant", "batch", "length", "n", "latency_ms", "ratio", "ratio_ci_low", "ratio_ci_high"]
    columns += ["method_params"] if bottlenecks else []
    trained = "; method params: trained besides the head, of the base by full fine-tuning" if bottlenecks else ""
    print_table(
        table[columns].round(4),
        title=f"{plan.source.name}, r={r}, {plan.spec.dtype} on {plan.spec.device}",
        notes=f"intervals: {table['ci_method'].iloc[0]}; ratios to the base of the same round{trained}",
    )


def _shapes(text: str) -> tuple[tuple[int, int], ...]:
    """``1x32,8x64`` as pairs.

    Raises
    ------
    UsageError
    """
    pairs = [re.fullmatch(r"(\d+)x(\d+)", part.strip()) for part in text.split(",")]
    if not all(pairs):
        raise UsageError(
            must("shapes", "be batch x length pairs with commas between", repr(text), "Pass 1x32,8x64, say")
        )
    shapes = tuple(dict.fromkeys((int(p[1]), int(p[2])) for p in pairs))
    if any(batch * length > _MOST_TOKENS for batch, length in shapes):
        rule = f"have at most {_MOST_TOKENS:,} tokens each"
        raise UsageError(must("shapes", rule, repr(text), "Pass 1x32,8x64, say"))
    return shapes


def _measured(plan):
    """Measure anew, with a bar; what an interrupted command has measured is taken up."""
    from rankprobe.cli.progress import TerminalObserver
    from rankprobe.experiment.latency import execute_latency

    observer = TerminalObserver(0)
    with observer.live():
        observer.begin("latency", 0)
        return execute_latency(plan, observer=observer, again=True)


def _table_1(
    shapes: tuple[tuple[int, int], ...] | None, budget_s: float, full: bool, out: Path | None, form: str, options: dict
) -> None:
    """Measure and print Table 1."""
    from rankprobe.cli.command import command_line
    from rankprobe.cli.show import print_table
    from rankprobe.experiment.output import claim_output
    from rankprobe.experiment.store import write_table
    from rankprobe.paper.published import published
    from rankprobe.paper.table1 import plan_table1
    from rankprobe.report.latency_plots import draw_table_1
    from rankprobe.report.style import save_picture, style
    from rankprobe.report.table1 import printed_table, table_1

    # The paper's GPU has no bfloat16: "auto" is what it computed in, not what this hardware is fastest in.
    place = o.place({**options, "dtype": "float32" if options["dtype"] == "auto" else options["dtype"]})
    plan = plan_table1(
        place.runs,
        budget_s=budget_s,
        dtype=place.dtype,
        device=place.device,
        threads=place.threads,
        shrink=1 if full else None,
        shapes=shapes,
    )
    if out is not None:
        claim_output(out, {"name": "table1", "command": command_line(), "latency": plan.run_id})
    table = table_1(_measured(plan), published())
    if out is not None:
        write_table(out / "table1.csv", table)
        with style():
            save_picture(draw_table_1(table), out)
    if form == "csv":
        click.echo(table.to_csv(index=False), nl=False)
        return
    first = table.iloc[0]
    threads = f", {place.threads} threads" if place.device == "cpu" else ""
    print_table(
        printed_table(table),
        title=f"Table 1 on {plan.source.name} with random weights, LoRA r={plan.spec.r} on {plan.spec.targets}, "
        f"{place.dtype} on {first['device_name']}{threads}",
        notes=f"overhead: over the base of the same round; intervals: {first['ci_method']}; paper: GPT-2 medium on a "
        "Quadro RTX 8000; parameters: trained ones, layer norms included; shape: batch x length",
    )
    if out is not None:
        click.echo(f"{out / 'table1.csv'}")
