"""Numbers as people read them: percent, points, counts with separators, intervals in brackets."""

from __future__ import annotations

import math

import pandas as pd

from rankprobe.experiment.spec import SIZE_FIELD
from rankprobe.tasks.metrics import LOWER_IS_BETTER
from rankprobe.weights.rank_pattern import pattern_tag

MINUS = "−"
MISSING = "–"
_BY_MATRIX = ", r by matrix "
_METHOD_NAMES = {
    "full": "full fine-tuning",
    "head": "head only",
    "bitfit": "BitFit",
    "top_layers": "top {} layers",
    "adapter_h": "Adapter-H, bottleneck {}",
    "adapter_l": "Adapter-L, bottleneck {}",
    "prompt": "PreEmbed, {} tokens",
    "prefix": "PreLayer, {} tokens",
    "did": "DID, d = {}",
    "said": "SAID, d = {}",
}


def missing(value: object) -> bool:
    """Whether a table's cell holds nothing: None, NaN or pandas' NA.

    >>> missing(None), missing(float("nan")), missing(0)
    (True, True, False)
    """
    return bool(pd.isna(value))


def number(value: object, digits: int = 1, *, sign: bool = False) -> str:
    """Fixed digits, thousands separated, a true minus.

    >>> number(-1.25, 2), number(0.8, sign=True), number(None), number(22713986, 0)
    ('−1.25', '+0.8', '–', '22,713,986')
    >>> number(3.15), number(100 * 0.0315)
    ('3.1', '3.1')
    """
    if missing(value):
        return MISSING
    if math.isinf(value):
        return f"{MINUS if value < 0 else ''}∞"
    # First to as many digits as a fraction times 100 has right, so that it and points round the same way.
    text = f"{round(value, max(9, digits)):{'+' if sign else ''},.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def interval(low: object, high: object, digits: int = 1, *, sign: bool = False) -> str:
    """``[low, high]``; empty while there is none.

    >>> interval(-3.54, 0.65, sign=True), interval(None, None)
    ('[−3.5, +0.7]', '')
    """
    if missing(low) or missing(high):
        return ""
    return f"[{number(low, digits, sign=sign)}, {number(high, digits, sign=sign)}]"


def with_interval(
    value: object, low: object, high: object, digits: int = 1, *, unit: str = "", sign: bool = False
) -> str:
    """A value with its unit and interval.

    >>> with_interval(77.1, 76.0, 78.2, unit="%")
    '77.1 % [76.0, 78.2]'
    """
    text = number(value, digits, sign=sign)
    if text == MISSING:
        return text
    return " ".join(part for part in (text, unit, interval(low, high, digits, sign=sign)) if part)


def is_share(metric: str) -> bool:
    """Whether a metric is a share of rows and reads best in percent; correlations do not."""
    return metric in ("accuracy", "f1", "token_accuracy")


def score(metric: str, value: object, low: object = None, high: object = None) -> str:
    """A score as tables show it.

    >>> score("accuracy", 0.771, 0.75, 0.79), score("matthews", 0.634)
    ('77.1 % [75.0, 79.0]', '0.634')
    """
    if is_share(metric):
        return with_interval(*(None if missing(v) else 100 * v for v in (value, low, high)), unit="%")
    return with_interval(value, low, high, 3)


def points(value: object, low: object = None, high: object = None) -> str:
    """A difference of scores in points, hundredths of the metric's scale.

    >>> points(-0.0144, -0.0354, 0.0065)
    '−1.4 [−3.5, +0.7]'
    """
    return with_interval(*(None if missing(v) else 100 * v for v in (value, low, high)), sign=True)


def margin_in_points(margin: float) -> str:
    """A margin in points with its unit.

    >>> margin_in_points(2.0), margin_in_points(1.0)
    ('2 points', '1 point')
    """
    return f"{margin:g} point{'' if margin == 1 else 's'}"


