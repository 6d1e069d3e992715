"""The config to paste: what peft needs to train at the r that a sweep's answer names."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from rankprobe.report.comparison import lora_groups, nothing_to_lose
from rankprobe.report.rank_answer import RankAnswer
from rankprobe.report.stats import Estimate
from rankprobe.weights.targets import parse_targets

# A layer's last name that no matrix of another kind has, so that it alone names the kind. BERT's dense and GPT-2's
# c_proj are in attention and in the feed-forward part: where a target has such a name, modules are named one by one.
_OWN_NAMES = {
    "query", "key", "value", "query_proj", "key_proj", "value_proj", "q_proj", "k_proj", "v_proj", "o_proj",
    "q_lin", "k_lin", "v_lin", "c_attn", "c_fc", "up_proj", "down_proj", "gate_proj",
}  # fmt: skip


def lora_config(run: dict) -> dict:
    """What ``peft.LoraConfig(**config)`` takes to train as a run did.

    Parameters
    ----------
    run : dict
        run.json content of a finished LoRA run with one r, with ``path``; ranks.csv lies beside it.

    Returns
    -------
    dict
        With the modules of the head, which the run trained too; of an older record that does not name them, and whose
        adapter is not at hand, without: peft then trains a classifier's last part by itself, by its task type.

    Notes
    -----
    PEFT adapts a fused matrix (GPT-2's ``c_attn``) whole. It then has the r of the run's parts together, q's and v's,
    at the same scaling: the least with which it holds what the run trained.
    """
    spec = run["spec"]
    parts = _parts(run)
    modules = list(parts)
    last = list(dict.fromkeys(module.rpartition(".")[2] for module in modules))
    by_kind = parse_targets(spec["targets"]) is not None and set(last) <= _OWN_NAMES
    usual, head = Counter(parts.values()).most_common(1)[0][0], _head_modules(run)
    others = {re.escape(module): count for module, count in parts.items() if count != usual}
    patterns = {
        "rank_pattern": {module: spec["r"] * count for module, count in others.items()},
        "alpha_pattern": {module: _alpha(spec, count) for module, count in others.items()},
    }
    config = {
        "r": spec["r"] * usual,
        "lora_alpha": _alpha(spec, usual),
        "target_modules": last if by_kind else modules,
        "lora_dropout": spec["dropout"],
        "use_rslora": spec["rslora"],
        "task_type": "SEQ_CLS" if run["task"]["labels"] or "perplexity" not in run["task"]["metrics"] else "CAUSAL_LM",
    }
    return config | (patterns if others else {}) | ({"modules_to_save": head} if head else {})


def fused_note(run: dict) -> str:
    """What is to be said where PEFT cannot adapt just the parts of a fused matrix that a run did; else nothing.

    Parameters
    ----------
    run : dict
        As for :func:`lora_config`.
    """
    targets = run["spec"]["targets"]
    fused = [name for name in _names(run) if "[" in name and parse_targets(targets) is not None]
    if not fused:
        return ""
    module = fused[0].partition("[")[0].removesuffix(".weight").rpartition(".")[2]
    return (f"PEFT adapts {module}, which holds more than one of q, k and v, or of gate and up, as one matrix: its r "
            f"is that of {targets} in it together, and it trains more parameters than the runs above did.")


def _parts(run: dict) -> dict[str, int]:
    """How many pairs of factors of the run's r each adapted module has: of a fused one, one for each part."""
    counts = Counter(name.partition("[")[0].removesuffix(".weight") for name in _names(run))
    # A regular expression takes a fused matrix whole: one pair, whose update is measured in parts.
    return dict(counts) if parse_targets(run["spec"]["targets"]) is not None else dict.fromkeys(counts, 1)


def _names(run: dict) -> list[str]:
    return pd.read_csv(Path(run["path"]) / "ranks.csv")["name"].tolist()


def _alpha(spec: dict, parts: int) -> float | int:
    """The alpha that leaves the scaling, alpha / r or alpha / sqrt(r), as it was with ``parts`` times the r."""
    alpha = spec["alpha"] * (math.sqrt(parts) if spec["rslora"] else parts)
    return int(alpha) if alpha == int(alpha) else alpha


def _head_modules(run: dict) -> list[str]:
    if "head_modules" in run:
        return run["head_modules"]
    try:
        saved = json.loads((Path(run["path"]) / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    except OSError:
        return []
    return saved.get("modules_to_save") or []


class AnsweredConfig(NamedTuple):
    """A config for peft, the peak learning rate to train it at, and what is to be known of it, mostly nothing."""

    config: dict
    lr: float
    note: str


def answered_config(
    runs: list[dict], targets: str, answer: RankAnswer, gain: Estimate | None
) -> AnsweredConfig | None:
    """The config of the r that an answer names; None where it names none.

    None too where a trained head would have been as good: then no r is shown to do anything.

    Parameters
    ----------
    runs : list of dict
        Of one comparison.
    targets : str
    answer : RankAnswer
    gain : Estimate or None
        Of full fine-tuning over a trained head: :attr:`rankprobe.report.findings.Findings.gain`.
    """
    if answer.r is None or nothing_to_lose(gain, answer.asked.margin):
        return None
    run = lora_groups(runs, targets)[answer.r][0]
    if not (Path(run["path"]) / "ranks.csv").is_file():
        return None
    return AnsweredConfig(lora_config(run), run["spec"]["lr"], fused_note(run))


def as_python(config: dict) -> str:
    """The config as a line of Python.

    >>> as_python({"r": 8, "target_modules": ["query"], "use_rslora": False})
    'LoraConfig(r=8, target_modules=["query"], use_rslora=False)'
    """
    values = {key: repr(v) if isinstance(v, bool) else json.dumps(v) for key, v in config.items()}
    return f"LoraConfig({', '.join(f'{key}={value}' for key, value in values.items())})"
