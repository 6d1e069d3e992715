"""Tables on a terminal."""

from __future__ import annotations

import pandas as pd

from rankprobe.cli.show import print_table


def test_no_column_is_cut_off_where_the_table_is_wider_than_the_line(capsys):
    table = pd.DataFrame({f"column{i}": [f"value{i:02}", f"other{i:02}"] for i in range(20)})
    print_table(table, title="wide", notes="a note")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) > 140
    [first] = [line for line in lines if "value00" in line]
    assert first.split() == [f"value{i:02}" for i in range(20)]
