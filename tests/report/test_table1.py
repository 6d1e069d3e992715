"""Table 1 beside the paper's: overheads, what the paper prints, cells and the picture."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from rankprobe.paper.published import published
from rankprobe.report.findings import Findings
from rankprobe.report.latency_plots import draw_table_1, table_1_picture
from rankprobe.report.style import save_picture, style
from rankprobe.report.table1 import TABLE_1, paper_latency, printed_table, table_1
from rankprobe.report.table1_cells import table_1_cells
from tests.report.synthetic_table1 import SHAPES, make_table1


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return table_1(make_table1(), published())


def findings_of(table) -> Findings:
    return Findings([], {"table1": table})


def test_overheads_are_the_ratios_in_percent(table):
    assert list(table.columns) == TABLE_1 and len(table) == 18
    row = table.set_index(["variant", "batch"]).loc[("adapter_h", 1)]
    ends = row["overhead_pct"], row["overhead_ci_low"], row["overhead_ci_high"]
    assert ends == pytest.approx((33.0, 32.4, 33.6))
    assert (table.loc[table["variant"] == "base", "overhead_pct"] == 0).all()


def test_the_papers_overheads_are_those_of_its_own_times(table):
    """What it prints in percent is what its milliseconds give, to the digit printed."""
    base = {shape: paper_latency(published(), "base", *shape)[0] for shape in SHAPES}
    assert base == {(32, 512): 1449.4, (16, 256): 338.0, (1, 128): 19.8}
    for variant in ("adapter_l", "adapter_h"):
        for shape in SHAPES:
            time, overhead = paper_latency(published(), variant, *shape)
            # both times are rounded to 0.1 ms, which is 0.5 % of 19.8
            assert 100 * (time / base[shape] - 1) == pytest.approx(overhead, abs=0.06 + 10 / base[shape])
    papers = table.set_index(["variant", "batch"])["paper_overhead_pct"]
    assert papers["adapter_h"].tolist() == [3.0, 8.4, 30.3] and papers["adapter_l"].tolist() == [2.2, 5.0, 20.7]
    assert papers["lora_merged"].tolist() == [0.0] * 3
    assert papers["lora_unmerged"].isna().all() and papers["base_copy"].isna().all()


def test_elsewhere_than_the_papers_shapes_nothing_is_made_up():
    assert all(math.isnan(x) for x in paper_latency(published(), "adapter_h", 8, 64))
    bare = table_1(make_table1(), pd.DataFrame())
    assert bare["paper_overhead_pct"].isna().all() and bare["paper_model"].isna().all()
    assert list(table_1(pd.DataFrame(), published()).columns) == TABLE_1


def test_on_a_terminal_intervals_stand_beside_their_values(table):
    shown = printed_table(table).set_index(["variant", "shape"])
    row = shown.loc[("adapter_h", "1 x 128")]
    assert row["ratio"] == "1.330 [1.324, 1.336]" and row["overhead %"] == "+33.0 [+32.4, +33.6]"
    assert row["paper %"] == "+30.3" and row["bottleneck"] == 110 and row["parameters"] == 10_966_176
    assert shown.loc[("base", "1 x 128"), "latency ms"] == "9.4 [9.3, 9.5]"
    assert shown.loc[("base", "1 x 128"), "overhead %"] == shown.loc[("lora_unmerged", "1 x 128"), "paper %"] == "–"


def test_cells_have_a_row_a_variant_and_the_paper_in_small_print(table):
    cells = table_1_cells(findings_of(table))
    assert cells.heads == ["variant", "batch 32, length 512", "batch 16, length 256", "batch 1, length 128"]
    lines = {row[0].text: row for row in cells.rows}
    assert next(iter(lines)) == "base" and "Adapter-H" in lines and len(lines) == 6
    assert lines["base"][3].text == "9.4 ms [9.3, 9.5]" and lines["base"][3].small == "paper: 19.8 ms"
    assert lines["Adapter-H"][3].text == "+33.0 % [+32.4, +33.6]" and lines["Adapter-H"][3].small == "paper: +30.3 %"
    assert lines["Adapter-L"][0].small == "516,312 / 10,990,800 parameters trained"
    assert lines["LoRA, not merged"][1].small == "" and lines["second copy of the base (A/A)"][1].small == ""
    assert "n = 60 rounds" in cells.caption and "float32 on NVIDIA H200." in cells.caption
    assert table_1_cells(findings_of(pd.DataFrame())) is None and table_1_cells(Findings([], {})) is None


def test_the_picture_has_the_table_and_the_papers_markers(table):
    with style():
        picture = draw_table_1(table)
    assert [a.get_title(loc="left") for a in picture.figure.axes] == [f"batch {b}, length {n}" for b, n in SHAPES]
    for i, axes in enumerate(picture.figure.axes):
        at = [float(c.lines[0].get_xdata()[0]) for c in axes.containers]
        ratios = make_table1().query("batch == @SHAPES[@i][0] and variant != 'base'")["ratio"]
        assert at == pytest.approx((100 * (ratios - 1)).tolist())
        bars = {line for c in axes.containers for line in (c.lines[0], *c.lines[1])}
        markers = [line for line in axes.lines if line.get_marker() == "o" and line not in bars]
        paper = [float(line.get_xdata()[0]) for line in markers]
        assert paper == [[0.0, 2.2, 3.0], [0.0, 5.0, 8.4], [0.0, 20.7, 30.3]][i]
    assert "60 interleaved rounds" in picture.caption and "gpt2-medium" in picture.caption


def shown_ticks(axis):
    """Tick labels inside the view; matplotlib keeps some outside that it never draws."""
    low, high = sorted(axis.get_view_interval())
    return [label for at, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True) if low <= at <= high]


@pytest.mark.parametrize("settings", [{}, {"adapter_h": 1.9, "lora_unmerged": 0.7}, {"half": 0.3, "aa_half": 0.2}])
@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[:2], SHAPES[:1]])
def test_no_words_of_the_picture_overlap_or_leave_it(settings, shapes):
    with style():
        figure = draw_table_1(table_1(make_table1(shapes=shapes, **settings), published())).figure
        FigureCanvasAgg(figure).draw()
        renderer = figure.canvas.get_renderer()
        texts = [t for a in figure.axes for t in (*a.texts, a._left_title, *shown_ticks(a.xaxis))]
        texts += shown_ticks(figure.axes[0].yaxis)
        texts += [figure._supxlabel, *(t for legend in figure.legends for t in legend.get_texts())]
        frame, boxes = figure.bbox, []
        for text in texts:
            box = text.get_window_extent(renderer)
            boxes.append((text.get_text(), box))
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1, text.get_text()
            assert frame.y0 <= box.y0 and box.y1 <= frame.y1, text.get_text()
    assert len(boxes) > 8
    for i, (one, a) in enumerate(boxes):
        for other, b in boxes[i + 1 :]:
            assert not a.overlaps(b), f"{one!r} overlaps {other!r}"


def test_no_picture_where_nothing_was_measured(tmp_path, table):
    assert table_1_picture(findings_of(pd.DataFrame())) is None and table_1_picture(Findings([], {})) is None
    with style():
        save_picture(table_1_picture(findings_of(table)), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["table1.png", "table1.svg"]


def test_a_stored_table_draws_as_a_fresh_one(tmp_path, table):
    table.to_csv(tmp_path / "table1.csv", index=False)
    again = pd.read_csv(tmp_path / "table1.csv")
    assert table_1_cells(findings_of(again)) == table_1_cells(findings_of(table))
    np.testing.assert_allclose(again["overhead_pct"], table["overhead_pct"])
