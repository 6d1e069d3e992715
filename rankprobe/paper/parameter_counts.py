"""Every parameter count that the LoRA paper prints, beside ours from the architecture alone.

What is printed is in ``printed_counts.csv`` beside this file, with the place in the paper where the row's setting is
given; what is ours is counted on the meta device by the methods' own code.
"""

from __future__ import annotations

from decimal import Decimal
from functools import cache
from importlib import resources

import pandas as pd

from rankprobe.experiment.parameters import Counts, Setting, count
from rankprobe.paper.architectures import paper_config, paper_problem

SOURCE = "Hu et al. 2021 (arXiv:2106.09685)"
COLUMNS = [
    "source", "model", "name", "method", "targets", "r", "size", "layer_norms", "setting_from", "printed",
    "printed_params", "precision", "ours", "verdict", "fits", "formula", "note",
]  # fmt: skip
_UNITS = {"M": 10**6, "B": 10**9}
_BINARY = Decimal(2**20) / 10**6
# A print of three digits leaves at most a few dozen; a wider search would be a wrong line.
_MOST_CANDIDATES = 10**5


def printed_number(text: str) -> tuple[Decimal, Decimal]:
    """A printed count as (parameters, one unit of its last digit).

    >>> printed_number("175,255.8M"), printed_number("18M")
    ((Decimal('175255800000.0'), Decimal('100000.0')), (Decimal('18000000'), Decimal('1000000')))
    """
    number, unit = Decimal(text[:-1].replace(",", "")), _UNITS[text[-1]]
    return number * unit, Decimal(1).scaleb(number.as_tuple().exponent) * unit


def verdict(ours: int, text: str) -> str:
    """How a count stands to a printed one.

    Returns
    -------
    str
        ``equal`` if it rounds to the print; ``equal in 2^20`` if it does where M is read as 2^20 instead of 10^6;
        ``cut`` if the print is its leading digits, not rounded; else ``differs``.

    Examples
    --------
    >>> verdict(4_718_592, "4.7M"), verdict(18_874_368, "18M"), verdict(301_989_888, "301.9M"), verdict(9, "1M")
    ('equal', 'equal in 2^20', 'cut', 'differs')
    """
    value, precision = printed_number(text)
    if abs(ours - value) <= precision / 2:
        return "equal"
    if text.endswith("M") and abs(ours - value * _BINARY) <= precision * _BINARY / 2:
        return "equal in 2^20"
    return "cut" if value <= ours < value + precision else "differs"


def paper_parameter_counts() -> pd.DataFrame:
    """The paper's parameter counts and ours, a row for every printed one.

    Returns
    -------
    DataFrame, columns :data:`COLUMNS`
        ``source``: the table or section; ``name``: the row's name there; ``size``: bottleneck, number of prefix and
        infix tokens l_p + l_i, or layers; ``layer_norms``: of adapters, whether ``ours`` counts them (``trained``) or
        not (``frozen``); ``setting_from``: where r or the size is given, empty where the paper leaves it out;
        ``printed`` as it stands, ``printed_params`` the same as a number and ``precision`` a unit of its last digit;
        ``ours``: exact, without the classification head, as the paper counts; empty where several sizes fit;
        ``verdict``: as :func:`verdict` says; where the size is left out ``fits`` if there is one that rounds to the
        print, else ``none``; ``fits``: then every such size; ``formula``: the count in words.

    Notes
    -----
    Encoders are counted without their classification head and GPTs with their tied language-model head. Adapters are
    judged with their layer norms trained and without: the paper's formula, section 5.1, leaves their number open.
    """
    return _all().copy()


@cache
def _all() -> pd.DataFrame:
    file = resources.files("rankprobe.paper") / "printed_counts.csv"
    with file.open(encoding="utf-8") as handle:
        printed = pd.read_csv(handle, dtype=str, keep_default_na=False)
    rows = [_row(**{str(k): v for k, v in row.items()}) for row in printed.to_dict("records")]
    table = pd.DataFrame(rows, columns=COLUMNS)
    for column in ("r", "size", "printed_params", "precision", "ours"):
        table[column] = table[column].astype("Int64")
    return table


