"""Which runs may be compared, and by how much one configuration scores above another.

A *configuration* is what is compared: method, r, alpha, targets, learning rate; its runs differ in the seed alone. A
*comparison* is a set of runs on one model and the same rows, in one dtype on one device. No table mixes two.
"""

from __future__ import annotations

import math
from itertools import chain

import numpy as np

from rankprobe.errors import UsageError, must
from rankprobe.experiment.spec import METHODS
from rankprobe.report.numbers import size_of, targets_name
from rankprobe.report.predictions import predictions
from rankprobe.report.score_intervals import RANGES, paired_difference, score_interval, seeds_tell
from rankprobe.report.stats import Estimate, bootstrap_mean, t_interval
from rankprobe.tasks.metrics import LOWER_IS_BETTER

# What must be equal for two runs to be compared; every other field of a spec but the seed belongs to the configuration.
# Epochs, batch and decay do: the paper, too, gives each method its own. Tables show epochs, runs.csv all of them.
EQUAL_FIELDS = ("split", "max_length", "dtype", "device", "threads")
# These name what the sha256s identify: a copy of the model under another name is the same model.
_NAMES = ("model", "task", "train_size", "eval_size")
# In the order of tables: LoRA beside full fine-tuning, then what it is measured against, the trained head last.
_ORDER = {"full": 0, "lora": 1, "head": 99} | {name: 10 + i for i, name in enumerate(METHODS) if name not in
                                               ("full", "lora", "head")}  # fmt: skip
# The targets that stand for LoRA: what the paper adapts in all of its main tables.
MAIN_TARGETS = "q,v"


def comparisons(runs: list[dict]) -> list[list[dict]]:
    """Training runs, parted so that inside a part model, rows, dtype, device and threads are equal.

    Parameters
    ----------
    runs : list of dict
        run.json contents, with ``path``. Latency records are left out; a run_id given twice counts once.

    Returns
    -------
    list of lists of dict
        The part with the most runs first; runs in the order given.
    """
    parts: dict[tuple, dict[str, dict]] = {}
    for run in runs:
        if run.get("kind", "train") != "train":
            continue
        spec = run["spec"]
        key = (
            run["model"]["sha256"],
            run["task"]["sha256"],
            run["task"]["eval_sha256"],
            *(str(spec.get(name)) for name in EQUAL_FIELDS),
        )
        parts.setdefault(key, {})[run["run_id"]] = run
    return sorted((list(part.values()) for part in parts.values()), key=len, reverse=True)


def one_comparison(runs: list[dict]) -> list[dict]:
    parts = comparisons(runs)
    if len(parts) > 1:
        found = ", ".join(
            sorted(
                {f"{p[0]['task']['name']} ({p[0]['task']['eval_sha256'][:8]}, {p[0]['spec']['split']})" for p in parts}
            )
        )
        raise UsageError(must("runs in one table", "share model, rows and settings", found, "Make one report for each"))
    return parts[0] if parts else []


def configurations(runs: list[dict]) -> list[list[dict]]:
    """One comparison by configuration: full first, LoRA by targets and r, head only last; by seed inside."""
    groups: dict[tuple, list[dict]] = {}
    fields = dict.fromkeys(chain.from_iterable(dict.fromkeys(tuple(run["spec"]) for run in runs)))
    for name in (*EQUAL_FIELDS, *_NAMES, "seed"):
        fields.pop(name, None)
    for run in runs:
        # Records from before a method came have no field for its size.
        key = [*map(run["spec"].get, fields)]
        if run["spec"].get("rank_pattern") is not None:
            key = [str(value) if isinstance(value, list) else value for value in key]
        groups.setdefault(tuple(key), []).append(run)

    def place(group: list[dict]) -> tuple:
        spec = group[0]["spec"]
        return (
            _ORDER.get(spec["method"], 98),
            spec["method"],
            targets_name(spec) or "",
            spec.get("r") or size_of(spec) or 0,
            spec.get("alpha") or 0.0,
            spec["lr"],
        )

    return [sorted(g, key=lambda run: run["spec"]["seed"]) for g in sorted(groups.values(), key=place)]


def finished_ok(runs: list[dict]) -> list[dict]:
    """Those that ended well."""
    return [run for run in runs if run["status"] == "ok"]


def main_metric(run: dict) -> str:
    """Name of the metric that tables show."""
    return run["task"]["metrics"][0]


def full_reference(groups: list[list[dict]]) -> list[dict]:
    """The finished full fine-tuning runs that others are compared with; empty while there are none.

    Where several learning rates were tried, the one with the most seeds, then the best mean score.
    """
    return max(_ok_groups(groups, "full"), key=standing, default=[])


def main_lora(runs: list[dict]) -> list[dict]:
    """The LoRA configuration that stands for LoRA: most finished seeds, on q and v, r nearest to 8, then score.

    One whose r differs by matrix does not.
    """

    def key(group: list[dict]) -> tuple:
        r, targets = (group[0]["spec"][name] for name in ("r", "targets"))
        return len(group), targets == MAIN_TARGETS, -abs(math.log2(r / 8)), -r, standing(group)

    one_r = [group for group in _ok_groups(configurations(runs), "lora") if not group[0]["spec"].get("rank_pattern")]
    return max(one_r, key=key, default=[])


