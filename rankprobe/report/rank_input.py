"""What the answer of a rank sweep is made from: each configuration's predictions, seed by seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from rankprobe.errors import UsageError, must
from rankprobe.report import numbers as say
from rankprobe.report.comparison import (
    configurations,
    finished_ok,
    full_reference,
    lora_groups,
    one_comparison,
)
from rankprobe.report.predictions import predictions


@dataclass(frozen=True)
class Configuration:
    """One setting of a sweep.

    Attributes
    ----------
    label : str
        As people read it: ``"LoRA r = 8"``.
    r : int or None
        None for full fine-tuning.
    seeds : mapping of int to (labels, predictions, scores) or None
        Arrays of shape (n,), ``scores`` may be None; the same rows in the same order for all seeds and configurations.
        None in place of the three for a seed whose training diverged.
    tried : int
        How many settings of this r, or of full fine-tuning (learning rates, alphas, epochs), were scored on these rows,
        of which this is the best.
    """

    label: str
    r: int | None
    seeds: Mapping[int, tuple | None]
    tried: int = 1

    @property
    def finished(self) -> dict[int, tuple]:
        """Seeds that did not diverge, in order."""
        return {seed: self.seeds[seed] for seed in sorted(self.seeds) if self.seeds[seed] is not None}

    @property
    def n_diverged(self) -> int:
        """How many seeds diverged."""
        return len(self.seeds) - len(self.finished)


def sweep_of(runs: list[dict], targets: str) -> tuple[list[Configuration], Configuration | None]:
    """The LoRA configurations of some targets, one an r, and full fine-tuning, from finished runs.

    Parameters
    ----------
    runs : list of dict
        run.json contents of one comparison, with ``path``; predictions.csv lies beside each that is ok.
    targets : str
        As the runs' specs have them: ``"q,v"``.

    Returns
    -------
    (list of Configuration, Configuration or None)
        By r, and full fine-tuning; None where no run of it is ok. Of several settings of one r (learning rates, alphas)
        the one that stands for it in tables: most seeds, then best score. Runs that crashed are left out, and those
        with an r of its own for each matrix.

    Raises
    ------
    UsageError
        If the runs are of several comparisons, a predictions.csv is missing, or two are not of the same rows.
    """
    groups = configurations(one_comparison(runs))
    whole = {run["run_id"]: group for group in groups for run in group}
    by_r: dict[int, list[dict]] = {}
    tried: Counter[int] = Counter()
    for group in groups:
        spec = group[0]["spec"]
        if spec["method"] == "lora" and spec["targets"] == targets and not spec.get("rank_pattern"):
            by_r.setdefault(spec["r"], group)
            tried[spec["r"]] += _was_scored(group)
    by_r |= {r: whole[ok[0]["run_id"]] for r, ok in lora_groups(runs, targets).items()}
    full = full_reference(groups)
    rows: dict[str, np.ndarray] = {}
    found = [replace(_configuration(by_r[r], rows), tried=max(1, tried[r])) for r in sorted(by_r)]
    if not full:
        return found, None
    tried_full = sum(_was_scored(group) for group in groups if group[0]["spec"]["method"] == "full")
    return found, replace(_configuration(whole[full[0]["run_id"]], rows), tried=tried_full)


def _was_scored(group: list[dict]) -> bool:
    """Whether a setting was a candidate at all: one of which every run diverged or crashed is not."""
    return bool(finished_ok(group))


def _configuration(group: list[dict], rows: dict[str, np.ndarray]) -> Configuration:
    """Of one configuration's runs; ``rows`` holds the names of the first table's rows, which all others must have."""
    spec, seeds = group[0]["spec"], {}
    for run in group:
        if run["status"] == "diverged":
            seeds[run["spec"]["seed"]] = None
        elif run["status"] == "ok":
            table = predictions(run)
            if table is None:
                next_step = "Answer where the sweep ran; a clone has no predictions"
                raise UsageError(must("A run", "have its predictions.csv", f"none for {run['run_id']}", next_step))
            if not table.same_rows(rows.setdefault("first", table.row)):
                rule = "be of the same rows in the same order"
                raise UsageError(must("predictions of two runs", rule, run["run_id"], "Redo the runs on one task"))
            seeds[run["spec"]["seed"]] = table.scored
    return Configuration(say.method_name(spec), spec["r"] if spec["method"] == "lora" else None, seeds)