def _row(source: str, method: str, targets: str, r: str, size: str, printed: str, **rest: str) -> dict:
    value, precision = printed_number(printed)
    row = {
        **rest,
        "source": f"{SOURCE}, {source}",
        "method": method,
        "targets": targets or None,
        "r": int(r) if r else None,
        "size": int(size) if size else None,
        "layer_norms": "",
        "printed": printed,
        "printed_params": int(value),
        "precision": int(precision),
        "ours": None,
        "fits": "",
        "formula": _formula(rest["model"], method),
    }
    if rest["setting_from"]:
        return row | _judged(row)
    return row | _searched(row)


def _judged(row: dict) -> dict:
    """Ours and the verdict where the setting is known; of an adapter's two counts the one nearer to the print."""
    parts = [Setting(m, *((row["targets"], row["r"]) if m == "lora" else (None, None)),
                     None if m == "lora" else row["size"]) for m in row["method"].split("+")]  # fmt: skip
    counts = [_count(row["model"], part) for part in parts]
    ours = sum(c.method for c in counts)
    if not row["method"].startswith("adapter"):
        return {"ours": ours, "verdict": verdict(ours, row["printed"])}
    both = {"trained": ours, "frozen": ours - counts[0].norms}
    norms = min(both, key=lambda n: abs(both[n] - row["printed_params"]))
    return {"ours": both[norms], "layer_norms": norms, "verdict": verdict(both[norms], row["printed"])}


def _searched(row: dict) -> dict:
    """Every size (with layer norms trained and frozen, for adapters) whose count rounds to the print."""
    one, two = (_count(row["model"], Setting(row["method"], size=size)) for size in (1, 2))
    step = two.method - one.method  # a method's count is a line in its size
    adapter = row["method"].startswith("adapter")
    zero = one.method - step
    lines = {"frozen": zero - one.norms, "trained": zero} if adapter else {"": zero}
    found = {}
    for norms, start in lines.items():
        first = max(1, int((row["printed_params"] - row["precision"] - start) // step))
        sizes = []
        for size in range(first, first + _MOST_CANDIDATES):
            ours = start + step * size
            if ours > row["printed_params"] + row["precision"]:
                break
            if verdict(ours, row["printed"]) == "equal":
                sizes.append(size)
        if sizes:
            found[norms] = sizes
    if not found:
        return {"verdict": "none", "fits": "none"}
    single = next(iter(found.items())) if len(found) == 1 and len(next(iter(found.values()))) == 1 else None
    fits = "; ".join(_range(sizes, norms, adapter) for norms, sizes in found.items())
    result = {"verdict": "fits", "fits": fits}
    if single:
        norms, (size,) = single
        result |= {"size": size, "layer_norms": norms, "ours": lines[norms] + step * size}
    return result


def _range(sizes: list[int], norms: str, adapter: bool) -> str:
    what = "bottleneck" if adapter else "length"
    text = f"{what} {sizes[0]}" if len(sizes) == 1 else f"{what} {sizes[0]} to {sizes[-1]}"
    return text + (f" with layer norms {norms}" if norms else "")


@cache
def _count(model: str, setting: Setting) -> Counts:
    return count(paper_config(model), setting, problem=paper_problem(model))


def _formula(model: str, method: str) -> str:
    """The count in words; L blocks of width d."""
    config = paper_config(model)
    gpt = model.startswith("gpt")
    where = f"; L = {config.num_hidden_layers}, d = {config.hidden_size}"
    last_norm = "of the last norm" if gpt else "of the embeddings' norm"
    formulas = {
        "full": "every weight, the tied head once" if gpt else "every weight but the classification head's",
        "bitfit": f"11 L d, the biases of a block, + d {last_norm}",
        "top_layers": "size (12 d² + 13 d), a block's weights",
        "lora": "r (m + n) over the targets = 2 d r L × their number in a block",
        "adapter_l": "L (2 d r + r + d), r the bottleneck; + 2 L d with layer norms trained",
        "adapter_h": "2 L (2 d r + r + d), r the bottleneck; + 4 L d with layer norms trained",
        "prompt": "d (l_p + l_i)",
        "prefix": "L d (l_p + l_i)",
    }
    return " + ".join(formulas[part] for part in method.split("+")) + where
