"""Predictions as files have them: names are read once, and a file that is not of its run's rows is read as it is."""

import os

import numpy as np
import pandas as pd
import pytest

from rankprobe.report.predictions import predictions
from tests.report.synthetic import make_run

COLUMNS = ["row", "label", "prediction", "score"]


@pytest.fixture
def pair(tmp_path):
    return make_run(tmp_path, method="full", seed=0), make_run(tmp_path, r=8, seed=0)


def file_of(run):
    return f"{run['path']}/predictions.csv"


def rewrite(run, change):
    """Change a file, at another moment."""
    table = change(pd.read_csv(file_of(run)))
    table.to_csv(file_of(run), index=False)
    os.utime(file_of(run), ns=(0, 0))
    return table


def same(found, table):
    """All but the scores, of which no metric of these runs is made."""
    assert found.score is None and (table.empty or found.label.dtype == found.prediction.dtype == np.int64)
    return all(np.array_equal(values, table[name]) for name, values in zip(COLUMNS[:3], found, strict=False))


def test_runs_on_the_same_rows_share_the_names(pair):
    first, second = (predictions(run) for run in pair)
    assert first.row is second.row and first.row.dtype == object
    for run, found in zip(pair, (first, second), strict=True):
        assert same(found, pd.read_csv(file_of(run)))
    assert not np.array_equal(first.prediction, second.prediction)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.assign(row=table["row"].to_numpy()[::-1]),
        lambda table: table.assign(label=1 - table["label"]),
        lambda table: table.iloc[:-1],
        lambda table: table.iloc[:0],
        lambda table: table.assign(row=[f'a "quoted", name {i}' for i in range(len(table))]),
    ],
    ids=["other order", "other labels", "a row less", "no row", "other names"],
)
def test_a_file_of_other_rows_is_read_as_it_is(pair, change):
    known = predictions(pair[0])
    table = rewrite(pair[1], change)
    found = predictions(pair[1])
    assert same(found, table) and found.row is not known.row


def test_names_with_commas_are_known_again(pair):
    for run in pair:
        rewrite(run, lambda table: table.assign(row=[f'"{i}", quoted' for i in range(len(table))]))
    first, second = (predictions(run) for run in pair)
    assert first.row is second.row and first.row[0] == '"0", quoted'


def test_a_file_that_is_not_there_is_none(pair):
    os.unlink(file_of(pair[0]))
    assert predictions(pair[0]) is None


def test_scores_are_read_where_a_metric_is_made_of_them(pair):
    for run in pair:
        run["task"]["metrics"] = ["perplexity", "token_accuracy"]
        table, found = pd.read_csv(file_of(run)), predictions(run)
        assert all(np.array_equal(values, table[name]) for name, values in zip(COLUMNS, found, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.assign(prediction=table["prediction"] + 10),
        lambda table: table.assign(prediction=table["prediction"] - 2),
        lambda table: table.assign(prediction=table["prediction"] + 0.5),
        lambda table: table[["row", "label", "score", "prediction"]],
        lambda table: table.assign(more=1),
        lambda table: table.assign(row=[*table["row"][:-2], "a,1,0,b\nc", table["row"].iloc[-1]]),
    ],
    ids=["two digits", "a sign", "a fraction", "other columns", "a column more", "a line's end in a name"],
)
def test_what_is_not_one_digit_a_line_is_read_all_the_same(pair, change):
    for table, found in [(rewrite(run, change), predictions(run)) for run in pair]:
        assert all(np.array_equal(values, table[name]) for name, values in zip(COLUMNS[:3], found, strict=False))


@pytest.mark.parametrize("spelled", [str.strip, lambda text: text.replace("\n", "\r\n")], ids=["no last end", "\\r\\n"])
def test_lines_may_end_otherwise(pair, spelled):
    expected = [predictions(run) for run in pair][1]
    path = file_of(pair[1])
    with open(path, encoding="utf-8") as f:
        text = f.read()
    with open(path, "w", encoding="utf-8", newline="") as f:
        f.write(spelled(text))
    os.utime(path, ns=(0, 0))
    found = predictions(pair[1])
    assert found is not expected and all(map(np.array_equal, found[:3], expected[:3]))


def test_ten_classes_are_read_without_a_parser(pair, monkeypatch):
    tables = [rewrite(run, lambda t: t.assign(label=t.index % 10, prediction=(t.index + 3) % 10)) for run in pair]
    predictions(pair[0])
    monkeypatch.delattr(pd, "read_csv")
    assert same(predictions(pair[1]), tables[1])
