"""Rank of every weight update, by every definition that singular values give: ranks.csv and spectra.csv."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rankprobe.analysis.rank_columns import ENERGY_SHARES, INTEGERS, NOISE_RANKS, columns, energy_column
from rankprobe.errors import UsageError, must
from rankprobe.linalg.decompose import singular_values, svdvals_dense, svdvals_factored
from rankprobe.linalg.noise import changed_block, gd_rank, gd_threshold, mp_edge, mp_rank, storage_noise
from rankprobe.linalg.rank import effective_rank, energy_rank, numerical_rank, participation_ratio, stable_rank
from rankprobe.weights.delta import Delta

if TYPE_CHECKING:
    import pandas as pd

    from rankprobe.weights.pairing import Pairing

# Formats whose rounding can be told from the stored numbers; of dequantised ones it cannot.
_ROUNDED = ("bfloat16", "float16", "float32", "float64")
_MARGIN = 10.0


def measure(
    delta: Delta,
    *,
    energies: Sequence[float] = ENERGY_SHARES,
    base_rounded: bool = False,
    device: str = "cpu",
    noise: bool = True,
) -> tuple[dict, Tensor]:
    """Singular values and ranks of one weight update.

    Parameters
    ----------
    delta : Delta
        Factors are decomposed as factors.
    energies : sequence of float
        Shares of Σσ², a column each.
    base_rounded : bool
        Count the rounding of W0, too: it was rounded after training as W1 was.
    device : str
        Where dense updates are decomposed.
    noise : bool
        Draw the rounding noise that storage_rank is held against.

    Returns
    -------
    row : dict
        A value for each of :func:`columns`, as :func:`spectrum` describes them; None or NaN where there is none.
    S : Tensor, shape (min(m, n),) or (min(r, m, n),), float64, on the CPU
        Singular values; those of factors that are missing are zero.

    Raises
    ------
    UsageError
        If the update holds NaN or infinity, or base_rounded is asked of a dense update without W0.
    """
    name = f"dW of {delta.name}"
    aware = dict.fromkeys((*NOISE_RANKS, "storage_floor", "bulk_to_floor", "mp_edge", "gd_threshold"))
    if delta.dW is None:
        S, decomposition = svdvals_factored(delta.B, delta.A, delta.scaling, name=name).cpu(), "factored"
        eps, unchanged = torch.finfo(torch.float64).eps, math.nan
    else:
        dW = delta.dW.to(device)
        values = singular_values(dW, name=name)
        S, decomposition = values.S.cpu(), values.method
        eps, unchanged = torch.finfo(dW.dtype).eps, (dW.numel() - int(torch.count_nonzero(dW))) / dW.numel()
        aware |= _above_noise(delta, dW, S, base_rounded=base_rounded, draw=noise)
        # What is counted above a threshold must not hang on the error of the values beside it.
        lowest = min((t for t in (aware[c] for c in ("storage_floor", "mp_edge", "gd_threshold")) if t), default=0.0)
        if decomposition != "direct" and 0 < lowest <= _MARGIN * values.error * float(S[0]):
            S, decomposition = svdvals_dense(dW, name=name).cpu(), "direct"
            aware |= _above_noise(delta, dW, S, base_rounded=base_rounded, draw=noise)
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
        **{energy_column(q): int(energy_rank(S, q)) for q in sorted(energies)},
        "numerical_rank": int(numerical_rank(S, (m, n), eps)),
        "unchanged_fraction": unchanged,
        **aware,
        "decomposition": decomposition,
        "residual": 0.0,
    }
    return {column: row[column] for column in columns(energies)}, S


def spectrum(
    deltas: Iterable[Delta],
    *,
    energies: Sequence[float] = ENERGY_SHARES,
    base_rounded: bool = False,
    device: str = "cpu",
    noise: bool = True,
    progress: Callable[[Delta], None] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Singular values and ranks of weight updates.

    Parameters
    ----------
    deltas : iterable of Delta
        Read once, one at a time: a generator keeps one dW in memory.
    energies, base_rounded, device, noise
        As for :func:`measure`.
    progress : callable, optional
        Called with each Delta when it is done.

    Returns
    -------
    ranks : DataFrame, a row a matrix
        name, layer (nullable integer), kind, m, n, dtype_base, dtype_tuned, source (``dense`` or ``factored``);
        fro_norm (||dW||_F), relative_change (||dW||_F / ||W0||_F, NaN where W0 is unknown or zero), sigma_max;
        stable_rank, effective_rank, participation_ratio, energy_rank_50 / 90 / 95 / 99 (of Σσ²), numerical_rank
        (eps of dW's dtype; float64's for factors); unchanged_fraction (weights with dW = 0 exactly; NaN for factors,
        whose product is never formed); storage_rank (directions that rounding to the storage dtype does not explain),
        mp_rank (above the Marchenko-Pastur edge) and gd_rank (above Gavish & Donoho's threshold), all nullable
        integers; storage_floor (σ₁ of drawn rounding noise), bulk_to_floor (about 1 where the small values are one
        rounding), mp_edge and gd_threshold, in the units of σ; decomposition (``gram``, ``deflated``,
        ``direct`` or ``factored``); residual (||dW - USVh||_F / ||dW||_F of an approximate decomposition: 0, since
        these are exact).

        From storage_rank to gd_threshold all are empty for factors, and those of storage also where W1 is not at hand,
        was dequantised, or ``noise`` is False. storage_rank alone is empty where the storage dtype swallowed the
        update: more than half of the weights that could have changed did not.
    spectra : DataFrame, a row a singular value
        name, index (from 1), sigma. min(m, n) a matrix; of factors min(r, m, n), the others being zero.

    Raises
    ------
    UsageError
        If an update holds NaN or infinity, or a name comes twice.

    Notes
    -----
    Decomposed in float64; directly where a threshold is within 10 times the error of the faster way. Columns are
    defined in :mod:`rankprobe.linalg.rank` and :mod:`rankprobe.linalg.noise`.

    Examples
    --------
    >>> dW = torch.diag(torch.tensor([3.0, 1.0, 0.0]))
    >>> ranks, spectra = spectrum([Delta("q.weight", 0, "q", (3, 3), "float32", "float32", base_norm=100.0, dW=dW)])
    >>> ranks[["name", "stable_rank", "energy_rank_90", "numerical_rank"]].values.tolist()
    [['q.weight', 1.1111111111111112, 1, 2]]
    >>> spectra.sigma.tolist()
    [3.0, 1.0, 0.0]
    """
    import pandas as pd  # here: a command that streams has no need of it while large matrices are in memory

    rows: list[dict] = []
    sigmas: dict[str, Tensor] = {}
    for delta in deltas:
        if delta.name in sigmas:
            raise UsageError(must("deltas", "have names of their own", f"{delta.name} twice", "Pass each matrix once"))
        row, S = measure(delta, energies=energies, base_rounded=base_rounded, device=device, noise=noise)
        rows.append(row)
        sigmas[delta.name] = S
        if progress is not None:
            progress(delta)
    ranks = pd.DataFrame(rows, columns=list(columns(energies))).astype(dict.fromkeys(INTEGERS, "Int64"))
    numbers = ranks.columns[ranks.columns.get_loc("storage_floor") : ranks.columns.get_loc("decomposition")]
    ranks = ranks.astype(dict.fromkeys(numbers, "float64"))
    lengths = [len(S) for S in sigmas.values()]
    spectra = pd.DataFrame(
        {
            "name": [name for name, length in zip(sigmas, lengths, strict=True) for _ in range(length)],
            "index": [i for length in lengths for i in range(1, length + 1)],
            "sigma": torch.cat(list(sigmas.values())).numpy() if sigmas else [],
        }
    )
    return ranks, spectra


