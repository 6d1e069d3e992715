"""Tables on a terminal."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from rankprobe.cli.show import print_table, run_summary


def test_no_column_is_cut_off_where_the_table_is_wider_than_the_line(capsys):
    table = pd.DataFrame({f"column{i}": [f"value{i:02}", f"other{i:02}"] for i in range(20)})
    print_table(table, title="wide", notes="a note")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) > 140
    [first] = [line for line in lines if "value00" in line]
    assert first.split() == [f"value{i:02}" for i in range(20)]


@pytest.mark.parametrize(
    ("peak", "pack", "line"),
    [
        (3 * 2**20, {}, "  10 steps in 2.0 s, 50 tokens/s, peak memory 3 MiB"),
        (None, {"pack": {"size": 8}}, "50 tokens/s, peak memory not seen alone; its share of 8 runs trained together"),
    ],
)
def test_a_runs_summary_says_where_time_and_memory_are_those_of_a_pack(capsys, peak, pack, line):
    params = {"trainable": 10, "total": 100, "head": 2}
    timings = {"steps": 10, "train_time_s": 2.0, "tokens_per_s": 50.0, "peak_memory_bytes": peak}
    run_summary({"run_id": "x", "status": "ok", "params": params, "timings": timings, **pack}, Path("runs/x"))
    assert line in capsys.readouterr().out
