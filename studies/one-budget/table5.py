"""The paper's Table 5 from the study's runs: each choice of matrices, its paired difference from q alone, and others.

Run with ``python studies/one-budget/table5.py --runs runs`` where the runs are (``tar -xf
results/one-budget/runs.tar.xz -C runs`` puts them there).
"""

from pathlib import Path

import click

from rankprobe.experiment.output import study_plan
from rankprobe.experiment.store import load_runs, write_table
from rankprobe.paper.published import published
from rankprobe.report import numbers as say
from rankprobe.report.comparison import difference
from rankprobe.report.paper_tables import table_5

# The choices that the paper's order sets one above the other, and those that are close here.
BETWEEN = (("q,v", "v"), ("q,k,v,o", "q,v"), ("q,v", "o"), ("o", "v"))
OUT = Path(__file__).resolve().parents[2] / "results" / "one-budget"


@click.command()
@click.option("--runs", default="runs", show_default=True, type=click.Path(path_type=Path), help="Run store.")
def main(runs: Path) -> None:
    """Write tables/table5.csv, intervals at 95 %, beside GPT-3's scores; print what sets other choices apart."""
    found = load_runs(runs / run_id for run_id in study_plan(OUT)["runs"])
    table = table_5(found, published())
    write_table(OUT / "tables" / "table5.csv", table)
    click.echo(table.drop(columns=["metric", "n_eval", "ci_method"]).to_string(index=False, float_format="%.4f"))
    groups = {targets: [run for run in found if run["spec"]["targets"] == targets] for targets in table["targets"]}
    for one, other in BETWEEN:
        gap = difference(groups[one], groups[other])
        click.echo(f"{one} - {other}: {say.points(gap.estimate, gap.low, gap.high)} ({gap.method})")


if __name__ == "__main__":
    main()
