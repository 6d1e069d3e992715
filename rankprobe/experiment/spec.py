"""One run as data: everything that decides its result besides the data's and the model's content."""

from __future__ import annotations

from dataclasses import dataclass

from rankprobe.weights.rank_pattern import RankPattern, pattern_tag

METHODS = (
    "full", "head", "lora", "bitfit", "top_layers", "adapter_h", "adapter_l", "prompt", "prefix", "did", "said",
)  # fmt: skip
# What the size of a method is; those that are not here have none (LoRA's is r).
SIZE_FIELD = {
    "top_layers": "layers",
    "adapter_h": "bottleneck",
    "adapter_l": "bottleneck",
    "prompt": "prefix_length",
    "prefix": "prefix_length",
    "did": "d",
    "said": "d",
}
SIZES = tuple(dict.fromkeys(SIZE_FIELD.values()))


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run's result besides the data's and the model's content. Nothing in it is a path.

    Attributes
    ----------
    model, task : str
        Names, for people; what identifies them is their sha256.
    split : str
        ``eval`` or ``tuning``.
    method : str
        One of :data:`METHODS`.
    r, alpha, targets : int, float, str; None unless the method is lora
    dropout : float
        On LoRA's input.
    rslora : bool
    model_dropout : float
        Every dropout inside the model, all methods alike.
    lr, epochs, batch_size, warmup_ratio, weight_decay, clip_norm : see :func:`rankprobe.training.train.train`
    train_size, eval_size : int
        Rows used; 0 for all.
    max_length : int
        Tokens.
    seed : int
        Of the head's and A's initial values, the batches' order and dropout.
    dtype, device : str
    threads : int
        CPU threads: sums are ordered by them.
    bottleneck, prefix_length, layers, d : int or None
        The size of the other methods, as :data:`SIZE_FIELD` says which has which.
    rank_pattern : RankPattern or None
        r by matrix, where LoRA's differ; ``r`` is then that of the matrices that no key names, and what the learning
        rate is chosen for. ``alpha / r`` is the same for all.
    patience : int or None
        Epochs in a row without a lower loss on tuning rows that end the training; None trains all epochs.
    tuning_size : int or None
        How many tuning rows that is measured on, 0 for all; None where it is not, or where they are the evaluation rows
        (``split`` ``tuning``).
    """

    model: str
    task: str
    split: str
    method: str
    r: int | None
    alpha: float | None
    targets: str | None
    dropout: float
    rslora: bool
    model_dropout: float
    lr: float
    epochs: int
    batch_size: int
    warmup_ratio: float
    weight_decay: float
    clip_norm: float
    train_size: int
    eval_size: int
    max_length: int
    seed: int
    dtype: str
    device: str
    threads: int
    bottleneck: int | None = None
    prefix_length: int | None = None
    layers: int | None = None
    d: int | None = None
    rank_pattern: RankPattern | None = None
    patience: int | None = None
    tuning_size: int | None = None

    @property
    def size(self) -> int | None:
        """The method's size, whatever it is called there; None for LoRA, whose size is r, and where there is none."""
        return getattr(self, SIZE_FIELD[self.method]) if self.method in SIZE_FIELD else None

    @property
    def what(self) -> str:
        """Short name of what is trained, whatever its seed: ``LoRA r=8 q,v``, ``adapter_h bottleneck=16``."""
        by_matrix = " by matrix" if self.rank_pattern else ""
        lora = f"LoRA r={self.r}{by_matrix} {self.targets}"
        what = {"head": "head only", "lora": lora}.get(self.method, self.method)
        return what if self.size is None else f"{what} {SIZE_FIELD[self.method]}={self.size}"

    @property
    def label(self) -> str:
        """Short name for progress lines: ``LoRA r=8 q,v seed 0``."""
        return f"{self.what} seed {self.seed}"

    @property
    def configuration(self) -> str:
        """What all seeds of a configuration share, for people: ``docmatch: LoRA r=8 q,v, lr 0.002``.

        What is as usual is not said: alpha where it is 2 r, no dropout, no rsLoRA.
        """
        rows = " (tuning rows)" if self.split == "tuning" else ""
        parts = [self.what, f"lr {self.lr:g}"]
        if self.rank_pattern:
            parts.append(f"pattern {pattern_tag(self.rank_pattern)}")
        if self.r and self.alpha != 2 * self.r:
            parts.append(f"alpha {self.alpha:g}")
        parts += [f"dropout {self.dropout:g}"] * bool(self.dropout) + ["rsLoRA"] * self.rslora
        return f"{self.task}{rows}: {', '.join(parts)}"


def training_settings(spec: RunSpec) -> dict:
    """What training takes from a spec, but for the rate, the seed and how long it goes on."""
    names = ("batch_size", "warmup_ratio", "weight_decay", "clip_norm", "dtype")
    return {name: getattr(spec, name) for name in names}
