"""How many directions of each update to keep: a number, a share of its energy, what its storage noise leaves, or what
a budget of parameters buys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.linalg.decompose import leading, singular_values, svd_factored, svdvals_factored
from rankprobe.linalg.noise import storage_noise
from rankprobe.linalg.rank import energy_rank, numerical_rank
from rankprobe.weights.delta import Delta

_STORED = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class Rule:
    """Exactly one of four ways to choose.

    Attributes
    ----------
    rank : int or None
        So many directions of every matrix.
    energy : float or None
        The fewest that hold this share of a matrix's ΣS².
    noise : bool
        Those above the rounding of the stored weights, ``storage_rank``.
    budget : int or None
        Parameters of all factors together.

    Raises
    ------
    UsageError
        If not exactly one is given, or it is out of range.
    """

    rank: int | None = None
    energy: float | None = None
    noise: bool = False
    budget: int | None = None

    def __post_init__(self) -> None:
        given = [f"--{name}" for name in ("rank", "energy", "budget") if getattr(self, name) is not None]
        given += ["--noise"] if self.noise else []
        if len(given) != 1:
            rule = "say how to choose r by one of --rank, --energy, --noise and --budget"
            got = " and ".join(given) or "none of them"
            raise UsageError(must("extract", rule, got, "Pass --rank 16, say"))
        for name in ("rank", "budget"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(must(f"--{name}", "be a whole number of at least 1", value, f"Pass --{name} 16, say"))
        if self.energy is not None and not (isinstance(self.energy, int | float) and 0 < self.energy <= 1):
            next_step = "Pass a share of the energy, --energy 0.9 for 90 %"
            raise UsageError(must("--energy", "be above 0 and at most 1", self.energy, next_step))

    def __str__(self) -> str:
        if self.noise:
            return "--noise"
        name = "rank" if self.rank is not None else "energy" if self.energy is not None else "budget"
        return f"--{name} {getattr(self, name):g}" if name == "energy" else f"--{name} {getattr(self, name)}"


@dataclass(frozen=True)
class Part:
    """The leading part of one update.

    Attributes
    ----------
    U, S, Vh : Tensor, shapes (m, k), (k,) and (k, n), float64
    energy : float
        ΣS² of all of the update.
    residual : float
        ||dW - U * S @ Vh||_F.
    method : str
        How it was decomposed.
    storage_rank : int or None
        With the rule ``noise``; None also where ``swallowed``.
    swallowed : bool
        Whether the storage dtype swallowed the update.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    energy: float
    residual: float
    method: str
    storage_rank: int | None = None
    swallowed: bool = False


@torch.no_grad()
def all_values(delta: Delta, device: str = "cpu") -> Tensor:
    """Singular values of an update that are not zero to rounding, float64, on the CPU."""
    if delta.dW is None:
        S = svdvals_factored(delta.B.to(device), delta.A.to(device), delta.scaling, name=delta.name)
    else:
        S = singular_values(delta.dW.to(device), name=delta.name).S
    return _nonzero(S.cpu(), delta.shape)


@torch.no_grad()
def leading_part(delta: Delta, rule: Rule, *, k: int | None = None, device: str = "cpu",
                 base_rounded: bool = False) -> Part:
    """The directions of an update that a rule keeps.

    Parameters
    ----------
    delta : Delta
    rule : Rule
    k : int, optional
        What :func:`share_budget` gave the matrix; for the rule ``budget`` alone.
    device : str
    base_rounded : bool
        Count W0's rounding as well, for the rule ``noise``.

    Returns
    -------
    Part
        Never with directions that are zero to rounding: a matrix that did not change has none.

    Raises
    ------
    UsageError
        If the rule is ``noise`` and the update is factored.
    """
    if delta.dW is None:
        return _of_factors(delta, rule, k, device)
    dW = delta.dW.to(device)
    rank, swallowed, wanted = None, False, k if rule.budget is not None else rule.rank
    if rule.noise:
        rank, swallowed = _storage_rank(delta, dW, base_rounded)
        wanted = rank or 0
    if wanted == 0 or not bool(dW.any()):
        norm = float(torch.linalg.vector_norm(dW))
        U, Vh = dW.new_zeros(dW.shape[0], 0), dW.new_zeros(0, dW.shape[1])
        return Part(U, dW.new_zeros(0), Vh, norm**2, norm, "", rank, swallowed)
    found = leading(dW, wanted, energy=rule.energy, name=delta.name)
    S = _nonzero(found.S, delta.shape)
    kept = len(S)
    return Part(found.U[:, :kept], S, found.Vh[:kept], found.energy, found.residual * math.sqrt(found.energy),
                found.method, rank, swallowed)


