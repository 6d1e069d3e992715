"""Table 7, Figures 3 and 4, intruder dimensions: planted effects are found, controls find none."""

import numpy as np
import pandas as pd
import pytest

from rankprobe.paper.published import published
from rankprobe.report.claims_subspaces import subspaces
from rankprobe.report.findings import Findings
from rankprobe.report.style import style
from rankprobe.report.subspace_plots import figure_3, figure_4, intruders_by_r, table_7_dots
from rankprobe.report.subspaces import figure_tables, intruders_table, table_7
from rankprobe.report.verdicts import Evidence

NAMES = [f"layer.{layer}.{kind}" for layer in range(6) for kind in "qv"]
EMPTY = pd.DataFrame()


def overlap(phi, i=8, j=8):
    """φ(i, j), the same in every matrix, and random subspaces' of 384 dimensions."""
    rows = []
    for name in NAMES:
        for a in range(1, i + 1):
            for b in range(1, j + 1):
                mean = max(a, b) / 384
                rows.append({"name": name, "layer": int(name[6]), "kind": name[-1], "i": a, "j": b, "phi": phi,
                             "random_mean": mean, "random_low": 0.5 * mean, "random_high": 1.5 * mean})  # fmt: skip
    return pd.DataFrame(rows)


def amplification(side, r, factor, on_update=0.5, on_base=10.0, on_random=0.3):
    spread = np.linspace(0.95, 1.05, len(NAMES))
    return pd.DataFrame({"name": NAMES, "side": side, "method": "lora", "lora_r": r, "seed": 0, "base_norm": 60.0,
                         "update_norm": factor * on_update * spread, "on_update": on_update, "on_base": on_base,
                         "on_random": on_random, "factor": factor * spread})  # fmt: skip


def intruders(side, method, r, counts):
    return pd.DataFrame({"name": NAMES, "side": side, "method": method, "lora_r": r, "seed": 0 if method else None,
                         "k": 10, "eps": 0.5, "intruders": counts})  # fmt: skip


def pairs(phi_1_1=0.8, seeds_phi=0.3, factors=(20.0, 2.0), lora_counts=2, full_counts=0):
    compare = pd.DataFrame({"name": NAMES, "phi_1_1": phi_1_1 * np.linspace(0.98, 1.02, len(NAMES))})
    r4_r64 = pd.concat([amplification("X", 4, factors[0]), amplification("Y", 64, factors[1], on_update=2.0)])
    alternating = np.arange(len(NAMES)) % 2
    of_loras = pd.concat([intruders("X", "lora", 4, lora_counts), intruders("Y", "lora", 64, 1 - alternating)])
    of_full = [intruders("X", "lora", 1, lora_counts + alternating), intruders("Y", "full", None, full_counts),
               intruders("W0", None, None, 0)]  # fmt: skip
    none = r4_r64.iloc[:0]
    return {
        "r8-r64": {"compare": compare, "overlap": overlap(phi_1_1, 8, 64), "amplification": none,
                   "intruders": of_loras.iloc[:0]},
        "r64-seeds": {"compare": compare, "overlap": overlap(seeds_phi), "amplification": none,
                      "intruders": of_loras.iloc[:0]},
        "r4-r64": {"compare": compare, "overlap": overlap(0.1), "amplification": r4_r64, "intruders": of_loras},
        "r1-full": {"compare": compare, "overlap": overlap(0.1), "amplification": none,
                    "intruders": pd.concat(of_full)},
    }  # fmt: skip


def claims_of(found):
    return pd.DataFrame(subspaces(Evidence([], EMPTY, EMPTY, None, published(), found))).set_index("claim_id")


def test_planted_effects_are_supported():
    claims = claims_of(pairs())
    assert set(claims["verdict"]) == {"supported"}, claims["verdict"]
    assert claims.loc["table7-amplified", "measured"] == pytest.approx(20.0)
    assert claims.loc["table7-falls-with-r", "measured"] == pytest.approx(10.0)
    assert claims.loc["table7-not-emphasised", "measured"] == pytest.approx(0.05)


