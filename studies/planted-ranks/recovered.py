"""How often the rank was recovered: tables and the picture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from plants import BELOW, DETECTABLE, DTYPES, EDGE, GAUSSIAN, SPARSE, SWALLOWED
from scipy.stats import binomtest

from rankprobe.report.style import SERIES, WIDTH_IN, Picture

MEASURES = ("storage_rank", "plain_floor", "mp_rank", "gd_rank")
STORAGE = "storage"
REGIMES = (DETECTABLE, EDGE, BELOW, SWALLOWED, SPARSE)
BINS = (0.25, 0.5, 1, 1.5, 2, 3, 4, 8, 16, 32, 64)


def summary(cases: pd.DataFrame) -> pd.DataFrame:
    """Share of right answers with its 95 % interval (Wilson), by everything that was varied.

    Where the dtype swallowed the update, the right answer of storage_rank is none, or 0 if nothing at all is left.
    """
    cases = cases.assign(shape=cases["m"].astype(str) + "x" + cases["n"].astype(str))
    lines = []
    for where, group in cases.groupby(_source(cases), sort=False):
        for regime in REGIMES:
            part = group[group["regime"] == regime]
            lines += [_line(where, regime, "all", "", measure, part) for measure in _asked(where) if len(part)]
            for by in ("setting", "noise", "base", "true_rank", "shape"):
                for value, some in part.groupby(by, sort=False):
                    lines += [_line(where, regime, by, value, measure, some) for measure in _asked(where)]
    return pd.DataFrame(lines)


def _source(cases: pd.DataFrame) -> pd.Series:
    return cases["noise"].where(~cases["noise"].isin(list(DTYPES)), STORAGE).rename("source")


def _asked(where: str) -> tuple[str, ...]:
    return MEASURES if where == STORAGE else MEASURES[2:]


def _line(where: str, regime: str, by: str, value: object, measure: str, group: pd.DataFrame) -> dict:
    said = right(group, measure)
    if regime == SWALLOWED and measure in MEASURES[:2]:
        said = group[measure].isna() | ((group["unchanged_fraction"] == 1) & (group[measure] == 0))
    interval = binomtest(int(said.sum()), len(group)).proportion_ci(method="wilson")
    return {"noise": where, "regime": regime, "by": by, "value": value, "measure": measure, "cases": len(group),
            "right": int(said.sum()), "share": said.mean(), "share_ci_low": interval.low,
            "share_ci_high": interval.high}  # fmt: skip


def right(group: pd.DataFrame, measure: str) -> pd.Series:
    """Which rows have the true rank."""
    return group[measure] == group["true_rank"]


def counts(cases: pd.DataFrame) -> pd.DataFrame:
    """How many updates of each true rank were given which rank; none where storage_rank declines."""
    return pd.DataFrame(_counted(cases))


def _counted(cases: pd.DataFrame) -> Iterator[dict]:
    for (noise, regime, k), group in cases.groupby([_source(cases), "regime", "true_rank"]):
        for measure in _asked(noise):
            found = group[measure].astype("Int64").astype("string").fillna("none")
            for value, number in sorted(found.value_counts().items(), key=lambda item: (len(item[0]), item[0])):
                yield {"noise": noise, "regime": regime, "measure": measure, "true_rank": k, "recovered": value,
                       "cases": number}  # fmt: skip


def picture(cases: pd.DataFrame) -> Picture:
    """Share of right answers against how far the planted values stand above the error."""
    figure = Figure(figsize=(WIDTH_IN, 2.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    cases = cases[(cases["true_rank"] > 0) & cases["regime"].isin((DETECTABLE, EDGE, BELOW))]
    names = dict(zip(MEASURES, ("storage_rank", "its floor alone", "mp_rank", "gd_rank"), strict=True))
    looks = dict(zip(MEASURES, (SERIES[0], SERIES[3], SERIES[1], SERIES[2]), strict=True))
    shown = ((STORAGE, cases[cases["noise"].isin(list(DTYPES))], "error of rounding alone"),
             (GAUSSIAN, cases[cases["noise"] == GAUSSIAN], "added Gaussian noise"))  # fmt: skip
    centres = np.sqrt(np.array(BINS[1:]) * np.array(BINS[:-1]))
    for axes, (where, part, title) in zip(panels, shown, strict=True):
        place = pd.cut(part["scale"], BINS, labels=False)
        for measure in _asked(where):
            share = right(part, measure).groupby(place).mean().reindex(range(len(centres)))
            color, marker, line = looks[measure]
            axes.plot(centres, 100 * share, color=color, marker=marker, ls=line, ms=4, label=names[measure])
        axes.axvline(2, color="#6E6E6E", lw=0.8, ls=":")
        axes.set_xscale("log")
        axes.set_xticks([0.5, 1, 2, 4, 8, 16, 32], ["0.5", "1", "2", "4", "8", "16", "32"])
        axes.minorticks_off()
        axes.set_title(f"{title} (n = {len(part):,})")
        axes.set_xlabel("smallest planted σ / largest σ of the error")
        axes.grid(axis="y")
    panels[0].set_ylabel("right rank, %")
    panels[0].legend(loc="lower right")
    caption = "Share of updates of rank 1, 4 and 16 whose rank is found; fewer than half of the entries unchanged."
    return Picture("recovered_ranks", "Recovered ranks", figure, caption)
