"""Claims about LoRA against what was measured: each verdict follows from an interval and a bound fixed beforehand."""

from __future__ import annotations

import math

import pandas as pd

from rankprobe.report.claims_intrinsic import intrinsic
from rankprobe.report.claims_latency import latency
from rankprobe.report.claims_methods import one_budget, other_methods, small_r_elsewhere
from rankprobe.report.claims_rank import energy_over_function, low_energy_rank, low_functional_rank, rank_over_r
from rankprobe.report.claims_scores import lora_equals_full, small_r, trainable, vignette
from rankprobe.report.claims_subspaces import subspaces
from rankprobe.report.comparison import main_metric
from rankprobe.report.verdicts import CLAIM_COLUMNS, Evidence
from rankprobe.tasks.metrics import LOWER_IS_BETTER

# On tuning rows settings were chosen: these claims are of other things than scores.
_NOT_OF_ROWS = ("vignette-parameters", "trainable-parameters")


def claims_table(evidence: Evidence) -> pd.DataFrame:
    """Every claim with what is published, what is measured, its interval and the verdict.

    Parameters
    ----------
    evidence : Evidence
        May be partial: a claim whose data are missing is ``not_run``.

    Returns
    -------
    DataFrame, columns :data:`CLAIM_COLUMNS`
        Differences of scores are in points (hundredths), latencies as ratios to the base model.
    """
    rows = [
        vignette(),
        lora_equals_full(evidence),
        *small_r(evidence),
        *small_r_elsewhere(evidence),
        *other_methods(evidence),
        *one_budget(evidence),
        trainable(evidence),
        *latency(evidence),
        low_energy_rank(evidence),
        low_functional_rank(evidence),
        rank_over_r(evidence),
        energy_over_function(evidence),
        *subspaces(evidence),
        *intrinsic(evidence),
    ]
    table = pd.DataFrame(rows, columns=CLAIM_COLUMNS)
    if evidence.runs and main_metric(evidence.runs[0]) in LOWER_IS_BETTER:
        # Margins are in points of a score.
        of_scores = table["unit"] == "points"
        table.loc[of_scores, "verdict"] = "not_run"
        table.loc[of_scores, ["measured", "ci_low", "ci_high"]] = math.nan
        table.loc[of_scores, "note"] = "perplexities have no margin in points: no verdict"
    if evidence.runs and evidence.runs[0]["spec"]["split"] == "tuning":
        # Settings were chosen on these very rows: whatever looks best here is flattered.
        on_rows = table["unit"] != "ratio"
        on_rows &= ~table["claim_id"].isin(_NOT_OF_ROWS)
        table.loc[on_rows, "verdict"] = "not_run"
        table.loc[on_rows, "note"] = "tuning rows, on which settings are chosen: no verdict"
    return table
