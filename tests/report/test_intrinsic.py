"""d90's tables and claims from runs whose scores are known: closed forms, verdicts, and what has no verdict."""

import math

import pytest

from rankprobe.paper.published import published
from rankprobe.report.claims import claims_table
from rankprobe.report.intrinsic import beside_table, curve_table, dimensions_table
from rankprobe.report.intrinsic_cells import beside_cells, dimension_cells
from rankprobe.report.intrinsic_plots import intrinsic_curve
from rankprobe.report.tables import methods_table
from rankprobe.report.verdicts import Evidence
from tests.report.synthetic import make_run

D = 22_713_986 - 770


def sweep(store, scores, *, full=0.8, head=0.5, n=4000):
    """Runs of two seeds: ``{"did": {d: accuracy}}``."""
    runs = [
        make_run(store, method=m, accuracy=a, seed=s, n=n) for m, a in (("full", full), ("head", head)) for s in (0, 1)
    ]
    return runs + [make_run(store, method=method, accuracy=accuracy, seed=seed, n=n, d=d)
                   for method, by_d in scores.items() for d, accuracy in by_d.items() for seed in (0, 1)]  # fmt: skip


def claims_of(runs, dimensions):
    methods = methods_table(runs, None)
    evidence = Evidence(runs, methods, methods.iloc[:0], None, published(), intrinsic=dimensions)
    return claims_table(evidence).set_index("claim_id")


CURVES = {"did": {100: 0.55, 1000: 0.65, 10_000: 0.79}, "said": {100: 0.65, 1000: 0.79}}


def test_d90_by_hand_and_in_percent(tmp_path):
    table = dimensions_table(sweep(tmp_path, CURVES)).set_index(["method", "of"])
    did = table.loc[("did", "score")]
    assert did["threshold"] == pytest.approx(0.72)
    assert did["d"] == pytest.approx(1000 * 10 ** ((0.72 - 0.65) / 0.14), rel=1e-6)
    assert did["d_pct"] == pytest.approx(100 * did["d"] / D) and did["D"] == D
    assert table.loc[("did", "gain"), "threshold"] == pytest.approx(0.77)
    assert table.loc[("said", "score"), "over_did"] == pytest.approx(0.1)
    assert len(curve_table(sweep(tmp_path, CURVES))) == 10


def test_claims_are_supported_where_the_intervals_are_inside(tmp_path):
    runs = [*sweep(tmp_path, CURVES), make_run(tmp_path, r=8, accuracy=0.78, n=4000)]
    claims = claims_of(runs, dimensions_table(runs))
    assert claims.loc["intrinsic-dimension-did", "verdict"] == "supported"
    assert claims.loc["intrinsic-dimension-said-below-did", "verdict"] == "supported"
    row = claims.loc["intrinsic-dimension-below-lora"]
    assert row["verdict"] == "supported" and "LoRA r = 8 on q,v has 73,728" in row["note"]


def test_claims_are_contradicted_by_an_open_end_too(tmp_path):
    curves = {"did": {100: 0.5, 1_000_000: 0.55}, "said": {100: 0.52, 1_000_000: 0.55}}
    runs = [*sweep(tmp_path, curves), make_run(tmp_path, r=8, accuracy=0.78, n=4000)]
    claims = claims_of(runs, dimensions_table(runs))
    assert claims.loc["intrinsic-dimension-did", "verdict"] == "contradicted"
    assert claims.loc["intrinsic-dimension-below-lora", "verdict"] == "contradicted"
    assert "not reached at 1,000,000" in claims.loc["intrinsic-dimension-did", "note"]
    # Neither was reached: which is smaller is not known.
    assert claims.loc["intrinsic-dimension-said-below-did", "verdict"] in ("inconclusive", "not_run")


