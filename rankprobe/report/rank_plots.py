"""Pictures of dW: accuracy against kept rank beside the energy, spectra, and energy rank by layer and kind."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from rankprobe.analysis.spectrum_tables import KINDS
from rankprobe.report import numbers as say
from rankprobe.report.claims_rank import full_energy_shares, functional_ranks
from rankprobe.report.comparison import configurations, full_reference, main_lora, main_metric
from rankprobe.report.findings import Findings
from rankprobe.report.matrix_plots import heat_map
from rankprobe.report.matrix_plots import spectra as draw_spectra
from rankprobe.report.style import BLUE, GREEN, GREY, ORANGE, PINK, WIDTH_IN, Picture, score_ticks
from rankprobe.tasks.metrics import truncation_metric

_RULES = {
    "rest_tuned": ("full fine-tuning, everything else stays tuned", BLUE, "o", "-"),
    "rest_base": ("full fine-tuning, all else but the head reset to W0", ORANGE, "s", "--"),
}


def truncation_beside_energy(findings: Findings) -> Picture | None:
    """Accuracy with the best rank-k part of full fine-tuning's dW, above the energy that this part holds."""
    table = findings.tables["truncation"]
    full = {run["run_id"]: run for run in full_reference(configurations(findings.runs))}
    mine = table[table["run_id"].isin(full)] if len(table) else table
    if mine.empty:
        return None
    run = full[mine["run_id"].iloc[0]]
    mine = mine[mine["run_id"] == run["run_id"]]
    scored_by = truncation_metric(main_metric(run))
    metric = scored_by.replace("_", " ")
    energy = _energy_curves(findings.tables["spectra"], findings.tables["ranks"], run["run_id"])
    figure = Figure(figsize=(WIDTH_IN, 4.6 if energy is not None else 2.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(2 if energy is not None else 1, 1, sharex=True))
    top = panels[0]
    curves = [(mine[mine["rule"] == rule], *look) for rule, look in _RULES.items()]
    curves.append(
        (
            lora := _largest_lora_curve(table),
            f"LoRA r = {_only(lora, 'r')}, everything else stays tuned",
            PINK,
            "^",
            ":",
        )
    )
    shown = [curve for curve in curves if len(curve[0])]
    for i, (rows, name, color, marker, line) in enumerate(shown):
        rows = rows.sort_values("k")
        x = _place(rows["k"]) + 0.07 * (i - (len(shown) - 1) / 2)  # side by side: equal values stay visible
        around = [rows["accuracy"] - rows["ci_low"], rows["ci_high"] - rows["accuracy"]]
        top.errorbar(
            x, rows["accuracy"], yerr=around, color=color, marker=marker, ms=4.5, ls=line, capsize=2, lw=1.1, label=name
        )
    top.set_ylabel(metric)
    top.yaxis.set_major_formatter(score_ticks(scored_by))
    top.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none")
    words = [
        f"Above: {metric} on {run['task']['name']} when every block matrix keeps only the best rank-k part of its dW "
        f"(seed {run['spec']['seed']}; n = {int(mine['n'].iloc[0]):,} evaluation rows; bars are 95 % intervals, "
        f"{mine['ci_method'].iloc[0]})."
    ]
    found = next((r for r in functional_ranks([run]) if not say.missing(r.get("k"))), None)
    if found:
        _mark(top, found["k"], f"90 % of the gain: k = {found['k']:g}", BLUE)
        ends = say.with_interval(found["k"], found["ci_low"], found["ci_high"], 0)
        words.append(f"Vertical line: functional rank at 90 % of the gain, k = {ends}.")
    if energy is not None:
        words.append(_draw_energy(panels[1], energy))
    ks = sorted(set(mine["k"].astype(int)))
    panels[-1].set_xlabel("kept rank k (log scale)")
    panels[-1].set_xticks(_place(ks), [str(k) for k in ks])
    panels[-1].xaxis.set_minor_locator(NullLocator())
    for axes in panels:
        axes.grid()
        axes.set_axisbelow(True)
    return Picture("truncation", "Accuracy against kept rank", figure, " ".join(words))


def spectra(findings: Findings) -> Picture | None:
    """Singular values of dW by kind, a line a layer: full fine-tuning beside LoRA."""
    runs = [group[0] for group in (full_reference(configurations(findings.runs)), main_lora(findings.runs)) if group]
    table, ranks = findings.tables["spectra"], findings.tables["ranks"]
    if table.empty or ranks.empty:
        return None
    where = ranks.drop_duplicates("name").set_index("name")[["layer", "kind"]]
    table = table[table["run_id"].isin([run["run_id"] for run in runs])].join(where, on="name").dropna(subset=["layer"])
    table = table[(table["sigma"] > 0) & table["kind"].isin(KINDS)]
    if table.empty:
        return None
    # A square matrix's last few values fall by orders of magnitude; drawn in full, they would flatten all others.
    floor = float(table["sigma"].quantile(0.02))
    cut = table["sigma"].min() < floor / 10
    looks = {"full": {"ls": "-", "lw": 1.1}, "lora": {"ls": "--", "lw": 0.9, "marker": "o", "markersize": 3.2}}
    methods = {run["run_id"]: run["spec"]["method"] for run in runs}
    lora = "LoRA r = {r} on {targets}"
    labels = {
        run["spec"]["method"]: "full fine-tuning" if run["spec"]["method"] == "full" else lora.format(**run["spec"])
        for run in runs
    }
    figure = draw_spectra(
        table.assign(look=table["run_id"].map(methods)), looks, labels, bottom=floor / 1.5 if cut else None
    )
    matrices = table.groupby("run_id")["name"].nunique()
    which = "; ".join(
        f"{label}, seed {run['spec']['seed']}, {matrices.get(run['run_id'], 0)} matrices"
        for label, run in zip(labels.values(), runs, strict=True)
    )
    caption = (
        f"All singular values of dW = W1 − W0, a panel a kind of matrix and a line a layer ({which}). Exact for these "
        f"runs: no interval."
    )
    if cut:
        caption += f" The least 2 % of the values, down to {table['sigma'].min():.0e}, lie below the axis."
    return Picture("spectra", "Singular values of dW", figure, caption)


def energy_heat_map(findings: Findings) -> Picture | None:
    """energy_rank_90 of full fine-tuning's dW by layer and kind."""
    shares = full_energy_shares(findings.tables["ranks"], findings.runs)
    if shares.empty:
        return None
    kinds = [k for k in KINDS if k in set(shares["kind"])]
    grid = shares.pivot_table(index="layer", columns="kind", values="pct", aggfunc="mean")[kinds]
    grid.index = grid.index.astype(int)
    counts = shares.pivot_table(index="layer", columns="kind", values="energy_rank_90", aggfunc="mean")[kinds]
    figure = heat_map(grid, counts.map(lambda k: "" if pd.isna(k) else f"{k:.0f}"), label="% of min(m, n)")
    seeds = len(full_reference(configurations(findings.runs)))
    p = sorted(set(shares["p"].astype(int)))
    caption = (
        f"energy_rank_90 of full fine-tuning's dW: how many singular directions hold 90 % of Σσ². Numbers are "
        f"directions out of min(m, n) = {', '.join(map(str, p))}, colour is their share; {len(shares)} matrices, "
        f"mean of {seeds} seed{'s' if seeds > 1 else ''}."
    )
    return Picture("energy_rank", "Energy rank by layer and kind", figure, caption)


def _largest_lora_curve(table: pd.DataFrame) -> pd.DataFrame:
    """The truncation of the LoRA run with the largest r, first seed, under the rule that changes dW alone."""
    rows = table[(table["method"] == "lora") & (table["rule"] == "rest_tuned")]
    if rows.empty:
        return rows
    first = rows.sort_values(["r", "seed"], ascending=[False, True])["run_id"].iloc[0]
    return rows[rows["run_id"] == first]


def _only(rows: pd.DataFrame, column: str) -> object:
    return rows[column].iloc[0] if len(rows) else None


def _place(ks) -> np.ndarray:
    """Position of k on an axis that is logarithmic from 1 on and still has a 0."""
    k = np.asarray(ks, dtype=float)
    return np.where(k < 1, k - 1, np.log2(np.maximum(k, 1)))


def _mark(axes, k: float, text: str, color: str) -> None:
    x = float(_place(k))
    axes.axvline(x, color=color, lw=1, ls=(0, (1, 1.5)))
    axes.annotate(
        text,
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, 2),
        textcoords="offset points",
        fontsize=8,
        color=color,
        va="bottom",
        annotation_clip=False,
    )


