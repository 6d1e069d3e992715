"""The CSV of ranks while training: begun anew, taken up at a step, and never another file's end."""

import pytest

from rankprobe.errors import UsageError
from rankprobe.training.rank_table import COLUMNS, RankTable, RankTables

HEADER = ",".join(COLUMNS) + "\n"
ROWS = [(5, "a.weight", 1.5, 2, 0.1, 0.2), (10, "a.weight", 1.6, 3, 0.1, 0.2)]


def test_a_fresh_training_begins_anew(tmp_path):
    path = tmp_path / "new" / "ranks.csv"
    RankTable(path, 0).add(ROWS)
    assert path.read_text() == HEADER + "5,a.weight,1.5,2,0.1,0.2\n10,a.weight,1.6,3,0.1,0.2\n"
    RankTable(path, 0)
    assert path.read_text() == HEADER
    assert [p.name for p in path.parent.iterdir()] == ["ranks.csv"]


def test_a_resumed_one_keeps_what_was_done_before(tmp_path):
    path = tmp_path / "ranks.csv"
    RankTable(path, 0).add(ROWS)
    RankTable(path, 7).add([(8, "a.weight", 1.0, 1, 0.1, 0.1)])
    assert path.read_text() == HEADER + "5,a.weight,1.5,2,0.1,0.2\n8,a.weight,1.0,1,0.1,0.1\n"


@pytest.mark.parametrize("torn", ["10,a.wei", "10,a.weight,1.6,3,0.1,", "1"])
def test_a_row_cut_by_a_kill_is_dropped(tmp_path, torn):
    path = tmp_path / "ranks.csv"
    RankTable(path, 0).add(ROWS[:1])
    path.write_text(path.read_text() + torn)
    RankTable(path, 20)
    assert path.read_text() == HEADER + "5,a.weight,1.5,2,0.1,0.2\n"


def test_another_file_is_left_alone(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="path must be a new file or one of RankCallback's. Got .*notes.csv"):
        RankTable(path, 0)
    assert path.read_text() == "a,b\n1,2\n"


def test_what_cannot_be_written_is_said_at_once(tmp_path):
    with pytest.raises(UsageError, match=r"path must be a CSV file to write. Got .*\(Is a directory\)"):
        RankTable(tmp_path, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Not a directory"):
        RankTable(tmp_path / "file" / "ranks.csv", 0)


def test_each_training_has_a_file_of_its_own_and_a_resumed_one_its_last(tmp_path):
    tables = RankTables(tmp_path / "ranks.csv")

    def opened(place, step, **again):
        return tables.open(place, step, **again).path.name

    assert opened("fold0", 0) == "ranks.csv" and opened("fold1", 0) == "ranks-2.csv"
    assert opened("fold0", 7) == "ranks.csv" and opened("fold1", 0, again=True) == "ranks-2.csv"
    assert opened("fold2", 5) == "ranks-3.csv", "resumed from an earlier process: no other's rows are dropped"
    assert opened("fold0", 0) == "ranks-4.csv" and opened("fold0", 3) == "ranks-4.csv"


def test_in_another_process_the_first_that_is_resumed_has_the_first_file_whoevers_it_was(tmp_path):
    """As the docstring warns; what is kept in memory alone cannot be known there."""
    path = tmp_path / "ranks.csv"
    here = RankTables(path)
    here.open("fold0", 0).add(ROWS)
    here.open("fold1", 0).add(ROWS)
    there = RankTables(path)
    assert there.open("fold1", 7).path == path and there.open("fold0", 7).path.name == "ranks-2.csv"
    assert path.read_text() == HEADER + "5,a.weight,1.5,2,0.1,0.2\n"
