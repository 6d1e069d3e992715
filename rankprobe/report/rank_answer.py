"""Which r should I take? A rank sweep's predictions → the smallest r shown to be enough, a sentence, a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from rankprobe.errors import UsageError, must
from rankprobe.report.comparison import finished_ok, main_metric
from rankprobe.report.equivalence import ALPHA, MARGIN, NO, NOT_TESTED, YES, fixed_sequence
from rankprobe.report.power import POWER
from rankprobe.report.predictions import predictions
from rankprobe.report.rank_input import Configuration, sweep_of
from rankprobe.report.rank_table import LEFT_OUT, REFERENCE, difference_columns, score_columns, table
from rankprobe.report.rank_words import Asked, notes, sentence


@dataclass(frozen=True)
class RankAnswer:
    """The answer of a rank sweep.

    Attributes
    ----------
    r : int or None
        The smallest r that is shown to be equivalent with all larger ones that could be tested; None where none is.
    text : str
        One sentence.
    notes : tuple of str
        What to know beside it, a sentence each: diverged seeds, settings left out, what stands in for full fine-tuning.
    table : DataFrame, columns :data:`rankprobe.report.rank_table.COLUMNS`
        A row a configuration, the reference first, then by r. Scores and differences as fractions; a perplexity's
        ``diff`` is how much larger it is, relative to the reference's (``diff_scale`` says so).
    asked : Asked
        Metric, margin, alpha, power, and what the others are compared with.
    """

    r: int | None
    text: str
    notes: tuple[str, ...]
    table: pd.DataFrame = field(repr=False, compare=False)
    asked: Asked

    @property
    def several_seeds(self) -> bool:
        """Whether any r could be tested; with one seed there is the rows' interval alone."""
        return bool(self.table["equivalent"].isin((YES, NO, NOT_TESTED)).any())


def rank_answer(
    configurations: Sequence[Configuration],
    full: Configuration | None = None,
    *,
    metric: str = "accuracy",
    margin: float = MARGIN,
    alpha: float = ALPHA,
    power: float = POWER,
    one_sided: bool = False,
) -> RankAnswer:
    """The smallest r that is equivalent to full fine-tuning, or what it would take to show one.

    Parameters
    ----------
    configurations : sequence of Configuration
        Of one kind (the same targets), each with an r of its own, in any order. One without a finished seed keeps a row
        without numbers. :func:`rankprobe.report.rank_input.sweep_of` makes them from runs.
    full : Configuration, optional
        Full fine-tuning. Without it, or without a finished seed of it, the largest r takes its place.
    metric : str
        A name that :func:`rankprobe.tasks.metrics.score` knows.
    margin : float
        In scores, 0.02 being two points; where less is better, of the ratio of two, 0.02 being two percent. To be
        chosen before looking.
    alpha : float
        At most this share of sweeps name an r that is not equivalent: of sweeps that are looked at once, when they are
        complete. Seeds that are added because nothing was shown are another look: as many as ``more_seeds`` names keep
        the share (3.2 % in the worst of seven simulated worlds), looks at 3, 5 and 10 seeds do not quite (6.2 %).
    power : float
        With which the seeds that are said to show it would.
    one_sided : bool
        Ask only that an r be not worse than the margin. By default one that is *better* by more than the margin is not
        equivalent either, and the sentence says so.

    Returns
    -------
    RankAnswer

    Raises
    ------
    UsageError
        If there is nothing to compare, an r is missing or given twice, rows differ, or a number is out of its range.

    Notes
    -----
    Each r is tested for equivalence by two one-sided tests at ``alpha`` whose standard error covers seeds and rows,
    from the largest r down to the first that fails (:mod:`rankprobe.report.equivalence`): the order, fixed beforehand,
    makes a correction for many tests unnecessary. Pairs are common seeds. Left out of the order, by rules that do not
    look at scores: an r of which a seed diverged (those that finished are the lucky ones), and an r with fewer than two
    seeds in common with the reference (what another seed would do is not known). Where several settings of an r were
    scored on these rows the best of them stands for it: its p-value is multiplied by their number, and its interval and
    ``more_seeds`` are of the level that this leaves, ``alpha`` by their number.

    ``p_different`` asks another question, whether there is any difference at all, with Holm's correction over the
    configurations: with two common seeds or more from the same standard error; with one by McNemar's mid-p, or a paired
    bootstrap where the metric is not the accuracy, both for these very weights only.

    A seed that fails once in ten times without being seen is beyond any test of three seeds: normal variation between
    seeds is assumed (studies/answer-simulation shows what happens without).
    """
    _check_numbers(margin=margin, power=power, alpha=2 * alpha)
    ordered = _by_r(configurations)
    stands_in = full is None or not full.finished
    reference = _largest(ordered) if stands_in else full
    n_rows = _rows_in_common([*ordered, reference])
    rows = {each.r: score_columns(each, metric) for each in ordered if each is not reference}
    for each in ordered:
        if each is not reference:
            level = alpha / each.tried
            rows[each.r] |= difference_columns(
                each, reference, metric=metric, margin=margin, alpha=level, one_sided=one_sided, power=power
            )
    order = [r for r in sorted(rows, reverse=True) if rows[r].get("equivalent") != LEFT_OUT]
    tried = {each.r: each.tried for each in ordered if each.tried > 1 and each.r in order}
    for r, n in tried.items():
        rows[r]["p_equivalent"] = min(1.0, n * rows[r]["p_equivalent"])
    for r, outcome in zip(order, fixed_sequence([rows[r]["p_equivalent"] for r in order], alpha), strict=True):
        rows[r] |= {"equivalent": outcome} | ({"more_seeds": None, "more_seeds_note": ""} if outcome == YES else {})
    made = table([score_columns(reference, metric) | {"equivalent": REFERENCE}, *(rows[r] for r in sorted(rows))])
    asked = Asked(
        reference=_stand_in(reference, ordered) if stands_in else "full fine-tuning",
        stands_in=stands_in,
        metric=metric,
        margin=margin,
        alpha=alpha,
        power=power,
        one_sided=one_sided,
        n_rows=n_rows,
    )
    found = min((r for r in order if rows[r]["equivalent"] == YES), default=None)
    beside = (*notes(made, asked), *_best_of_several(tried, 1 if stands_in else reference.tried))
    return RankAnswer(found, sentence(made, asked), beside, made, asked)


