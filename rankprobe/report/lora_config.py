"""The config to paste: what peft needs to train at the r that a sweep's answer names."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from rankprobe.report.comparison import lora_groups
from rankprobe.report.rank_answer import RankAnswer
from rankprobe.weights.architecture import parse_targets

# In these a layer's last name is shared by matrices of other kinds: BERT's attention.output.dense and output.dense.
_SHARED_NAMES = ("dense", "lin1", "lin2")


def lora_config(run: dict) -> dict:
    """What ``peft.LoraConfig(**config)`` takes to train as a run did.

    Parameters
    ----------
    run : dict
        run.json content of a finished LoRA run with one r, with ``path``; ranks.csv lies beside it.

    Returns
    -------
    dict
        peft saves a classifier's head by itself, by its task type.

    Notes
    -----
    PEFT adapts a fused matrix (GPT-2's ``c_attn``) whole, where the run may have adapted its q and v alone.
    """
    spec = run["spec"]
    names = pd.read_csv(Path(run["path"]) / "ranks.csv")["name"]
    modules = list(dict.fromkeys(name.partition("[")[0].removesuffix(".weight") for name in names))
    last = list(dict.fromkeys(module.rpartition(".")[2] for module in modules))
    by_kind = parse_targets(spec["targets"]) is not None and not any(name in _SHARED_NAMES for name in last)
    alpha = spec["alpha"]
    return {
        "r": spec["r"],
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "target_modules": last if by_kind else modules,
        "lora_dropout": spec["dropout"],
        "use_rslora": spec["rslora"],
        "task_type": "SEQ_CLS" if run["task"]["labels"] or "perplexity" not in run["task"]["metrics"] else "CAUSAL_LM",
    }


def answered_config(runs: list[dict], targets: str, answer: RankAnswer) -> tuple[dict, float] | None:
    """The config and peak learning rate of the r that an answer names; None where it names none.

    Parameters
    ----------
    runs : list of dict
        Of one comparison.
    targets : str
    answer : RankAnswer
    """
    if answer.r is None:
        return None
    run = lora_groups(runs, targets)[answer.r][0]
    if not (Path(run["path"]) / "ranks.csv").is_file():
        return None
    return lora_config(run), run["spec"]["lr"]


def as_python(config: dict) -> str:
    """The config as a line of Python.

    >>> as_python({"r": 8, "target_modules": ["query"], "use_rslora": False})
    'LoraConfig(r=8, target_modules=["query"], use_rslora=False)'
    """
    values = {key: repr(v) if isinstance(v, bool) else json.dumps(v) for key, v in config.items()}
    return f"LoraConfig({', '.join(f'{key}={value}' for key, value in values.items())})"