def test_what_the_paper_prints():
    claims = claims_of({})
    assert set(claims["verdict"]) == {"not_run"} and len(claims) == 9
    assert claims.loc["table7-amplified", "published"] == 21.5
    assert claims.loc["table7-correlated", "published"] == pytest.approx(0.32 / 0.02)
    assert claims.loc["table7-not-emphasised", "published"] == pytest.approx(0.32 / 21.67, abs=1e-6)


@pytest.mark.parametrize(
    "change, claim, verdict",
    [
        ({"phi_1_1": 0.1}, "figure3-shared-direction", "contradicted"),
        ({"phi_1_1": 0.5}, "figure3-shared-direction", "inconclusive"),
        ({"seeds_phi": 0.0}, "figure4-seeds-share", "contradicted"),
        ({"factors": (1.0, 0.2)}, "table7-amplified", "contradicted"),
        ({"factors": (2.0, 20.0)}, "table7-falls-with-r", "contradicted"),
        ({"lora_counts": 0, "full_counts": 3}, "intruders-lora", "contradicted"),
        ({"full_counts": np.tile([1, 2], 6)}, "intruders-full", "contradicted"),
        ({"lora_counts": 0}, "intruders-by-r", "inconclusive"),  # r = 1 has as many as r = 64
    ],
)
def test_verdicts_follow_the_intervals(change, claim, verdict):
    assert claims_of(pairs(**change)).loc[claim, "verdict"] == verdict


def test_nothing_counted_is_not_known_to_be_nothing():
    row = claims_of(pairs()).loc["intruders-full"]
    # Clopper-Pearson over 12 matrices of 10 directions.
    assert row["measured"] == 0 and row["ci_high"] == pytest.approx(10 * (1 - 0.025 ** (1 / 120)), abs=1e-6)


def test_tables_have_medians_and_the_papers_numbers():
    found = pairs()
    table = table_7(found, published()).set_index(["lora_r", "quantity"])
    assert table.loc[(4, "amplification"), "median"] == pytest.approx(20.0)
    assert table.loc[(64, "norm_on_dW"), "paper"] == 1.90 and table.loc[(4, "norm_of_W"), "paper"] == 61.95
    counts = intruders_table(found).set_index("method")
    assert counts.loc["full", "mean"] == 0 and counts.loc["base", "mean"] == 0
    assert intruders_table(found)["lora_r"].dropna().tolist() == [1, 4, 64]
    figures = figure_tables(found)
    assert set(figures) == {"figure3", "figure4"} and "name" not in figures["figure4"]
    assert not figures["figure4"].duplicated(["layer", "kind", "i", "j"]).any()
    assert table_7({}, published()).empty and intruders_table({}).empty and not figure_tables({})


def test_every_picture_is_drawn_or_left_out():
    found = pairs()
    tables = {"table7": table_7(found, published()), **figure_tables(found), "intruders": intruders_table(found)}
    drawers = (table_7_dots, figure_3, figure_4, intruders_by_r)
    with style():
        pictures = [draw(Findings([], tables)) for draw in drawers]
        assert [p.name for p in pictures] == ["table7", "figure3", "figure4", "intruders"]
        assert all(draw(Findings([], {})) is None for draw in drawers)
    assert "0.80 in the median of 12 matrices" in pictures[1].caption


def test_a_caption_promises_no_intervals_that_are_not_there():
    found = pairs()
    with style():
        whole = table_7_dots(Findings([], {"table7": table_7(found, published())})).caption
        rows = found["r4-r64"]["amplification"]
        found["r4-r64"]["amplification"] = rows[rows["name"].isin(NAMES[:2])]
        few = table_7_dots(Findings([], {"table7": table_7(found, published())})).caption
    assert "medians over 12 matrices with 95 % intervals (percentile bootstrap" in whole
    assert "medians over 2 matrices (none: too few matrices (2))" in few
