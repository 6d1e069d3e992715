"""The answer of a rank sweep: what it claims, what it declines, and how it says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankprobe.errors import UsageError
from rankprobe.report.equivalence import equivalence, variance_at_margin
from rankprobe.report.paired import holm, mcnemar
from rankprobe.report.power import tost_power
from rankprobe.report.rank_answer import rank_answer
from rankprobe.report.rank_input import Configuration, sweep_of
from rankprobe.report.rank_table import COLUMNS
from rankprobe.report.score_intervals import score_interval
from tests.report.synthetic import make_run

FULL = 0.80


def seeds_of(accuracies, rows: int = 4000, key: int = 0, labels: np.ndarray | None = None, suits=0.0) -> dict:
    """One table a seed with exactly these accuracies; the hardest rows are wrong first, with some luck of the seed.

    ``suits`` is how much of it a configuration's seeds share: rows that suit it.
    """
    hardness = np.random.default_rng(7).normal(0, 1, rows) + suits * np.random.default_rng(key).normal(0, 1, rows)
    labels = np.ones(rows, dtype=int) if labels is None else labels
    found = {}
    for seed, accuracy in enumerate(accuracies):
        luck = np.random.default_rng([key, seed]).normal(0, 0.4, rows)
        predictions = labels.copy()
        wrong = np.argsort(-(hardness + luck))[: rows - round(accuracy * rows)]
        predictions[wrong] = 1 - predictions[wrong]
        found[seed] = (labels, predictions, None)
    return found


def lora(r: int, gap: float, n: int = 3, spread: float = 0.002, **more) -> Configuration:
    """Seeds evenly around full fine-tuning's accuracy plus a gap."""
    return Configuration(f"LoRA r = {r}", r, seeds_of(FULL + gap + spread * np.linspace(-1, 1, n), key=r, **more))


def full(n: int = 3, **more) -> Configuration:
    return Configuration("full fine-tuning", None, seeds_of([FULL] * n, key=1000, **more))


def test_the_smallest_r_that_is_equivalent_and_why_not_the_next():
    sweep = [lora(4, -0.004), lora(1, -0.06), lora(64, 0.001), lora(2, -0.05), lora(8, 0.0)]
    found = rank_answer(sweep, full())
    assert found.r == 4 and found.notes == ()
    assert found.text.startswith(
        "r = 4 is the smallest r equivalent to full fine-tuning within 2 points (3 seeds; difference −0.4 points [−"
    )
    assert "], 90 % interval); r = 2 is worse by more than that (−5.0 points [−" in found.text
    table = found.table
    assert list(table.columns) == COLUMNS
    assert table["label"].tolist() == ["full fine-tuning", *(f"LoRA r = {r}" for r in (1, 2, 4, 8, 64))]
    assert table["equivalent"].tolist() == ["reference", "not tested", "no", "yes", "yes", "yes"]


def test_the_tables_numbers_are_those_of_the_functions_below_it():
    sweep, reference = [lora(8, -0.004), lora(1, -0.05), lora(2, -0.01)], full()
    table = rank_answer(sweep, reference, margin=0.03, alpha=0.025).table.set_index("r")
    tables = [list(each.seeds.values()) for each in (sweep[0], reference)]
    expected = equivalence(*tables, margin=0.03, alpha=0.025)
    row = table.loc[8]
    assert (row["diff"], row["diff_low"], row["diff_high"]) == (
        pytest.approx(-0.004),
        pytest.approx(expected.low),
        pytest.approx(expected.high),
    )
    assert row["p_equivalent"] == expected.p == max(row["p_not_worse"], row["p_not_better"])
    assert row["diff_level"] == pytest.approx(0.95) and row["diff_method"] == "over 3 seeds and 4,000 eval rows"
    mean = score_interval(tables[0])
    assert (row["mean"], row["ci_low"], row["ci_high"], row["ci_method"]) == mean[:4]
    assert table.loc[[1, 2, 8], "p_different_holm"].tolist() == pytest.approx(
        holm(table.loc[[1, 2, 8], "p_different"]).tolist()
    )
    assert table.loc[1, "p_different"] < 0.01 < table.loc[8, "p_different"]


def test_all_equivalent_says_that_no_smaller_r_was_tried():
    found = rank_answer([lora(8, 0.0), lora(2, -0.001)], full())
    assert found.r == 2 and found.text.endswith("90 % interval); no smaller r was tried.")


