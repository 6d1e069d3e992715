"""A study: what to compare, as data. Frozen dataclasses → one resolved spec a run."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field, replace

from rankprobe.errors import UsageError, must
from rankprobe.experiment.learning_rates import default_lr
from rankprobe.experiment.spec import METHODS, SIZE_FIELD, SIZES, RunSpec
from rankprobe.weights.rank_pattern import RankPattern, canonical_pattern
from rankprobe.weights.targets import canonical_targets

_LORA_FIELDS = ("r", "alpha", "targets", "dropout", "rslora", "rank_pattern")
_EXAMPLE_SIZE = {"layers": 2, "bottleneck": 16, "prefix_length": 16, "d": 1000}
# What torch's generators take, with room for the seeds of repeats and epochs.
MAX_SEED = 2**32 - 1
# It becomes part of a folder's name.
_STUDY_NAME = re.compile(r"[^./\\\s][^/\\\x00-\x1f]*")


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


@dataclass(frozen=True)
class Study:
    """Configurations compared on one model and one task, with everything else equal.

    ``tune`` holds factors of each configuration's rate: the grid that its own rate is chosen from, by the lowest loss
    on the ``tuning`` rows (``tuning_size`` of them, 0 for all), with the same budget for each. Empty tunes nothing.
    ``margin`` is what an r may differ by from full fine-tuning to be as good: 0.02 for two points.
    """

    name: str
    configurations: tuple[Configuration, ...]
    question: str = ""
    model: str = "all-MiniLM-L6-v2"
    task: str = "docmatch"
    split: str = "eval"
    train_size: int = 0
    eval_size: int = 0
    epochs: int = 2
    batch_size: int = 32
    max_length: int = 128
    warmup_ratio: float = 0.06
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    model_dropout: float = 0.0
    seed: int = 0
    truncate: tuple[str, ...] = field(default=("full",))
    tune: tuple[float, ...] = ()
    tuning_size: int = 0
    margin: float = 0.02

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("max_length", 8),
            ("train_size", 0),
            ("eval_size", 0),
            ("tuning_size", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise UsageError(must(name, f"be at least {least}", getattr(self, name), f"Raise {name}"))
        for name in ("warmup_ratio", "model_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(must(name, "be in [0, 1)", getattr(self, name), "Pass 0.06, say"))
        for name in ("weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(must(name, "be 0 or more and finite", getattr(self, name), "Pass 0 for none of it"))
        if not 0 < self.margin < 1:
            raise UsageError(must("margin", "be between 0 and 1", self.margin, "Pass 0.02 for two points"))
        if self.seed > MAX_SEED:
            raise UsageError(must("seed", f"be at most {MAX_SEED}", self.seed, "Pass a smaller one"))
        if not _STUDY_NAME.fullmatch(self.name):
            raise UsageError(
                must(
                    "a study's name",
                    "have no slash and not begin with a dot",
                    repr(self.name),
                    "Choose another: a folder is named after it",
                )
            )
        if not self.configurations:
            raise UsageError(must("a study", "compare at least one configuration", "none", "Add [[configurations]]"))
        for text in self.truncate:
            parse_configuration(text)
        self._check_tuning()

    @property
    def tuned(self) -> bool:
        """Whether rates are chosen by this study itself."""
        return bool(self.tune) or any(c.lr_grid for c in self.configurations)

    def _check_tuning(self) -> None:
        """One budget for all: a method that may try more rates than another is compared at an advantage."""
        check_rates("tune", self.tune)
        if not self.tuned:
            return
        if self.split == "tuning":
            rule = "be eval where rates are tuned: they are chosen on the tuning rows"
            raise UsageError(must("split", rule, self.split, "Leave it out"))
        sizes = {len(c.lr_grid or self.tune) for c in self.configurations}
        if len(sizes) > 1:
            rule = "have as many rates for every configuration, so that all have the same budget"
            got = " and ".join(map(str, sorted(sizes)))
            raise UsageError(must("lr_grid", rule, got, "Give each as many, or tune = [0.5, 1, 2] for all"))
        grids: dict[Configuration, tuple] = {}
        for c in self.configurations:
            grid = c.lr, tuple(sorted(c.lr_grid))
            if grids.setdefault(replace(c, lr=None, lr_grid=(), seeds=1), grid) != grid:
                name = f"{c.method}{f' r = {c.r}' if c.r else ''}"
                rule = "be listed once where rates are tuned, so that all have the same budget"
                next_step = "Give it one lr with tune, or all its rates as lr_grid"
                raise UsageError(must(f"A configuration ({name})", rule, "it with several rates", next_step))

    def specs(self, *, dtype: str, device: str, threads: int) -> list[RunSpec]:
        """Every run, in the order in which results become useful: all configurations once, then their next seeds.

        Parameters
        ----------
        dtype, device : str
            Resolved, not ``auto``.
        threads : int
        """
        specs = []
        for repeat in range(max(c.seeds for c in self.configurations)):
            for c in self.configurations:
                if repeat < c.seeds:
                    specs.append(
                        RunSpec(
                            self.model,
                            self.task,
                            self.split,
                            c.method,
                            c.r,
                            c.alpha,
                            c.targets,
                            c.dropout,
                            c.rslora,
                            self.model_dropout,
                            c.rate,
                            self.epochs,
                            self.batch_size,
                            self.warmup_ratio,
                            self.weight_decay,
                            self.clip_norm,
                            self.train_size,
                            self.eval_size,
                            self.max_length,
                            self.seed + repeat,
                            dtype,
                            device,
                            threads,
                            **{name: getattr(c, name) for name in (*SIZES, "rank_pattern")},
                        )
                    )
        return list(dict.fromkeys(specs))


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


def parse_configuration(text: str) -> tuple[str, int | None]:
    """``full`` or ``lora-r8`` as (method, r).

    >>> parse_configuration("lora-r8")
    ('lora', 8)
    """
    method, _, r = text.partition("-r")
    if (method == "lora") != r.isdecimal() or method not in ("full", "lora"):
        raise UsageError(must("truncate", "name full or lora-rN", repr(text), "Write full or lora-r8, say"))
    return method, int(r) if r else None


def nearest(word: str, words) -> str:
    """A next step that names the nearest valid word.

    >>> nearest("loar", ("full", "lora"))
    "Did you mean 'lora'?"
    """
    names = {name.lower(): name for name in words}
    found = difflib.get_close_matches(str(word).lower(), names, n=1, cutoff=0.4)
    return f"Did you mean {names[found[0]]!r}?" if found else "Pass one of those"