def _energy_curves(table: pd.DataFrame, ranks: pd.DataFrame, run_id: str) -> pd.DataFrame | None:
    """Share of Σσ² in the first k values, a column a block matrix, k from 1 to the largest p."""
    if table.empty or ranks.empty:
        return None
    blocks = ranks[(ranks["run_id"] == run_id) & ranks["layer"].notna() & ranks["kind"].isin(KINDS)]["name"]
    mine = table[(table["run_id"] == run_id) & table["name"].isin(blocks)]
    if mine.empty:
        return None
    power = mine.assign(power=mine["sigma"] ** 2).pivot(index="index", columns="name", values="power").fillna(0.0)
    total = power.sum()
    return (power.cumsum() / total).loc[:, total > 0]


def _draw_energy(axes, energy: pd.DataFrame) -> str:
    """Median over matrices with the band of all of them; gives the caption's words."""
    x = _place(np.r_[0, energy.index])
    low, mid, high = (np.r_[0, curve] for curve in (energy.min(axis=1), energy.median(axis=1), energy.max(axis=1)))
    axes.fill_between(x, low, high, facecolor=GREEN, alpha=0.15, edgecolor=GREEN, hatch="\\\\", lw=0)
    axes.plot(x, mid, color=GREEN)
    axes.axhline(0.9, color=GREY, lw=1, ls=":")
    axes.set_ylabel("share of the energy Σσ²")
    axes.yaxis.set_major_formatter(score_ticks("accuracy"))
    reached = (energy >= 0.9).idxmax()
    _mark(axes, float(reached.median()), f"90 % of the energy: median k = {reached.median():g}", GREEN)
    return (
        f"Below: energy in the first k directions, median and range over {energy.shape[1]} block matrices; 90 % "
        f"needs {int(reached.min())} to {int(reached.max())} directions, median {reached.median():g}."
    )
