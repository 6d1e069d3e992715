"""The paper's Figures 3 and 4, its Table 7 and intruder dimensions as pictures."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rankprobe.report.compare_plots import phi_map, rounded_up
from rankprobe.report.findings import Findings
from rankprobe.report.style import BLACK, BLUE, GREEN, GREY, ORANGE, WIDTH_IN, Picture

_KINDS = ("q", "v")


def figure_3(findings: Findings) -> Picture | None:
    """φ between the directions of r = 8 and of r = 64, q and v, one layer and the mean of all."""
    table = findings.tables.get("figure3")
    if table is None or table.empty:
        return None
    kinds = [kind for kind in _KINDS if kind in set(table["kind"])]
    layers = sorted(set(table["layer"].dropna().astype(int)))
    middle = layers[len(layers) // 2]
    top = rounded_up(float(table["phi"].max()))
    figure = Figure(figsize=(WIDTH_IN, 3.6), layout="constrained")
    panels = figure.subplots(2, len(kinds), squeeze=False, sharex=True)
    for column, kind in enumerate(kinds):
        of = table[table["kind"] == kind]
        for axes, rows, what in (
            (panels[0, column], of[of["layer"] == middle], f"layer {middle}"),
            (panels[1, column], of, f"mean of {of['layer'].nunique()} layers"),
        ):
            grid, high = _grid(rows, "phi"), _grid(rows, "random_high")
            image = phi_map(axes, grid, grid > high, top)
            axes.set_title(f"{kind}, {what}")
        panels[1, column].set_xlabel("j, of r = 64")
    for row in panels:
        row[0].set_ylabel("i, of r = 8")
    figure.colorbar(image, ax=list(panels.ravel()), aspect=20, pad=0.02, label="φ(i, j)")
    caption = (
        "φ(i, j) of the first i directions of LoRA with r = 8 and the first j with r = 64, right singular vectors of "
        f"the factors A, same seed. Grey: not above the 95 % interval of random subspaces. The paper's Figure 3 has "
        f"φ(1, 1) above 0.5 on GPT-3; here it is {table[(table['i'] == 1) & (table['j'] == 1)]['phi'].median():.2f} in "
        f"the median of {len(table[['layer', 'kind']].drop_duplicates())} matrices."
    )
    return Picture("figure3", "What r = 8 and r = 64 share", figure, caption)


def figure_4(findings: Findings) -> Picture | None:
    """φ between two seeds of r = 64, q and v, beside random subspaces."""
    table = findings.tables.get("figure4")
    if table is None or table.empty:
        return None
    kinds = [kind for kind in _KINDS if kind in set(table["kind"])]
    top = rounded_up(float(table.groupby(["kind", "i", "j"])["phi"].mean().max()))
    figure = Figure(figsize=(WIDTH_IN, 2.6), layout="constrained")
    panels = figure.subplots(1, len(kinds) + 1, squeeze=False)[0]
    everywhere = None
    for axes, kind in zip(panels, kinds, strict=False):
        of = table[table["kind"] == kind]
        grid = _grid(of, "phi")
        everywhere = np.ones_like(grid, dtype=bool)
        image = phi_map(axes, grid, everywhere, top, aspect="equal")
        axes.set_title(f"{kind}, two seeds")
        axes.set_xlabel("j, of seed 1")
    random = _grid(table, "random_mean")
    phi_map(panels[-1], random, np.ones_like(random, dtype=bool), top, aspect="equal")
    panels[-1].set_title("random subspaces")
    panels[-1].set_xlabel("j")
    panels[0].set_ylabel("i, of seed 0")
    figure.colorbar(image, ax=list(panels), aspect=20, pad=0.02, label="φ(i, j)")
    caption = (
        "φ(i, j) between two seeds of LoRA with r = 64, right singular vectors of the factors A, mean over "
        f"{table['layer'].nunique()} layers; on the right the mean of random subspaces, as in the paper's Figure 4."
    )
    return Picture("figure4", "What two seeds share", figure, caption)


def table_7_dots(findings: Findings) -> Picture | None:
    """W0 on dW's directions, on its own and on random ones, and dW itself, by r."""
    table = findings.tables.get("table7")
    if table is None or table.empty:
        return None
    looks = {
        "norm_of_dW": ("dW", BLACK, "s"),
        "norm_on_W": ("W0 on its own top directions", GREEN, "^"),
        "norm_on_dW": ("W0 on dW's directions", BLUE, "o"),
        "norm_on_random": ("W0 on random directions", GREY, "D"),
    }
    rs = sorted(set(table["lora_r"]))
    figure = Figure(figsize=(WIDTH_IN, 2.9), layout="constrained")
    axes = figure.subplots()
    for shift, (quantity, (label, color, marker)) in zip(np.linspace(-0.18, 0.18, 4), looks.items(), strict=True):
        rows = table[table["quantity"] == quantity].set_index("lora_r").loc[rs]
        around = [rows["median"] - rows["ci_low"], rows["ci_high"] - rows["median"]]
        axes.errorbar(np.arange(len(rs)) + shift, rows["median"], yerr=around, color=color, marker=marker, ls="none",
                      capsize=3, label=label)  # fmt: skip
    factors = table[table["quantity"] == "amplification"].set_index("lora_r")["median"]
    axes.set_xticks(range(len(rs)), [f"r = {r}\ndW is {factors[r]:.2g} times\nwhat W0 has there" for r in rs])
    axes.set_xlim(-0.5, len(rs) - 0.5)
    axes.set_yscale("log")
    axes.set_ylabel("Frobenius norm (log scale)")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper left", ncols=4, handletextpad=0.3, columnspacing=1.0)
    finite = np.isfinite(table[["ci_low", "ci_high"]].to_numpy(float)).any()
    how = f"{'with 95 % intervals ' if finite else ''}({table['ci_method'].iloc[0]})"
    caption = (
        f"The paper's Table 7 here: medians over {int(table['n'].max())} matrices {how}. On GPT-3 dW is 21.5 times "
        "what W0 has on its directions for r = 4, and 1.9 times for r = 64."
    )
    return Picture("table7", "How much dW amplifies what W0 has", figure, caption)


