"""How a claim is judged: the bounds, the rule that turns an interval into a verdict, and a row of claims.csv.

A claim names a region. If the interval lies in it, the claim is supported; if the two have no point in common, it is
contradicted; else the data do not tell. For equality this is the two one-sided tests of equivalence (Schuirmann 1987),
at 2.5 % each since intervals are two-sided at 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from rankprobe.report.comparison import something_to_lose
from rankprobe.report.stats import MIN_SEEDS, Estimate

# Bounds, in the units of each claim, fixed before the main job's first run (a one-seed prototype was known).
MARGIN_POINTS = 2.0  # an accuracy this much worse is no longer "as good"; the paper's own table differs by 0.8
LATENCY_MARGIN = 0.03  # the least that adapters add in Table 1 is 2.2 %, at a batch of 32
LATENCY_AA_MARGIN = 0.02  # a machine that sees more between two copies of one model cannot judge the 3 %
FEW_PARAMETERS_PCT = 1.0  # of the model's parameters, the head included; 0.24 % in Table 2
LOW_ENERGY_PCT = 10.0  # energy_rank_90 of dW in % of min(m, n): a tenth of the directions holds nine tenths of Σσ²
LOW_FUNCTIONAL_RANK = 8  # the r that the paper uses for RoBERTa
SMALL_R = (1, 2, 4)
REFERENCE_R = (8, 64)
SHARED_DIRECTION = 0.5  # φ(1, 1), as the paper's Figure 3 has it
NOT_EMPHASISED = 0.5  # of W0's size on its own top directions; 0.015 in Table 7
AMPLIFIED = 2.0  # the factor is 21.5 in Table 7 for r = 4, and 1.9, "amplifies less", for r = 64
FEW_INTRUDERS = 0.5  # a matrix, of its 10 leading directions: "almost none"
LOW_DIMENSION_PCT = 1.0  # of the encoder's weights; 0.0008 % for RoBERTa base on MRPC
RANK_OVER_R = 10.0  # Biderman et al.: full fine-tuning's rank is 10 to 100 times a typical r

CLAIM_COLUMNS = [
    "claim_id",
    "source",
    "statement",
    "published",
    "measured",
    "ci_low",
    "ci_high",
    "n",
    "verdict",
    "unit",
    "note",
]
PAPER = "Hu et al. 2021"  # arXiv:2106.09685
EXACT = "exact"  # the method of what is counted, not measured
VERDICTS = ("supported", "contradicted", "inconclusive", "not_run")


@dataclass(frozen=True)
class Evidence:
    """What one comparison has to say: finished runs, their tables, a latency table and what was published.

    Attributes
    ----------
    runs : list of dict
        Of one comparison (see :func:`rankprobe.report.comparison.comparisons`).
    methods, ranks : DataFrame
        Made from them.
    latency : DataFrame or None
    published : DataFrame
        Columns source, model, method, r, targets, task, metric, value among others; may be empty.
    pairs : mapping of str to (mapping of str to DataFrame)
        What pairs of runs share, by the pair's name: the tables compare, overlap, amplification and intruders.
    intrinsic : DataFrame
        d90 by method (did, said) and by what it is a share of (score, gain), as
        :func:`rankprobe.report.intrinsic.dimensions_table` makes it; may be empty.
    table1 : DataFrame
        Latency of adapters beside LoRA's on the paper's Table 1 shapes; may be empty.
    """

    runs: list[dict]
    methods: pd.DataFrame
    ranks: pd.DataFrame
    latency: pd.DataFrame | None
    published: pd.DataFrame
    pairs: Mapping[str, Mapping[str, pd.DataFrame]] = field(default_factory=dict)
    intrinsic: pd.DataFrame = field(default_factory=pd.DataFrame)
    table1: pd.DataFrame = field(default_factory=pd.DataFrame)

    @cached_property
    def gain(self) -> Estimate | None:
        """What full fine-tuning has to lose: see :func:`rankprobe.report.comparison.something_to_lose`."""
        return something_to_lose(self.runs)


def verdict(low: float, high: float, region: tuple[float, float]) -> str:
    """What an interval says about a claim that a value lies in a region; both are closed.

    Examples
    --------
    >>> verdict(-1.2, 0.4, (-2, 2)), verdict(-4.0, -2.5, (-2, 2)), verdict(-3.0, 0.4, (-2, 2))
    ('supported', 'contradicted', 'inconclusive')
    >>> verdict(float("nan"), 1.0, (-2, 2))
    'not_run'
    """
    if math.isnan(low) or math.isnan(high):
        return "not_run"
    low, high = round(low, 9), round(high, 9)  # a difference of two fractions may miss its bound by the last bit
    if region[0] <= low and high <= region[1]:
        return "supported"
    return "contradicted" if high < region[0] or low > region[1] else "inconclusive"


def claim_row(
    claim_id: str,
    source: str,
    statement: str,
    unit: str,
    *,
    published: float = math.nan,
    measured: Estimate | None = None,
    region: tuple[float, float] = (0, 0),
    note: str = "",
) -> dict:
    row = {
        "claim_id": claim_id,
        "source": source,
        "statement": statement,
        "published": _rounded(published),
        "unit": unit,
    }
    if measured is None:
        return row | {
            "measured": math.nan,
            "ci_low": math.nan,
            "ci_high": math.nan,
            "n": 0,
            "verdict": "not_run",
            "note": note or "not run yet",
        }
    return row | {
        "measured": _rounded(measured.estimate),
        "ci_low": _rounded(measured.low),
        "ci_high": _rounded(measured.high),
        "n": measured.n,
        "verdict": verdict(measured.low, measured.high, region),
        "note": "; ".join(part for part in (note, measured.method) if part),
    }


def in_points(gap: Estimate | None) -> Estimate | None:
    return gap and gap._replace(estimate=100 * gap.estimate, low=100 * gap.low, high=100 * gap.high)


def published_value(evidence: Evidence, column: str = "value", **wanted: str) -> float:
    table = evidence.published
    for name, value in wanted.items():
        table = table[table[name] == value] if name in table else table.iloc[:0]
    return float(table.iloc[0][column]) if len(table) else math.nan


def gpt3_mean(evidence: Evidence, table: str, method: str, r: int | None) -> float:
    """Mean of WikiSQL and MNLI accuracy in a table of the paper."""
    rows = evidence.published
    if rows.empty:
        return math.nan
    rows = rows[rows["source"].str.endswith(table) & (rows["method"] == method) & (rows["metric"] == "accuracy")]
    if method == "lora":
        rows = rows[(rows["r"] == r) & (rows["targets"] == "q,v")]
    return float(rows["value"].mean()) if len(rows) == 2 else math.nan


def _rounded(value: float) -> float:
    return round(float(value), 6)


def three_seeds(row: dict, *groups: list[dict]) -> dict:
    """A claim about scores without a verdict where the sides have fewer than three seeds in common.

    Another seed's luck is not in an interval over evaluation rows; it is often as large as the margin.
    """
    seeds = [{run["spec"]["seed"] for run in group} for group in groups]
    least = len(set.intersection(*seeds)) if seeds else 0
    if least >= MIN_SEEDS or row["verdict"] == "not_run":
        return row
    return row | {"verdict": "inconclusive", "note": f"{row['note']}; fewer than {MIN_SEEDS} seeds: no verdict"}