def _best_of_several(tried: dict[int, int], tried_full: int) -> list[str]:
    said = []
    if tried:
        names = ", ".join(f"r = {r} (of {n})" for r, n in sorted(tried.items()))
        said.append(f"The best of several settings on these very rows stands for {names}: p of equivalence is "
                    "multiplied by their number (Bonferroni), and its interval is wider. Rates that are chosen on "
                    "tuning rows, with --tune, cost nothing.")
    if tried_full > 1:
        said.append(f"Full fine-tuning is the best of {tried_full} settings on these very rows, which makes it harder "
                    "for an r to be as good.")
    return said


def answers_by_targets(runs: list[dict], *, margin: float = MARGIN) -> dict[str, RankAnswer]:
    """The answer for each choice of targets that LoRA has finished runs of.

    Parameters
    ----------
    runs : list of dict
        run.json contents of one comparison, with ``path``.
    margin : float
        As for :func:`rank_answer`.

    Returns
    -------
    dict of str to RankAnswer
        Nothing where predictions are not at hand, as in a clone, or none of a targets' runs has ended well.
    """
    ok = finished_ok(runs)
    if any(predictions(run) is None for run in ok):
        return {}
    lora = [run["spec"] for run in ok if run["spec"]["method"] == "lora" and not run["spec"].get("rank_pattern")]
    found = {}
    for targets in dict.fromkeys(spec["targets"] for spec in lora):
        swept, full = sweep_of(runs, targets)
        found[targets] = rank_answer(swept, full, metric=main_metric(ok[0]), margin=margin)
    return found


def _check_numbers(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < 1:
            if name == "alpha":
                raise UsageError(must("alpha", "be above 0 and below 0.5", value / 2, "Pass 0.05, the default"))
            raise UsageError(must(name, "be between 0 and 1", value, "Leave it out for the default"))


def _by_r(configurations: Sequence[Configuration]) -> list[Configuration]:
    known = [each.r for each in configurations]
    if bad := [r for i, r in enumerate(known) if r is None or r in known[:i]]:
        next_step = "Pass the configurations of one kind, and full fine-tuning apart from them"
        raise UsageError(must("configurations", "each have an r of their own", bad[0], next_step))
    return sorted(configurations, key=lambda each: each.r)


def _largest(ordered: list[Configuration]) -> Configuration:
    """What stands in for full fine-tuning: the largest r that no seed diverged of, else that finished at all."""
    finished = [each for each in ordered if each.finished]
    if not finished:
        raise UsageError(must("A rank sweep", "have a finished seed", "none", "Wait for a run to end"))
    return max(finished, key=lambda each: (each.n_diverged == 0, each.r))


def _stand_in(reference: Configuration, ordered: list[Configuration]) -> str:
    return f"r = {reference.r} (the largest{'' if reference is ordered[-1] else ' that ended well'})"


def _rows_in_common(configurations: Sequence[Configuration]) -> int:
    first, *others = (np.asarray(table[0]) for each in configurations for table in each.finished.values())
    if any(labels is not first and not np.array_equal(first, labels) for labels in others):
        got = "labels that differ"
        raise UsageError(must("configurations", "be scored on the same eval rows", got, "Pass runs of one eval set"))
    return len(first)