def intruders_by_r(findings: Findings) -> Picture | None:
    """Mean number of intruder dimensions a matrix, LoRA by r and full fine-tuning."""
    table = findings.tables.get("intruders")
    if table is None or table.empty:
        return None
    table = table.drop_duplicates(["method", "lora_r"])
    lora = table[table["method"] == "lora"].sort_values("lora_r")
    rest = [table[table["method"] == method] for method in ("full", "base")]
    rows = pd.concat([lora, *rest], ignore_index=True)
    names = {"full": "full", "base": "W0 with itself\n(control)"}
    labels = [names.get(m, f"LoRA\nr = {r}") for m, r in zip(rows["method"], rows["lora_r"], strict=True)]
    colors = [{"lora": BLUE, "full": ORANGE}.get(method, GREY) for method in rows["method"]]
    figure = Figure(figsize=(WIDTH_IN, 2.7), layout="constrained")
    axes = figure.subplots()
    around = [rows["mean"] - rows["ci_low"], rows["ci_high"] - rows["mean"]]
    axes.bar(range(len(rows)), rows["mean"], color=colors, width=0.55)
    axes.errorbar(range(len(rows)), rows["mean"], yerr=around, color=BLACK, ls="none", capsize=4, lw=1.1)
    for x, (mean, high) in enumerate(zip(rows["mean"], rows["ci_high"], strict=True)):
        axes.annotate(f"{mean:.2f}", (x, high), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks(range(len(rows)), labels)
    axes.set_ylim(0, 1.15 * max(float(rows["ci_high"].max()), 0.5))
    axes.set_ylabel(f"intruders among {int(rows['k'].iloc[0])}, a matrix")
    caption = (
        "Intruder dimensions (Shuttleworth et al. 2024): leading left singular vectors of W1 without a |cosine| above "
        f"0.5 with any of W0's; means over {int(rows['n'].max())} matrices with 95 % intervals."
    )
    return Picture("intruders", "Directions that W0 did not have", figure, caption)


def _grid(rows: pd.DataFrame, column: str) -> np.ndarray:
    """Mean over matrices by (i, j)."""
    return rows.pivot_table(index="i", columns="j", values=column, aggfunc="mean").to_numpy(float)
