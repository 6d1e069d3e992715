"""How long variants of a model take, side by side in one process: what a ratio of two times is worth.

Two models timed one after the other differ by whatever else the machine did meanwhile. Here every round times every
variant once, in random order, and a ratio is taken within a round; medians over rounds shrug off stalls. A second copy
of the base among the variants (A/A) shows what this machine cannot tell apart.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from rankprobe.errors import UsageError, must

CI_METHOD = "order statistics of the rounds, 95 %"
# Fewer than 6 rounds have no distribution-free 95 % interval of the median: 2 * 0.5**5 > 0.05.
_LEAST_ROUNDS = 6
# Calls longer than this are not made only to warm up or to learn how long they are.
_LONG_S = 1.0
_COLUMNS = ["variant", "batch", "length", "n", "latency_ms", "ci_low", "ci_high", "ratio", "ratio_ci_low"]
_COLUMNS += ["ratio_ci_high", "ci_method", "dtype", "device", "threads", "r", "targets"]


def measure_latency(
    variants: Mapping[str, Callable[[dict], object]],
    make_inputs: Callable[[int, int], dict],
    shapes: Sequence[tuple[int, int]] = ((1, 32), (8, 64), (32, 64)),
    *,
    base: str = "base",
    same_as_base: str = "base_copy",
    rounds: int = 30,
    max_rounds: int = 500,
    budget_s: float = 30.0,
    aa_width: float = 0.01,
    warmup: int = 3,
    min_time_s: float = 0.02,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    r: int | None = None,
    targets: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, str], None] = lambda rounds, variant: None,
) -> pd.DataFrame:
    """Time every variant on every shape, interleaved in random order, and compare it with the base.

    Parameters
    ----------
    variants : mapping of str to callable
        Each runs one forward pass on the inputs; called without autograd. Autocast is the callable's own business.
    make_inputs : callable
        ``make_inputs(batch, length)`` gives the inputs, on the device; made once a shape, the same for all variants.
    shapes : sequence of (batch, length)
    base : str
        The variant that the others are compared with.
    same_as_base : str
        A second copy of the base, if ``variants`` has it: measuring goes on until its ratio is known well enough.
    rounds, max_rounds : int
        Least (at least 6) and most rounds a shape.
    budget_s : float
        Seconds a shape after which no further round begins, once there are 6.
    aa_width : float
        Width of the A/A ratio's interval that is narrow enough to stop at; without a copy of the base, of the widest.
    warmup : int
        Untimed calls of each variant, a shape; fewer where they take longer than a second together.
    min_time_s : float
        A timing covers as many calls in a row as the base needs to run this long, so that the clock and the call's own
        overhead are small against it.
    seed : int
        Of the order.
    dtype, device, r, targets
        For the columns of these names; ``device`` also says whether to wait for CUDA.
    clock : callable
        Seconds, monotonic.
    progress : callable
        Told before each timing the rounds that are done and the variant that is next; never inside a timing.

    Returns
    -------
    DataFrame
        A row a shape and variant: latency_ms, the median over ``n`` rounds, and its interval ci_low to ci_high (ms);
        ratio, the median over rounds of the variant's time by the base's of the same round, and its interval.

    Raises
    ------
    UsageError
        If the base is not among the variants, or a shape or a number of rounds is out of range.

    Notes
    -----
    Intervals are distribution-free (see :func:`median_interval`). Rounds that follow each other share the machine's
    mood, so the interval of a latency is good for this process only; the mood cancels in a ratio. Stopping looks at
    the A/A ratio alone, and so does not favour any outcome of the comparisons.
    """
    _check(variants, shapes, base, rounds, max_rounds)
    wait = torch.cuda.synchronize if device.startswith("cuda") else _nothing
    generator = np.random.default_rng(seed)
    rows = []
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection in the middle of a timing is a stall of our own making
    try:
        with torch.inference_mode():
            for batch, length in shapes:
                inputs = make_inputs(batch, length)
                started = clock()
                for name, call in variants.items():
                    progress(0, name)
                    _warm_up(call, inputs, warmup, clock, wait)
                repeats = _calls_a_timing(variants[base], inputs, min_time_s, clock, wait)
                times: dict[str, list[float]] = {name: [] for name in variants}
                while not _enough(
                    times, base, same_as_base, rounds, max_rounds, aa_width, clock() - started > budget_s
                ):
                    for name in generator.permutation(list(variants)).tolist():
                        progress(min(map(len, times.values())), name)
                        times[name].append(_time(variants[name], inputs, repeats, clock, wait))
                rows += [{"batch": batch, "length": length, **row} for row in _summary(times, base)]
    finally:
        if collecting:
            gc.enable()
    table = pd.DataFrame(rows)
    table["ci_method"] = CI_METHOD
    table["dtype"], table["device"], table["threads"] = dtype, device, torch.get_num_threads()
    table["r"] = pd.array([r] * len(table), dtype="Int64")
    table["targets"] = targets
    return table[_COLUMNS]


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Distribution-free interval of the median, between two order statistics.

    Parameters
    ----------
    values : sequence of float, at least 6 at 95 %
    confidence : float
        At least this often the interval holds the median of what the values were drawn from.

    Returns
    -------
    (float, float)
        ``x_(k)`` and ``x_(n+1-k)``, k the largest with P(Binomial(n, 1/2) < k) <= (1 - confidence) / 2; infinite where
        the values are too few.

    References
    ----------
    David & Nagaraja, Order Statistics, 3rd ed. (2003), section 7.1.

    Examples
    --------
    >>> median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])
    (1.0, 6.0)
    """
    from scipy.stats import binom  # half a second

    ordered = np.sort(np.asarray(values, dtype=float))
    n, tail = len(ordered), (1 - confidence) / 2
    k = int(binom.ppf(tail, n, 0.5)) if n else 0
    # ppf gives the smallest k with P(<= k) >= tail; where that is an equality, one more order statistic may be cut.
    if n and binom.cdf(k, n, 0.5) <= tail:
        k += 1
    if k == 0:
        return -math.inf, math.inf
    return float(ordered[k - 1]), float(ordered[n - k])


