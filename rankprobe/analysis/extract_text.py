"""What an extracted adapter's README says: what it is, how it is loaded, what it carries and what not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rankprobe.analysis.extract_layout import head_of
from rankprobe.weights.factors import AdapterSource
from rankprobe.weights.hub import could_be_hub_name

if TYPE_CHECKING:
    from rankprobe.analysis.extract import Extraction
    from rankprobe.weights.checkpoint import Checkpoint

_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}


def extraction_readme(done: Extraction, command: str = "") -> str:
    """README.md of an adapter's folder.

    Parameters
    ----------
    done : Extraction
    command : str
        What made it, without folders of this machine.
    """
    summary = done.summary
    ranks = sorted(row["r"] for row in done.rows if row["r"])
    spread = f"r = {ranks[0]}" if ranks[0] == ranks[-1] else f"r from {ranks[0]} to {ranks[-1]}"
    of = f"{summary['tuned']} as a change of {summary['base']}" if summary["base"] else summary["tuned"]
    lines = [
        "---", "library_name: peft", *([f"base_model: {summary['base_model']}"] if summary["base_model"] else []),
        "tags: [lora, rankprobe]", "---", "",
        f"# LoRA adapter extracted from {summary['tuned']}",
        "",
        f"The best low-rank part of {of}, by rankprobe" + (f": `{command}`." if command else "."),
        "",
        f"- {len(ranks)} of {len(done.rows)} matrices with {spread}, alpha = r: {summary['parameters']:,} parameters.",
        f"- They hold {summary['kept_energy']:.2%} of the matrices' energy (the sum of squared singular values), and "
        f"the adapter {summary['kept_of_all']:.2%} of all change that was measured.",
        f"- {size_words(summary)}; {summary['beside_parameters']:,} parameters are carried beside the factors.",
        *_budget(summary),
        "",
        "```python",
        *loading_code(summary, base=summary["base"] or "", folder="THIS_FOLDER"),
        "```",
        "",
        *_table("Carried beside the factors", [(one["what"], one["as"], one["why"], f"{one['parameters']:,}",
                                                 _norm(one["change"])) for one in sorts_of(done.beside)],
                ("what", "as", "why", "parameters", "norm of their change"), "Nothing."),
        *_table("Not carried", [(one["name"], one["why"], _norm(one["change"])) for one in done.lost],
                ("what", "why", "norm of its change"), "Nothing that changed was left behind."),
    ]  # fmt: skip
    if done.left_out:
        lines += [f"{len(done.left_out)} more were left out as asked (--include, --exclude); their changes were not "
                  f"measured: {', '.join(done.left_out[:5])}{', …' if len(done.left_out) > 5 else ''}.", ""]
    if done.notes:
        lines += ["## Notes", "", *(f"- {note}." for note in done.notes), ""]
    last = "extraction.csv has a row for every matrix, extraction.json all that is carried and lost."
    return "\n".join([*lines, last, ""])


def labels_of(tuned: Checkpoint | AdapterSource, task: str | None) -> int | None:
    """How many labels a task head has; None where that is no matter, or cannot be told."""
    if task not in ("SEQ_CLS", "TOKEN_CLS"):
        return None
    if isinstance(tuned, AdapterSource):
        return min((of[0] for name, of in tuned.saved.items() if head_of(name) and len(of) == 2), default=None)
    labels = tuned.config.get("id2label")
    return len(labels) if isinstance(labels, dict) else None


def hub_name(tuned: Checkpoint | AdapterSource) -> str:
    """The base that an adapter names, where it is no path."""
    name = getattr(tuned, "base_name", None)
    return name if name and name == tuned.config.get("base_model_name_or_path") and could_be_hub_name(name) else ""


def sorts_of(beside: list[dict]) -> list[dict]:
    """What is carried beside factors, of one sort in one row: what, as, why, parameters, change."""
    sorts: dict[tuple[str, str], list[dict]] = {}
    for one in beside:
        sorts.setdefault((one["why"], one["how"]), []).append(one)
    rows = []
    for (why, how), members in sorts.items():
        more = f" and {len(members) - 1} more" if len(members) > 1 else ""
        changes = [one["change"] for one in members]
        rows.append({
            "what": members[0]["name"] + more,
            "as": how,
            "why": why,
            "parameters": sum(one["parameters"] for one in members),
            "change": None if None in changes else math.hypot(*changes),
        })
    return rows


def _budget(summary: dict) -> list[str]:
    if summary["budget_slack"] is None:
        return []
    return ["- No other choice of ranks within this budget holds more than "
            f"{summary['budget_slack']:.2g} of the energy more: directions were bought by σ²/(m + n), the largest "
            "first over the whole network, which is best because each matrix's σ are sorted; only what the last "
            "direction that did not fit left over is undecided."]


def size_words(summary: dict) -> str:
    """An adapter's size beside TUNED's."""
    own, other = summary["size_bytes"], summary["tuned_bytes"]
    return f"{_bytes(own)}, {own / other:.2%} of {summary['tuned']}'s {_bytes(other)}"


def _bytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 2**10:,.1f} KiB"


def loading_code(summary: dict, *, base: str, folder: str) -> list[str]:
    """The Python that loads an adapter.

    Parameters
    ----------
    summary : dict
        An extraction's.
    base, folder : str
        The base's name and the adapter's folder, as they are to stand there.
    """
    name = _CLASSES.get(summary["task_type"] or "") or summary["architecture"] or "AutoModel"
    base = summary["base_model"] or base or "BASE"
    labels = f", num_labels={summary['num_labels']}" if summary["num_labels"] else ""
    return [
        f"from transformers import {name}",
        "from peft import PeftModel",
        f'model = {name}.from_pretrained("{base}"{labels})',
        f'model = PeftModel.from_pretrained(model, "{folder}")',
    ]


def _table(title: str, rows: list[tuple], header: tuple[str, ...], nothing: str) -> list[str]:
    if not rows:
        return [f"## {title}", "", nothing, ""]
    lines = [header, ("---",) * len(header), *rows]
    return [f"## {title}", "", *("| " + " | ".join(row) + " |" for row in lines), ""]


def _norm(change: float | None) -> str:
    return "" if change is None else f"{change:.4g}"
