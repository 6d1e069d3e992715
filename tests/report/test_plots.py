"""Pictures: what is on the axes, that nothing overlaps, and that files repeat byte for byte."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from rankprobe.paper.published import published
from rankprobe.report.findings import Findings, find
from rankprobe.report.plots import draw_pictures
from rankprobe.report.score_plots import accuracy_by_parameters, accuracy_by_r
from rankprobe.report.style import WIDTH_IN, broken_axis, legend_above, png, save_picture, style, svg
from tests.report.synthetic import make_latency, make_run


@pytest.fixture(scope="module")
def pictures(findings):
    return {picture.name: picture for picture in draw_pictures(findings)}


def test_all_seven_in_order_each_with_n_in_its_caption(pictures):
    assert list(pictures) == [
        "accuracy_by_r",
        "predicted_curve",
        "truncation",
        "spectra",
        "energy_rank",
        "accuracy_by_parameters",
        "latency",
    ]
    for name in ("accuracy_by_r", "predicted_curve", "truncation", "accuracy_by_parameters"):
        assert "600 evaluation rows" in pictures[name].caption and "95 %" in pictures[name].caption
    assert "36 matrices" in pictures["spectra"].caption and "36 matrices" in pictures["energy_rank"].caption
    assert "60 interleaved rounds" in pictures["latency"].caption


def errorbars(axes):
    """Points of an axes' error bars: (x, y)."""
    return sorted((float(c.lines[0].get_xdata()[0]), float(c.lines[0].get_ydata()[0])) for c in axes.containers)


def test_accuracy_by_r_shows_the_table(pictures, findings):
    top, bottom = pictures["accuracy_by_r"].figure.axes
    methods = findings.tables["methods"]
    sweep = methods[methods["method"] == "lora"]
    expected = sorted(zip(np.log2(sweep["r"].astype(float)), sweep["accuracy_mean"], strict=True))
    assert np.allclose(errorbars(top), expected)
    assert [t.get_text() for t in bottom.get_xticklabels()] == ["1", "2", "4", "8", "64"]
    texts = [t.get_text() for t in top.texts + bottom.texts]
    assert any(t.startswith("full") and "78.6 %" in t for t in texts)
    assert any(t.startswith("head only") for t in texts)
    # The head is far below: it has the lower axes, which does not meet the upper one.
    assert bottom.get_ylim()[1] < top.get_ylim()[0] and bottom.get_ylim()[0] < 0.546 < bottom.get_ylim()[1]


def test_filled_markers_are_over_seeds_and_open_ones_over_rows(pictures):
    top = pictures["accuracy_by_r"].figure.axes[0]
    faces = {float(c.lines[0].get_xdata()[0]): c.lines[0].get_markerfacecolor() for c in top.containers}
    assert faces[0.0] == faces[3.0] != "white" and faces[1.0] == faces[2.0] == faces[6.0] == "white"


def test_truncation_aligns_accuracy_with_energy(pictures, findings):
    accuracy, energy = pictures["truncation"].figure.axes
    assert accuracy.get_xlim() == energy.get_xlim()
    assert [t.get_text() for t in energy.get_xticklabels()][:4] == ["0", "1", "2", "4"]
    assert len(accuracy.containers) == 3  # two rules of full, one LoRA
    share = energy.lines[0].get_ydata()
    assert share[0] == 0 and share[-1] == pytest.approx(1) and (np.diff(share) >= 0).all()
    spectra = findings.tables["spectra"]
    first = spectra[spectra["run_id"] == "full-docmatch-s0"]
    power = first.assign(p=first["sigma"] ** 2).groupby("name")["p"]
    assert share[1] == pytest.approx((power.max() / power.sum()).median(), rel=1e-4)
    assert "k = 4 [2, 4]" in pictures["truncation"].caption


def test_spectra_have_a_line_a_matrix_on_log_axes(pictures):
    panels = [a for a in pictures["spectra"].figure.axes if a.get_title(loc="left")]
    assert [a.get_title(loc="left") for a in panels] == ["q", "k", "v", "o", "up", "down"]
    assert [len(a.lines) for a in panels] == [12, 6, 12, 6, 6, 6]  # LoRA stands beside full on q and v
    assert {(a.get_xscale(), a.get_yscale()) for a in panels} == {("log", "log")}
    assert {len(line.get_xdata()) for line in panels[0].lines} == {384, 8}


def test_a_few_vanishing_singular_values_do_not_flatten_the_rest(findings):
    table = findings.tables["spectra"].copy()
    last = table["index"] == 384
    table.loc[last, "sigma"] *= 1e-6
    changed = Findings(findings.runs, findings.tables | {"spectra": table})
    picture = next(p for p in draw_pictures(changed) if p.name == "spectra")
    low = picture.figure.axes[0].get_ylim()[0]
    assert low > 100 * table["sigma"].min() and "lie below the axis" in picture.caption
    kept = findings.tables["spectra"]["sigma"]
    assert (kept > low).mean() > 0.97


