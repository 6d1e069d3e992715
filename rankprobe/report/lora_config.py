"""The config to paste: what peft needs to train at the r that a sweep's answer names."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from rankprobe.report.comparison import lora_groups, nothing_to_lose
from rankprobe.report.rank_answer import RankAnswer
from rankprobe.weights.architecture import parse_targets

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
    PEFT adapts a fused matrix (GPT-2's ``c_attn``) whole, where the run may have adapted its q and v alone.
    """
    spec = run["spec"]
    names = pd.read_csv(Path(run["path"]) / "ranks.csv")["name"]
    modules = list(dict.fromkeys(name.partition("[")[0].removesuffix(".weight") for name in names))
    last = list(dict.fromkeys(module.rpartition(".")[2] for module in modules))
    by_kind = parse_targets(spec["targets"]) is not None and set(last) <= _OWN_NAMES
    alpha, head = spec["alpha"], _head_modules(run)
    config = {
        "r": spec["r"],
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "target_modules": last if by_kind else modules,
        "lora_dropout": spec["dropout"],
        "use_rslora": spec["rslora"],
        "task_type": "SEQ_CLS" if run["task"]["labels"] or "perplexity" not in run["task"]["metrics"] else "CAUSAL_LM",
    }
    return config | ({"modules_to_save": head} if head else {})


def _head_modules(run: dict) -> list[str]:
    if "head_modules" in run:
        return run["head_modules"]
    try:
        saved = json.loads((Path(run["path"]) / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    except OSError:
        return []
    return saved.get("modules_to_save") or []


def answered_config(runs: list[dict], targets: str, answer: RankAnswer) -> tuple[dict, float] | None:
    """The config and peak learning rate of the r that an answer names; None where it names none.

    None too where a trained head would have been as good: then no r is shown to do anything.

    Parameters
    ----------
    runs : list of dict
        Of one comparison.
    targets : str
    answer : RankAnswer
    """
    if answer.r is None or nothing_to_lose(runs, answer.asked.margin):
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
