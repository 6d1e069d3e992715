"""Pictures of comparisons: they show the table, cap their panels, say which they chose, and repeat byte for byte."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from rankprobe.analysis.compare import compare
from rankprobe.report.compare_plots import chosen_matrices, draw_comparison
from rankprobe.report.style import png, style, svg

PATHS = {"q": "self_attn.q_proj", "v": "self_attn.v_proj", "up": "mlp.up_proj"}
CHANCE = np.array(mpl.colors.to_rgba("#c9c9c9"))


def gaussian(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(layers=3, kinds=("q", "v"), *, top=6, same=False, across=False, n=24, intruders=True):
    """A comparison of two tunings that share their strongest direction in every matrix."""
    W0, one, two = {}, {}, {}
    for i, (layer, kind) in enumerate((layer, kind) for layer in range(layers) for kind in kinds):
        name = f"model.layers.{layer}.{PATHS[kind]}.weight"
        m = 2 * n if kind == "up" else n
        U, _, Vh = torch.linalg.svd(gaussian(m, n, seed=i), full_matrices=False)
        W0[name] = U * torch.linspace(5, 1, n, dtype=torch.float64) @ Vh
        shared = 4 * torch.outer(gaussian(m, seed=300 + i), gaussian(n, seed=400 + i)) / n
        one[name] = W0[name] + 0.1 * gaussian(m, n, seed=500 + i) + shared
        two[name] = W0[name] + 0.1 * gaussian(m, n, seed=900 + i) + shared
    return compare(one, one if same else two, W0, top=top, across_layers=across, intruders=intruders)


@pytest.fixture(scope="module")
def comparison():
    return make(across=True)


@pytest.fixture(scope="module")
def pictures(comparison):
    return {picture.name: picture for picture in draw_comparison(comparison)}


def pixels(axes):
    """The middle of each cell of a heat map, from its enlarged image."""
    image = axes.images[0].get_array()
    left, right, bottom, top = axes.images[0].get_extent()
    rows, columns = round(bottom - top), round(right - left)
    return np.asarray(image).reshape(rows, image.shape[0] // rows, columns, image.shape[1] // columns, 4)[:, 0, :, 0]


def test_all_four_in_order(pictures):
    assert list(pictures) == ["overlap", "overlap_by_layer", "layers", "intruders"]
    for picture in pictures.values():
        assert picture.caption.endswith(".") and picture.title
    assert "6 matrices" in pictures["overlap_by_layer"].caption and "6 matrices" in pictures["intruders"].caption


def test_grids_show_phi_and_are_grey_where_it_is_not_above_chance(pictures, comparison):
    figure = pictures["overlap"].figure
    panels = [axes for axes in figure.axes if axes.images]
    names = chosen_matrices(comparison.matrices, 4)
    assert len(panels) == len(names) == 4
    for axes, name in zip(panels, names, strict=True):
        rows = comparison.overlap[comparison.overlap["name"] == name]
        above = (rows["phi"] > rows["random_high"]).to_numpy().reshape(6, 6)
        shown = pixels(axes)
        grey = np.isclose(shown, CHANCE).all(-1)
        assert np.array_equal(grey, ~above) and above.any()
        assert name in pictures["overlap"].caption
        # The colour at (1, 1) is that of φ(1, 1) on the scale of the colour bar.
        bar = next(a for a in figure.axes if a.get_ylabel() == "φ(i, j)")
        top = bar.get_ylim()[1]
        first = float(rows["phi"].iloc[0])
        assert np.allclose(shown[0, 0], mpl.colormaps["viridis"](first / top), atol=0.01)


def test_the_line_beside_a_grid_is_phi_and_its_chance(pictures, comparison):
    axes = next(a for a in pictures["overlap"].figure.axes if a.get_ylabel() == "φ")
    name = chosen_matrices(comparison.matrices, 4)[0]
    rows = comparison.overlap[comparison.overlap["name"] == name].query("i == j")
    mean, phi = axes.lines
    assert np.allclose(phi.get_ydata(), rows["phi"]) and np.allclose(mean.get_ydata(), rows["random_mean"])
    assert np.allclose(mean.get_ydata(), np.arange(1, 7) / 24)
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(rows["random_high"].max())


def test_layers_of_one_input_leave_their_diagonal_white_and_off_the_scale():
    picture = {p.name: p for p in draw_comparison(make(same=True, across=True, intruders=False))}
    assert list(picture) == ["layers"]
    axes = picture["layers"].figure.axes[0]
    shown = pixels(axes)
    assert np.allclose(shown[range(3), range(3)], 1.0)
    assert "left white" in picture["layers"].caption
    bar = next(a for a in picture["layers"].figure.axes if a.get_ylabel() == "φ(r, r)")
    assert bar.get_ylim()[1] < 1


def test_layer_panels_have_one_title_a_kind_and_the_level_of_chance(pictures, comparison):
    figure = pictures["layers"].figure
    assert [a.get_title(loc="left") for a in figure.axes if a.images] == ["q, r = 6", "v, r = 6"]
    assert f"{comparison.layers['random_mean'].iloc[0]:.3g}" in pictures["layers"].caption


def test_intruders_show_medians_and_the_threshold(pictures, comparison):
    axes = pictures["intruders"].figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    x = next(line for label, line in lines.items() if label.startswith("X: "))
    medians = comparison.cosines[comparison.cosines["side"] == "X"].groupby("index")["cosine"].median()
    assert np.allclose(x.get_ydata(), medians)
    assert np.allclose(lines["W0 with itself"].get_ydata(), 1.0)
    assert lines["0.5: below are intruders"].get_ydata()[0] == 0.5


@pytest.mark.parametrize(("kinds", "layers", "most", "expected"), [
    (("q", "v"), 12, 4, [("q", 3), ("q", 9), ("v", 3), ("v", 9)]),
    (("q",), 1, 4, [("q", 0)]),
    (("q", "k", "v", "o", "up", "down"), 3, 4, [("q", 1), ("k", 1), ("v", 1), ("o", 1)]),
    (("q",), 2, 4, [("q", 0), ("q", 1)]),
    (("other",), 3, 4, None),
])
def test_chosen_matrices_are_spread_over_kinds_and_layers(kinds, layers, most, expected):
    rows = [{"name": f"{layer}.{kind}", "layer": layer, "kind": kind} for layer in range(layers) for kind in kinds]
    table = pd.DataFrame(rows).astype({"layer": "Int64"})
    chosen = chosen_matrices(table, most)
    assert len(chosen) == len(set(chosen)) <= most and set(chosen) <= set(table["name"])
    if expected is not None:
        assert chosen == [f"{layer}.{kind}" for kind, layer in expected]


@pytest.mark.parametrize("made", [
    {"layers": 1, "kinds": ("q",), "top": 1},
    {"layers": 1, "kinds": ("q",), "top": 24},
    {"layers": 30, "kinds": ("q", "v", "up"), "top": 2, "across": True, "n": 8, "intruders": False},
])
def test_labels_do_not_overlap_or_leave_the_picture(made):
    """One cell, a large grid, many layers."""
    with style():
        for picture in draw_comparison(make(**made)):
            canvas = FigureCanvasAgg(picture.figure)
            canvas.draw()
            renderer = canvas.get_renderer()
            for axes in picture.figure.axes:
                if not axes.get_visible():
                    continue
                for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
                    boxes = [t.get_window_extent(renderer) for t in ticks if t.get_text() and t.get_visible()]
                    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
                box = axes.get_tightbbox(renderer)
                assert box.x0 >= -1 and box.y0 >= -1
                assert box.x1 <= canvas.figure.bbox.x1 + 1 and box.y1 <= canvas.figure.bbox.y1 + 1


def test_one_cell_for_each_of_many_matrices_needs_no_grids():
    assert "overlap" not in {picture.name for picture in draw_comparison(make(layers=6, top=1, intruders=False))}


def test_files_repeat_byte_for_byte(comparison, pictures):
    again = {picture.name: picture for picture in draw_comparison(comparison)}
    for name, picture in pictures.items():
        assert svg(picture.figure) == svg(again[name].figure), name
    assert Image.open(io.BytesIO(png(again["overlap"].figure))).width == 1300
