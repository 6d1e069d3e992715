"""``rankprobe spectrum``: the rank of every dW of a run."""

from __future__ import annotations

from pathlib import Path

import click

from rankprobe.cli import options as o


@click.command(epilog="\b\nExamples:\n  rankprobe spectrum runs/full-eval-s0-0123456789\n"
                      "  rankprobe spectrum lora-r8-qv-eval-s0-0123456789 --by matrix --format csv")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--by", type=click.Choice(["kind", "layer", "matrix"]), default="kind", show_default=True,
              help="One row a kind (medians), a layer (medians) or a matrix.")
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@o.runs_option
def spectrum(run: Path, by: str, form: str, runs: Path) -> None:
    """Print the rank of every weight update of a finished RUN, by every definition.

    RUN is a run's folder, or its name in the run store. The singular values are in its spectra.csv.
    """
    import pandas as pd

    from rankprobe.analysis.spectrum import RANK_COLUMNS, medians
    from rankprobe.cli.show import print_table
    from rankprobe.errors import UsageError, must
    from rankprobe.experiment.store import finished, read_record

    folder = run if run.is_dir() else runs / run
    record = read_record(folder)
    if record is None:
        next_step = f"Look into {runs} for their names"
        raise UsageError(must("RUN", "be the folder of a finished run", repr(str(run)), next_step))
    if finished(folder) is None or not (folder / "ranks.csv").is_file():
        head = record["run_id"].startswith("head")
        raise UsageError(must("RUN", "hold ranks.csv", f"{record['run_id']} ({record['status']})",
                              "Pass a run of full or lora: head changes no matrix of the base" if head
                              else "Its files are not here as run.json lists them: run it again"))
    table = pd.read_csv(folder / "ranks.csv")
    if by != "matrix":
        table = medians(table, by)
    if form == "csv":
        click.echo(table.to_csv(index=False), nl=False)
    elif form == "json":
        click.echo(table.to_json(orient="records", indent=1))
    else:
        if by == "matrix":
            table = table[["name", "kind", "m", "n", "relative_change", *RANK_COLUMNS]]
        note = None if by == "matrix" else f"medians over the blocks' matrices of one {by}"
        print_table(table.rename(columns=lambda c: c.replace("_", " ")), title=f"dW of {record['run_id']}", notes=note)
