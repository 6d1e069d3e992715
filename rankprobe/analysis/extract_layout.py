"""What of a fine-tuning an adapter can hold, and as what: factors, whole modules, biases, or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field

from rankprobe.weights.pairing import Matrix
from rankprobe.weights.skeleton import Skeleton

EMBEDDINGS = ("lora", "whole", "drop")
# Path components of what a task puts on top: few outputs, trained from nothing, no matter of rank.
_HEADS = frozenset(("classifier", "pre_classifier", "score", "qa_outputs", "classification_head", "logits_proj",
                    "sequence_summary", "multiple_choice_head"))  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A matrix that gets factors.

    Attributes
    ----------
    matrix : Matrix
    module : str
        Path of its module in the model.
    kind : str
        ``linear``, ``conv1d`` or ``embedding``.
    copies : tuple of (str, str)
        Modules whose weight is tied to it, each with its kind: they need the same factors, since PEFT's stand beside a
        module and not in the shared weight.
    """

    matrix: Matrix
    module: str
    kind: str
    copies: tuple[tuple[str, str], ...] = ()

    @property
    def cost(self) -> int:
        """Parameters of one direction."""
        return sum(self.matrix.shape) * (1 + len(self.copies))


@dataclass(frozen=True)
class Whole:
    """A module that is carried with all of its tensors (``modules_to_save``).

    Attributes
    ----------
    tensors : dict of str to str
        Names in the adapter to names in TUNED's files.
    why : str
    change : float
        ||dW|| over its tensors; NaN where the base has none.
    """

    tensors: dict[str, str]
    why: str
    change: float


@dataclass(frozen=True)
class Bias:
    """A bias that changed: ``name`` in the model, ``stored`` and ``base`` in TUNED's and BASE's files.

    ``module`` is empty where it belongs to no linear layer; ``base`` is empty, and the change NaN, where the base has
    none.
    """

    name: str
    module: str
    stored: str
    base: str
    shape: tuple[int, ...]
    change: float


@dataclass(frozen=True)
class Lost:
    """A change that is not carried; its norm is NaN where it was not measured."""

    name: str
    why: str
    change: float


@dataclass
class Layout:
    """What goes where. ``stored`` and ``tied`` have TUNED's names and ties by the model's own names."""

    skeleton: Skeleton
    task: str | None
    stored: dict[str, str] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    whole: dict[str, Whole] = field(default_factory=dict)
    biases: list[Bias] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def head_of(name: str) -> str | None:
    """Path of the task head that a parameter belongs to, the outermost one; None for all else.

    >>> head_of("classifier.dense.weight"), head_of("bert.pooler.dense.weight")
    ('classifier', None)
    """
    words = name.split(".")[:-1]
    for i, word in enumerate(words):
        if word in _HEADS:
            return ".".join(words[: i + 1])
    return None


def tensors_of(
    module: str, skeleton: Skeleton, stored: dict[str, str], tied: dict[str, str]
) -> dict[str, str] | None:
    """A module's tensors: names in the adapter to stored names. None where one is not among the stored ones.

    PEFT asks for the whole state dict of a module that it saves, and fails on a gap.
    """
    part = skeleton.parts.get(module)
    if part is None:
        return None
    names = [f"{module}.{name}" for name in part.tensors] or [n for n in stored if n.startswith(f"{module}.")]
    if not names:
        names = [alias for alias in tied if alias.startswith(f"{module}.")]
    found = {name: stored.get(name) or stored.get(tied.get(name, "")) for name in names}
    return None if not found or None in found.values() else found
