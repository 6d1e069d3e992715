"""Which rank each matrix gets from a budget of parameters, by what a rank of it is worth: allocation.csv."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rankprobe.errors import UsageError, must


@dataclass(frozen=True)
class Allocation:
    """What a budget buys.

    Attributes
    ----------
    ranks : dict of str to int
        By matrix; 0 where nothing is bought.
    parameters : int
        Of all factors together.
    gain : float
        What these ranks are worth together in the additive model, in the units of the gains.
    slack : float
        No other ranks within the budget are worth more than so much more.
    """

    ranks: dict[str, int]
    parameters: int
    gain: float
    slack: float


def marginal_gains(ks: Sequence[int], losses: Sequence[float]) -> np.ndarray:
    """What each rank of a matrix is worth, from its loss at a few ks.

    Parameters
    ----------
    ks : sequence of int
        From 0 to p, rising.
    losses : sequence of float
        Growth of the loss at each k.

    Returns
    -------
    ndarray, shape (p,), float64, non-increasing, >= 0
        Decrease of the loss that each further rank brings: slopes of the least concave curve above the measured gains
        ``losses[0] - losses[i]``.

    Raises
    ------
    UsageError
        If ks do not rise from 0, or there is not one finite loss for each.

    Notes
    -----
    Measured losses are noisy and need not fall evenly. Of a curve that is not concave, greedy buying would stop before
    a step that pays only together with the next; the concave curve lets it buy such steps as one.

    Examples
    --------
    >>> marginal_gains([0, 1, 2, 4], [1.0, 0.9, 0.4, 0.0])
    array([0.3, 0.3, 0.2, 0.2])
    """
    ks, losses = np.asarray(ks, dtype=np.int64), np.asarray(losses, dtype=np.float64)
    if len(ks) != len(losses) or len(ks) < 2 or ks[0] != 0 or (np.diff(ks) <= 0).any() or not np.isfinite(losses).all():
        got = f"ks {ks.tolist()} with losses {losses.tolist()}"
        raise UsageError(must("ks", "rise from 0 to p with a finite loss each", got, "Pass a matrix's whole ladder"))
    hull: list[tuple[int, float]] = []
    for k, gain in zip(ks.tolist(), (losses[0] - losses).tolist(), strict=True):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], (k, gain)):
            hull.pop()
        hull.append((k, gain))
    steps = [np.full(b[0] - a[0], max(0.0, _slope(a, b))) for a, b in itertools.pairwise(hull)]
    return np.concatenate(steps)


def allocate(
    gains: Mapping[str, np.ndarray],
    costs: Mapping[str, int],
    budget: int,
    *,
    ties: Mapping[str, np.ndarray] | None = None,
) -> Allocation:
    """Spend a budget rank by rank, each time where a parameter is worth most.

    Parameters
    ----------
    gains : mapping of str to ndarray, shape (p,), non-increasing
        What each further rank of a matrix is worth, from :func:`marginal_gains`.
    costs : mapping of str to int
        Parameters of one rank: m + n.
    budget : int
        Parameters of all; never exceeded.
    ties : mapping of str to ndarray, shape (p,), non-increasing, optional
        What decides, per parameter, between ranks of equal worth, such as those worth nothing: σ², say.

    Raises
    ------
    UsageError
        If the budget holds no rank of any matrix, or gains grow.

    Notes
    -----
    With gains that do not grow inside a matrix this is the best choice for what it spends, in the model in which gains
    of matrices add up: every rank that is not bought is worth less a parameter than every one that is. Where all costs
    are equal it is the best choice for the budget. Else what is left over is less than the first rank that does not fit
    costs; cheaper ones take it up, and ``slack`` bounds what the best choice for the exact budget, a knapsack's, would
    gain more. Budgets of parameters by greedy buying are Fox's (1966, Management Science 13(3), 210-216).

    Examples
    --------
    >>> found = allocate({"a": np.array([5.0, 1.0]), "b": np.array([3.0, 2.0])}, {"a": 10, "b": 10}, 30)
    >>> found.ranks, found.gain
    ({'a': 1, 'b': 2}, 10.0)
    """
    for name, of in gains.items():
        if len(of) and (np.diff(of) > 1e-12 * max(1.0, float(np.abs(of).max()))).any():
            raise UsageError(must(f"gains of {name}", "not grow with rank", list(of), "Pass marginal_gains' result"))
    none = {name: np.zeros(len(of)) for name, of in gains.items()}
    offers = [
        (gain / costs[name], tie / costs[name], name)
        for name, of in gains.items()
        for gain, tie in zip(of.tolist(), (ties or none)[name].tolist(), strict=True)
    ]
    offers.sort(key=lambda offer: (-offer[0], -offer[1]))  # stable: a matrix's own ranks stay in order
    ranks, closed, left, spent_gain = dict.fromkeys(gains, 0), set(), budget, 0.0
    bound = None
    for worth, _, name in offers:
        if name in closed or costs[name] > left:
            # What is left over, at the price of the first rank that does not fit: no choice can be worth more.
            bound = spent_gain + worth * left if bound is None else bound
            closed.add(name)
            continue
        ranks[name] += 1
        left -= costs[name]
        spent_gain += worth * costs[name]
    if not any(ranks.values()):
        cheapest = min((costs[name] for _, _, name in offers), default=0)
        rule, next_step = f"hold a rank of a matrix, {cheapest:,} parameters at least", f"Pass {cheapest} or more"
        raise UsageError(must("budget", rule, f"{budget:,}", next_step))
    return Allocation(ranks, budget - left, spent_gain, max(0.0, (bound or spent_gain) - spent_gain))


def gains_of(sensitivity: pd.DataFrame) -> dict[str, np.ndarray]:
    """Worth of each rank by matrix, from :func:`rankprobe.analysis.sensitivity.sensitivity_table`'s table."""
    return {
        name: marginal_gains(rows["k"].to_numpy(), rows["sensitivity"].to_numpy())
        for name, rows in sensitivity.groupby("name", sort=False)
    }


