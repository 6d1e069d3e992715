"""``rankprobe extract``: a fine-tuning as a LoRA adapter, or an adapter at another rank."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from rankprobe.cli import options as o


@click.command(
    epilog="\b\nExamples:\n"
    "  rankprobe extract bert-base-uncased ./my-tuned-bert --rank 16 --out adapter\n"
    "  rankprobe extract base tuned --noise --out adapter\n"
    "  rankprobe extract base tuned --budget 300000 --embeddings drop --dry-run\n"
    "  rankprobe extract adapter-r64 --energy 0.99 --out smaller"
)
@click.argument("inputs", nargs=-1, required=True, metavar="[BASE] TUNED")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder of the adapter; new or empty.")
@click.option("--rank", type=int, default=None, metavar="N", help="Keep N directions of every matrix.")
@click.option("--energy", type=float, default=None, metavar="Q",
              help="Of every matrix the fewest that hold a share Q of its Σσ². Fewer parameters for the same total: "
              "--budget.")
@click.option("--noise", is_flag=True, help="Those above the rounding of the stored weights.")
@click.option("--budget", type=int, default=None, metavar="PARAMS",
              help="Spend so many parameters where they hold most: σ²/(m + n), largest first, over the whole network.")
@click.option("--embeddings", type=click.Choice(["lora", "whole", "drop"]), default="lora", show_default=True,
              help="Changed embeddings: factors, saved whole, or left as they are in BASE.")
@click.option("--include", metavar="REGEX", default=None, help="Only matrices, norms and biases whose name has it.")
@click.option("--exclude", metavar="REGEX", default=None, help="None whose name has it. A task head always is carried.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True,
              help="Of the factors.")
@click.option("--base-model", metavar="NAME", default="",
              help="The base's name on the hub, for adapter_config.json.  [default: BASE, where it is one]")
@click.option("--base-rounded", is_flag=True,
              help="With --noise: BASE was rounded after training as TUNED was: its rounding is noise, too.")
@click.option("--alpha", type=float, default=None, help="LoRA's alpha of TUNED, for a file that does not hold it.")
@click.option("--dry-run", is_flag=True, help="Show sizes and kept energy; write nothing.")
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True,
              help="On the terminal: sums by kind, or every matrix.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier extraction of other models or settings in --out.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1, 1024), default=None, help="CPU threads.  [default: all cores]")
@o.runs_option
def extract(inputs: tuple[str, ...], out: Path | None, form: str, threads: int | None, dry_run: bool,
            alpha: float | None, device: str, base_model: str, runs: Path, **options) -> None:
    """Make a LoRA adapter of a full fine-tuning, or resize an adapter.

    Of every weight update the best part of low rank is kept, by one of --rank, --energy, --noise and --budget; what
    has no rank to cut (a task head, norms, biases) is carried beside. BASE and TUNED are Hugging Face folders, files of
    weights, rankprobe runs or hub ids; TUNED may be an adapter, which needs no BASE. peft loads what is written.
    """
    from rankprobe.errors import UsageError, must

    if len(inputs) > 2:
        got = f"{len(inputs)} inputs"
        raise UsageError(must("extract", "get BASE and TUNED, or an adapter", got, "See rankprobe extract --help"))
    if out is None and not dry_run:
        raise UsageError(must("extract", "know where to write", "no --out", "Pass --out adapter, or --dry-run"))
    if threads and not {"torch", "scipy"} & set(sys.modules):
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(threads)  # SciPy's are set by nothing else, and only before it is loaded

    import torch

    from rankprobe.analysis.choose_ranks import Rule
    from rankprobe.analysis.extract import extract as extract_pairing
    from rankprobe.cli.command import command_line
    from rankprobe.cli.extract_tables import print_extraction
    from rankprobe.training.precision import pick_device
    from rankprobe.weights.inputs import base_of, open_input
    from rankprobe.weights.pair import pair

    Rule(*(options[name] for name in ("rank", "energy", "noise", "budget")))  # refused before anything is opened
    device = pick_device(device)
    if threads:
        torch.set_num_threads(threads)
    tuned = open_input(inputs[-1], alpha=alpha, role="TUNED", runs=runs)
    where = inputs[0] if len(inputs) == 2 else base_of(inputs[-1], runs)
    base = open_input(where, role="BASE", runs=runs) if where is not None else None
    pairing = pair(base, tuned, fused=True)  # names are filtered later: what belongs together has to be seen whole
    how = {"base_model": base_model or _hub_name(where, runs), "device": device, "command": command_line()}
    with contextlib.nullcontext() if dry_run else _alone(out), _progress(pairing, options) as progress:
        done = extract_pairing(pairing, None if dry_run else out, **options, **how, progress=progress)
    if form == "csv":
        click.echo(done.table.to_csv(index=False, lineterminator="\n"), nl=False)
    elif form == "json":
        click.echo(done.table.to_json(orient="records", indent=1, double_precision=15))
    else:
        print_extraction(done, base=str(where or ""), out=out)
    if not dry_run:
        click.echo(str(out), err=True)


def _hub_name(where: object, runs: Path) -> str:
    """BASE, where it is a name on the hub; never a path."""
    from rankprobe.weights.hub import could_be_hub_name
    from rankprobe.weights.run_folder import run_folder
    from rankprobe.weights.source import DEFAULT_HUB_ID, DEFAULT_MODEL

    if not isinstance(where, str) or Path(where).expanduser().exists() or run_folder(where, runs) is not None:
        return ""
    name = DEFAULT_HUB_ID if where == DEFAULT_MODEL else where
    return name if could_be_hub_name(name) else ""


@contextlib.contextmanager
def _progress(pairing, options: dict) -> Iterator:
    """A bar over the matrices; with a budget each is decomposed for its values first."""
    from rankprobe.cli.progress import TerminalObserver

    # Of factors no product is decomposed: their cost is that of two QRs.
    costs = {m.name: m.cost if m.source == "dense" else 1e3 * sum(m.shape) for m in pairing.matrices}
    passes = 2 if options["budget"] is not None else 1
    unit = max(1.0, passes * sum(costs.values()) / 1e6)  # the bar counts whole steps
    observer = TerminalObserver(passes * sum(round(cost / unit) for cost in costs.values()))
    begun = 0

    def progress(matrix) -> None:
        nonlocal begun
        begun += 1
        observer.begin(matrix.name, round(costs[matrix.name] / unit))
        observer.stage("matrix", begun, passes * len(costs))

    with observer.live():
        yield progress


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """An output folder for this process alone; what was made for that and holds nothing is taken back."""
    from rankprobe.analysis.extract_work import check_output
    from rankprobe.errors import WorkError, must
    from rankprobe.experiment.store import lock

    out = Path(os.path.abspath(out))
    check_output(out)  # before anything is put into it, if only a lock
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(out))
        except WorkError:
            next_step = "Wait for the other to end, or pass another --out"
            raise WorkError(must(f"{out}", "be used by one process at a time", "a second one", next_step)) from None
        try:
            yield
        finally:
            (out / ".lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the first that holds something stays, and all above it
                for folder in made:
                    folder.rmdir()
