"""A study: what to compare, as data. Frozen dataclasses → one resolved spec a run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

from rankprobe.errors import UsageError, must
from rankprobe.experiment.configuration import Configuration, check_rates
from rankprobe.experiment.spec import SIZES, RunSpec

# What torch's generators take, with room for the seeds of repeats and epochs.
MAX_SEED = 2**32 - 1
# It becomes part of a folder's name.
_STUDY_NAME = re.compile(r"[^./\\\s][^/\\\x00-\x1f]*")


@dataclass(frozen=True)
class Study:
    """Configurations compared on one model and one task, with everything else equal.

    ``tune`` holds factors of each configuration's rate: the grid that its own rate is chosen from, by the lowest loss
    on the ``tuning`` rows (``tuning_size`` of them, 0 for all), with the same budget for each. Empty tunes nothing.
    ``margin`` is what an r may differ by from full fine-tuning to be as good: 0.02 for two points. ``patience`` ends a
    run after so many epochs without a lower loss on the same tuning rows, and keeps its best epoch; 0 ends none early.
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
    patience: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("max_length", 8),
            ("train_size", 0),
            ("eval_size", 0),
            ("tuning_size", 0),
            ("seed", 0),
            ("patience", 0),
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
                rule = "be listed once where rates are tuned, so that all have the same budget"
                next_step = "Give it one lr with tune, or all its rates as lr_grid"
                raise UsageError(must(f"A configuration ({c.label})", rule, "it with several rates", next_step))

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
                            patience=self.patience or None,
                            tuning_size=self.tuning_size if self.patience and self.split == "eval" else None,
                        )
                    )
        return list(dict.fromkeys(specs))


def parse_configuration(text: str) -> tuple[str, int | None]:
    """``full`` or ``lora-r8`` as (method, r).

    >>> parse_configuration("lora-r8")
    ('lora', 8)
    """
    method, _, r = text.partition("-r")
    if (method == "lora") != r.isdecimal() or method not in ("full", "lora"):
        raise UsageError(must("truncate", "name full or lora-rN", repr(text), "Write full or lora-r8, say"))
    return method, int(r) if r else None
