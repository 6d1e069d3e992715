"""How far a sweep is: a line and a table, from its plan and the records that there are by now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from rankprobe.report import numbers as say

COLUMNS = ["configuration", "done", "metric", "score", "loss", "diverged", "failed"]


def progress_line(plan: Mapping, records: Sequence[Mapping]) -> str:
    """In words: ``sweep rank-docmatch: 12 of 60 runs are done, 1 diverged``.

    Parameters
    ----------
    plan : mapping
        plan.json of an output folder.
    records : sequence of mapping
        run.json contents of the plan's runs, as many as there are.
    """
    status = [record["status"] for record in records]
    parts = [f"{say.count(len(status) - status.count('failed'))} of {say.count(len(plan['runs']))} runs are done"]
    parts += [f"{status.count(word)} {word}" for word in ("diverged", "failed") if word in status]
    return f"{plan['name']}: {', '.join(parts)}"


def progress_table(plan: Mapping, records: Sequence[Mapping]) -> pd.DataFrame:
    """A row a configuration of the plan, in its order, those that no run has ended of too.

    Parameters
    ----------
    plan, records
        As for :func:`progress_line`. Plans of earlier versions have no ``labels``: runs are then called by their ids.

    Returns
    -------
    DataFrame, columns :data:`COLUMNS`
        ``done`` in words, ``2 of 3``; ``score`` and ``loss`` are means over the runs that ended well, NaN before. A
        column is left out where it has nothing to say.
    """
    runs = list(plan["runs"])
    labels = dict(zip(runs, plan.get("labels") or runs, strict=False))
    by_id = {record["run_id"]: record for record in records}
    groups: dict[str, list[str]] = {}
    for run_id in runs:
        groups.setdefault(labels.get(run_id, run_id), []).append(run_id)
    rows = []
    for label, members in groups.items():
        found = [by_id[run_id] for run_id in members if run_id in by_id]
        ok = [record for record in found if record["status"] == "ok"]
        bad = {word: sum(record["status"] == word for record in found) for word in ("diverged", "failed")}
        metric = ok[0]["task"]["metrics"][0] if ok else None
        rows.append(
            {
                "configuration": label,
                "done": f"{len(found) - bad['failed']} of {len(members)}",
                "metric": metric,
                "score": _mean(record["metrics"].get(metric) for record in ok),
                "loss": _mean(record["metrics"].get("loss") for record in ok),
                **bad,
            }
        )
    table = pd.DataFrame(rows, columns=COLUMNS)
    quiet = [c for c in ("diverged", "failed") if not table[c].any()]
    return table.drop(columns=quiet + [c for c in ("metric", "score", "loss") if table[c].isna().all()])


def _mean(values) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")
