"""Default learning rates: what the committed tuning study chose, one for each method and r."""

from __future__ import annotations

import math
import tomllib
from functools import cache
from importlib import resources

TUNED_ON = ("all-MiniLM-L6-v2", "docmatch")


@cache
def _table() -> dict:
    return tomllib.loads((resources.files("rankprobe.experiment") / "learning_rates.toml").read_text(encoding="utf-8"))


def default_lr(method: str, r: int | None = None) -> float:
    """The tuned peak learning rate of a method; for LoRA, of the tuned r that is nearest in log2.

    Parameters
    ----------
    method : str
        ``full``, ``head`` or ``lora``.
    r : int, optional
        For lora.
    """
    if method != "lora":
        return float(_table()[method])
    rates = {int(k): float(v) for k, v in _table()["lora"].items()}
    return rates[min(rates, key=lambda k: (abs(math.log2(k) - math.log2(r)), k))]