def test_not_shown_says_how_many_seeds_would():
    found = rank_answer([lora(8, -0.006, spread=0.012), lora(2, -0.004, spread=0.001)], full())
    row = found.table.set_index("r").loc[8]
    assert found.r is None
    more = int(row["more_seeds"])
    assert f"; {more} more seeds would show it if the difference stays (power 80 %)." in found.text
    assert found.text.startswith(
        "Not shown with 3 seeds that any r is equivalent to full fine-tuning within 2 points: "
        "r = 8, the largest tested, differs by −0.6 points ["
    )
    # The number is the least with that power, from this row's own spread.
    sweep = [list(s.seeds.values()) for s in (lora(8, -0.006, spread=0.012), full())]
    d = equivalence(*sweep).difference
    asked = {"difference": d.estimate, "bound": 0.02, "seed_sd": d.seed_sd, "row_se": d.row_se}
    assert tost_power(3 + more, **asked) >= 0.8 > tost_power(2 + more, **asked)
    # r = 2 would pass by itself, and is told as a hint only.
    assert found.table.set_index("r").loc[2, "equivalent"] == "not tested"
    assert found.notes == ("Taken alone r = 2 would pass; after a larger r has failed that is a hint, not a finding.",)


def test_none_is_within_the_margin():
    found = rank_answer([lora(64, -0.041), lora(8, -0.05), lora(1, -0.08)], full())
    assert found.r is None
    assert found.text.startswith(
        "No r tested is within 2 points of full fine-tuning: the best, r = 64, differs by −4.1 points ["
    )


def test_outside_by_its_estimate_or_by_its_rows_no_number_of_seeds_helps():
    outside = rank_answer([lora(8, -0.021, spread=0.01)], full())
    assert outside.text.endswith("; no number of seeds would show it while the difference stays.")
    few = rank_answer([lora(8, -0.01, rows=300, suits=0.5)], full(rows=300, suits=0.5))
    assert few.text.endswith("; no number of seeds would show it on these 300 rows, more rows could.")
    assert few.table["more_seeds"].isna().all()


def test_better_by_more_than_the_margin_is_not_equivalent_but_not_worse_either():
    sweep = [lora(64, 0.05), lora(8, 0.0)]
    found = rank_answer(sweep, full())
    assert found.r is None and "r = 64, the largest tested, is better by more than that (+5.0 points [" in found.text
    one = rank_answer(sweep, full(), one_sided=True)
    assert one.r == 8
    assert one.text.startswith(
        "r = 8 is the smallest r not worse than full fine-tuning by more than 2 points (3 seeds;"
    )
    assert one.table["p_equivalent"].tolist()[1:] == one.table["p_not_worse"].tolist()[1:]


def test_one_seed_shows_nothing_and_says_what_these_rows_say():
    sweep, reference = [lora(8, 0.0, n=1), lora(2, -0.03, n=1)], full(1)
    found = rank_answer(sweep, reference)
    assert found.r is None and found.notes == ()
    assert found.text.startswith(
        "Not shown with 1 seed that any r is equivalent to full fine-tuning within 2 points: r ="
    )
    assert "what another seed would do is not known; 2 more seeds would begin to tell." in found.text
    row = found.table.set_index("r").loc[2]
    exact = mcnemar(*(t.seeds[0][1] == 1 for t in (sweep[1], reference)))
    assert (row["p_different"], row["p_different_method"]) == (exact.p_mid, "McNemar mid-p, 1 seed")
    assert row["diff_low"] < -0.03 < row["diff_high"] and "1 seed" in row["diff_method"]
    assert np.isnan(row["p_equivalent"]) and row["equivalent"] == "left out" and row["more_seeds_note"] == "one seed"


def test_two_seeds_are_tested_with_what_two_seeds_know():
    found = rank_answer([lora(8, -0.004, n=2)], full(2))
    assert found.table["equivalent"].tolist() == ["reference", "no"]
    three = rank_answer([lora(8, -0.004, n=3)], full(3))
    width = [t["diff_high"].iloc[1] - t["diff_low"].iloc[1] for t in (found.table, three.table)]
    assert width[0] > width[1]


def test_without_full_fine_tuning_the_largest_r_stands_in():
    found = rank_answer([lora(8, 0.0), lora(64, 0.0), lora(2, -0.06)])
    assert found.r == 8
    assert "r = 8 is the smallest r equivalent to r = 64 (the largest) within 2 points" in found.text
    assert found.notes[0].startswith("No full fine-tuning has finished: r = 64 (the largest) stands in for it")
    assert found.table["label"].tolist()[0] == "LoRA r = 64" and len(found.table) == 3
    diverged = Configuration("full fine-tuning", None, {0: None, 1: None})
    assert rank_answer([lora(8, 0.0), lora(64, 0.0)], diverged).asked.stands_in
    alone = rank_answer([lora(8, 0.0)])
    assert alone.r is None and alone.text == "Nothing is compared with r = 8 (the largest) yet."


