"""Everything that one comparison found: its runs and all tables made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from rankprobe.report.claims import claims_table
from rankprobe.report.equivalence import MARGIN
from rankprobe.report.intrinsic import beside_table
from rankprobe.report.merged import merged_functional_ranks, merged_ranks, merged_spectra, merged_truncation
from rankprobe.report.numbers import targets_name
from rankprobe.report.paper_tables import table_5, table_6
from rankprobe.report.predicted_curve import predicted_curves
from rankprobe.report.rank_answer import RankAnswer, answers_by_targets
from rankprobe.report.stats import Estimate
from rankprobe.report.subspaces import figure_tables, intruders_table, table_7
from rankprobe.report.tables import best_settings, methods_table, rank_sweep_table, runs_table
from rankprobe.report.verdicts import Evidence


@dataclass(frozen=True)
class Measured:
    """What was measured beside the trainings themselves; each is empty while it is not there.

    Attributes
    ----------
    table1 : DataFrame
        Latency of adapters beside LoRA's, from :mod:`rankprobe.experiment.latency`.
    pairs : mapping of str to (mapping of str to DataFrame)
        What pairs of runs share, by the pair's name, from :mod:`rankprobe.experiment.pairs`.
    intrinsic, intrinsic_curve : DataFrame
        d90 by method; scores by d and seed.
    parameter_counts : DataFrame
        The paper's counts beside ours, handed in by the caller.
    """

    table1: pd.DataFrame = field(default_factory=pd.DataFrame)
    pairs: Mapping[str, Mapping[str, pd.DataFrame]] = field(default_factory=dict)
    intrinsic: pd.DataFrame = field(default_factory=pd.DataFrame)
    intrinsic_curve: pd.DataFrame = field(default_factory=pd.DataFrame)
    parameter_counts: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Findings:
    """All tables of one comparison, by the name of their CSV file. A table is empty while its data are missing.

    Attributes
    ----------
    runs : list of dict
        run.json contents with ``path``.
    tables : dict of str to DataFrame
        runs, methods, rank_sweep, rank_answer, claims, ranks, spectra, truncation, functional_rank, latency,
        predicted_curve, predicted_summary, table5, table6, and what :class:`Measured` has.
    answers : dict of str to RankAnswer
        Which r is enough, by targets.
    gain : Estimate or None
        What full fine-tuning has to lose, in the metric's own unit: see
        :attr:`rankprobe.report.verdicts.Evidence.gain`. None while a side of it is missing.
    """

    runs: list[dict]
    tables: dict[str, pd.DataFrame]
    answers: dict[str, RankAnswer] = field(default_factory=dict)
    gain: Estimate | None = None


def find(
    runs: list[dict],
    latency: pd.DataFrame | None,
    published: pd.DataFrame,
    more: Measured | None = None,
    *,
    margin: float = MARGIN,
) -> Findings:
    """All tables of one comparison; those of the paper's own tables where ``more`` is given.

    ``margin`` is what an r may differ by from full fine-tuning to be as good, as a fraction.
    """
    methods, ranks = methods_table(runs, latency), merged_ranks(runs)
    measured = more or Measured()
    evidence = Evidence(runs, methods, ranks, latency, published, measured.pairs, measured.intrinsic, measured.table1)
    answers = answers_by_targets(runs, margin=margin)
    tables = {
        "runs": runs_table(runs),
        "methods": methods,
        "rank_sweep": rank_sweep_table(methods),
        "rank_answer": _answers_table(answers),
        "claims": claims_table(evidence),
        "ranks": ranks,
        "spectra": merged_spectra(runs),
        "truncation": merged_truncation(runs),
        "functional_rank": merged_functional_ranks(runs),
        "latency": pd.DataFrame() if latency is None else latency,
    }
    targets_of = {run["run_id"]: targets_name(run["spec"]) for run in runs}
    sweep = rank_sweep_table(best_settings(methods))
    curves = predicted_curves(tables["truncation"], sweep, targets_of, margin_points=100 * margin)
    tables["predicted_curve"], tables["predicted_summary"] = curves
    if more is not None:
        tables |= {
            "table1": more.table1,
            "table5": table_5(runs, published),
            "table6": table_6(runs, published),
            "intrinsic_dimension": more.intrinsic,
            "intrinsic_curve": more.intrinsic_curve,
            "intrinsic_comparison": pd.DataFrame() if more.intrinsic.empty else beside_table(more.intrinsic, runs),
            "parameter_counts": more.parameter_counts,
            "table7": table_7(more.pairs, published),
            **figure_tables(more.pairs),
            "intruders": intruders_table(more.pairs),
        }
    return Findings(runs, tables, answers, evidence.gain)


def _answers_table(answers: Mapping[str, RankAnswer]) -> pd.DataFrame:
    """rank_answer.csv: a row a configuration, by targets."""
    if not answers:
        return pd.DataFrame()
    return pd.concat([each.table.assign(targets=targets) for targets, each in answers.items()], ignore_index=True)