def additive_increase(sensitivity: pd.DataFrame, ranks: Mapping[str, int]) -> float:
    """What cutting every matrix to its rank adds to the loss in the additive model; between measured ks linearly.

    Parameters
    ----------
    sensitivity : DataFrame
    ranks : mapping of str to int
        By matrix; a rank of p or more cuts nothing.
    """
    return sum(
        float(np.interp(ranks[name], rows["k"], rows["increase"]))
        for name, rows in sensitivity.groupby("name", sort=False)
    )


def allocation_table(
    sensitivity: pd.DataFrame, allocation: Allocation, energy: Mapping[str, int], uniform: int
) -> pd.DataFrame:
    """A row a matrix: what it gets, beside what its energy alone would give it.

    Parameters
    ----------
    sensitivity : DataFrame
    allocation : Allocation
    energy : mapping of str to int
        Ranks that :func:`rankprobe.analysis.choose_ranks.share_budget` buys with the same budget by σ² alone.
    uniform : int
        One r for all that the budget holds; 0 where it holds none.

    Returns
    -------
    DataFrame
        name, layer, kind, m, n, p (directions of the update), rank_parameters (of one rank, m + n), loss_without
        (growth of the loss without this update), se, sensitivity, r, parameters, gain (what r is worth), r_energy,
        r_uniform.
    """
    first = sensitivity[sensitivity["k"] == 0].set_index("name")
    gains = gains_of(sensitivity)
    table = first[["layer", "kind", "m", "n", "p"]].copy()
    table["rank_parameters"] = table["m"] + table["n"]
    table["loss_without"], table["se"] = first["increase"], first["se"]
    table["sensitivity"] = first["sensitivity"]
    table["r"] = [allocation.ranks[name] for name in table.index]
    table["parameters"] = table["r"] * table["rank_parameters"]
    table["gain"] = [float(gains[name][:r].sum()) for name, r in zip(table.index, table["r"], strict=True)]
    table["r_energy"] = [energy.get(name, 0) for name in table.index]
    table["r_uniform"] = np.minimum(uniform, table["p"])
    return table.reset_index()


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
