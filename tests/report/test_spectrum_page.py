"""The page of a spectrum: pictures show the tables and the noise floor, sentences say the same, text is escaped."""

from __future__ import annotations

import dataclasses
import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

from rankprobe.analysis.spectrum import spectrum
from rankprobe.report.spectrum_page import write_spectrum
from rankprobe.report.spectrum_plots import draw_spectrum
from rankprobe.report.spectrum_result import SpectrumResult, thinned
from rankprobe.report.spectrum_words import change_words, storage_words
from rankprobe.report.style import style, svg
from rankprobe.weights.delta import Delta
from tests.report.test_report import Reader

KINDS = ("down", "q", "v")


def gaussian(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense(name, layer, kind, *, rank=2, size=0.02, dtype=torch.bfloat16, m=64, n=48, seed=0):
    W0 = gaussian(m, n, seed=seed).to(dtype)
    update = size * gaussian(m, rank, seed=seed + 1) @ gaussian(rank, n, seed=seed + 2) if rank else 0
    W1 = (W0.double() + update).to(dtype)
    word = str(dtype).removeprefix("torch.")
    return Delta(name, layer, kind, (m, n), word, word, float(W0.double().norm()), dW=W1.double() - W0.double(),
                 W0=W0, W1=W1)  # fmt: skip


def factored(name, layer, kind, *, r=4, seed=0):
    return Delta(name, layer, kind, (64, 48), "float32", "float32", math.nan, B=gaussian(64, r, seed=seed),
                 A=gaussian(r, 48, seed=seed + 1))  # fmt: skip


def result_of(deltas, *, base="base", energy=0.9, **more):
    ranks, lines = spectrum(deltas)
    nothing = pd.DataFrame()
    return dataclasses.replace(SpectrumResult(ranks, nothing, nothing, lines, base, "tuned", energy, []), **more)


def blocks(change=lambda layer, kind: {}, layers=3):
    return [
        dense(f"layers.{i}.{kind}", i, kind, seed=10 * i + 100 * k, **change(i, kind))
        for i in range(layers)
        for k, kind in enumerate(KINDS)
    ]


@pytest.fixture(scope="module")
def mixed():
    """Rank 2 in layers 1 and 2; what layer 0 learned was too small for bfloat16; an embedding."""
    embed = dense("embed", None, "embed", rank=1, m=90, seed=7)
    return result_of([*blocks(lambda layer, kind: {} if layer else {"size": 1e-4}), embed])


@pytest.fixture(scope="module")
def pictures(mixed):
    return {picture.name: picture for picture in draw_spectrum(mixed)}


def cells(figure):
    return figure.axes[0].collections[0].get_array()


def test_heat_maps_show_ranks_in_order_and_grey_what_was_swallowed(pictures, mixed):
    assert list(pictures) == ["storage_rank", "energy_rank", "spectra"]
    for name in ("storage_rank", "energy_rank"):
        axes = pictures[name].figure.axes[0]
        assert [t.get_text() for t in axes.get_xticklabels()] == ["q", "v", "down"]
        assert [t.get_text() for t in axes.get_yticklabels()] == ["0", "1", "2"]
        shown = cells(pictures[name].figure)
        assert np.ma.getmaskarray(shown)[0].all() and not np.ma.getmaskarray(shown)[1:].any()
        grey = [patch for patch in axes.patches if patch.get_hatch()]
        assert sorted(patch.get_xy() for patch in grey) == [(0, 0), (1, 0), (2, 0)]
        assert "swallowed the update" in pictures[name].caption and "(3 of 9 matrices)" in pictures[name].caption
        legend = pictures[name].figure.legends[0]
        assert [t.get_text() for t in legend.get_texts()] == ["swallowed by the storage dtype"]
    assert (cells(pictures["storage_rank"].figure)[1:] == 2).all()
    assert [t.get_text() for t in pictures["storage_rank"].figure.axes[0].texts if t.get_text()] == ["2"] * 6
    shares = cells(pictures["energy_rank"].figure)[1:]
    ranks = mixed.ranks[mixed.ranks.layer > 0]
    assert sorted(shares.ravel()) == pytest.approx(sorted(100 * ranks.energy_rank_90 / 48))


def test_spectra_are_the_tables_lines_with_the_noise_floor(pictures, mixed):
    figure = pictures["spectra"].figure
    panels = {axes.get_title(loc="left") or axes.get_title(): axes for axes in figure.axes if axes.lines}
    assert list(panels) == ["q", "v", "down", "embed"]
    for kind, axes in panels.items():
        rows = mixed.ranks[mixed.ranks.kind == kind]
        floors = rows.storage_floor
        curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
        assert len(curves) == len(rows)
        first = sorted(line.get_ydata()[0] for line in curves)
        assert first == pytest.approx(sorted(rows.sigma_max))
        level = next(line for line in axes.lines if len(line.get_xdata()) == 2)
        assert level.get_ydata()[0] == pytest.approx(floors.max())
        low, high = axes.get_ylim()
        assert low < floors.min() and floors.max() < high, "the floor is inside the picture"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["noise floor: σ₁ of rounding to bfloat16"]
    caption = pictures["spectra"].caption
    assert "10 matrices" in caption and "Grey lines are outside the blocks" in caption and "Band:" in caption
    assert panels["embed"].lines[-1].get_color() != panels["q"].lines[-1].get_color()


def test_the_floor_is_left_out_where_it_would_flatten_the_values():
    """An update of full rank in float32: its rounding lies decades below."""
    full = [dense(f"layers.{i}.q", i, "q", rank=48, dtype=torch.float32, seed=i) for i in (0, 1)]
    pictures = {p.name: p for p in draw_spectrum(result_of(full))}
    assert list(pictures) == ["energy_rank", "spectra"], "all directions stand above: no map of it"
    assert "lies far below the axis" in pictures["spectra"].caption and not pictures["spectra"].figure.legends


def test_an_adapters_pictures_count_directions():
    deltas = [factored(f"layers.{i}.{kind}", i, kind, seed=9 * i) for i in range(12) for kind in ("q", "v")]
    pictures = {p.name: p for p in draw_spectrum(result_of(deltas, base=None))}
    assert list(pictures) == ["energy_rank", "spectra"]
    assert "Numbers and colours are directions" in pictures["energy_rank"].caption
    axes = pictures["spectra"].figure.axes[0]
    pictures["spectra"].figure.canvas.draw()
    assert [t.get_text() for t in axes.get_xticklabels() if t.get_text()] == ["1", "2", "4"]
    assert not pictures["spectra"].figure.legends


@pytest.mark.parametrize("deltas", [
    [dense("w", None, "other", rank=1)],
    [dense("w", 0, "q", rank=1, m=1, n=1)],
    [dense("w", 0, "q", rank=1, m=7, n=1), dense("v", 40, "up", rank=1, m=1, n=9)],
    [dense(f"layers.{i}.moe.{e}", i, "up", m=6, n=5, seed=i + e) for i in range(30) for e in range(2)],
    [dense(f"w{i}", i, f"kind{i}", m=6, n=5, seed=i) for i in range(12)],
    [factored("w", 0, "q", r=1)],
    [factored("w", 0, "q"), dense("v", 1, "v")],
])  # fmt: skip
def test_any_shape_of_model_can_be_drawn(deltas):
    result = result_of(deltas)
    for picture in draw_spectrum(result):
        with style():
            drawn = svg(picture.figure)
        assert drawn.startswith(b"<?xml") and picture.caption.endswith(".") and "nan" not in picture.caption


def test_nothing_changed(tmp_path):
    result = result_of([dense(f"layers.{i}.q", i, "q", rank=0, seed=i) for i in (0, 1)])
    assert draw_spectrum(result) == []
    assert change_words(result.ranks, 0.9) == ["Nothing changed: dW is zero in all of 2 matrices."]
    assert storage_words(result.ranks) == []
    write_spectrum(tmp_path, result, settings={})
    assert "Nothing changed" in Reader((tmp_path / "report.html").read_text(encoding="utf-8")).words


def test_sentences_say_what_the_table_says(mixed):
    said = change_words(mixed.ranks, 0.9)
    assert said[0].startswith("All 10 matrices changed; ‖dW‖/‖W0‖ is ")
    assert said[1].startswith("90 % of the energy Σσ² takes 2 directions")
    assert "in the median of 6 matrices of the blocks that storing did not swallow" in said[1]
    (stored,) = storage_words(mixed.ranks)
    assert stored.startswith("2 directions stand above the noise of rounding to bfloat16 in the median of 7 matrices;")
    assert " bfloat16 swallowed the update in 3 of 10 matrices: " in stored
    some = mixed.ranks.assign(sigma_max=mixed.ranks.sigma_max.mask(mixed.ranks.layer.eq(1).fillna(False), 0))
    assert change_words(some, 0.9)[0].startswith("7 of 10 matrices changed, 3 did not; ")


def test_sentences_where_all_was_swallowed_or_all_stands_above():
    lost = result_of(blocks(lambda layer, kind: {"size": 1e-4}))
    assert len(change_words(lost.ranks, 0.9)) == 1, "no energy rank of what rounding left"
    (stored,) = storage_words(lost.ranks)
    assert stored.startswith("bfloat16 swallowed the update: ") and "no rank" in stored
    full = result_of([dense("layers.0.q", 0, "q", rank=48, dtype=torch.float32)])
    (stored,) = storage_words(full.ranks)
    stands = "All directions stand above the noise of rounding to float32; 0 % of the weights did not change."
    signal = int(full.ranks.mp_rank[0])
    assert 0 < signal < 48
    assert stored == f"{stands} That is not yet signal: {signal} stand above white noise (mp rank)."
    assert storage_words(full.ranks.assign(mp_rank=48)) == [stands]
    assert change_words(full.ranks, 0.9)[0].startswith("The matrix changed;")


def test_the_page_has_its_sections_stands_alone_and_is_escaped(mixed, tmp_path):
    vectors = pd.DataFrame({"name": ["a.bias", "b.bias", "norm.weight"], "shape": ["4"] * 3, "norm": [0.0, 2.0, 4.0],
                            "change_norm": [0.5, 1.0, 0.0], "relative_change": [math.nan, 0.5, 0.0],
                            "unchanged_fraction": [0, 0, 1.0]})  # fmt: skip
    left_out = pd.DataFrame({"name": [f"head.{i}" for i in range(5)], "reason": ["only in <tuned>"] * 5})
    result = dataclasses.replace(mixed, vectors=vectors, left_out=left_out, tuned="<tuned>", notes=["A note"])
    write_spectrum(tmp_path, result, settings={"command": "rankprobe spectrum base <tuned>", "alpha": ""})
    page = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert all(address.startswith("data:") for address in page.addresses) and page.tags.count("img") == 3
    for words in ("Rank of the update from base to <tuned>", "Where the update sits, and its rank", "Singular values",
                  "What storing the weights did", "Norms and biases", "Not compared", "What the ranks are",
                  "How this was made", "only in <tuned>", "head.0, head.1, head.2, ...", "A note.", "swallowed",
                  "rankprobe spectrum base <tuned>"):  # fmt: skip
        assert words in page.words, words
    for name in ("storage_rank", "energy_rank", "spectra"):
        assert (tmp_path / "figures" / f"{name}.png").exists() and (tmp_path / "figures" / f"{name}.svg").exists()
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    biases = next(line for line in text.splitlines() if line.startswith("| biases"))
    assert [cell.strip() for cell in biases.split("|")[2:4]] == ["2", "0"] and "b.bias" in biases
    norms = next(line for line in text.splitlines() if line.startswith("| norms"))
    assert [cell.strip() for cell in norms.split("|")[2:4]] == ["1", "1"]


def test_pictures_repeat_byte_for_byte(mixed):
    with style():
        one, two = ([svg(p.figure) for p in draw_spectrum(mixed)] for _ in range(2))
    assert one == two and mpl.rcParams["svg.hashsalt"] is None


def test_thinned_keeps_the_first_and_the_last_values_of_each_matrix(tmp_path):
    lengths = {"a": 5000, "b": 3, "NA": 700}
    table = pd.DataFrame([(name, i, 1 / i) for name, p in lengths.items() for i in range(1, p + 1)],
                         columns=["name", "index", "sigma"])  # fmt: skip
    table.to_csv(tmp_path / "spectra.csv", index=False)
    ranks = pd.DataFrame({"name": list(lengths), "m": list(lengths.values()), "n": [5000] * 3})
    thin = thinned(tmp_path / "spectra.csv", ranks)
    for name, p in lengths.items():
        kept = thin[thin["name"] == name]["index"].tolist()
        assert kept[: min(p, 8)] == list(range(1, min(p, 8) + 1)) and kept[-1] == p and len(kept) <= 110
        assert len(kept) > 50 or p == 3
    assert (thin.sigma == 1 / thin["index"]).all()
