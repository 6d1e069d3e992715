"""Bars around scores: none where there is no interval, and caption and legend speak of those that there are."""

from __future__ import annotations

import numpy as np
import pytest

from rankprobe.paper.published import published
from rankprobe.report.findings import find
from rankprobe.report.plots import draw_pictures
from rankprobe.report.score_plots import accuracy_by_parameters, accuracy_by_r
from rankprobe.report.stats import NO_INTERVAL
from tests.report.synthetic import make_run

NOT_HERE = "no interval: predictions.csv is not here"


@pytest.fixture
def found(tmp_path):
    """Full fine-tuning and two r with three seeds each, BitFit and the head with one."""
    runs = [make_run(tmp_path, seed=seed, accuracy=accuracy + 0.01 * seed, n=600, **settings)
            for accuracy, settings in ((0.8, {"method": "full"}), (0.77, {"r": 8}), (0.76, {"r": 2}))
            for seed in range(3)]  # fmt: skip
    runs += [make_run(tmp_path, method=method, accuracy=0.75, n=600) for method in ("bitfit", "head")]
    return find(runs, None, published())


def take_away(found, column, value, why=NO_INTERVAL):
    """The interval of the methods table's rows with this value: what is in its place, as the table has it."""
    methods = found.tables["methods"]
    ends = (-1.0, 1.0) if why == NO_INTERVAL else (np.nan, np.nan)
    methods.loc[methods[column] == value, ["accuracy_ci_low", "accuracy_ci_high", "ci_method"]] = *ends, why


def captions(found):
    """Of the pictures against parameters and against r."""
    return [draw(found).caption for draw in (accuracy_by_parameters, accuracy_by_r)]


def test_a_point_without_an_interval_has_no_bar_and_no_words_of_one(tmp_path):
    """Where all resamples score alike the bounds of the score stand in the table: no bar across the picture."""
    runs = [make_run(tmp_path, method="full", n=60), make_run(tmp_path, r=8, n=60), make_run(tmp_path, r=2, n=60)]
    found = find(runs, None, published())
    methods = found.tables["methods"]
    methods.loc[methods["r"] == 2, ["accuracy_ci_low", "accuracy_ci_high", "ci_method"]] = -1.0, 1.0, NO_INTERVAL
    for draw in (accuracy_by_parameters, accuracy_by_r):
        picture = draw(found)
        bars = [bar for axes in picture.figure.axes for bar in axes.containers]
        assert sorted(bar.has_yerr for bar in bars) == [False, *[True] * (len(bars) - 1)]
        assert len(bars) == (3 if draw is accuracy_by_parameters else 2)
        assert "A point without a bar scores alike on every resample of the rows." in picture.caption
        assert "none" not in picture.caption and "leaves the picture" not in picture.caption
        for axes in picture.figure.axes:
            assert all(text.xy[1] < 1 for text in axes.texts), "r = 2 is written at its point"


@pytest.mark.filterwarnings("error")
def test_a_score_whose_interval_is_open_is_drawn_without_one(tmp_path):
    runs = [make_run(tmp_path, method="full", n=60), *(make_run(tmp_path, r=r, n=60) for r in (1, 8))]
    found = find(runs, None, published())
    found.tables["methods"]["accuracy_ci_high"] = np.inf  # a perplexity of which all resamples are alike
    drawn = {picture.name: picture for picture in draw_pictures(found)}
    for name in ("accuracy_by_r", "accuracy_by_parameters"):
        drawn[name].figure.canvas.draw()
        assert "No intervals: all resamples of the rows score alike." in drawn[name].caption
        assert "Bars" not in drawn[name].caption and "leaves the picture" not in drawn[name].caption


def test_why_there_is_no_interval_at_all_is_said_of_these_rows(found):
    for method, why in (("full", NOT_HERE), ("head", NOT_HERE), ("bitfit", NOT_HERE), ("lora", NOT_HERE)):
        take_away(found, "method", method, why)
    assert all("No intervals: predictions are not at hand." in caption for caption in captions(found))
    take_away(found, "method", "lora")
    both = "No intervals: all resamples of the rows score alike, or predictions are not at hand."
    assert all(both in caption and "Hatched band" not in caption for caption in captions(found))


def test_each_picture_speaks_of_its_own_rows(found):
    take_away(found, "method", "bitfit")  # not in the picture against r
    parameters, by_r = captions(found)
    assert "A point without a bar scores alike on every resample" in parameters and "without" not in by_r
    take_away(found, "r", 2, NOT_HERE)
    parameters, by_r = captions(found)
    assert "A point without a bar has no predictions at hand." in by_r
    assert "without a bar scores alike on every resample of the rows, or has no predictions at hand." in parameters


def test_a_line_without_a_band_is_called_none(found):
    assert all("without" not in caption for caption in captions(found))
    take_away(found, "method", "full")
    by_r = captions(found)[1]
    assert "Solid: full fine-tuning." in by_r and "band:" not in by_r
    assert "A line without a band scores alike on every resample of the rows." in by_r
    take_away(found, "r", 2)
    assert "A point without a bar or a line without a band scores alike" in captions(found)[1]


def test_the_legend_has_no_kind_of_interval_that_no_point_has(found):
    take_away(found, "r", 2)
    assert accuracy_by_r(found).figure.legends == [], "r = 8 alone has an interval, over seeds"
    by_parameters = accuracy_by_parameters(found).figure.legends
    assert not [text for legend in by_parameters for text in legend.get_texts() if "interval" in text.get_text()]