def standing_for(runs: list[dict]) -> list[list[dict]]:
    """Finished runs by method, targets, r and size; of several settings of one, as in :func:`full_reference`."""
    found: dict[tuple, list[dict]] = {}
    for group in configurations(runs):
        ok = finished_ok(group)
        if ok:
            spec = ok[0]["spec"]
            key = (spec.get("method"), targets_name(spec), spec.get("r"), size_of(spec))
            found[key] = max(found.get(key, []), ok, key=standing)
    return list(found.values())


def lora_groups(runs: list[dict], targets: str) -> dict[int, list[dict]]:
    """Finished runs by r for these targets; of several settings of one r, as in :func:`full_reference`."""
    found: dict[int, list[dict]] = {}
    for group in _ok_groups(configurations(runs), "lora"):
        spec = group[0]["spec"]
        if targets_name(spec) == targets:
            found[spec["r"]] = max(found.get(spec["r"], []), group, key=standing)
    return found


def _ok_groups(groups: list[list[dict]], method: str) -> list[list[dict]]:
    return [ok for g in groups if g[0]["spec"]["method"] == method and (ok := finished_ok(g))]


def standing(group: list[dict]) -> tuple[int, float]:
    """Which of several settings of one method stands for it: the most seeds, then the best mean score."""
    if not group:
        return 0, -math.inf
    mean = float(np.mean([run["metrics"][main_metric(run)] for run in group]))
    return len(group), -mean if main_metric(group[0]) in LOWER_IS_BETTER else mean


def difference(a: list[dict], b: list[dict]) -> Estimate | None:
    """Paired difference of the main metric, configuration ``a`` minus ``b``; None while a side has no finished run.

    Seeds that both sides have are compared; where they share none, the first seeds of each, row by row. Without
    predictions.csv (a clone holds run.json alone) and with fewer than three common seeds there is no interval.
    """
    a, b = finished_ok(a), finished_ok(b)
    if not a or not b:
        return None
    pairs = paired_runs(a, b)
    metric = main_metric(a[0])
    left, right = ([predictions(run) for run in side] for side in zip(*pairs, strict=True))
    if any(t is None for t in (*left, *right)):
        values = [x["metrics"][metric] - y["metrics"][metric] for x, y in pairs]
        if seeds_tell(values):
            return t_interval(values, over="paired seeds")
        return Estimate(float(np.mean(values)), np.nan, np.nan, "no interval: predictions.csv is not here", len(values))
    for x, y in zip(left, right, strict=True):
        if not x.same_rows(y.row):
            raise UsageError(
                must(
                    "predictions of two runs",
                    "be of the same rows in the same order",
                    f"{pairs[0][0]['run_id']} and {pairs[0][1]['run_id']}",
                    "Redo the runs on one task",
                )
            )
    return paired_difference([t.scored for t in left], [t.scored for t in right], metric=metric)


def paired_runs(a: list[dict], b: list[dict]) -> list[tuple[dict, dict]]:
    """Finished runs of both sides by the seeds that they share; where they share none, the first of each."""
    by_seed = {run["spec"]["seed"]: run for run in b}
    return [(run, by_seed[run["spec"]["seed"]]) for run in a if run["spec"]["seed"] in by_seed] or [(a[0], b[0])]


def something_to_lose(runs: list[dict]) -> Estimate | None:
    """How much full fine-tuning gains over a trained head on the frozen model; None while a side is missing.

    Where that is not more than the margin, equal scores of LoRA and full fine-tuning show nothing: freezing the model
    would have been as good. Trials of equivalence call it assay sensitivity.
    """
    groups = configurations(runs)
    head = max(_ok_groups(groups, "head"), key=standing, default=[])
    return difference(full_reference(groups), head)


def nothing_to_lose(gain: Estimate | None, margin: float) -> bool:
    """Whether a trained head on the frozen model is within the margin of full fine-tuning, as far as is known.

    Parameters
    ----------
    gain : Estimate or None
        From :func:`something_to_lose`.
    margin : float
        In the metric's own unit.
    """
    return gain is not None and gain.low <= margin


def mean_score(ok: list[dict]) -> Estimate:
    """Mean score of a configuration's finished runs with its interval."""
    metric = main_metric(ok[0])
    tables = [predictions(run) for run in ok]
    if all(t is not None for t in tables):
        return score_interval([t.scored for t in tables], metric=metric)
    values = [run["metrics"][metric] for run in ok]
    if seeds_tell(values):
        return t_interval(values, bounds=RANGES[metric])
    if len(values) == 1 and metric == "accuracy":
        # The accuracy and n say how many rows were right, which is all that its bootstrap needs.
        n = ok[0]["task"]["n_eval"]
        return bootstrap_mean(np.arange(n) < round(values[0] * n), bounds=(0.0, 1.0))
    return Estimate(float(np.mean(values)), np.nan, np.nan, "no interval: predictions.csv is not here", len(values))
