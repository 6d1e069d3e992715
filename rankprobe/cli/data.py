"""``rankprobe data``: look at a task's rows, or write them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rankprobe.cli import options as o

if TYPE_CHECKING:
    from rankprobe.tasks.load import Splits
    from rankprobe.tasks.task import Example

_EXAMPLES = 3


@click.command(epilog="\b\nExamples:\n  rankprobe data docmatch\n"
                      "  rankprobe data docmatch --out docmatch-rows\n"
                      "  rankprobe data docgen\n"
                      "  rankprobe data sst2 --data-dir data/sst2\n"
                      "  rankprobe data smiles --data-dir molecules.smi\n"
                      "  rankprobe data files --train a.csv --eval b.csv --text review --label stars")
@click.argument("task")
@o.source_options
@click.option("--out", type=click.Path(path_type=Path), default=None,
              help="Write the rows here as TSV. The folder must be new, or hold rows written earlier.")
def data(task: str, out: Path | None, **options) -> None:
    """Show a task's size, labels and first rows; with --out, write all rows as TSV.

    TASK is docmatch, docgen, either with -smoke, a GLUE task, e2e, smiles, or files. docmatch and docgen are made from
    the sources of installed packages: half a minute the first time, a second from then on.
    """
    from rankprobe.cli.progress import reading
    from rankprobe.tasks.load import load_splits

    files = o.file_spec({**options, "task": task})
    with reading() as progress:
        splits = load_splits(task, data_dir=options["data_dir"], files=files, progress=progress)
    _summary(splits)
    if out is None:
        _examples(splits)
        return
    from rankprobe.tasks.export import write_tsv

    written = write_tsv(out, splits.rows, None if splits.problem == "language_modelling" else splits.labels)
    text_b = " --text-b text_b" if splits.rows["train"][0].text_b is not None else ""
    click.echo("\nWritten: " + ", ".join(str(path) for path in written))
    if splits.problem == "language_modelling":
        return  # the task files has no prompts and completions
    click.echo(f"To use them: --task files --train {out / 'train.tsv'} --eval {out / 'eval.tsv'} "
               f"--text text{text_b} --label label{'' if splits.labels else ' --regression'}")


def _summary(splits: Splits) -> None:
    kind = {
        "classification": f"{len(splits.labels)} classes ({', '.join(splits.labels)})",
        "regression": "scores",
        "language_modelling": "texts to go on with",
    }[splits.problem]
    click.echo(f"{splits.name}: {kind}, measured by {' and '.join(splits.metrics)}")
    for split, rows in splits.rows.items():
        click.echo(f"  {split:<6} {len(rows):>7,} rows   {_balance(rows, splits)}")
    click.echo(f"  sha256 {splits.sha256}")


def _balance(rows: tuple[Example, ...], splits: Splits) -> str:
    from collections import Counter

    labels = splits.labels
    if splits.problem == "language_modelling":
        prompt, completion = (sum(len(getattr(row, name)) for row in rows) / len(rows) for name in ("text", "text_b"))
        return f"a prompt of {prompt:.0f} and a completion of {completion:.0f} characters on average"
    if not labels:
        scores = [row.label for row in rows]
        return f"from {min(scores):g} to {max(scores):g}"
    counts = Counter(row.label for row in rows)
    shown = "   ".join(f"{label} {counts[i] / len(rows):.1%}" for i, label in enumerate(labels[:8]))
    return f"{shown}   ..." if len(labels) > 8 else shown


def _examples(splits: Splits) -> None:
    generated = splits.problem == "language_modelling"
    for row in splits.rows["train"][:_EXAMPLES]:
        label = splits.labels[int(row.label)] if splits.labels else row.label
        click.echo(f"\n  {row.row}" + ("" if generated else f": {label}"))
        for text in (row.text, row.text_b):
            if text is not None and not (generated and not text):
                click.echo(f"    {' '.join(text.split())}")