def test_unequal_seeds_are_paired_on_the_common_ones():
    many, few = lora(8, 0.0, n=5), full(3)
    shifted = Configuration(few.label, None, {seed + 1: few.seeds[seed] for seed in few.seeds})
    found = rank_answer([many], shifted)
    row = found.table.set_index("r").loc[8]
    assert (row["n_seeds"], row["n_pairs"]) == (5, 3)
    expected = equivalence([many.seeds[s] for s in (1, 2, 3)], [few.seeds[s] for s in (0, 1, 2)])
    assert row["p_equivalent"] == expected.p
    assert found.notes == ("r = 8 is compared on 3 of its 5 seeds, the common ones.",)
    apart = Configuration(few.label, None, {seed + 10: few.seeds[seed] for seed in few.seeds})
    none = rank_answer([many], apart)
    assert "no r has a seed in common with full fine-tuning" in none.text and none.r is None


def test_an_r_of_which_a_seed_diverged_claims_nothing_and_stops_nothing():
    wild = lora(64, 0.0)
    wild = Configuration(wild.label, 64, wild.seeds | {1: None})
    found = rank_answer([wild, lora(8, 0.0), lora(1, -0.08)], full())
    assert found.r == 8
    row = found.table.set_index("r").loc[64]
    assert (row["n_seeds"], row["n_diverged"], row["equivalent"]) == (2, 1, "left out")
    (note,) = found.notes
    assert note == "Of r = 64 1 of 3 seeds diverged; it is left out, since those that did not are the lucky ones."
    only = rank_answer([wild], full())
    assert only.text == (
        "Which r is equivalent to full fine-tuning within 2 points cannot be told: of each r a seed diverged."
    )
    reference = Configuration("full fine-tuning", None, full().seeds | {2: None})
    assert any(n.startswith("Of full fine-tuning 1 of 3 seeds diverged") for n in rank_answer([wild], reference).notes)


def test_seeds_exactly_alike_are_judged_by_their_rows():
    one, other = (next(iter(seeds_of([a], key=k).values())) for a, k in ((FULL, 1), (FULL - 0.002, 2)))
    alike = [
        Configuration(label, r, dict.fromkeys(range(3), t)) for label, r, t in (("LoRA", 8, other), ("f", None, one))
    ]
    found = rank_answer(alike[:1], alike[1])
    row = found.table.set_index("r").loc[8]
    only = [((x[1] == 1) & (y[1] == 0)).mean() for x, y in ((other, one), (one, other))]
    half = stats.norm.isf(0.05) * np.sqrt(variance_at_margin(*only, 0.02) / 4000)
    assert row["diff_high"] - row["diff"] == pytest.approx(half, rel=1e-3)  # n - 1 and n
    same = rank_answer([Configuration("LoRA", 8, alike[1].seeds)], alike[1])
    assert same.r == 8 and same.table["p_different"].iloc[1] == 1.0


@pytest.mark.parametrize("metric", ["matthews", "f1"])
def test_other_metrics(metric):
    labels = np.random.default_rng(5).integers(0, 2, 4000)
    sweep = [lora(8, 0.0, labels=labels), lora(1, -0.06, labels=labels)]
    found = rank_answer(sweep, full(labels=labels), metric=metric, margin=0.04)
    assert found.r == 8 and "within 4 points" in found.text
    one = rank_answer([lora(8, -0.05, n=1, labels=labels)], full(1, labels=labels), metric=metric)
    row = one.table.iloc[1]
    assert row["p_different_method"] == "paired bootstrap over rows, 1 seed" and row["p_different"] < 0.01