def test_nothing_measured_is_not_run(tmp_path):
    assert dimensions_table([]).empty and beside_table(dimensions_table([]), []).empty
    claims = claims_of([], dimensions_table([]))
    assert set(claims.loc[claims.index.str.startswith("intrinsic"), "verdict"]) == {"not_run"}


def test_beside_says_which_r_reaches_what(tmp_path):
    runs = sweep(tmp_path, CURVES)
    lora = [make_run(tmp_path, r=r, accuracy=a, n=4000) for r, a in ((1, 0.7), (4, 0.75), (8, 0.78))]
    table = beside_table(dimensions_table(runs), runs + lora).set_index("measure")
    found = table.loc[[f"LoRA, r = {r} on q,v" for r in (1, 4, 8)]]
    assert found["reaches"].tolist() == ["", "score", "score and gain"]
    assert found["note"].tolist() == [
        "",
        "the smallest r that reaches the score",
        "the smallest r that reaches the gain",
    ]


@pytest.mark.parametrize("curves", [CURVES, {"did": {100: 0.5, 1000: 0.55}}, {"said": {100: 0.79, 1000: 0.8}}])
@pytest.mark.parametrize("head", [0.5, 0.75, 0.8])
def test_tables_and_picture_of_every_end(tmp_path, curves, head):
    runs = sweep(tmp_path, curves, head=head)
    dimensions = dimensions_table(runs)
    picture = intrinsic_curve(curve_table(runs), dimensions)
    picture.figure.savefig(tmp_path / "curve.png")
    cells = dimension_cells(dimensions)
    assert len(cells.rows) == len(dimensions) == 2 * len(curves)
    assert len(beside_cells(beside_table(dimensions, runs)).rows) >= len(dimensions)
    if head == 0.8:
        assert all(math.isnan(d) for d in dimensions.loc[dimensions["of"] == "gain", "d"])
    if head == 0.75:
        assert (dimensions.loc[dimensions["of"] == "score", "reason"] == "the trained head alone reaches it").all()


def test_scores_above_full_fine_tunings_are_in_the_picture(tmp_path):
    """As on RTE, where a subspace may do better."""
    runs = sweep(tmp_path, {"did": {100: 0.52, 1000: 0.66}}, full=0.6)
    axes = intrinsic_curve(curve_table(runs), dimensions_table(runs)).figure.axes[0]
    low, high = axes.get_ylim()
    assert low < 0.52 and high > 0.66


def test_a_dimension_that_cannot_be_given_is_not_called_infinite(tmp_path):
    runs = sweep(tmp_path, {"did": {100: 0.55, 1000: 0.65}})
    table = dimensions_table(runs)
    table.loc[table["of"] == "score", ["d", "ci_low", "ci_high"]] = math.nan
    table["reason"] = "full fine-tuning's score cannot be told from 0"
    caption = intrinsic_curve(curve_table(runs), table).caption
    assert "DID none (full fine-tuning's score cannot be told from 0)" in caption and "∞" not in caption


@pytest.mark.parametrize(("head", "why"), [(0.75, "the trained head alone reaches it"), (0.795, "too uncertain")])
def test_a_dimension_that_the_head_alone_would_do_supports_nothing(tmp_path, head, why):
    """Every d passes there, the smallest too: that is no finding about subspaces."""
    runs = [
        *sweep(tmp_path, {"did": {100: 0.79, 1000: 0.8}, "said": {100: 0.79, 1000: 0.8}}, head=head),
        make_run(tmp_path, r=8, accuracy=0.78, n=4000),
    ]
    claims = claims_of(runs, dimensions_table(runs))
    for name in ("intrinsic-dimension-did", "intrinsic-dimension-below-lora"):
        assert claims.loc[name, "ci_high"] <= 1 and claims.loc[name, "verdict"] == "inconclusive"
        assert why in claims.loc[name, "note"] and "equality" not in claims.loc[name, "note"]
    assert claims.loc["intrinsic-dimension-said-below-did", "verdict"] != "supported"