def gap(metric: str, value: object, low: object = None, high: object = None) -> str:
    """A difference of two scores: in points, or of a perplexity in its own units.

    >>> gap("accuracy", -0.0144, -0.0354, 0.0065), gap("perplexity", 0.1234, 0.1, 0.15)
    ('−1.4 [−3.5, +0.7]', '+0.123 [+0.100, +0.150]')
    """
    return with_interval(value, low, high, 3, sign=True) if metric in LOWER_IS_BETTER else points(value, low, high)


def percent(value: object) -> str:
    """A percentage that may be tiny, to three significant digits.

    >>> percent(100.0), percent(0.327983), percent(0.00339), percent(6.25)
    ('100 %', '0.328 %', '0.00339 %', '6.25 %')
    """
    if missing(value):
        return MISSING
    digits = 0 if value == 0 or value >= 99.95 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{number(value, digits)} %"


def count(value: object) -> str:
    """A whole number with separators.

    >>> count(74498)
    '74,498'
    """
    return number(value, 0)


def duration(seconds: object) -> str:
    """Seconds, or minutes and seconds, or hours and minutes.

    >>> duration(81.2), duration(754.0), duration(3.14), duration(7501)
    ('81 s', '12 min 34 s', '3.1 s', '2 h 5 min')
    """
    if missing(seconds):
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 180:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def memory(size_bytes: object) -> str:
    """Bytes as GB (10⁹) or MB.

    >>> memory(1.234e9), memory(5.6e8)
    ('1.23 GB', '560 MB')
    """
    if missing(size_bytes):
        return MISSING
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


def learning_rate(value: object) -> str:
    """A rate without padding zeros.

    >>> learning_rate(0.002), learning_rate(1e-4)
    ('2e-3', '1e-4')
    """
    if missing(value):
        return MISSING
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def size_of(row) -> object:
    """A method's size: of a row of methods.csv its column, of a run's spec the field that its method has.

    >>> size_of({"method": "adapter_h", "bottleneck": 16}), size_of({"method": "did", "size": 1000})
    (16, 1000)
    """
    size = row.get("size", row.get(SIZE_FIELD.get(row["method"], "")))
    return None if missing(size) else int(size)


def targets_name(spec) -> str | None:
    """A run's targets as tables show them; where r differs by matrix it is not compared with any one r.

    >>> targets_name({"targets": "q,v"})
    'q,v'
    >>> targets_name({"targets": "q,v", "rank_pattern": [["query", 2], ["value", 6]]})
    'q,v, r by matrix (e95731)'
    """
    pattern = spec.get("rank_pattern")
    return f"{spec['targets']}{_BY_MATRIX}({pattern_tag(pattern)})" if pattern else spec.get("targets")


def is_by_matrix(name: str | None) -> bool:
    """Whether :func:`targets_name` made it of a run whose r differs by matrix.

    >>> is_by_matrix("q,v, r by matrix (e95731)"), is_by_matrix("q,v"), is_by_matrix(None)
    (True, False, False)
    """
    return name is not None and _BY_MATRIX in name


def adapted(row) -> str:
    """What a row's LoRA adapts, in small print; empty for other methods.

    >>> adapted({"method": "lora", "targets": "q,v", "alpha": 16.0}), adapted({"method": "full"})
    ('on q,v, alpha 16', '')
    """
    if row["method"] != "lora":
        return ""
    pattern = row.get("rank_pattern")
    by_matrix = "" if pattern is None or missing(pattern) else f"{_BY_MATRIX}({pattern})"
    return f"on {row['targets']}{by_matrix}, alpha {row['alpha']:g}"


def method_name(row) -> str:
    """A configuration's name: ``LoRA r = 8``, ``full fine-tuning``, ``Adapter-H, bottleneck 16``.

    >>> method_name({"method": "lora", "r": 8}), method_name({"method": "head"}), method_name({"method": "bitfit"})
    ('LoRA r = 8', 'head only', 'BitFit')
    >>> method_name({"method": "did", "size": 1000}), method_name({"method": "top_layers", "layers": 2})
    ('DID, d = 1,000', 'top 2 layers')
    """
    if row["method"] == "lora":
        return f"LoRA r = {int(row['r'])}"
    size = size_of(row)
    return _METHOD_NAMES.get(row["method"], row["method"]).format("" if size is None else count(size))