def test_heat_map_numbers_are_energy_ranks(pictures, findings):
    axes = pictures["energy_rank"].figure.axes[0]
    ranks = findings.tables["ranks"]
    full = ranks[ranks["method"] == "full"]
    first = full[(full["layer"] == 0) & (full["kind"] == "q")]["energy_rank_90"].mean()
    assert len(axes.texts) == 36 and axes.texts[0].get_text() == str(round(first))


def test_parameters_are_on_a_log_axis_with_every_method(pictures):
    axes = pictures["accuracy_by_parameters"].figure.axes
    assert all(a.get_xscale() == "log" for a in axes)
    xs = sorted(x for a in axes for x, _ in errorbars(a))
    assert xs == [770, 9_986, 19_202, 37_634, 74_498, 590_594, 22_713_986]


def test_latency_has_a_panel_a_shape_and_the_aa_band(pictures):
    panels = pictures["latency"].figure.axes
    assert [a.get_title(loc="left") for a in panels] == [
        "batch 1, length 32",
        "batch 8, length 64",
        "batch 32, length 64",
    ]
    for axes in panels:
        assert [round(x, 4) for x, _ in errorbars(axes)] == [1.0005, 1.001, 1.003, 1.16]
        assert axes.patches[0].get_x() == pytest.approx(1.0005 - 0.004)


def shown_ticks(axis):
    """Tick labels inside the view; matplotlib keeps some outside that it never draws."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


@pytest.mark.parametrize("name", ["accuracy_by_r", "accuracy_by_parameters", "truncation", "latency"])
def test_no_two_labels_overlap(pictures, name):
    figure = pictures[name].figure
    with style():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        texts = [t for a in figure.axes for t in (*a.texts, *shown_ticks(a.xaxis), *shown_ticks(a.yaxis))]
        boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_visible() and t.get_text()]
    inside = [(t, b) for t, b in boxes if b.width > 0 and b.height > 0]
    for i, (one, a) in enumerate(inside):
        for other, b in inside[i + 1 :]:
            assert not a.overlaps(b), f"{one!r} overlaps {other!r}"


def test_fonts_are_readable_in_print(pictures):
    for picture in pictures.values():
        assert picture.figure.get_figwidth() == 6.5
        sizes = [t.get_fontsize() for a in picture.figure.axes for t in (*a.texts, *a.get_xticklabels(), a.xaxis.label)]
        assert min(sizes) >= 8


def test_svg_repeats_and_names_neither_a_date_nor_a_path(findings, study):
    first, second = ({p.name: svg(p.figure) for p in draw_pictures(findings)} for _ in range(2))
    assert first == second
    for content in first.values():
        ET.fromstring(content)
        assert b"<metadata" not in content and b"<dc:date>" not in content and study[0]["path"].encode() not in content


def test_pictures_show_something(pictures):
    for picture in pictures.values():
        image = np.asarray(Image.open(io.BytesIO(png(picture.figure))).convert("L"))
        assert image.shape[1] == 1300 and (image < 128).mean() > 0.002 and (image > 250).mean() > 0.2


def test_both_files_are_written(pictures, tmp_path):
    save_picture(pictures["latency"], tmp_path / "figures")
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["latency.png", "latency.svg"]


def test_partial_data_draw_what_there_is(tmp_path):
    one = [make_run(tmp_path, r=8, n=100)]
    assert [p.name for p in draw_pictures(find(one, None, published()))] == ["accuracy_by_r", "accuracy_by_parameters"]
    assert draw_pictures(find([], None, published())) == []
    assert [p.name for p in draw_pictures(find([], make_latency(), published()))] == ["latency"]
    full = [make_run(tmp_path, method="full", n=100, spectra=True)]
    names = [p.name for p in draw_pictures(find(full, None, published()))]
    assert names == ["spectra", "energy_rank", "accuracy_by_parameters"]


def test_axis_breaks_only_over_a_wide_gap():
    with style():
        assert len(broken_axis([0.74, 0.76, 0.79])[1]) == 1
        assert len(broken_axis([0.5, 0.54, 0.74, 0.76, 0.79])[1]) == 2
        assert len(broken_axis([0.7])[1]) == 1


def test_what_differs_by_factors_is_on_one_log_axis_with_readable_ticks():
    with style():
        figure, [(axes, low, high)] = broken_axis([2.1, 2.2, 6.8, -1.0, 16.0], log=True)
        figure.canvas.draw()
    assert axes.get_yscale() == "log" and low < 2.1 and high > 16.0
    assert len([v for v in axes.get_yticks() if low <= v <= high]) >= 3


def test_a_language_models_cut_dw_is_scored_by_the_tokens_it_has_right(tmp_path):
    runs = [make_run(tmp_path, method="full", accuracy=0.8, spectra=True, truncation=True)]
    runs += [make_run(tmp_path, r=r, accuracy=0.7) for r in (1, 8)]
    for run, perplexity in zip(runs, (2.1, 15.9, 5.0), strict=True):
        run["task"]["metrics"] = ["perplexity", "token_accuracy"]
        run["metrics"]["perplexity"] = perplexity
        (Path(run["path"]) / "predictions.csv").unlink()  # a classifier's: as in a clone, there are no intervals
    pictures = {picture.name: picture for picture in draw_pictures(find(runs, None, published()))}
    top = pictures["truncation"].figure.axes[0]
    assert top.yaxis.get_major_formatter()(0.74) == "74 %"
    assert top.get_ylabel() == "token accuracy" and "token accuracy on" in pictures["truncation"].caption
    for name in ("accuracy_by_r", "accuracy_by_parameters"):
        axes = pictures[name].figure.axes
        assert len(axes) == 1 and axes[0].get_yscale() == "log" and axes[0].get_ylabel() == "perplexity (log scale)"


@pytest.fixture
def crowd(tmp_path):
    """Every method beside LoRA, five of them with LoRA's own number of parameters, and LoRA on many targets."""
    runs = [make_run(tmp_path, method=m, accuracy=a) for m, a in (("full", 0.8), ("head", 0.56))]
    targets = (("q", (1, 16)), ("q,v", (1, 8)), ("k", (16,)))
    runs += [make_run(tmp_path, r=r, targets=t) for t, rs in targets for r in rs]
    sizes = {"adapter_h": {"bottleneck": 6}, "adapter_l": {"bottleneck": 14}, "prefix": {"prefix_length": 32},
             "prompt": {"prefix_length": 32}, "top_layers": {"layers": 2}, "bitfit": {}}  # fmt: skip
    runs += [make_run(tmp_path, method=method, **size) for method, size in sizes.items()]
    return {picture.name: picture for picture in draw_pictures(find(runs, None, published()))}