def language_model(shift: float, key: int, n: int = 3) -> dict:
    count = np.random.default_rng(0).integers(5, 60, 600)
    base = count * np.random.default_rng(1).gamma(4.0, 0.3, 600)
    found = {}
    for seed in range(n):
        rng = np.random.default_rng([key, seed])
        found[seed] = (count, count // 2, base * rng.normal(1, 0.02, 600) + (shift + rng.normal(0, 5e-4)) * count)
    return found


def test_a_perplexity_is_compared_by_its_ratio_and_less_is_better():
    sweep = [Configuration(f"LoRA r = {r}", r, language_model(s, r)) for r, s in ((8, 0.004), (1, 0.06))]
    found = rank_answer(sweep, Configuration("full", None, language_model(0.0, 99)), metric="perplexity")
    assert found.r == 8
    assert (
        "r = 8 is the smallest r equivalent to full fine-tuning within 2 % in perplexity (3 seeds; diff" in found.text
    )
    assert "r = 1 is worse by more than that (+6." in found.text
    row = found.table.set_index("r").loc[1]
    assert row["diff_scale"] == "relative" and row["diff"] == pytest.approx(np.expm1(0.06), abs=0.004)
    assert row["diff_low"] < row["diff"] < row["diff_high"] and row["p_not_worse"] > 0.9 > row["p_not_better"]
    none = rank_answer(sweep[1:], Configuration("full", None, language_model(0.0, 99)), metric="perplexity")
    assert none.text.startswith(
        "No r tested is within 2 % in perplexity of full fine-tuning: the best, r = 1, differs by +6"
    )
    single = [Configuration("LoRA r = 8", 8, language_model(0.004, 8, 1))]
    one = rank_answer(single, Configuration("full", None, language_model(0.0, 99, 1)), metric="perplexity")
    assert "differs by +0." in one.text and " % [" in one.text


def test_the_order_of_what_is_passed_does_not_matter_and_it_repeats():
    sweep = [lora(8, 0.0), lora(2, -0.004), lora(1, -0.05)]
    one, other = rank_answer(sweep, full()), rank_answer(sweep[::-1], full())
    assert one == other
    pd.testing.assert_frame_equal(one.table, other.table)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rank_answer([lora(8, 0.0), lora(8, 0.0)], full()), "each have an r of their own. Got 8."),
        (lambda: rank_answer([full()], full()), "each have an r of their own. Got None."),
        (lambda: rank_answer([]), "A rank sweep must have a finished seed. Got none."),
        (
            lambda: rank_answer([lora(8, 0.0, rows=100)], full()),
            "scored on the same eval rows. Got labels that differ.",
        ),
        (lambda: rank_answer([lora(8, 0.0)], full(), margin=2.0), "margin must be between 0 and 1. Got 2.0."),
        (lambda: rank_answer([lora(8, 0.0)], full(), power=1.0), "power must be between 0 and 1. Got 1.0."),
        (lambda: rank_answer([lora(8, 0.0)], full(), alpha=0.5), "alpha must be above 0 and below 0.5. Got 0.5."),
    ],
)
def test_refuses(make, message):
    with pytest.raises(UsageError) as caught:
        make()
    assert message in str(caught.value)


def test_an_r_that_has_not_finished_keeps_a_row():
    found = rank_answer([lora(8, 0.0), Configuration("LoRA r = 2", 2, {})], full())
    row = found.table.set_index("r").loc[2]
    assert found.r == 8 and row["n_seeds"] == 0 and np.isnan(row["mean"])
    assert found.notes == ("r = 2 has no seed in common with full fine-tuning and is left out.",)


def test_runs_make_a_sweep(tmp_path):
    runs = [make_run(tmp_path, method="full", seed=s, accuracy=0.80) for s in (0, 1, 2)]
    runs += [make_run(tmp_path, r=8, seed=s, accuracy=0.799 + 0.001 * s) for s in (0, 1, 2)]
    runs += [make_run(tmp_path, r=8, seed=0, accuracy=0.85, lr=9e-3, note="fewer seeds")]
    runs += [make_run(tmp_path, r=1, seed=s, accuracy=0.70, status="ok" if s else "diverged") for s in (0, 1, 2)]
    runs += [make_run(tmp_path, r=2, seed=0, status="diverged"), make_run(tmp_path, r=4, seed=0, status="failed")]
    runs += [make_run(tmp_path, r=64, targets="q", seed=0), make_run(tmp_path, method="head", seed=0)]
    sweep, reference = sweep_of(runs, "q,v")
    assert [(c.label, c.r, len(c.finished), c.n_diverged) for c in sweep] == [
        ("LoRA r = 1", 1, 2, 1),
        ("LoRA r = 2", 2, 0, 1),
        ("LoRA r = 4", 4, 0, 0),
        ("LoRA r = 8", 8, 3, 0),
    ]
    assert reference.r is None and sorted(reference.seeds) == [0, 1, 2]
    found = rank_answer(sweep, reference, margin=0.05)
    assert found.r == 8 and found.table.set_index("r").loc[8, "mean"] == pytest.approx(0.8)
    assert sweep_of(runs[3:], "q,v")[1] is None


