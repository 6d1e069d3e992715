"""Parts of unfinished work: taken up by the same work alone, and never half of one."""

import pytest

from rankprobe.experiment.output import claim_output, release_output
from rankprobe.experiment.parts import Parts


def test_a_part_is_there_for_the_next_call(tmp_path):
    first = Parts(tmp_path, "same")
    first["layers.0/q.weight"] = {"phi": [0.5, float("inf")], "layer": None}
    again = Parts(tmp_path, "same")
    assert "layers.0/q.weight" in again and len(again) == 1 and list(again) == ["layers.0/q.weight"]
    assert again["layers.0/q.weight"] == {"phi": [0.5, float("inf")], "layer": None}
    assert [p.name[0] for p in tmp_path.iterdir()] == ["."]


def test_other_work_takes_nothing_up_and_clears_it_away(tmp_path):
    Parts(tmp_path, "one")["a"] = {"x": 1}
    other = Parts(tmp_path, "two")
    assert "a" not in other and len(other) == 0
    assert "a" not in Parts(tmp_path, "one")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": "b", "part": {}}'])
def test_a_damaged_part_is_done_again(tmp_path, damage):
    parts = Parts(tmp_path, "same")
    parts["a"] = {"x": 1}
    next(parts.folder.iterdir()).write_text(damage)
    with pytest.raises(KeyError):
        parts["a"]
    parts["a"] = {"x": 2}
    assert parts["a"] == {"x": 2}


def test_parts_are_deleted_one_by_one_or_all(tmp_path):
    parts = Parts(tmp_path, "same")
    parts["a"], parts["b"] = {"x": 1}, {"x": 2}
    del parts["a"]
    assert list(parts) == ["b"]
    with pytest.raises(KeyError):
        del parts["a"]
    parts.clear()
    assert len(parts) == 0 and not parts.folder.exists()


def test_an_output_folder_is_given_back_where_nothing_was_put_into_it(tmp_path):
    claim_output(tmp_path / "a" / "out", {"name": "x"})
    release_output(tmp_path / "a" / "out")
    assert not (tmp_path / "a" / "out").exists()
    claim_output(tmp_path / "b", {"name": "x"})
    (tmp_path / "b" / "table.csv").write_text("1")
    release_output(tmp_path / "b")
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["table.csv"]
