"""What sets the choices of layers apart: their paired differences, over seeds and rows, from the study's runs.

Run with ``python studies/which-layers/between.py --runs runs`` where the runs are (``tar -xf
results/which-layers/runs.tar.xz -C runs`` puts them there).
"""

from pathlib import Path

import click

from rankprobe.experiment.output import study_plan
from rankprobe.experiment.store import load_runs
from rankprobe.report import numbers as say
from rankprobe.report.comparison import difference

OUT = Path(__file__).resolve().parents[2] / "results" / "which-layers"
# By the targets of study.toml, best first.
LAYERS = {"all six": "q,v", "middle": "[23]", "upper": "[45]", "lower": "[01]"}


@click.command()
@click.option("--runs", default="runs", show_default=True, type=click.Path(path_type=Path), help="Run store.")
def main(runs: Path) -> None:
    """Print accuracy of each choice minus that of the next, in points, with 95 % intervals."""
    found = load_runs(runs / run_id for run_id in study_plan(OUT)["runs"])
    lora = [run for run in found if run["spec"]["method"] == "lora" and run["spec"]["split"] == "eval"]
    groups = {name: [run for run in lora if key in run["spec"]["targets"]] for name, key in LAYERS.items()}
    for one, other in zip(LAYERS, list(LAYERS)[1:], strict=False):
        gap = difference(groups[one], groups[other])
        click.echo(f"{one} - {other}: {say.points(gap.estimate, gap.low, gap.high)} ({gap.method})")


if __name__ == "__main__":
    main()
