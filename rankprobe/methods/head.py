"""Head only: the encoder stays frozen, the classification head is trained. Also what "the head" is for every method."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def head_parameters(model: nn.Module, newly_initialised: Iterable[str] = ()) -> set[str]:
    """Names of the parameters that every method trains: the task's own, which no pretrained weight exists for.

    That is all that lies outside transformers' ``base_model`` (``classifier``, ``score``, ``pre_classifier``, DeBERTa's
    ``pooler``), plus whatever inside it the checkpoint did not hold (a BERT pooler, say).

    Parameters
    ----------
    model : PreTrainedModel
        A sequence-classification model, or a causal language model, of whose own parameters only what its
        checkpoint lacked is the task's.
    newly_initialised : iterable of str
        Parameters that the checkpoint lacked.
    """
    if model.get_output_embeddings() is not None:
        return {name for name, _ in model.named_parameters()} & set(newly_initialised)
    prefix = model.base_model_prefix + "."
    new = set(newly_initialised)
    return {name for name, _ in model.named_parameters() if not name.startswith(prefix) or name in new}


def head_modules(model: nn.Module, head: Iterable[str]) -> list[str]:
    """The modules that hold the head, as PEFT's ``modules_to_save`` names them: outermost, each once."""
    prefix = model.base_model_prefix + "."
    return sorted({n.rsplit(".", 1)[0] if n.startswith(prefix) else n.split(".")[0] for n in head})


def freeze_all_but(model: nn.Module, trainable: set[str]) -> None:
    """Let exactly the named parameters require a gradient."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