def spectrum_of(pairing: Pairing, **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    """:func:`spectrum` of every matrix of a pair, read one at a time.

    Parameters
    ----------
    pairing : Pairing
        From :func:`rankprobe.weights.pair.pair`.
    **options
        Keywords of :func:`spectrum`.

    Returns
    -------
    ranks, spectra : DataFrame
    """
    return spectrum((matrix.delta() for matrix in pairing.matrices), **options)


def _above_noise(delta: Delta, dW: Tensor, S: Tensor, *, base_rounded: bool, draw: bool) -> dict:
    """The noise-aware columns of a dense update that can be filled."""
    rows, columns = changed_block(dW != 0)
    block = (len(rows), len(columns))
    if 0 in block:
        found = {"mp_rank": 0, "gd_rank": 0, "mp_edge": 0.0, "gd_threshold": 0.0}
    else:
        # Rows that did not change (tokens never seen) hold no noise: they would only dilute what the others hold.
        found = {
            "mp_rank": mp_rank(S, block),
            "gd_rank": gd_rank(S, block),
            "mp_edge": mp_edge(S, block),
            "gd_threshold": gd_threshold(S, block),
        }
    rounded = [delta.dtype_tuned, *([delta.dtype_base] if base_rounded else [])]
    if draw and delta.W1 is not None and all(dtype in _ROUNDED for dtype in rounded):
        storage = storage_noise(S, dW, delta.W1, W0=delta.W0, base_rounded=base_rounded)
        found |= {
            "storage_rank": storage.rank, "storage_floor": storage.floor, "bulk_to_floor": storage.bulk_to_floor,
        }  # fmt: skip
    return found
