"""Trainable parameters of every method, from an architecture alone: on the meta device, no weight is made or read.

The methods' own code is applied to the model's shapes, and what then requires a gradient is counted. Which parameters
are the head's depends on the weights too: a pooler that they lack is drawn anew and trained with it. Where their names
are not given, weights are taken to be whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch.overrides import TorchFunctionMode

from rankprobe.errors import UsageError, must
from rankprobe.experiment.spec import SIZE_FIELD
from rankprobe.methods.apply import apply_method
from rankprobe.methods.bottleneck import is_norm
from rankprobe.methods.head import head_parameters
from rankprobe.weights.lacking import lacking
from rankprobe.weights.model_files import one_line
from rankprobe.weights.rank_pattern import RankPattern
from rankprobe.weights.targets import canonical_targets

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from transformers import PretrainedConfig

# Of the methods that have a size, where none is asked for.
DEFAULT_SIZES = {"bottleneck": (16,), "prefix_length": (16,), "layers": (2,), "d": (1000,)}


@dataclass(frozen=True)
class Setting:
    """A method with its size.

    Attributes
    ----------
    method : str
        One of :data:`rankprobe.experiment.spec.METHODS`.
    targets, r : str, int; None unless the method is lora
    size : int or None
        Bottleneck, prefix length, layers or d: :data:`rankprobe.experiment.spec.SIZE_FIELD` says which.
    rank_pattern : RankPattern or None
        LoRA's r by matrix, where they differ.
    """

    method: str
    targets: str | None = None
    r: int | None = None
    size: int | None = None
    rank_pattern: RankPattern | None = None


@dataclass(frozen=True)
class Counts:
    """Parameters of a model with a method on it.

    Attributes
    ----------
    method : int
        Trained besides the head.
    norms : int
        Those of them that belong to layer norms.
    head : int
        Of the task's head.
    total : int
        Of the base with its head, without what the method added.
    """

    method: int
    norms: int
    head: int
    total: int


def meta_model(config: PretrainedConfig, problem: str = "classification", num_labels: int = 2) -> torch.nn.Module:
    """A model with the task's head on the meta device: shapes without storage.

    Parameters
    ----------
    problem : str
        ``language_modelling``; anything else is a sequence classifier.
    num_labels : int
        Of a classifier.

    Raises
    ------
    UsageError
        If the architecture has no such head, or the config's sizes make no model.
    """
    import transformers

    if problem == "language_modelling":
        kind, what = transformers.AutoModelForCausalLM, "a language-model head"
        classes = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    else:
        kind, what = transformers.AutoModelForSequenceClassification, "a sequence-classification head"
        classes = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        config.num_labels = num_labels
    if type(config) not in classes:
        raise UsageError(must("model", f"have {what}", config.model_type, "Pass another --model"))
    try:
        with torch.device("meta"), _NoInitialValues():
            return kind.from_config(config)
    except (ValueError, KeyError, TypeError, RuntimeError, AssertionError, AttributeError) as error:
        rule = f"make a {config.model_type} with its sizes"
        raise UsageError(must("config.json", rule, one_line(error), "Correct it, or pass another --model")) from error


class _NoInitialValues(TorchFunctionMode):
    """Skips ``torch.nn.init``: without storage there is nothing to fill, and of 96 blocks that takes long."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def meta_classifier(config: PretrainedConfig, num_labels: int = 2) -> torch.nn.Module:
    """:func:`meta_model` of a sequence classifier."""
    return meta_model(config, "classification", num_labels)


def meta_language_model(config: PretrainedConfig) -> torch.nn.Module:
    """:func:`meta_model` of a causal language model; its tied embedding is one parameter."""
    return meta_model(config, "language_modelling")


