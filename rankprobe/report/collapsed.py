"""What the page says of runs that ended no better than a constant."""

from __future__ import annotations

from rankprobe.experiment.outcome import learned_nothing
from rankprobe.report import numbers as say
from rankprobe.report.findings import Findings

# Of runs in a sentence.
_MOST_NAMES = 12


def learned_nothing_text(findings: Findings) -> str | None:
    """Which runs ended no better than a constant; None where all learned something."""
    runs = [run for run in findings.runs if learned_nothing(run)]
    if not runs:
        return None
    names = []
    for run in runs:
        targets = say.targets_name(run["spec"])
        name = say.method_name(run["spec"]) + (f" on {targets}" if targets else "")
        names.append(f"{name}, seed {run['spec']['seed']}: {say.score('accuracy', run['metrics']['accuracy'])}")
    if len(names) > _MOST_NAMES:
        names[_MOST_NAMES:] = [f"and {len(names) - _MOST_NAMES} more"]
    return (
        f"Not shown to be better than the commonest class, {say.score('accuracy', runs[0]['task']['majority'])} of the "
        f"rows (one-sided binomial test at 5 %): {'; '.join(names)}. They are counted above; the rank of what they "
        "learned says nothing."
    )
