"""The page of a comparison: its sentences and tables say what the data say, beside chance, and text is escaped."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
import torch

from rankprobe.analysis.compare import compare
from rankprobe.report.compare_page import TABLES, answer, write_comparison, write_tables
from tests.report.test_compare_plots import gaussian, make
from tests.report.test_report import Reader


@pytest.fixture(scope="module")
def comparison():
    return make(layers=4, across=True)


@pytest.fixture(scope="module")
def built(comparison, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    write_tables(out, comparison)
    write_comparison(out, comparison, settings={"command": "rankprobe compare <x> y"})
    return out


def test_every_table_is_written_and_reads_back(built, comparison):
    for name, field in TABLES.items():
        table = getattr(comparison, field)
        assert (built / name).exists() == (not table.empty), name
        if not table.empty:
            read = pd.read_csv(built / name)
            assert list(read.columns) == list(table.columns) and len(read) == len(table)
    phi = pd.read_csv(built / "overlap.csv")["phi"]
    assert phi.to_numpy() == pytest.approx(comparison.overlap["phi"].to_numpy(), rel=1e-5)


def test_an_earlier_tables_rows_do_not_stay(built, comparison, tmp_path):
    write_tables(tmp_path, comparison)
    write_tables(tmp_path, dataclasses.replace(comparison, intruders=comparison.intruders.iloc[:0]))
    assert not (tmp_path / "intruders.csv").exists() and (tmp_path / "overlap.csv").exists()


def test_the_page_stands_alone_is_escaped_and_has_its_sections(built):
    page = Reader((built / "report.html").read_text(encoding="utf-8"))
    assert all(address.startswith("data:") for address in page.addresses) and page.tags.count("img") == 4
    assert "rankprobe compare <x> y" in page.words
    for title in ("What X and Y share", "Layers against layers", "Amplification of W0", "Intruder dimensions",
                  "How this was made"):
        assert title in page.words
    text = (built / "report.md").read_text(encoding="utf-8")
    for name in ("overlap", "overlap_by_layer", "layers", "intruders"):
        assert f"figures/{name}.svg" in text and (built / "figures" / f"{name}.png").exists()


def test_the_answer_puts_chance_beside_each_number(comparison):
    said = " ".join(answer(comparison))
    table = comparison.matrices
    above = int((table["phi_min_min"] > table["phi_min_min_random_high"]).sum())
    assert f"{above} of 8 lie above the 95 % interval of chance" in said
    assert f"random subspaces have {table['phi_min_min_random_mean'].median():.2f}" in said
    counts = comparison.intruders.groupby("side")["intruders"].sum()
    assert f"X {counts['X']}, Y {counts['Y']}; W0 against itself 0" in said
    assert "q, same layer: mean φ(6, 6) over 4 pairs of layers" in said
    assert "q, other layers: mean φ(6, 6) over 12 pairs" in said


def test_verdicts_about_layers_follow_the_interval(comparison):
    grid = comparison.layers
    for value, words in ((0.9, "above"), (0.0, "below"), (grid["random_mean"], "no different from")):
        said = " ".join(answer(dataclasses.replace(comparison, layers=grid.assign(phi=value))))
        assert said.count(f", {words} chance (0.250 [") == 4


def test_one_input_with_itself_is_not_presented_as_a_finding(tmp_path):
    found = make(same=True, across=True)
    said = answer(found)
    assert not any("All directions that the smaller side has" in line for line in said)
    assert any("same input" in line for line in said)
    write_comparison(tmp_path, found, settings={})
    page = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "What X and Y share" not in page.words and "with itself" in page.words


def test_notes_and_what_was_skipped_are_told(tmp_path):
    W0 = {f"model.layers.{i}.self_attn.q_proj.weight": torch.eye(8, dtype=torch.float64) for i in range(2)}
    one = {name: W + 0.1 * gaussian(8, 8, seed=i) for i, (name, W) in enumerate(W0.items())}
    two = {name: W + ("layers.1" in name) * 0.1 * gaussian(8, 8, seed=9) for name, W in W0.items()}
    found = compare(one, two, W0)
    write_tables(tmp_path, found)
    write_comparison(tmp_path, found, settings={})
    page = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "the update of Y is zero: no directions" in page.words and "1 matrix," in page.words
    # W0 is the identity: its singular vectors are arbitrary, and the control shows that nothing can be said here.
    control = found.intruders[found.intruders["side"] == "W0"]
    assert (tmp_path / "skipped.csv").exists() and len(control) == 1
