"""What a pair's ranks say, in sentences: for the terminal and for the page."""

from __future__ import annotations

import pandas as pd

from rankprobe.analysis.rank_columns import energy_column
from rankprobe.analysis.spectrum_tables import Storage, storage_by_dtype, swallowed
from rankprobe.report import numbers as say

DEFINITIONS = {
    "energy rank": "the smallest k whose k largest singular values hold that share of Σσ²: what most papers call the "
    "rank of dW",
    "stable rank": "Σσ² / σ₁²",
    "effective rank": "exponential of the entropy of σ / Σσ (Roy & Vetterli 2007)",
    "participation ratio": "(Σσ²)² / Σσ⁴",
    "numerical rank": "σ above σ₁ · max(m, n) · eps of float64: what arithmetic alone tells from zero",
    "storage rank": "σ above the largest singular value of the noise that rounding to the storage dtype makes, of "
    "three draws; where an update is so small that its rounding error follows it, what rounding it again explains is "
    "not counted; none where more than half of the weights did not change",
    "mp rank": "σ above the Marchenko-Pastur edge, where white noise as strong as the median σ suggests ends",
    "gd rank": "σ above Gavish & Donoho's threshold (2014): for white noise, it makes a truncated SVD's error least",
    "bulk / floor": "scale of the small singular values by that of the drawn noise: about 1 is one rounding, √2 two, "
    "more is noise of training",
}


def change_words(ranks: pd.DataFrame, energy: float) -> list[str]:
    """How much changed and how many directions hold it."""
    if ranks.empty:
        return ["No matrix was compared."]
    changed = ranks[ranks["sigma_max"] > 0]
    if changed.empty:
        return [f"Nothing changed: dW is zero in all of {matrices(len(ranks))}."]
    said = []
    relative = changed["relative_change"].dropna()
    still = len(ranks) - len(changed)
    size = f"; ‖dW‖/‖W0‖ is {say.percent(100 * relative.median())} in the median" if len(relative) else ""
    some = f"{len(changed):,} of {matrices(len(ranks))} changed, {still:,} did not"
    every = "The matrix changed" if len(ranks) == 1 else f"All {matrices(len(ranks))} changed"
    said.append(f"{some if still else every}{size}.")
    # What rounding left of an update that it swallowed has directions, and they say nothing of what was learned.
    telling = changed[~swallowed(changed)]
    inside = telling[telling["layer"].notna() & (telling["kind"] != "embed")]
    rows, where = (inside, " of the blocks") if len(inside) else (telling, "")
    if len(rows):
        where += " that storing did not swallow" if len(telling) < len(changed) else ""
        k, p = rows[energy_column(energy)], rows[["m", "n"]].min(axis=1)
        of = f" ({say.percent(100 * (k / p).median())} of min(m, n))" if (rows["source"] == "dense").any() else ""
        span = f" [{int(k.min())} to {int(k.max())}]" if k.min() < k.max() else ""
        many = f"{k.median():g} {'direction' if k.median() == 1 else 'directions'}"
        middle = "" if len(rows) == 1 else f" in the median of {matrices(len(rows))}{where}"
        said.append(f"{100 * energy:g} % of the energy Σσ² takes {many}{span}{middle}{of}.")
    factored = changed[changed["source"] == "factored"]
    if len(factored):
        ranks_of = sorted(set(factored["numerical_rank"].astype(int)))
        span = f"{ranks_of[0]}" if len(ranks_of) == 1 else f"{ranks_of[0]} to {ranks_of[-1]}"
        updates = "the factored update" if len(factored) == 1 else f"all {len(factored):,} factored updates"
        said.append(f"The numerical rank is {span} in {updates}.")
    return said


def storage_words(ranks: pd.DataFrame) -> list[str]:
    """What each storage dtype did to the updates."""
    return [_storage(of, ranks) for of in storage_by_dtype(ranks)]


def _storage(of: Storage, ranks: pd.DataFrame) -> str:
    share = say.percent(100 * of.unchanged)
    if of.swallowed == of.matrices:
        return (
            f"{of.dtype} swallowed the update: {share} of the weights did not change. What is left has no rank that "
            f"says something about what was learned."
        )
    rows = ranks[(ranks["dtype_tuned"] == of.dtype) & (ranks["storage_floor"] > 0) & ~swallowed(ranks)]
    rank = rows["storage_rank"].astype("float64")
    all_above = bool((rank == rows[["m", "n"]].min(axis=1)).all())
    one = rank.median() == 1
    # Beside factors, which hold no rounding noise, the sentence is of the few dense matrices, and says so.
    of_dense = f" of {matrices(len(rows))} that came dense" if (ranks["source"] == "factored").any() else ""
    some = f"{rank.median():g} direction{' stands' if one else 's stand'}"
    counted = f"All directions{of_dense} stand" if all_above else some
    whose = "their" if all_above and of_dense else "the"
    text = (
        f"{counted} above the noise of rounding to {of.dtype}"
        f"{'' if all_above else ' in the median of ' + matrices(len(rows))}; {share} of {whose} weights did not change."
    )
    above_white = rows["mp_rank"].astype("float64").median()
    if above_white < rank.median():
        text += f" That is not yet signal: {above_white:g} stand above white noise (mp rank)."
    if of.swallowed:
        gone = say.percent(100 * of.unchanged_swallowed)
        text += (
            f" {of.dtype} swallowed the update in {of.swallowed} of {matrices(of.matrices)}: {gone} of their weights "
            f"did not change."
        )
    return text


def matrices(count: int) -> str:
    """A count with its noun.

    >>> matrices(1), matrices(1200)
    ('1 matrix', '1,200 matrices')
    """
    return f"{count:,} {'matrix' if count == 1 else 'matrices'}"
