"""Latency by a clock that the test moves: known times, known stalls, known ratios."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from scipy.stats import binom

from rankprobe.errors import UsageError
from rankprobe.training.latency import measure_latency, median_interval

CONTRACT = (
    "variant batch length n latency_ms ci_low ci_high ratio ratio_ci_low ratio_ci_high ci_method dtype device threads "
    "r targets"
).split()


class Machine:
    """A clock, and variants that move it: noise, slow drift, stalls of ten times."""

    def __init__(self, seconds: dict[str, float], seed: int = 0, noise: float = 0.02, stalls: float = 0.1):
        self.now, self.seconds, self.calls = 0.0, seconds, []
        self.rng, self.noise, self.stalls = np.random.default_rng(seed), noise, stalls

    def clock(self) -> float:
        return self.now

    def variants(self) -> dict:
        return {name: (lambda inputs, name=name: self.run(name, inputs)) for name in self.seconds}

    def run(self, name: str, inputs: dict) -> None:
        assert torch.is_inference_mode_enabled()
        self.calls.append(name)
        mood = 1 + 0.5 * np.sin(self.now / 3)  # far more than any difference between the variants
        stall = 10 if self.rng.random() < self.stalls else 1
        size = inputs["batch"] * inputs["length"] / 32
        self.now += self.seconds[name] * size * mood * stall * np.exp(self.noise * self.rng.standard_normal())


def shape_of(batch: int, length: int) -> dict:
    return {"batch": batch, "length": length}


def measure(machine: Machine, shapes=((1, 32),), **settings):
    return measure_latency(machine.variants(), shape_of, shapes, clock=machine.clock, **settings)


def test_known_ratios_are_found_through_drift_noise_and_stalls():
    seconds = {"base": 0.010, "base_copy": 0.010, "lora_merged": 0.010, "lora_unmerged": 0.0125}
    machine = Machine(seconds, stalls=0.05)
    table = measure(machine, [(1, 32), (8, 64)], budget_s=1e9, aa_width=0.005, dtype="bfloat16", r=8, targets="q,v")
    assert list(table.columns) == CONTRACT
    assert len(table) == 8 and set(table["ci_method"]) == {"order statistics of the rounds, 95 %"}
    assert set(table["dtype"]) == {"bfloat16"} and set(table["r"]) == {8} and set(table["targets"]) == {"q,v"}
    for _, rows in table.groupby(["batch", "length"]):
        row = rows.set_index("variant").loc
        assert row["base"]["ratio"] == row["base"]["ratio_ci_low"] == row["base"]["ratio_ci_high"] == 1
        assert row["base_copy"]["ratio"] == pytest.approx(1, abs=0.005)
        assert row["lora_unmerged"]["ratio"] == pytest.approx(1.25, abs=0.008)
        for name in ("base_copy", "lora_merged", "lora_unmerged"):
            assert row[name]["ratio_ci_low"] <= row[name]["ratio"] <= row[name]["ratio_ci_high"]
            assert row[name]["ratio_ci_high"] - row[name]["ratio_ci_low"] < 0.02
    small, large = (table[(table.variant == "base") & (table.batch == b)]["latency_ms"].item() for b in (1, 8))
    assert small == pytest.approx(10, rel=0.5) and large / small == pytest.approx(16, rel=0.4)


def test_an_exact_clock_gives_exact_milliseconds():
    machine = Machine({"base": 0.010, "slow": 0.030}, noise=0, stalls=0)
    machine.run = lambda name, inputs: setattr(machine, "now", machine.now + machine.seconds[name])
    table = measure(machine, rounds=6).set_index("variant")
    assert table.loc["base", ["latency_ms", "ci_low", "ci_high"]].tolist() == pytest.approx([10, 10, 10])
    assert table.loc["slow", ["ratio", "ratio_ci_low", "ratio_ci_high"]].tolist() == pytest.approx([3, 3, 3])
    assert table.loc["slow", "n"] == 10  # the first multiple of 5 from 6 rounds on: nothing varies


def test_intervals_hold_the_true_ratio_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr("gc.collect", int)  # 0.2 s each, and nothing real is timed here
    held, runs = 0, 200
    for seed in range(runs):
        machine = Machine({"base": 0.010, "other": 0.011}, seed=seed)
        row = measure(machine, rounds=30, max_rounds=30, seed=seed, budget_s=1e9).set_index("variant").loc["other"]
        held += row["ratio_ci_low"] <= 1.1 <= row["ratio_ci_high"]
    # 95 % or a little more (the steps of the binomial); 4 standard deviations below would be 0.89.
    assert held / runs >= 0.9
    assert held / runs < 1.0  # an interval that always holds says nothing


def test_every_round_times_every_variant_once_in_an_order_that_changes():
    names = ["base", "a", "b", "c"]
    machine = Machine(dict.fromkeys(names, 0.010), stalls=0)
    measure(machine, rounds=20, max_rounds=20, warmup=2, min_time_s=0.025, budget_s=1e9)
    untimed = 2 * len(names) + 3  # warming up, and finding out how long the base takes
    assert machine.calls[:8] == [name for name in names for _ in range(2)]
    timed = machine.calls[untimed:]
    repeats = len(timed) // (20 * len(names))
    assert repeats >= 2 and len(timed) == 20 * len(names) * repeats
    timings = timed[::repeats]
    assert timed == [name for name in timings for _ in range(repeats)]
    rounds = [tuple(timings[i : i + 4]) for i in range(0, len(timings), 4)]
    assert all(sorted(order) == sorted(names) for order in rounds)
    assert len(set(rounds)) > 8 and len({order[0] for order in rounds}) == 4


def test_the_seed_decides_the_order():
    def order(seed):
        machine = Machine({"base": 0.05, "a": 0.05, "b": 0.05}, stalls=0)
        measure(machine, rounds=6, max_rounds=6, seed=seed)
        return machine.calls

    assert order(1) == order(1) != order(2)


def test_rounds_go_on_until_the_copy_of_the_base_is_known_well_enough():
    quiet = measure(Machine({"base": 0.010, "base_copy": 0.010, "noisy": 0.02}, noise=0.002), budget_s=1e9)
    loud = measure(Machine({"base": 0.010, "base_copy": 0.010, "noisy": 0.02}, noise=0.03), budget_s=1e9)
    assert quiet["n"].iloc[0] < loud["n"].iloc[0] <= 500
    copy = loud.set_index("variant").loc["base_copy"]
    assert copy["ratio_ci_high"] - copy["ratio_ci_low"] <= 0.01 or loud["n"].iloc[0] == 500


def test_the_time_budget_ends_a_shape_but_never_before_there_is_an_interval():
    machine = Machine({"base": 1.0, "base_copy": 1.0}, stalls=0)
    table = measure(machine, [(1, 32), (2, 32)], budget_s=0.1)
    assert table["n"].tolist() == [6] * 4
    assert np.isfinite(table[["ci_low", "ci_high", "ratio_ci_low", "ratio_ci_high"]].to_numpy()).all()
    longer = measure(Machine({"base": 1.0, "base_copy": 1.0}, stalls=0), budget_s=40)
    assert 10 <= longer["n"].iloc[0] <= 25


def test_a_long_call_is_not_made_only_to_warm_up():
    """GPT-2 medium at (32, 512) takes a CPU minutes a call: one of each variant warms up, one more of the base is
    enough to see that a timing needs no more than a call."""
    machine = Machine({"base": 60.0, "a": 60.0}, stalls=0)
    table = measure(machine, rounds=6, max_rounds=6, budget_s=1.0)
    assert machine.calls[:3] == ["base", "a", "base"] and len(machine.calls) == 3 + 6 * 2
    assert table["n"].tolist() == [6, 6]


def test_a_stall_while_the_calls_a_timing_are_counted_does_not_shorten_the_timings():
    """Of three short calls the least counts; only what is long even beside a stall is taken at its first word."""
    machine = Machine({"base": 0.01, "a": 0.01}, stalls=0, noise=0)
    run, count = machine.run, [0]

    def stalled(name, inputs):
        count[0] += 1
        run(name, inputs)
        machine.now += 0.5 * (count[0] == 7)  # the first call after the 6 that warm up

    machine.run = stalled
    measure(machine, rounds=6, max_rounds=6, min_time_s=0.04, budget_s=1e9)
    assert (len(machine.calls) - 9) / 12 > 1


def test_progress_is_told_between_timings():
    machine = Machine({"base": 0.05, "a": 0.05}, stalls=0)
    told = []
    table = measure(machine, rounds=6, max_rounds=6, budget_s=1e9,
                    progress=lambda rounds, variant: told.append((rounds, variant, len(machine.calls))))  # fmt: skip
    assert [(rounds, variant) for rounds, variant, _ in told[:2]] == [(0, "base"), (0, "a")]  # warming up
    timed = told[2:]
    assert [rounds for rounds, *_ in timed] == [r for r in range(6) for _ in range(2)]
    assert all({v for r, v, _ in timed if r == i} == {"base", "a"} for i in range(6))
    calls = [before for *_, before in timed]
    # Each was told before the variant it names ran, and nothing else.
    assert [machine.calls[before] for before in calls] == [variant for _, variant, _ in timed]
    assert table["n"].tolist() == [6, 6]


@pytest.mark.parametrize("n", [5, 6, 8, 9, 30, 31, 101])
def test_the_interval_of_the_median_is_the_narrowest_that_the_binomial_allows(n):
    values = np.random.default_rng(n).permutation(n) + 1.0
    low, high = median_interval(values)
    if n < 6:
        assert (low, high) == (-np.inf, np.inf)
        return
    k = int(low)
    assert high == n + 1 - k

    def miss(order):  # the chance that the median lies below the order-th smallest
        return binom.cdf(order - 1, n, 0.5)

    assert 2 * miss(k) <= 0.05 < 2 * miss(k + 1)


def test_real_models_on_this_machine():
    small, large = torch.nn.Linear(64, 64), torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(12)))
    variants = {"base": lambda x: small(x["x"][..., :64]), "large": lambda x: large(x["x"])}
    table = measure_latency(
        variants,
        lambda b, n: {"x": torch.randn(b, n, 256)},
        [(2, 8)],
        rounds=6,
        max_rounds=10,
        min_time_s=1e-3,
        budget_s=2,
    ).set_index("variant")
    assert table.loc["large", "ratio_ci_low"] > 2 and table.loc["base", "latency_ms"] > 0
    assert table["threads"].tolist() == [torch.get_num_threads()] * 2
    assert table["r"].isna().all()


def test_garbage_collection_is_switched_on_again_even_after_an_error():
    collecting = []

    def fails(_):
        collecting.append(gc.isenabled())
        if len(collecting) > 20:
            raise RuntimeError("broken")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="broken"):
        measure_latency({"base": fails}, shape_of, [(1, 1)], warmup=30)
    assert not any(collecting)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "nothing"}, "The base must be one of the variants. Got 'nothing' beside base, other."),
        ({"rounds": 5}, "rounds must be from 6 to max_rounds = 500. Got 5."),
        ({"rounds": 10, "max_rounds": 9}, "rounds must be from 6 to max_rounds = 9. Got 10."),
        ({"shapes": []}, "Shapes must be pairs"),
        ({"shapes": [(0, 32)]}, "Shapes must be pairs"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings, message):
    with pytest.raises(UsageError) as caught:
        measure(Machine({"base": 0.01, "other": 0.01}), **settings)
    assert str(caught.value).startswith(message)