def test_many_methods_are_told_apart(crowd):
    picture = crowd["accuracy_by_parameters"]
    xs = np.array([x for axes in picture.figure.axes for x, _ in errorbars(axes)])
    assert len(xs) == 13 and np.diff(np.sort(np.log(xs))).min() > 0.1, "no two points cover each other"
    assert "stand side by side" in picture.caption
    (legend,) = picture.figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(names) == len(set(names)) == 10
    # Beside their points the names of full and head would meet other points' intervals.
    assert {"full fine-tuning", "head only", "LoRA on other targets", "Adapter-H, bottleneck 6"} < set(names)
    looks = {(handle.get_color(), handle.get_marker()) for handle in legend.legend_handles}
    assert len(looks) == 10
    test_no_two_labels_overlap(crowd, "accuracy_by_parameters")


def test_methods_of_one_budget_have_an_axis_with_numbers(tmp_path):
    runs = [make_run(tmp_path, r=4, n=60, targets=targets) for targets in ("q", "k", "v")]
    axes = accuracy_by_parameters(find(runs, None, published())).figure.axes[-1]
    low, high = axes.get_xlim()
    assert not low < 1e4 < high and not low < 1e5 < high, "no power of ten is in sight"
    assert sum(low < tick < high for tick in axes.get_xticks()) >= 1


def test_a_curve_against_r_has_several(crowd):
    caption = crowd["accuracy_by_r"].caption
    assert "of LoRA on q,v and q against r" in caption, "k was trained with one r alone"


def test_targets_that_are_not_drawn_are_named(tmp_path):
    runs = [make_run(tmp_path, r=8, n=60, targets=targets) for targets in ("q", "k", "v", "o", "q,k", "q,v")]
    caption = accuracy_by_r(find(runs, None, published())).caption
    drawn, left = caption.split(" against r. ")[0], caption.split("In the table alone: LoRA on ")[1].split(".")[0]
    assert len(left.split("; ")) == 2 and not any(f" {target} " in f"{drawn} " for target in left.split("; "))
    assert "table alone" not in accuracy_by_r(find(runs[-1:], None, published())).caption


def test_a_legend_has_as_many_columns_as_fit():
    with style():
        long = r"LoRA on layer\.[01]\..*(query|value)"
        for labels, columns in ((["q,v", "q", "k"], 3), ([long] * 4, 2), (["m" * 70] * 2, 1)):
            figure = Figure(figsize=(WIDTH_IN, 3), layout="constrained")
            figure.subplots()
            assert legend_above(figure, [Line2D([], [], label=label) for label in labels]) == columns
            figure.canvas.draw()
            box = figure.legends[0].get_window_extent()
            assert columns == 1 or (box.x0 >= 0 and box.x1 <= figure.bbox.x1)


def test_points_of_an_r_by_matrix_are_named_as_such(tmp_path):
    runs = [make_run(tmp_path, method="full", n=60)]
    runs += [make_run(tmp_path, r=2, n=60, targets=targets) for targets in ("q,v", "o")]
    by_matrix = make_run(tmp_path, r=2, n=60, rank_pattern=[["query", 1], ["value", 3]])
    names = {"full fine-tuning", "LoRA on q,v, r above", "LoRA on other targets"}
    for more, expected in (([], names), ([by_matrix], names | {"LoRA, r by matrix"})):
        picture = accuracy_by_parameters(find(runs + more, None, published()))
        assert {text.get_text() for text in picture.figure.legends[0].get_texts()} == expected
