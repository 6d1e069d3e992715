"""What a model's weight files do not hold, from their headers: the parameters that loading has to draw from a seed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from torch import nn

from rankprobe.weights.model_files import weight_files, weights_entry
from rankprobe.weights.tensors import open_tensors


def may_be_new(name: str) -> bool:
    """Whether a parameter inside a model's body may be missing from its weights: a pooler, nothing else."""
    return "pooler" in name


def stored_names(folder: Path) -> frozenset[str] | None:
    """Names of the tensors in a model's folder, tied ones too; None where it holds a configuration alone.

    Raises
    ------
    UsageError
        If a weight file is missing or damaged.
    """
    if weights_entry(folder) is None:
        return None
    tensors = open_tensors(weight_files(folder))
    return frozenset((*tensors.stored, *tensors.aliases))


def lacking(model: nn.Module, stored: Collection[str] | None) -> set[str]:
    """Parameters inside a model that weights called ``stored`` leave out; those of the head outside are not named.

    Parameters
    ----------
    model : PreTrainedModel
        With or without storage.
    stored : collection of str, or None
        From :func:`stored_names`; None for weights that are not at hand, which are taken to be whole.

    Returns
    -------
    set of str

    Notes
    -----
    Weights may leave out a pooler (a BERT that was trained as a masked language model has none) and a language model's
    output layer, and nothing else: :func:`rankprobe.weights.pretrained.load_classifier` refuses the rest.
    """
    if stored is None:
        return set()
    names = [name for name, _ in model.named_parameters()]
    output = model.get_output_embeddings()
    if output is None:
        inside = {name for name in names if name.startswith(f"{model.base_model_prefix}.") and may_be_new(name)}
        return set() if any(map(may_be_new, stored)) else inside
    own = {id(p) for p in output.parameters()} - {id(p) for p in model.get_input_embeddings().parameters()}
    layer = {name for name, p in model.named_parameters() if id(p) in own}
    return {name for name in layer if not any(f".{other}".endswith(f".{name}") for other in stored)}
