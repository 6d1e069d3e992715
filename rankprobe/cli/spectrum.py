"""``rankprobe spectrum``: the rank of every weight update, of any pair of models, an adapter or a run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from rankprobe.cli import options as o


@click.command(
    epilog="\b\nExamples:\n"
    "  rankprobe spectrum bert-base-uncased ./my-tuned-bert\n"
    "  rankprobe spectrum adapter --by matrix --format csv > ranks.csv\n"
    "  rankprobe spectrum base tuned --include 'layers\\.(0|1)\\.' --values-only --out here\n"
    "  rankprobe spectrum lora-r8-qv-eval-s0-0123456789"
)
@click.argument("inputs", nargs=-1, required=True, metavar="[BASE] TUNED")
@click.option("--by", type=click.Choice(["kind", "layer", "matrix"]), default=None,
              help="Rows: medians of a kind or of a layer, or every matrix.  [default: kind; a table shows both]")
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True,
              help="On the terminal.")
@click.option("--include", metavar="REGEX", default=None, help="Only matrices whose name has it.")
@click.option("--exclude", metavar="REGEX", default=None, help="No matrices whose name has it.")
@click.option("--energy", type=click.FloatRange(0, 1, min_open=True), default=0.9, show_default=True,
              help="Share of Σσ² whose energy rank is shown; one that is not standard gets a column.")
@click.option("--values-only", is_flag=True,
              help="Singular values and what follows from them: no noise is drawn, no picture and no page.")
@click.option("--base-rounded", is_flag=True,
              help="BASE was rounded after training as TUNED was: its rounding is noise, too.")
@click.option("--alpha", type=float, default=None, help="LoRA's alpha, for a file that does not hold it.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1, 1024), default=None, help="CPU threads.  [default: all cores]")
@click.option("--out", type=click.Path(path_type=Path), default=None,
              help="Output folder.  [default: results/spectrum-TUNED]")
@click.option("--overwrite", is_flag=True, help="Replace what the output folder holds of other inputs or options.")
@o.runs_option
def spectrum(inputs: tuple[str, ...], by: str | None, form: str, threads: int | None, runs: Path, **options) -> None:
    """Measure the rank of every weight update, by every definition.

    BASE and TUNED are Hugging Face folders, files of weights, rankprobe runs or hub ids; TUNED may be a LoRA adapter,
    which needs no BASE. Written are ranks.csv, spectra.csv and a report. One matrix at a time is in memory, and the
    same command goes on where it was stopped. A finished run alone shows what it has measured
    already; with --out it is measured again, with the noise of storage, and gets a report.
    """
    from rankprobe.errors import UsageError, must

    if len(inputs) > 2:
        got = f"{len(inputs)} inputs"
        raise UsageError(must("spectrum", "get TUNED, or BASE and TUNED", got, "See rankprobe spectrum --help"))
    if threads and not {"torch", "scipy"} & set(sys.modules):
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(threads)  # SciPy's are set by nothing else, and only before it is loaded

    from rankprobe.cli.spectrum_stored import show_run, stored_run
    from rankprobe.cli.spectrum_work import measure_pair

    weights = o.given("values_only", "base_rounded", "alpha", "device", "out", "overwrite")
    folder = stored_run(inputs[0], runs) if len(inputs) == 1 and not weights else None
    if folder is not None:
        show_run(folder, inputs[0], runs, by=by, form=form, energy=options["energy"], include=options["include"],
                 exclude=options["exclude"])
    else:
        measure_pair(inputs, runs=runs, by=by, form=form, threads=threads, **options)
