"""How far a sweep is, in a line and a table."""

import pytest

from rankprobe.report.progress import progress_line, progress_table


def record(run_id, accuracy=None, status="ok"):
    metrics = {"accuracy": accuracy, "loss": 1 - accuracy} if status == "ok" else {}
    return {"run_id": run_id, "status": status, "metrics": metrics, "task": {"metrics": ["accuracy"]}}


PLAN = {
    "name": "sweep ranks",
    "runs": ["f0", "l0", "f1", "l1", "h0"],
    "labels": ["full, lr 0.0001", "LoRA r=8", "full, lr 0.0001", "LoRA r=8", "head"],
}


def test_configurations_in_the_plans_order_with_means_over_what_is_there():
    table = progress_table(PLAN, [record("f0", 0.8), record("f1", 0.6), record("l1", 0.7), record("other", 0.1)])
    assert table["configuration"].tolist() == ["full, lr 0.0001", "LoRA r=8", "head"]
    assert table["done"].tolist() == ["2 of 2", "1 of 2", "0 of 1"]
    assert table["score"].tolist()[:2] == pytest.approx([0.7, 0.7]) and table["score"].isna().tolist()[2]
    assert table["loss"].tolist()[:2] == pytest.approx([0.3, 0.3])
    assert "diverged" not in table and "failed" not in table, "nothing to say"


def test_a_failed_run_is_not_done_and_a_diverged_one_is():
    records = [record("f0", status="diverged"), record("l0", status="failed")]
    assert progress_line(PLAN, records) == "sweep ranks: 1 of 5 runs are done, 1 diverged, 1 failed"
    table = progress_table(PLAN, records).set_index("configuration")
    assert table.loc["full, lr 0.0001", ["done", "diverged"]].tolist() == ["1 of 2", 1]
    assert table.loc["LoRA r=8", ["done", "failed"]].tolist() == ["0 of 2", 1]
    assert "score" not in table


def test_plans_of_earlier_versions_call_runs_by_their_ids():
    table = progress_table({"name": "a", "runs": ["x", "y"]}, [record("y", 0.5)])
    assert table["configuration"].tolist() == ["x", "y"] and table["done"].tolist() == ["0 of 1", "1 of 1"]
    assert progress_line({"name": "a", "runs": []}, []) == "a: 0 of 0 runs are done"
