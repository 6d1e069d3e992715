"""What sets the runs that a folder showed apart from those that a call has planned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace

from rankprobe.experiment.planned_run import PlannedRun, plan_run
from rankprobe.experiment.spec import RunSpec
from rankprobe.experiment.store import finished

# What a machine decides where nobody says it, and the option that says it.
_OF_THE_MACHINE = {"dtype": "--dtype", "threads": "--threads"}
# What a study has several of.
_SWEPT = ("method", "r", "alpha", "targets", "lr", "seed", "bottleneck", "prefix_length", "layers", "d", "rank_pattern")


def settings_apart(earlier: Iterable[dict], planned: Sequence[PlannedRun]) -> str:
    """What all earlier runs have in common and all planned ones have otherwise, in words.

    The usual reason why nothing is taken up again: another machine has another number of cores, or multiplies bfloat16.

    Parameters
    ----------
    earlier : iterable of dict
        run.json contents of trainings.
    planned : sequence of PlannedRun

    Returns
    -------
    str
        ``"dtype bfloat16, not float32; threads 1, not 2 (with --dtype bfloat16 --threads 1 they would be used)"``;
        empty where no one setting tells all of the two apart. Options are named where with them a planned run is a
        finished one of the store: a clone has records without the files beside them.

    Examples
    --------
    >>> settings_apart([], [])
    ''
    """
    before = [_settings(run["spec"], run["model"].get("sha256"), run["task"].get("sha256")) for run in earlier]
    now = [_settings(asdict(run.spec), run.source.sha256, run.task.sha256) for run in planned]
    if not before or not now:
        return ""
    apart = {}
    for name in now[0]:
        old, new = ({str(settings[name]) for settings in side} for side in (before, now))
        if len(old) == len(new) == 1 and old != new:
            apart[name] = before[0][name], now[0][name]
    words = "; ".join(f"{name} {old}, not {new}" for name, (old, new) in apart.items())
    said = {name: apart[name][0] for name in _OF_THE_MACHINE if name in apart}
    with_them = (replace(run.spec, **said) for run in planned)
    if not said or not any(
        finished(plan_run(spec, run.source, run.task, run.folder.parent).folder)
        for spec, run in zip(with_them, planned, strict=True)
    ):
        return words
    options = " ".join(f"{_OF_THE_MACHINE[name]} {old}" for name, old in said.items())
    return f"{words} (with {options} they would be used)"


def _settings(spec: dict, model_sha256: str | None, task_sha256: str | None) -> dict:
    """The fields that a study has one of; a model or task of the same name and other content is told apart too."""
    same = {field.name: spec.get(field.name) for field in fields(RunSpec) if field.name not in _SWEPT}
    shas = {"model": model_sha256 or "", "task": task_sha256 or ""}
    return same | {name: f"{same[name]} {sha256[:8]}" for name, sha256 in shas.items()}
