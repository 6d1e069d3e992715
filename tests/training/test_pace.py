"""The budget holds whatever steps and measurements take, and the grid stays a grid."""

import random

import pytest

from rankprobe.training.pace import Pace


def drive(pace, steps, step_s, cost_s):
    """A training by the clock: the steps that were measured, and the largest share spent right after one of them."""
    measured, worst = [], 0.0
    for step in range(1, steps + 1):
        pace.step(step_s(step))
        if not pace.due(step):
            continue
        if pace.cost_s is None:
            pace.expect(cost_s(step))
        if pace.due(step) and pace.affordable():
            pace.measured(cost_s(step))
            measured.append(step)
            worst = max(worst, pace.share_with(0.0))
    return measured, worst


def test_a_cheap_measurement_is_made_at_every_multiple():
    measured, worst = drive(Pace(5, 0.03), 50, lambda step: 0.1, lambda step: 0.001)
    assert measured == list(range(5, 51, 5)) and worst <= 0.03


def test_a_dear_one_at_multiples_of_the_power_of_two_that_pays():
    # A step earns 3 ms; 200 ms take 67 steps, and 80 is the first of 10 · 2^k that has as many.
    measured, worst = drive(Pace(10, 0.03), 1000, lambda step: 0.1, lambda step: 0.2)
    assert measured == list(range(80, 1001, 80)) and worst <= 0.03


def test_without_a_budget_every_multiple_is_measured_at_any_cost():
    measured, _ = drive(Pace(10, None), 50, lambda step: 0.1, lambda step: 100.0)
    assert measured == [10, 20, 30, 40, 50]


@pytest.mark.parametrize("seed", range(20))
def test_the_budget_holds_where_times_vary_and_the_steps_are_of_the_grid(seed):
    draw = random.Random(seed)
    every, budget = draw.choice([1, 7, 50]), draw.choice([0.005, 0.03, 0.2])
    base, price = 10 ** draw.uniform(-2, 0), 10 ** draw.uniform(-2, 1)
    measured, worst = drive(
        Pace(every, budget), 3000, lambda step: base * draw.uniform(0.7, 1.3), lambda step: price * draw.uniform(1, 1.2)
    )
    assert all(step % every == 0 for step in measured)
    # What is about to be spent is a guess: by the mean of three of which none is 20 % above another.
    assert worst <= 1.2 * budget
    # And the budget is used: half of it, as intervals are powers of two, and again where shrinking needs room.
    possible = min(3000 // every, int(budget * base * 3000 / (1.2 * price)))
    assert len(measured) >= possible // 4


def test_a_slow_first_step_does_not_pass_for_a_usual_one():
    pace = Pace(10, 0.03)
    for step in range(1, 11):
        pace.step(100.0 if step == 1 else 0.1)
    pace.expect(0.1)
    assert pace.interval == 40


def test_an_interrupted_step_counts_as_a_usual_one():
    pace = Pace(10, 0.03)
    for seconds in (0.2, None, 0.2):
        pace.step(seconds)
    assert pace.trained_s == pytest.approx(0.6)


def test_a_dear_first_guess_is_mended():
    """CUDA libraries are loaded at the first call: what that costs must not thin out a whole training."""
    pace = Pace(10, 0.03)
    for _ in range(10):
        pace.step(0.1)
    pace.expect(3.0)
    assert pace.interval == 1280
    for _ in range(1270):
        pace.step(0.1)
    for _ in range(3):
        pace.measured(0.02)
    assert pace.interval == 10


def test_a_clock_that_stands_still_measures_nothing_and_ends():
    assert drive(Pace(1, 0.03), 20, lambda step: 0.0, lambda step: 0.1)[0] == []