def _check(variants: Mapping, shapes: Sequence[tuple[int, int]], base: str, rounds: int, max_rounds: int) -> None:
    if base not in variants:
        got = f"{base!r} beside {', '.join(variants) or 'nothing'}"
        raise UsageError(must("The base", "be one of the variants", got, "Name the variant to compare with"))
    if not shapes or any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
        got = list(shapes)
        raise UsageError(must("Shapes", "be pairs of a batch and a length, 1 or more", got, "Pass such as (8, 64)"))
    if not _LEAST_ROUNDS <= rounds <= max_rounds:
        rule = f"be from {_LEAST_ROUNDS} to max_rounds = {max_rounds}"
        raise UsageError(must("rounds", rule, rounds, "Fewer have no 95 % interval of the median"))


def _nothing() -> None:
    pass


def _time(call: Callable, inputs: dict, repeats: int, clock: Callable[[], float], wait: Callable[[], None]) -> float:
    """Seconds a call."""
    wait()
    start = clock()
    for _ in range(repeats):
        call(inputs)
    wait()
    return (clock() - start) / repeats


def _warm_up(call: Callable, inputs: dict, times: int, clock: Callable[[], float], wait: Callable[[], None]) -> None:
    """A few calls, or one where that is long: a call of a minute has warmed up whatever there is."""
    start = clock()
    for _ in range(times):
        call(inputs)
        wait()
        if clock() - start > _LONG_S:
            return


def _calls_a_timing(call: Callable, inputs: dict, min_time_s: float, clock: Callable, wait: Callable) -> int:
    # The least of three: a stall here would make timings short for the whole shape.
    fastest = math.inf
    for _ in range(3):
        fastest = min(fastest, _time(call, inputs, 1, clock, wait))
        if fastest > max(_LONG_S, min_time_s):
            return 1
    return max(1, math.ceil(min_time_s / fastest)) if fastest > 0 else 1


def _enough(
    times: dict[str, list[float]], base: str, same: str, rounds: int, max_rounds: int, aa_width: float, late: bool
) -> bool:
    n = len(times[base])
    if n < _LEAST_ROUNDS:
        return False
    if late or n >= max_rounds:
        return True
    # Not after every round: the interval of a median is cheap, yet not free between timings.
    if n < rounds or n % 5:
        return False
    watched = [same] if same in times else [name for name in times if name != base]
    intervals = [median_interval(_ratios(times, name, base)) for name in watched]
    return all(high - low <= aa_width for low, high in intervals)


def _ratios(times: dict[str, list[float]], name: str, base: str) -> np.ndarray:
    return np.asarray(times[name]) / np.asarray(times[base])


def _summary(times: dict[str, list[float]], base: str) -> list[dict]:
    rows = []
    for name, seconds in times.items():
        low, high = median_interval(seconds)
        ratios = _ratios(times, name, base)
        ratio_low, ratio_high = median_interval(ratios)
        rows.append(
            {
                "variant": name,
                "n": len(seconds),
                "latency_ms": 1000 * float(np.median(seconds)),
                "ci_low": 1000 * low,
                "ci_high": 1000 * high,
                "ratio": float(np.median(ratios)),
                "ratio_ci_low": ratio_low,
                "ratio_ci_high": ratio_high,
            }
        )
    return rows
