"""The answer in three sentences: what it may say of gains, margins, times and seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rankprobe.paper.published import published
from rankprobe.report import comparison
from rankprobe.report.answer import answer
from rankprobe.report.findings import find
from rankprobe.report.page_tables import cost_cells
from rankprobe.report.rank_cells import answer_blocks
from tests.report.synthetic import make_run


def test_the_gain_is_bootstrapped_once_for_claims_answer_and_config(tmp_path, monkeypatch):
    runs = [make_run(tmp_path, seed=seed, accuracy=0.8 + 0.003 * seed, n=4000, **settings)
            for settings in ({"method": "full"}, {"r": 8}) for seed in range(3)]  # fmt: skip
    runs.append(make_run(tmp_path, method="head", accuracy=0.56, n=4000))
    compared = []
    monkeypatch.setattr(comparison, "difference", lambda a, b, of=comparison.difference: compared.append(b) or of(a, b))
    found = find(runs, None, published())
    assert found.answers["q,v"].r == 8 and answer(found) and answer_blocks(found)
    assert found.gain.low > 0.2 and [[run["run_id"] for run in head] for head in compared] == [[runs[-1]["run_id"]]]


@pytest.mark.parametrize("n, told, head", [
    (600, "it is not shown that full fine-tuning gains more than 2 points over a trained head on the frozen model (it "
          "gains +3.7 [+", "may be"),
    (3000, "full fine-tuning itself gains only +0.7 [", "is"),
])  # fmt: skip
def test_a_large_gain_that_is_uncertain_is_not_called_small(tmp_path, n, told, head):
    runs = [make_run(tmp_path, seed=seed, wrong=np.arange(20), n=n, **settings)
            for settings in ({"method": "full"}, {"r": 8}) for seed in range(3)]  # fmt: skip
    runs.append(make_run(tmp_path, method="head", wrong=np.arange(4, 46), n=n))
    found = find(runs, None, published(), margin=0.02)
    assert told in answer(found)[0]
    assert f"which means little where a trained head {head} nearly as good" in answer(found)[1]


def test_what_is_worse_than_its_own_margin_stays_worse_with_nothing_to_lose(tmp_path):
    runs = [
        make_run(tmp_path, seed=seed, wrong=np.arange(wrong), **settings)
        for wrong, settings in ((300, {"method": "full"}), (390, {"r": 8}), (303, {"method": "head"}))
        for seed in range(3)
    ]
    told = answer(find(runs, None, published(), margin=0.01))[1]
    assert told.startswith("LoRA with r = 8 on q,v is worse than full fine-tuning here by more than 1 point: ")
    runs = [run for run in runs if run["spec"]["seed"] < 2]
    assert "is not settled" in answer(find(runs, None, published(), margin=0.01))[1]


def test_packed_runs_have_no_training_time_to_compare(tmp_path):
    runs = [make_run(tmp_path, method="full"), *(make_run(tmp_path, r=8, seed=seed) for seed in range(3))]
    alone = find(runs, None, published())
    assert "times the time" in answer(alone)[2] and "packed" not in cost_cells(alone).caption
    for run in runs[1:3]:
        run["pack"] = {"size": 2}
    some = find(runs, None, published())
    assert some.tables["methods"].loc[1, "train_time_s"] == 81.2 + 2, "of the run that was not packed"
    runs[3]["pack"] = {"size": 3}
    none = find(runs, None, published())
    assert answer(none)[2] == "LoRA r = 8 trains 0.328 % of the parameters; its latency has not been measured yet."
    row, table = cost_cells(none).rows[1], cost_cells(none)
    assert [cell.text for cell in row[3:5]] == ["–", "–"]
    assert table.caption.endswith("trained packed, several at once, have no time of their own and are left out.")


def test_a_difference_is_of_the_seeds_that_both_have(tmp_path):
    runs = [make_run(tmp_path, method="full", accuracy=0.8), make_run(tmp_path, method="head", accuracy=0.55)]
    runs += [make_run(tmp_path, r=8, seed=seed, accuracy=0.8) for seed in range(3)]
    (Path(runs[1]["path"]) / "predictions.csv").unlink()  # else the answer is the tests' own
    found = find(runs, None, published())
    assert found.tables["methods"]["diff_n_seeds"].tolist()[1:] == [1, 1]
    assert " points (one seed), not more than the margin" in answer(found)[0]