def share_budget(values: Mapping[str, Tensor], costs: Mapping[str, int], budget: int) -> tuple[dict[str, int], float]:
    """How many directions of each matrix a budget buys, for the most energy in all of them together.

    Parameters
    ----------
    values : mapping of str to Tensor
        Singular values of each matrix, non-increasing.
    costs : mapping of str to int
        Parameters of one direction, m + n.
    budget : int
        Parameters of all.

    Returns
    -------
    ranks : dict of str to int
        By matrix; 0 where none is bought.
    slack : float
        What any other choice within the budget could hold more, at most, as a share of all energy.

    Raises
    ------
    UsageError
        If the budget holds no direction of any matrix.

    Notes
    -----
    Directions are bought by σ² / (m + n), the largest first. Since each matrix's σ are sorted, a direction is never
    bought before those above it, and the choice is the best that so many parameters can buy. What is left over is less
    than the first direction that does not fit costs; cheaper ones still take it up, and the best choice for the exact
    budget (a knapsack's) holds at most ``slack`` more: the left-over parameters at that direction's price.

    Examples
    --------
    >>> share_budget({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0])}, {"a": 10, "b": 10}, 20)
    ({'a': 1, 'b': 1}, 0.0)
    """
    offers = [(float(s) ** 2 / costs[name], name) for name, S in values.items() for s in S.double()]
    offers.sort(key=lambda offer: -offer[0])  # stable: a matrix's own stay in order
    ranks, full = dict.fromkeys(values, 0), set()
    left, slack, total = budget, 0.0, sum(float(S.double().square().sum()) for S in values.values())
    first_left = None
    for density, name in offers:
        if name in full or costs[name] > left:
            full.add(name)
            if first_left is None:
                first_left = (density, left)
            continue
        if first_left is not None:
            slack -= density * costs[name]
        ranks[name] += 1
        left -= costs[name]
    if not any(ranks.values()) and offers:
        cheapest = min(costs[name] for _, name in offers)
        next_step = f"Pass --budget {cheapest} or more"
        raise UsageError(must("--budget", f"hold a direction, {cheapest} parameters at least", budget, next_step))
    if first_left is not None:
        slack += first_left[0] * first_left[1]
    return ranks, max(0.0, slack) / total if total else 0.0


def _of_factors(delta: Delta, rule: Rule, k: int | None, device: str) -> Part:
    if rule.noise:
        got = f"the factors of {delta.name}"
        raise UsageError(must("--noise", "be asked of whole models: factors have no storage noise in dW", got,
                              "Pass --rank, --energy or --budget"))
    U, S, Vh = svd_factored(delta.B.to(device), delta.A.to(device), delta.scaling, name=delta.name)
    energy = float(S.square().sum())
    there = len(_nonzero(S, delta.shape))
    if rule.energy is not None:
        k = int(energy_rank(S, rule.energy))
    elif rule.rank is not None:
        k = rule.rank
    k = min(k or 0, there)
    return Part(U[:, :k], S[:k], Vh[:k], energy, float(S[k:].norm()), "factored")


def _storage_rank(delta: Delta, dW: Tensor, base_rounded: bool) -> tuple[int | None, bool]:
    if delta.W1 is None or delta.dtype_tuned not in _STORED:
        got = f"{delta.name} in {delta.dtype_tuned or 'factors'}"
        raise UsageError(must("--noise", "be asked of weights whose rounding can be told", got,
                              "Pass --rank, --energy or --budget"))
    S = singular_values(dW, name=delta.name).S
    found = storage_noise(S, dW, delta.W1, W0=delta.W0, base_rounded=base_rounded)
    return found.rank, found.swallowed


def _nonzero(S: Tensor, shape: tuple[int, int]) -> Tensor:
    """Those above the rounding of the arithmetic."""
    if not len(S) or float(S[0]) == 0:
        return S[:0]
    return S[: int(numerical_rank(S, shape, torch.finfo(torch.float64).eps))]
