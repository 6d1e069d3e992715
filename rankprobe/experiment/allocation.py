"""Ranks for a budget from a measured sensitivity: tables, the pattern to train with, and PEFT's config of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rankprobe.analysis.allocate import additive_increase, allocate, allocation_table, gains_of
from rankprobe.analysis.choose_ranks import share_budget
from rankprobe.experiment.cut_model import CutModel
from rankprobe.experiment.sensitivity import Rows, Work, pattern_losses
from rankprobe.experiment.store import write_atomic, write_table
from rankprobe.methods.head import head_modules
from rankprobe.weights.architecture import BLOCK_KINDS, model_config, model_shapes
from rankprobe.weights.rank_pattern import site_path
from rankprobe.weights.source import DEFAULT_HUB_ID, DEFAULT_MODEL
from rankprobe.weights.targets import canonical_targets, target_sites
from rankprobe.weights.write_adapter import adapter_config, task_type

# PEFT reads a config from a folder by the second name alone.
CONFIG_FILES = ("lora_config.json", "adapter_config.json")
PATTERN_FILE, ENERGY_FILE = "rank_pattern.json", "rank_pattern_energy.json"


@dataclass(frozen=True)
class AllocatedRanks:
    """An allocation with all that is told of it.

    Attributes
    ----------
    table : DataFrame
        allocation.csv, a row a matrix.
    check : DataFrame
        check.csv: the loss with all updates cut at once to the allocation, to what energy alone would give, and to one
        r for all, beside what the additive model says.
    config : dict
        PEFT's LoraConfig.
    patterns : dict of str to (dict of str to int)
        r by path of every matrix among ``targets``, 0 for those that get none, by the pattern's file.
    targets : str
        For a study file or ``rankprobe finetune``.
    summary : dict
        allocation.json.
    """

    table: pd.DataFrame
    check: pd.DataFrame
    config: dict
    patterns: dict[str, dict[str, int]]
    targets: str
    summary: dict


def uniform_size(cut: CutModel, r: int, targets: str = "q,v") -> int:
    """Parameters of LoRA's factors with one r on some matrices of the model."""
    sites = target_sites(model_shapes(cut.model), targets, config=model_config(cut.model))
    return r * sum(sum(site.shape) for site in sites)


def allocate_ranks(cut: CutModel, work: Work, rows: Rows, sensitivity: pd.DataFrame, budget: int) -> AllocatedRanks:
    """Spend a budget by sensitivity and check it against energy and one r for all, with everything cut at once.

    Parameters
    ----------
    cut : CutModel
    work : Work
        Measured.
    rows : Rows
    sensitivity : DataFrame
        From :func:`rankprobe.experiment.sensitivity.measure`.
    budget : int
        Parameters of all factors.

    Raises
    ------
    UsageError
        If the budget holds no rank of any matrix.
    """
    costs = {update.site.name: sum(update.site.shape) for update in cut.updates}
    energies = {update.site.name: update.S.double().square().cpu().numpy() for update in cut.updates}
    found = allocate(gains_of(sensitivity), costs, budget, ties=energies)
    energy, _ = share_budget({update.site.name: update.S.double().cpu() for update in cut.updates}, costs, budget)
    uniform = budget // sum(costs.values())
    patterns = {"sensitivity": found.ranks, "energy": energy}
    if uniform:
        patterns["one r"] = dict.fromkeys(costs, uniform)
    patterns["nothing kept"] = dict.fromkeys(costs, 0)
    check = pattern_losses(cut, work, patterns)
    # A matrix has no more directions than its update: that of one r for all can be less than it would train.
    sizes = [sum(min(k, len(energies[name])) * costs[name] for name, k in ranks.items()) for ranks in patterns.values()]
    check.insert(1, "parameters", sizes)
    check["additive"] = [additive_increase(sensitivity, ranks) for ranks in patterns.values()]
    targets = _targets(cut)
    spec = cut.run.spec
    summary = {
        "run": cut.run.run_id,
        "model": cut.run.source.name,
        "task": cut.run.task.name,
        "rows": len(rows.examples),
        "rows_of": rows.origin,
        "rows_trained_on": rows.trained_on,
        "budget": budget,
        "parameters": found.parameters,
        "parameters_in_peft": peft_parameters(cut, found.ranks),
        "gain": found.gain,
        "slack": found.slack,
        "uniform_r": uniform,
        "targets": targets,
        "alpha_over_r": cut.scaling,
        "dtype": spec.dtype,
    }
    by_file = {PATTERN_FILE: _named(cut, targets, found.ranks), ENERGY_FILE: _named(cut, targets, energy)}
    return AllocatedRanks(allocation_table(sensitivity, found, energy, uniform), check, lora_config(cut, found.ranks),
                          by_file, targets, summary)  # fmt: skip


