"""What papers print, as rows with a source: beside what is measured here, never in its place."""

from __future__ import annotations

from functools import cache
from importlib import resources

import pandas as pd

PUBLISHED_COLUMNS = [
    "source",
    "model",
    "method",
    "r",
    "targets",
    "trainable_params",
    "task",
    "metric",
    "value",
    "spread",
    "unit",
    "note",
]


def published() -> pd.DataFrame:
    """Published numbers, one a row.

    Returns
    -------
    DataFrame, columns :data:`PUBLISHED_COLUMNS`
        ``source`` is the paper and its table or figure, or says ``computed``; ``value`` (and ``spread``, where one is
        printed) is in ``unit``. ``trainable_params`` is rounded as the paper prints it: ``note`` says where that
        departs from the arithmetic. A copy: callers may change it.
    """
    return _all().copy()


@cache
def _all() -> pd.DataFrame:
    folder = resources.files("rankprobe.paper") / "published"
    tables = []
    for file in sorted((f for f in folder.iterdir() if f.name.endswith(".csv")), key=lambda f: f.name):
        with file.open(encoding="utf-8") as handle:
            tables.append(pd.read_csv(handle, keep_default_na=False))
    table = pd.concat(tables, ignore_index=True)[PUBLISHED_COLUMNS]
    for column in ("r", "trainable_params"):
        table[column] = pd.to_numeric(table[column]).astype("Int64")
    for column in ("value", "spread"):
        table[column] = pd.to_numeric(table[column])
    return table
