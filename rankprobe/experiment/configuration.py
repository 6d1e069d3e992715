"""One thing that a study compares: a method with its settings, checked, its alpha and rate by rule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rankprobe.errors import UsageError, must, nearest
from rankprobe.experiment.learning_rates import default_lr
from rankprobe.experiment.spec import METHODS, SIZE_FIELD, SIZES
from rankprobe.weights.rank_pattern import RankPattern, canonical_pattern
from rankprobe.weights.targets import canonical_targets

_LORA_FIELDS = ("r", "alpha", "targets", "dropout", "rslora", "rank_pattern")
_EXAMPLE_SIZE = {"layers": 2, "bottleneck": 16, "prefix_length": 16, "d": 1000}


@dataclass(frozen=True)
class Configuration:
    """One thing compared: a method with its settings, run with ``seeds`` seeds.

    ``lr`` None takes the rate that the committed tuning study chose. ``alpha`` may be a rule, as :func:`alpha_of` has
    it, and is a number from then on; None takes 2r. ``lr_grid`` holds rates to choose from on tuning rows, in place of
    the study's factors of ``lr``. ``rank_pattern`` may be any mapping; see :class:`RunSpec`.
    """

    method: str
    r: int | None = None
    alpha: float | str | None = None
    targets: str | None = None
    dropout: float = 0.0
    rslora: bool = False
    lr: float | None = None
    seeds: int = 1
    bottleneck: int | None = None
    prefix_length: int | None = None
    layers: int | None = None
    d: int | None = None
    rank_pattern: RankPattern | None = None
    lr_grid: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(
                must("method", f"be one of {', '.join(METHODS)}", self.method, nearest(self.method, METHODS))
            )
        if self.seeds < 1:
            raise UsageError(must("seeds", "be at least 1", self.seeds, "Pass --seeds 1 or more"))
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UsageError(must("lr", "be above 0 and finite", self.lr, "Pass a rate such as 2e-4"))
        check_rates("lr_grid", self.lr_grid)
        if self.lr_grid and self.lr is not None:
            raise UsageError(must("lr", "be left out where lr_grid is given", self.lr, "Leave one of the two out"))
        if not 0 <= self.dropout < 1:
            raise UsageError(must("dropout", "be in [0, 1)", self.dropout, "Pass --dropout 0.1, say"))
        if self.method == "lora":
            if self.r is None or self.r < 1:
                raise UsageError(must("r", "be at least 1", self.r, "Pass --r 8, say"))
            object.__setattr__(self, "targets", canonical_targets("q,v" if self.targets is None else self.targets))
            object.__setattr__(self, "alpha", alpha_of("2r" if self.alpha is None else self.alpha, self.r))
            if self.rank_pattern is not None:
                object.__setattr__(self, "rank_pattern", canonical_pattern(self.rank_pattern))
        elif given := [f for f in _LORA_FIELDS if getattr(self, f) not in (None, 0.0, False)]:
            raise UsageError(
                must(
                    " and ".join(given),
                    "be left out unless the method is lora",
                    f"the method {self.method}",
                    "Leave them out, or choose lora",
                )
            )
        self._check_size()

    @property
    def size(self) -> int | None:
        """As :attr:`RunSpec.size`."""
        return getattr(self, SIZE_FIELD[self.method]) if self.method in SIZE_FIELD else None

    @property
    def label(self) -> str:
        """As messages name it: ``lora r=8 q,v``, ``adapter_h 16``."""
        return f"{self.method} r={self.r} {self.targets}" if self.r else f"{self.method} {self.size or ''}".strip()

    @property
    def rate(self) -> float:
        """``lr``, or the tuned one of the method and size.

        Raises
        ------
        UsageError
            If no study tuned the method.
        """
        return self.lr if self.lr is not None else default_lr(self.method, self.r or self.size, self.targets)

    def _check_size(self) -> None:
        """Exactly the size that the method has must be given."""
        needed = SIZE_FIELD.get(self.method)
        if extra := [name for name in SIZES if name != needed and getattr(self, name) is not None]:
            owners = ", ".join(method for method, name in SIZE_FIELD.items() if name in extra)
            rule, got = f"be given for {owners} only", f"the method {self.method}"
            raise UsageError(must(" and ".join(extra), rule, got, "Leave it out, or choose another method"))
        size = None if needed is None else getattr(self, needed)
        if needed is not None and (size is None or size < 1):
            raise UsageError(must(f"{needed} of {self.method}", "be at least 1", size,
                                  f"Pass {_EXAMPLE_SIZE[needed]}, say"))  # fmt: skip


def alpha_of(rule: float | str, r: int) -> float:
    """LoRA's alpha by a number, or by a multiple of r.

    >>> alpha_of(16, 4), alpha_of("2r", 4), alpha_of("r", 4), alpha_of("0.5r", 4)
    (16.0, 8.0, 4.0, 2.0)

    Raises
    ------
    UsageError
        If it is neither, or not above 0 and finite.
    """
    text = str(rule).strip()
    factor = text.removesuffix("r")
    try:
        alpha = float(r) if text == "r" else float(factor) * (r if factor != text else 1)
    except ValueError:
        alpha = math.nan
    if not 0 < alpha < math.inf:
        got = rule if text else "an empty text"
        raise UsageError(must("alpha", "be above 0 and finite, or a multiple of r such as 2r", got, "Pass 16 or 2r"))
    return alpha


def check_rates(name: str, rates: tuple[float, ...]) -> None:
    """Refuse rates, or factors of one, that are not above 0 and finite, or come twice.

    Raises
    ------
    UsageError
    """
    if bad := [rate for rate in rates if isinstance(rate, bool) or not 0 < rate < math.inf]:
        raise UsageError(must(name, "hold numbers above 0", bad[0], "Pass 0.5, 1 and 2, say"))
    if len(set(rates)) < len(rates):
        raise UsageError(must(name, "hold each number once", ", ".join(f"{r:g}" for r in rates), "Leave one out"))