def test_settings_without_a_finished_run_were_not_tried(tmp_path):
    runs = [make_run(tmp_path, method="full", seed=s, accuracy=0.80) for s in (0, 1, 2)]
    runs += [make_run(tmp_path, r=8, seed=s, accuracy=0.80) for s in (0, 1, 2)]
    without = rank_answer(*sweep_of(runs, "q,v"), margin=0.05)
    runs += [make_run(tmp_path, r=8, seed=s, lr=9e-3, status="diverged", note="lr") for s in (0, 1, 2)]
    runs += [make_run(tmp_path, method="full", seed=s, lr=9e-3, status="failed", note="lr") for s in (0, 1, 2)]
    (swept,), reference = sweep_of(runs, "q,v")
    assert swept.tried == reference.tried == 1
    found = rank_answer([swept], reference, margin=0.05)
    pd.testing.assert_frame_equal(found.table, without.table)
    assert found.text == without.text and found.notes == without.notes
    # One seed of a setting is enough to choose by it.
    runs += [make_run(tmp_path, seed=0, lr=5e-3, note="5", **kind) for kind in ({"r": 8}, {"method": "full"})]
    (swept,), reference = sweep_of(runs, "q,v")
    assert swept.tried == reference.tried == 2


def test_runs_without_predictions_or_of_other_rows_are_refused(tmp_path):
    runs = [make_run(tmp_path, method="full", seed=0), make_run(tmp_path, r=8, seed=0)]
    file = tmp_path / runs[1]["run_id"] / "predictions.csv"
    table = pd.read_csv(file)
    table["row"] = table["row"].to_numpy()[::-1]
    table.to_csv(file, index=False)
    with pytest.raises(UsageError, match="be of the same rows in the same order. Got"):
        sweep_of(runs, "q,v")
    file.unlink()
    with pytest.raises(UsageError, match="A run must have its predictions.csv. Got none for lora-r8-qv-docmatch-s0"):
        sweep_of(runs, "q,v")


def test_of_several_settings_the_interval_and_the_seeds_to_add_are_of_the_level_that_is_left():
    one, three = lora(8, -0.005, spread=0.004), replace(lora(8, -0.005, spread=0.004), tried=3)
    alone, best = rank_answer([one], full()), rank_answer([three], full())
    before, row = alone.table.iloc[1], best.table.iloc[1]
    assert alone.r == 8 and best.r is None
    assert row["p_equivalent"] == pytest.approx(3 * before["p_equivalent"]) and row["p_equivalent"] > 0.05
    assert row["diff_level"] == pytest.approx(1 - 0.1 / 3) and row["diff_low"] < -0.02 < before["diff_low"]
    assert row["more_seeds"] >= 1 and "(96.7 % interval); 1 more seed would show it" in best.text
    assert "r = 8 (of 3)" in best.notes[0]


def test_what_is_said_of_several_settings_is_of_what_was_tested():
    left_out = replace(lora(4, 0.0, n=1), tried=5)
    found = rank_answer([lora(8, 0.0), left_out], replace(full(), tried=4))
    assert not any("Bonferroni" in note for note in found.notes)
    assert any("Full fine-tuning is the best of 4 settings on these very rows" in note for note in found.notes)
    stands_in = rank_answer([replace(lora(8, 0.0), tried=3), lora(4, 0.0)])
    assert not any("Bonferroni" in note for note in stands_in.notes)


def test_one_seed_of_constant_predictions_has_a_difference_that_could_be_any():
    same = {0: (np.arange(60) % 2, np.zeros(60), None)}
    swept, reference = Configuration("LoRA r = 8", 8, same), Configuration("full fine-tuning", None, same)
    row = rank_answer([swept], reference, metric="matthews").table.iloc[1]
    assert (row["diff"], row["diff_low"], row["diff_high"]) == (0, -2, 2)
    assert row["diff_method"] == "none: all resamples alike, 1 seed"


@pytest.mark.parametrize("gap", [-0.02, 0.1])
def test_the_largest_r_tested_is_not_called_the_largest_where_a_larger_one_is_left_out(gap):
    told = rank_answer([lora(8, gap)], full()).text
    assert "r = 8, the largest tested, " in told
    told = rank_answer([lora(8, gap), lora(64, 0.0, n=1)], full()).text
    assert "r = 8, the largest that could be tested, " in told
