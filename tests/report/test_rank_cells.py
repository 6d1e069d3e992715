"""The answer on the page: its sentence first, a table for each choice of targets, nothing where seeds are too few."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rankprobe.cli.render import answer_lines
from rankprobe.paper.published import published
from rankprobe.report.answer import answer
from rankprobe.report.cells import Table
from rankprobe.report.findings import find
from rankprobe.report.page import make_page
from rankprobe.report.rank_cells import answer_blocks
from tests.report.synthetic import make_run


def sweep(store, scores, *, seeds=3, targets="q,v", full=0.8):
    runs = [make_run(store, method="full", seed=s, accuracy=full + 0.003 * s, n=4000) for s in range(seeds)]
    return runs + [
        make_run(store, r=r, seed=s, accuracy=score + 0.003 * s, n=4000, targets=targets)
        for r, score in scores.items()
        for s in range(seeds)
    ]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return find(sweep(tmp_path_factory.mktemp("runs"), {1: 0.74, 8: 0.797, 64: 0.8}), None, published())


def test_the_page_opens_with_the_answer_and_shows_the_table_behind_it(found):
    first = answer(found)[0]
    assert first.startswith(
        "On docmatch, LoRA on q,v: r = 8 is the smallest r equivalent to full fine-tuning within 2 points (3 seeds;"
    )
    page = make_page(found, [], title="t", settings={})
    section = next(s for s in page.sections if s.title == "What r is needed")
    assert isinstance(section.blocks[0], Table), "the sentence itself stands above"
    assert "TOST" in section.blocks[0].caption and "margin 2 points" in section.blocks[0].caption


def test_a_row_a_configuration_with_verdicts_by_sign_and_word(found):
    (table,) = answer_blocks(found)
    verdicts = {row[0].text: (row[5].sign, row[5].text) for row in table.rows[1:]}
    assert table.rows[0][0].text == "full fine-tuning" and table.rows[0][3].text == "reference"
    assert verdicts == {
        "LoRA r = 1": ("✗", "outside"), "LoRA r = 8": ("✓", "equivalent"), "LoRA r = 64": ("✓", "equivalent"),
    }  # fmt: skip
    assert all(len(row) == len(table.heads) for row in table.rows)
    csv = found.tables["rank_answer"]
    assert set(csv["targets"]) == {"q,v"} and len(csv) == 4


def test_a_wider_margin_lets_smaller_r_pass(tmp_path):
    runs = sweep(tmp_path, {1: 0.76, 8: 0.797})
    assert find(runs, None, published()).answers["q,v"].r == 8
    assert find(runs, None, published(), margin=0.08).answers["q,v"].r == 1


def test_one_seed_gives_no_table_and_several_targets_one_each(tmp_path):
    assert answer_blocks(find(sweep(tmp_path / "a", {8: 0.79}, seeds=1), None, published())) == []
    runs = sweep(tmp_path / "b", {8: 0.797}) + sweep(tmp_path / "b", {8: 0.797}, targets="q,k,v,o")
    blocks = answer_blocks(find(runs, None, published()))
    assert [isinstance(b, Table) for b in blocks] == [False, True, False, True]
    assert blocks[0].startswith("LoRA on q,v: r = 8") and blocks[2].startswith("LoRA on q,k,v,o: r = 8")


def test_the_level_of_an_interval_is_said_where_it_is_another(tmp_path):
    runs = sweep(tmp_path, {4: 0.797, 8: 0.797})
    (table,) = answer_blocks(find(runs, None, published()))
    assert not any(row[3].small for row in table.rows) and "wider" not in table.caption
    runs += [make_run(tmp_path, r=8, seed=s, accuracy=0.75, n=4000, lr=9e-3, note="lr") for s in range(3)]
    said, table = answer_blocks(find(runs, None, published()))
    assert [row[3].small for row in table.rows] == ["", "", "95 %"]
    assert "own, 90 %, wider where the best of several settings stands for an r, whose p is multiplied" in table.caption
    assert "stands for r = 8 (of 2)" in said


def test_the_terminal_says_what_the_page_says(tmp_path):
    runs = sweep(tmp_path, {8: 0.797}) + sweep(tmp_path, {8: 0.797}, targets="q,k,v,o")
    runs += [make_run(tmp_path, r=8, seed=s, accuracy=0.75, n=4000, lr=9e-3, note="lr") for s in range(3)]
    found = find(runs, None, published())
    for run in runs:  # of a spectrum the config needs the names alone
        names = [f"bert.encoder.layer.0.attention.self.{kind}.weight" for kind in ("query", "value")]
        pd.DataFrame({"name": names}).to_csv(f"{run['path']}/ranks.csv", index=False)
    lines = answer_lines([("", found)])
    assert lines[:3] == answer(found)
    assert lines[3].startswith("LoRA on q,v: r = 8 is the smallest") and "(of 2)" in lines[4]
    config = 'LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]'
    assert lines[5].startswith(f"For peft, at a peak learning rate of 1e-3: {config}")
    assert lines[6].startswith("LoRA on q,k,v,o: r = 8") and lines[7].startswith("For peft, at") and len(lines) == 8


def tuned(findings, *chosen, task="docmatch"):
    """The findings with a row of tuning.csv for each (method, r, whether at an end of its grid)."""
    rows = [{"model": "all-MiniLM-L6-v2", "task": task, "method": method, "r": r, "targets": "q,v", "chosen": True,
             "alpha": 2.0 * (r or 1), "at_end": at_end} for method, r, at_end in chosen]  # fmt: skip
    return replace(findings, tables=findings.tables | {"tuning": pd.DataFrame(rows)})


def test_rates_at_an_end_of_their_grid_are_named_beside_the_answer(found, tmp_path):
    rest = "took a rate at an end of its grid: a better one may lie beyond. Widen the grid before believing the comp"
    many = tuned(found, ("full", None, True), *(("lora", r, r != 8) for r in (1, 8, 16, 32, 64)))
    said, table = answer_blocks(many)
    assert said.startswith(f"Full fine-tuning, LoRA r = 1 (on q,v, alpha 2), LoRA r = 16 (on q,v, alpha 32) and 2 more "
                           f"each {rest}")  # fmt: skip
    assert isinstance(table, Table) and answer_lines([("", many)])[3] == said
    one_seed = find(sweep(tmp_path, {8: 0.79}, seeds=1), None, published())
    (said,) = answer_blocks(tuned(one_seed, ("full", None, False), ("lora", 8, True)))
    assert said.startswith(f"LoRA r = 8 (on q,v, alpha 16) {rest}")
    (said,) = answer_blocks(tuned(one_seed, ("lora", 8, True), ("lora", 8, True)))  # two that differ in their dropout
    assert said.startswith(f"LoRA r = 8 (on q,v, alpha 16) {rest}")
    assert answer_blocks(tuned(one_seed, ("lora", 8, False))) == []
    assert answer_blocks(tuned(one_seed, ("lora", 8, True), task="sst2")) == []


def test_without_predictions_there_is_no_answer(tmp_path):
    runs = sweep(tmp_path, {8: 0.79})
    (tmp_path / runs[-1]["run_id"] / "predictions.csv").unlink()
    assert find(runs, None, published()).answers == {}


def test_an_r_by_matrix_is_no_r_of_the_sweep(tmp_path):
    runs = sweep(tmp_path, {8: 0.797, 64: 0.8})
    pattern = [make_run(tmp_path, r=8, seed=s, accuracy=0.6, n=4000, rank_pattern=[["query", 2]]) for s in range(3)]
    table = find(runs + pattern, None, published()).tables["rank_answer"]
    assert table.loc[table["r"] == 8, "mean"].item() == pytest.approx(np.mean([0.797, 0.8, 0.803]), abs=1e-3)


def test_both_sentences_have_the_studys_own_margin(tmp_path):
    runs = sweep(tmp_path, {8: 0.74})  # 6 points below
    for margin, word in ((0.3, "is as good as full fine-tuning here, within 30 points"),
                         (0.02, "is worse than full fine-tuning here by more than 2 points"),
                         (0.06, "the margin is ±6")):  # fmt: skip
        sentences = answer(find(runs, None, published(), margin=margin))
        assert word in sentences[1], sentences[1]
    two = answer(find(sweep(tmp_path / "two", {8: 0.8}, seeds=2), None, published(), margin=0.03))[1]
    assert "with fewer than 3 seeds that may be their luck" in two


def test_runs_that_learned_nothing_are_named_on_the_page_and_only_they(tmp_path, found):
    runs = sweep(tmp_path / "some", {8: 0.797})
    runs += [make_run(tmp_path / "some", r=64, seed=s, accuracy=0.505 if s == 1 else 0.79, n=4000) for s in range(3)]
    text = said(find(runs, None, published()))
    assert "commonest class, 50.0 % of the rows" in text and "LoRA r = 64 on q,v, seed 1: 50.5 %" in text
    assert text.count("seed ") == 1 and said(found) is None
    many = [make_run(tmp_path / "many", r=1, seed=s, accuracy=0.5, n=4000) for s in range(15)]
    assert said(find(many, None, published())).count("seed ") == 12


def said(findings):
    page = make_page(findings, [], title="t", settings={})
    blocks = next(s for s in page.sections if s.title == "What r is needed").blocks
    return next((b for b in blocks if isinstance(b, str) and b.startswith("Not shown to be better")), None)
