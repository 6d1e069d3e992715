"""Rank of every weight update, by every definition that singular values give: ranks.csv and spectra.csv."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pandas as pd
import torch
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.linalg.decompose import svd_factored, svdvals_dense
from rankprobe.linalg.rank import effective_rank, energy_rank, numerical_rank, participation_ratio, stable_rank
from rankprobe.weights.delta import Delta

ENERGY_SHARES = (0.50, 0.90, 0.95, 0.99)
RANK_COLUMNS = (
    "stable_rank",
    "effective_rank",
    "participation_ratio",
    *(f"energy_rank_{round(100 * q)}" for q in ENERGY_SHARES),
    "numerical_rank",
)
COLUMNS = (
    "name",
    "layer",
    "kind",
    "m",
    "n",
    "dtype_base",
    "dtype_tuned",
    "source",
    "fro_norm",
    "relative_change",
    "sigma_max",
    *RANK_COLUMNS,
    "unchanged_fraction",
    "residual",
)


def spectrum(
    deltas: Iterable[Delta], *, progress: Callable[[Delta], None] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Singular values and ranks of weight updates.

    Parameters
    ----------
    deltas : iterable of Delta
        Read once, one at a time: a generator keeps one dW in memory. Factors are decomposed as factors.
    progress : callable, optional
        Called with each Delta when it is done.

    Returns
    -------
    ranks : DataFrame, a row a matrix
        name, layer (nullable integer), kind, m, n, dtype_base, dtype_tuned, source (``dense`` or ``factored``);
        fro_norm (||dW||_F), relative_change (||dW||_F / ||W0||_F, NaN where W0 is unknown or zero), sigma_max;
        stable_rank, effective_rank, participation_ratio, energy_rank_50 / 90 / 95 / 99 (of Σσ²), numerical_rank
        (eps of dW's dtype; float64's for factors); unchanged_fraction (weights with dW = 0 exactly; NaN for factors,
        whose product is never formed); residual (||dW - USVh||_F / ||dW||_F of an approximate decomposition: 0, since
        these are exact).
    spectra : DataFrame, a row a singular value
        name, index (from 1), sigma. min(m, n) a matrix; of factors min(r, m, n), the others being zero.

    Raises
    ------
    UsageError
        If an update holds NaN or infinity, or a name comes twice.

    Notes
    -----
    Decomposed in float64. Columns are defined in :mod:`rankprobe.linalg.rank`.

    Examples
    --------
    >>> dW = torch.diag(torch.tensor([3.0, 1.0, 0.0]))
    >>> ranks, spectra = spectrum([Delta("q.weight", 0, "q", (3, 3), "float32", "float32", base_norm=100.0, dW=dW)])
    >>> ranks[["name", "stable_rank", "energy_rank_90", "numerical_rank"]].values.tolist()
    [['q.weight', 1.1111111111111112, 1, 2]]
    >>> spectra.sigma.tolist()
    [3.0, 1.0, 0.0]
    """
    rows: list[dict] = []
    sigmas: dict[str, Tensor] = {}
    for delta in deltas:
        if delta.name in sigmas:
            raise UsageError(must("deltas", "have names of their own", f"{delta.name} twice", "Pass each matrix once"))
        if delta.dW is not None:
            S = svdvals_dense(delta.dW, name=f"dW of {delta.name}").cpu()
            eps = torch.finfo(delta.dW.dtype).eps
            unchanged = float((delta.dW == 0).double().mean())
        else:
            S = svd_factored(delta.B, delta.A, delta.scaling, name=f"dW of {delta.name}")[1].cpu()
            eps = torch.finfo(torch.float64).eps
            unchanged = math.nan
        rows.append(_row(delta, S, eps, unchanged))
        sigmas[delta.name] = S
        if progress is not None:
            progress(delta)
    ranks = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"layer": "Int64"})
    lengths = [len(S) for S in sigmas.values()]
    spectra = pd.DataFrame(
        {
            "name": [name for name, length in zip(sigmas, lengths, strict=True) for _ in range(length)],
            "index": [i for length in lengths for i in range(1, length + 1)],
            "sigma": torch.cat(list(sigmas.values())).numpy() if sigmas else [],
        }
    )
    return ranks, spectra


def medians(ranks: pd.DataFrame, by: str = "kind") -> pd.DataFrame:
    """Median of relative_change and every rank column over the blocks' matrices of each kind, or of each layer.

    Embeddings and what lies outside the blocks are left out: a median would mix them with other things.

    Parameters
    ----------
    ranks : DataFrame
        From :func:`spectrum`.
    by : str
        ``kind`` (in order of first appearance) or ``layer`` (ascending).

    Returns
    -------
    DataFrame
        kind or layer, matrices (how many the median is of), relative_change and the rank columns.
    """
    blocks = ranks[ranks["layer"].notna() & (ranks["kind"] != "embed")].astype({"layer": int})
    groups = blocks.groupby(by, sort=by == "layer")
    table = groups[["relative_change", *RANK_COLUMNS]].median()
    table.insert(0, "matrices", groups.size())
    return table.reset_index()


def _row(delta: Delta, S: Tensor, eps: float, unchanged: float) -> dict:
    m, n = delta.shape
    sigma_max, stable = float(S[0]), float(stable_rank(S))
    fro_norm = sigma_max * math.sqrt(stable)  # squares of the values themselves could vanish
    row = {
        "name": delta.name,
        "layer": delta.layer,
        "kind": delta.kind,
        "m": m,
        "n": n,
        "dtype_base": delta.dtype_base,
        "dtype_tuned": delta.dtype_tuned,
        "source": delta.source,
        "fro_norm": fro_norm,
        "relative_change": fro_norm / delta.base_norm if delta.base_norm != 0 else math.nan,
        "sigma_max": sigma_max,
        "stable_rank": stable,
        "effective_rank": float(effective_rank(S)),
        "participation_ratio": float(participation_ratio(S)),
        "numerical_rank": int(numerical_rank(S, (m, n), eps)),
        "unchanged_fraction": unchanged,
        "residual": 0.0,
    }
    for q in ENERGY_SHARES:
        row[f"energy_rank_{round(100 * q)}"] = int(energy_rank(S, q))
    return row
