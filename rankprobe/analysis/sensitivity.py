"""How much the loss grows when one matrix's update is cut to rank k and all others stay whole: sensitivity.csv."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from rankprobe.analysis.cut_updates import UpdateSVD
from rankprobe.analysis.truncation import truncation_ks
from rankprobe.errors import UsageError, must

# A growth of the loss that is less than so many standard errors is no growth.
Z = 2.0
COLUMNS = (
    "name", "layer", "kind", "m", "n", "p", "k", "rows", "loss", "increase", "se", "sensitivity", "energy_kept",
)  # fmt: skip


def ladder(p: int) -> tuple[int, ...]:
    """The ks at which an update of p directions is cut: 0 and the powers of two below p.

    >>> ladder(12)
    (0, 1, 2, 4, 8)
    """
    return truncation_ks(p)[:-1]


def sensitivity_table(
    updates: Sequence[UpdateSVD], losses: Mapping[str, np.ndarray], whole: np.ndarray, *, z: float = Z
) -> pd.DataFrame:
    """Growth of the loss by matrix and kept rank, paired row by row with the uncut model's.

    Parameters
    ----------
    updates : sequence of UpdateSVD
    losses : mapping of str to ndarray, shape (len(ladder(p)), rows), float64
        By the site's name: each row's loss with this update alone cut to each k of :func:`ladder`.
    whole : ndarray, shape (rows,), float64
        Each row's loss with nothing cut.
    z : float
        Standard errors that a growth has to exceed.

    Returns
    -------
    DataFrame, columns :data:`COLUMNS`
        A row a matrix and k, the last one of a matrix its whole update, k = p. ``increase`` is the mean of the paired
        differences in the loss's units (nats), ``se`` its standard error, ``sensitivity`` the increase where it is
        above ``z * se`` and else 0: a cut that helps, or hurts less than its noise, costs nothing.

    Raises
    ------
    UsageError
        If there are fewer than two rows, or a loss is not finite.

    Notes
    -----
    The same rows go through both models, so that what differs between rows cancels: the standard error is that of the
    difference, mostly a small part of the loss's own.
    """
    if len(whole) < 2:
        raise UsageError(must("rows of the sensitivity", "be at least two", len(whole), "Pass more --rows"))
    rows = []
    for update in updates:
        site, measured = update.site, losses[update.site.name]
        p = len(update.S)
        energy = update.S.double().square().cpu().numpy()
        kept = np.concatenate([[0.0], np.cumsum(energy)]) / max(energy.sum(), np.finfo(float).tiny)
        what = {"name": site.name, "layer": site.layer, "kind": site.kind, "m": site.shape[0], "n": site.shape[1],
                "p": p, "rows": len(whole)}  # fmt: skip
        for k, cut in zip((*ladder(p), p), (*measured, whole), strict=True):
            difference = np.asarray(cut, dtype=np.float64) - whole
            if not np.isfinite(difference).all():
                got = f"{cut[~np.isfinite(difference)][0]} with {site.name} cut to k={k}"
                raise UsageError(must("losses", "be finite", got, "Pass a run that ended well"))
            increase, se = float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(len(whole))
            sensitivity = increase if increase > z * se else 0.0
            rows.append(what | {"k": k, "loss": float(np.mean(cut)), "increase": increase, "se": se,
                                "sensitivity": sensitivity, "energy_kept": float(kept[k])})  # fmt: skip
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["layer"] = table["layer"].astype("Int64")
    return table
