"""Default learning rates: what the committed tuning studies chose, one for each method and size."""

from __future__ import annotations

import math
import tomllib
from functools import cache
from importlib import resources

import numpy as np

from rankprobe.errors import UsageError, must

TUNED_ON = ("all-MiniLM-L6-v2", "docmatch")
# LoRA's rates on targets that are not in the table are those of these.
_TARGETS = "q,v"
# A step of Adam moves the weights by lr √d in a random subspace (E[PᵀP] = I): as far at every d with lr ~ 1 / √d.
_BY_ROOT = ("did", "said")


@cache
def _table() -> dict:
    return tomllib.loads((resources.files("rankprobe.experiment") / "learning_rates.toml").read_text(encoding="utf-8"))


def default_lr(method: str, size: int | None = None, targets: str | None = None) -> float:
    """The tuned peak learning rate of a method; of the tuned size that is nearest in log2.

    In random subspaces it lies on the straight line in log d and log lr between the tuned ds around it; beyond them it
    goes with one over the root of d, which was not tuned.

    Parameters
    ----------
    method : str
        One of :data:`rankprobe.experiment.spec.METHODS`.
    size : int, optional
        LoRA's r, or what the method's size is: bottleneck, prefix_length, layers, d.
    targets : str, optional
        For lora; those that were not tuned take the rates of q,v.

    Raises
    ------
    UsageError
        If no study tuned the method.
    """
    if method not in _table():
        got = f"none for {method}, which no study tuned"
        raise UsageError(must("lr", "be given", got, "Pass a learning rate"))
    found = _table()[method]
    if method == "lora":
        found = found.get(targets, found[_TARGETS])
    if not isinstance(found, dict):
        return float(found)
    rates = {int(k): float(v) for k, v in found.items()}
    if method in _BY_ROOT:
        return _in_subspace(rates, size)
    return rates[min(rates, key=lambda k: (abs(math.log2(k) - math.log2(size)), k))]


def _in_subspace(rates: dict[int, float], d: int) -> float:
    """By d: a rate three times too large learns nothing, so that the nearest tuned d's will not do between two."""
    known = sorted(rates)
    inside = min(max(d, known[0]), known[-1])
    lr = math.exp(np.interp(math.log(inside), np.log(known), np.log([rates[k] for k in known])))
    return float(f"{lr * math.sqrt(inside / d):.6g}")  # the tuned rates themselves come out as they are