def count(
    config: PretrainedConfig,
    setting: Setting,
    *,
    problem: str = "classification",
    num_labels: int = 2,
    stored: Collection[str] | None = None,
) -> Counts:
    """Put a method on a model's shapes and count what requires a gradient.

    Parameters
    ----------
    config : PretrainedConfig
    setting : Setting
    problem, num_labels
        As in :func:`meta_model`.
    stored : collection of str, optional
        Names of the tensors that the weights hold, from :func:`rankprobe.weights.lacking.stored_names`.

    Raises
    ------
    UsageError
        If the method does not fit the model, or its size is out of range.
    """
    model = meta_model(config, problem, num_labels)
    head = head_parameters(model, lacking(model, stored))
    total = sum(p.numel() for p in model.parameters())
    in_head = sum(p.numel() for name, p in model.named_parameters() if name in head)
    # alpha scales and counts nothing.
    trainee = apply_method(
        model, head, setting.method, r=setting.r, alpha=1.0, targets=setting.targets, size=setting.size,
        rank_pattern=setting.rank_pattern,
    ).trainee  # fmt: skip
    # The head's own parameters, by identity: what wraps the model may name them otherwise.
    heads = {id(p) for name, p in model.named_parameters() if name in head}
    trained = sum(p.numel() for p in trainee.parameters() if p.requires_grad and id(p) not in heads)
    norms = {
        id(p): p.numel()
        for module in trainee.modules()
        if is_norm(module)
        for p in module.parameters(recurse=False)
        if p.requires_grad and id(p) not in heads
    }
    return Counts(trained, sum(norms.values()), in_head, total)


def parameter_table(
    config: PretrainedConfig,
    *,
    num_labels: int = 2,
    targets: Sequence[str] = ("q,v",),
    rs: Sequence[int] = (8,),
    methods: Sequence[str] = ("full", "head", "lora"),
    sizes: Mapping[str, Sequence[int]] | None = None,
    problem: str = "classification",
    optional: Collection[str] = (),
    stored: Collection[str] | None = None,
) -> pd.DataFrame:
    """Counts of methods, for every choice of their sizes.

    Parameters
    ----------
    config : PretrainedConfig
    num_labels, problem
        As in :func:`meta_model`.
    targets, rs : sequence of str and int
        LoRA's; every pair is a row.
    methods : sequence of str
        Any of :data:`rankprobe.experiment.spec.METHODS`.
    sizes : mapping of str to sequence of int
        By the names of :data:`rankprobe.experiment.spec.SIZE_FIELD`: ``{"bottleneck": [16, 64]}``. What is left out is
        as in :data:`DEFAULT_SIZES`.
    optional : collection of str
        Methods whose rows are left out where they do not fit the model; the reasons are in ``attrs["left_out"]``, a
        list of str.
    stored : collection of str, optional
        As in :func:`count`.

    Returns
    -------
    DataFrame
        Columns method, targets, r, method_params, head_params, trainable_params, total_params, trainable_pct (of the
        total), method_pct (without the head on either side), size (bottleneck, prefix length, layers or d).

    Raises
    ------
    UsageError
        If a method that is not optional does not fit the model, or its size is out of range.
    """
    sizes = {**DEFAULT_SIZES, **(sizes or {})}
    settings = []
    for method in methods:
        if method == "lora":
            settings += [Setting(method, canonical_targets(t), r) for t in targets for r in rs]
        elif method in SIZE_FIELD:
            settings += [Setting(method, size=size) for size in sizes[SIZE_FIELD[method]]]
        else:
            settings.append(Setting(method))
    rows, left_out = [], []
    for setting in dict.fromkeys(settings):
        try:
            counted = count(config, setting, problem=problem, num_labels=num_labels, stored=stored)
        except UsageError as error:
            if setting.method not in optional:
                raise
            left_out.append(f"{setting.method}: {error}")
            continue
        trained = counted.method + counted.head
        rows.append(
            {
                "method": setting.method,
                "targets": setting.targets,
                "r": setting.r,
                "method_params": counted.method,
                "head_params": counted.head,
                "trainable_params": trained,
                "total_params": counted.total,
                "trainable_pct": 100 * trained / counted.total,
                "method_pct": 100 * counted.method / (counted.total - counted.head),
                "size": setting.size,
            }
        )
    columns = [
        "method", "targets", "r", "method_params", "head_params", "trainable_params", "total_params", "trainable_pct",
        "method_pct", "size",
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    for column in ("r", "size"):
        table[column] = table[column].astype("Int64")
    table.attrs["left_out"] = list(dict.fromkeys(left_out))
    return table
