"""``rankprobe spectrum RUN``: what a finished run has measured already."""

from __future__ import annotations

from pathlib import Path

from rankprobe.analysis.rank_columns import energy_column
from rankprobe.analysis.spectrum_tables import read_ranks
from rankprobe.cli.spectrum_tables import print_ranks
from rankprobe.errors import UsageError, must
from rankprobe.experiment.store import finished, read_record
from rankprobe.weights.pair import NameFilter
from rankprobe.weights.run_folder import WHOLE_MODEL


def stored_run(where: str, runs: Path) -> Path | None:
    """The run's folder that an argument means; None where it means something else."""
    folder = Path(where)
    if folder.is_dir():
        return folder if (folder / "run.json").exists() else None
    named = runs / where
    return named if named.is_dir() else None


def show_run(
    folder: Path, where: str, runs: Path, *, by: str | None, form: str, energy: float, include: str | None,
    exclude: str | None,
) -> None:
    """Print a run's ranks.csv.

    Raises
    ------
    UsageError
        If the run is not finished or has no such table, or it lacks the share of the energy.
    """
    record = read_record(folder)
    if record is None:
        next_step = f"Look into {runs} for their names"
        raise UsageError(must("RUN", "be the folder of a finished run", repr(where), next_step))
    if finished(folder) is None or not (folder / "ranks.csv").is_file():
        method = (record.get("spec") or {}).get("method", "")
        frozen = record["status"] == "ok" and method not in (*WHOLE_MODEL, "lora")
        raise UsageError(must("RUN", "hold ranks.csv", f"{record['run_id']} ({record['status']})",
                              f"Pass a run of full or lora: {method} changes no matrix of the base" if frozen
                              else "Its files are not here as run.json lists them: run it again"))  # fmt: skip
    table = read_ranks(folder / "ranks.csv")
    if energy_column(energy) not in table:
        next_step = "Pass BASE and the run: it is then measured again"
        raise UsageError(must("--energy", "be a share that the run has measured", f"{energy:g}", next_step))
    keep = NameFilter(include, exclude)
    table = table[[keep(name) for name in table["name"]]].reset_index(drop=True)
    keep.check(len(table) > 0)
    print_ranks(table, by=by, form=form, energy=energy, title=f"dW of {record['run_id']}")
