"""The paper's Table 5 from the study's runs: each choice of matrices, and its paired difference from q alone.

Run with ``python studies/one-budget/table5.py --runs runs`` where the runs are (``tar -xf
results/one-budget/runs.tar.xz -C runs`` puts them there).
"""

from pathlib import Path

import click

from rankprobe.experiment.output import study_plan
from rankprobe.experiment.store import load_runs, write_table
from rankprobe.paper.published import published
from rankprobe.report.paper_tables import table_5

OUT = Path(__file__).resolve().parents[2] / "results" / "one-budget"


@click.command()
@click.option("--runs", default="runs", show_default=True, type=click.Path(path_type=Path), help="Run store.")
def main(runs: Path) -> None:
    """Write tables/table5.csv, intervals at 95 %, beside GPT-3's scores."""
    table = table_5(load_runs(runs / run_id for run_id in study_plan(OUT)["runs"]), published())
    write_table(OUT / "tables" / "table5.csv", table)
    click.echo(table.drop(columns=["metric", "n_eval", "ci_method"]).to_string(index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
