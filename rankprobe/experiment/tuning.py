"""Learning rates that a study chooses: as many for all configurations, on rows that no reported score is from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import pandas as pd

from rankprobe.errors import WorkError, must
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.spec import SIZES
from rankprobe.experiment.study import Study
from rankprobe.weights.rank_pattern import pattern_tag

COLUMNS = [
    "model", "task", "method", "r", "alpha", "targets", "size", "rank_pattern", "dropout", "rslora", "lr", "status",
    "metric", "score", "loss", "n_tuning", "chosen", "at_end", "run_id",
]  # fmt: skip
# What of a spec says which configuration of the study a tuning run is of; the rest is the study's.
_SAME = ("method", "r", "alpha", "targets", "dropout", "rslora", "rank_pattern", *SIZES)


def rates_to_try(study: Study, configuration: Configuration) -> tuple[float, ...]:
    """A configuration's grid: its own, or the study's factors of its rate; increasing.

    >>> study = Study("a", (Configuration("full", lr=1e-4),), tune=(2, 0.5, 1))
    >>> rates_to_try(study, study.configurations[0])
    (5e-05, 0.0001, 0.0002)
    """
    rates = configuration.lr_grid or tuple(_rounded(configuration.rate * factor) for factor in study.tune)
    return tuple(sorted(rates))


def tuning_study(study: Study) -> Study:
    """The study that chooses the rates: every configuration at every rate of its grid, one seed, on the tuning rows."""
    tried = [
        replace(configuration, lr=rate, lr_grid=(), seeds=1)
        for configuration in _once(study.configurations)
        for rate in rates_to_try(study, configuration)
    ]
    return replace(
        study, configurations=tuple(tried), split="tuning", eval_size=study.tuning_size, truncate=(), tune=(),
        tuning_size=0,
    )  # fmt: skip


def choose_rates(study: Study, records: Sequence[dict]) -> Study:
    """The study with each configuration at the rate of the lowest loss on the tuning rows, and nothing left to tune.

    The loss, not the score: 1,500 rows give an accuracy a standard error of a point, and neighbouring rates often
    differ by less. Of equal losses the smaller rate wins.

    Parameters
    ----------
    study : Study
    records : sequence of dict
        run.json contents of :func:`tuning_study`'s runs.

    Raises
    ------
    WorkError
        If a configuration has no rate at which training ended well, or a tuning run of it crashed or is missing: a grid
        with a hole is a smaller budget than the others had, and another rate may be the best once the run is redone.
    """
    chosen = []
    for configuration in study.configurations:
        tried = [record for record in records if _is_of(record, configuration)]
        ended = [record for record in tried if record["status"] == "ok"]
        rates = rates_to_try(study, configuration)
        lacking = [f"{rate:g}" for rate in rates if rate not in _judged(tried)]
        if lacking:
            next_step = "The same command does them again, and nothing that is finished"
            raise WorkError(must(f"Every tuning run of {configuration.label}", "end before a rate is chosen",
                                 f"none at {', '.join(lacking)}", next_step))  # fmt: skip
        if not ended:
            got = f"none of {', '.join(f'{rate:g}' for rate in rates)}"
            raise WorkError(must(f"A rate of {configuration.label}", "train without diverging", got,
                                 "Give lower rates: lr_grid"))  # fmt: skip
        best = min(ended, key=lambda record: (record["metrics"]["loss"], record["spec"]["lr"]))
        chosen.append(replace(configuration, lr=best["spec"]["lr"], lr_grid=()))
    return tuned_study(study, chosen)


def tuned_study(study: Study, configurations: Sequence[Configuration]) -> Study:
    """The study with the configurations that have their rates, and nothing left to tune."""
    # The tuning rows may be wanted still, to stop runs by.
    size = study.tuning_size if study.patience else 0
    return replace(study, configurations=tuple(configurations), tune=(), tuning_size=size)


def tuning_table(records: Sequence[dict]) -> pd.DataFrame:
    """tuning.csv: a row a tuning run, with what was chosen and whether that is an end of its grid.

    Parameters
    ----------
    records : sequence of dict
        run.json contents; other runs than of the split ``tuning`` are left out.

    Returns
    -------
    DataFrame, columns :data:`COLUMNS`
        By model, task and configuration, in the order of the records, and rate. ``at_end`` says of the chosen rate that
        a better one may lie beyond the grid; with one or two rates it is always true.
    """
    rows = []
    for record in (r for r in records if r["spec"]["split"] == "tuning"):
        spec, metric = record["spec"], record["task"]["metrics"][0]
        metrics = record.get("metrics") or {}
        size = next((spec[name] for name in SIZES if spec.get(name) is not None), None)
        pattern = pattern_tag(spec["rank_pattern"]) if spec.get("rank_pattern") else None
        rows.append(
            {name: spec.get(name) for name in ("method", "r", "alpha", "targets", "dropout", "rslora", "lr")}
            | {"model": record["model"]["name"], "task": record["task"]["name"]}
            | {"size": size, "status": record["status"], "metric": metric, "score": metrics.get(metric),
               "loss": metrics.get("loss"), "n_tuning": record["task"]["n_eval"], "run_id": record["run_id"]}
            | {"rank_pattern": pattern, "group": (record["model"]["sha256"], record["task"]["sha256"], _key(spec))}
        )  # fmt: skip
    table = pd.DataFrame(rows, columns=[*COLUMNS, "group"])
    table["group"] = pd.factorize(table["group"])[0]
    table = table.sort_values(["group", "lr"], ignore_index=True)
    table["chosen"], table["at_end"] = False, False
    for _, group in table.groupby("group"):
        losses = pd.to_numeric(group["loss"].where(group["status"] == "ok"))
        if losses.notna().any():
            best = losses.idxmin()
            table.loc[best, ["chosen", "at_end"]] = True, best in (group.index[0], group.index[-1])
    for column in ("r", "size"):
        table[column] = pd.to_numeric(table[column]).astype("Int64")
    return table[COLUMNS]


def _once(configurations: Sequence[Configuration]) -> list[Configuration]:
    return list(dict.fromkeys(replace(configuration, seeds=1) for configuration in configurations))


def _is_of(record: dict, configuration: Configuration) -> bool:
    return _key(record["spec"]) == _key(asdict(configuration))


def _key(spec: Mapping) -> str:
    """As text, since a rank pattern is a list in a record and a tuple in a spec, and lacks in records of before."""
    return json.dumps([spec.get(name) for name in _SAME])


def _judged(records: Sequence[dict]) -> set[float]:
    """The rates that trained to an end, a good one or not; a crash says nothing of a rate."""
    return {record["spec"]["lr"] for record in records if record["status"] in ("ok", "diverged")}


def _rounded(rate: float) -> float:
    """Six digits: 2e-3 times 0.1 is 2e-4, not 0.00020000000000000001, so that equal grids give equal run ids."""
    return float(f"{rate:.6g}")
