"""Which planned runs can be trained as one pack."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict

from rankprobe.errors import UsageError, must
from rankprobe.experiment.planned_run import PlannedRun

# What the members of a pack may differ in. Each has these for itself; a site that a member lacks costs it time.
_OWN = ("r", "alpha", "rslora", "targets", "lr", "seed")
_METHOD = "lora"


def pack_groups(runs: Sequence[PlannedRun], size: int) -> list[tuple[PlannedRun, ...]]:
    """Which runs can be trained together: packs of 2 to ``size``, as even as they come, in the runs' order.

    Members adapt the same matrices: a pack could mix them, but would do every member's products at every site.

    Parameters
    ----------
    runs : sequence of PlannedRun
    size : int
        The most members, at least 1.

    Returns
    -------
    list of tuple of PlannedRun
        Runs that no other goes with are in none.
    """
    if size < 1:
        raise UsageError(must("the size of packs", "be at least 1", size, "Pass --pack 8, say, or --pack off"))
    groups: dict[tuple, list[PlannedRun]] = {}
    for run in {run.run_id: run for run in runs}.values():
        if _alone(run) is None:
            groups.setdefault((run.spec.targets, *_shared(run).items()), []).append(run)
    packs = []
    for group in groups.values():
        count = -(-len(group) // size)
        ends = [len(group) * i // count for i in range(count + 1)]
        packs += [tuple(group[first:last]) for first, last in itertools.pairwise(ends) if last - first > 1]
    return packs


def check_pack(runs: Sequence[PlannedRun]) -> None:
    """Refuse runs that cannot be trained together.

    Raises
    ------
    UsageError
        If a run is not LoRA, has dropout, is there twice, or differs from the others in more than r, alpha, rsLoRA,
        targets, rate and seed.
    """
    if not runs:
        raise UsageError(must("a pack", "have at least one run", 0, "Pass runs to pack"))
    for run in runs:
        if reason := _alone(run):
            raise UsageError(must("Runs of a pack", *reason, "Do that one alone"))
        if different := [name for name, value in _shared(run).items() if value != _shared(runs[0])[name]]:
            name = different[0]
            got = f"{_shared(runs[0])[name]} and {_shared(run)[name]}"
            raise UsageError(must("Runs of a pack", f"share {name}", got, "Put them into packs of their own"))
    if len({run.run_id for run in runs}) < len(runs):
        raise UsageError(must("Runs of a pack", "each be there once", f"{len(runs)} with one twice", "Leave it out"))


def _alone(run: PlannedRun) -> tuple[str, str] | None:
    """Why a run cannot be in a pack: the rule, and what it has instead. None where it can."""
    if run.spec.method != _METHOD:
        return "be of the method lora", run.spec.method
    if run.spec.rank_pattern:
        return "have one r for all of their matrices", "an r by matrix"
    if run.spec.dropout or run.spec.model_dropout:
        return "be without dropout", f"{run.spec.dropout} on LoRA's input and {run.spec.model_dropout} in the model"
    return None


def _shared(run: PlannedRun) -> dict[str, object]:
    """All that the members of a pack have in common, by a name for it."""
    spec = {name: value for name, value in asdict(run.spec).items() if name not in _OWN}
    contents = {
        "the model's content": run.source.sha256,
        "the tokenizer": run.source.tokenizer_sha256,
        "the task's content": run.task.sha256,
    }
    return spec | contents