def lora_config(cut: CutModel, ranks: dict[str, int]) -> dict:
    """What ``peft.LoraConfig(**config)`` takes, to train with these ranks at one alpha / r.

    Parameters
    ----------
    cut : CutModel
    ranks : dict of str to int
        By site.

    Notes
    -----
    PEFT adapts a fused matrix (GPT-2's ``c_attn``) as one, which then has the ranks of its parts together.
    """
    spec, model, name = cut.run.spec, cut.model, cut.run.source.name
    config = adapter_config(
        _by_module(cut, ranks),
        [path for path, _ in model.named_modules()],
        task=task_type([type(model).__name__]),
        modules_to_save=head_modules(model, cut.head),
        fan_in_fan_out=any(update.site.transposed for update in cut.updates if ranks[update.site.name]),
        base_model=DEFAULT_HUB_ID if name == DEFAULT_MODEL else name,
    )
    return config | {
        "lora_alpha": _whole(cut.scaling * config["r"]),
        "alpha_pattern": {key: _whole(cut.scaling * r) for key, r in config["rank_pattern"].items()},
        "lora_dropout": spec.dropout,
        "use_rslora": spec.rslora,
        "inference_mode": False,
    }


def _by_module(cut: CutModel, ranks: dict[str, int]) -> dict[str, int]:
    by_module: dict[str, int] = {}
    for update in cut.updates:
        if r := ranks[update.site.name]:
            by_module[update.site.module] = by_module.get(update.site.module, 0) + r
    return by_module


def peft_parameters(cut: CutModel, ranks: dict[str, int]) -> int:
    """Parameters of the factors that PEFT trains by :func:`lora_config`: of fused matrices more than the budget's."""
    return sum(r * sum(cut.model.get_submodule(module).weight.shape) for module, r in _by_module(cut, ranks).items())


def write_allocation(out: Path, sensitivity: pd.DataFrame, found: AllocatedRanks) -> None:
    """Write all files of an allocation but its pictures."""
    write_table(out / "sensitivity.csv", sensitivity)
    write_table(out / "allocation.csv", found.table)
    write_table(out / "check.csv", found.check)
    for name in CONFIG_FILES:
        write_atomic(out / name, json.dumps(found.config, indent=2) + "\n")
    for name, pattern in found.patterns.items():
        write_atomic(out / name, json.dumps(pattern, indent=1) + "\n")
    write_atomic(out / "allocation.json", json.dumps(found.summary, indent=1) + "\n")


def _targets(cut: CutModel) -> str:
    """Targets that hold every update: short names, or modules by name where kinds have none."""
    kinds = {update.site.kind for update in cut.updates}
    if kinds <= set(BLOCK_KINDS):
        return canonical_targets(",".join(kind for kind in BLOCK_KINDS if kind in kinds))
    return "|".join(f"^{re.escape(update.site.module)}$" for update in cut.updates)


def _named(cut: CutModel, targets: str, ranks: dict[str, int]) -> dict[str, int]:
    """r by path; matrices among the targets that the run did not change are named too, with 0."""
    sites = target_sites(model_shapes(cut.model), targets, config=model_config(cut.model))
    return {site_path(site): ranks.get(site.name, 0) for site in sites}


def _whole(alpha: float) -> float | int:
    return int(alpha) if float(alpha).is_integer() else float(alpha)
