"""Rank of an update above the rounding that storing the weights put into it.

The ranks above white noise of unknown strength are in :mod:`rankprobe.linalg.white_noise`, the formats' spacing in
:mod:`rankprobe.linalg.rounding`; both are importable from here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.linalg.rerounding import explained_rank
from rankprobe.linalg.rounding import CHUNK, spacing, storage_dtype, top_value, ulp
from rankprobe.linalg.white_noise import check_values, fluctuation, gd_rank, gd_threshold, mp_edge, mp_median, mp_rank

__all__ = [
    "StorageNoise", "changed_block", "gd_rank", "gd_threshold", "mp_edge", "mp_rank", "storage_dtype",
    "storage_noise", "ulp",
]  # fmt: skip

_DRAWS, _MORE_DRAWS = 3, 5
_SAMPLE = 1 << 18  # entries that a median is taken from
_ONE_STEP = 1.5  # spacings: changes that are typically no larger are those of a swallowed update
_FAR = 16  # spacings: an update whose typical change is larger is not what rounding swallows
_SPARSE = 0.1  # share of unchanged entries that an update with changes so large cannot have by rounding
_REROUND_RANK = 128  # beyond it, what the error borrows from the update is spread too thin to stand out


@dataclass(frozen=True)
class StorageNoise:
    """What :func:`storage_noise` finds.

    Attributes
    ----------
    rank : int or None
        storage_rank; None where the storage dtype swallowed the update.
    floor : float
        Largest σ₁ of the drawn rounding noise, in the units of dW; 0 where nothing changed. storage_rank counts what
        is clearly above it (Notes of storage_noise).
    bulk_to_floor : float
        Scale of dW's small singular values relative to the drawn noise's: about 1 for one rounding, √2 for two, more
        for noise from training, 0 where more than half of the values are zero; NaN where nothing changed.
    swallowed : bool
        Whether more than half of the entries that could have changed did not, for the dtype's spacing.
    """

    rank: int | None
    floor: float
    bulk_to_floor: float
    swallowed: bool


def storage_noise(
    S: Tensor, dW: Tensor, W1: Tensor, *, W0: Tensor | None = None, base_rounded: bool = False, seed: int = 0
) -> StorageNoise:
    """Number of singular values of dW = W1 - W0 that rounding W1 to its storage dtype does not explain.

    Parameters
    ----------
    S : Tensor, shape (min(m, n),), float64
        All singular values of dW, non-increasing.
    dW : Tensor, shape (m, n), float64 or float32
        The work is done on its device.
    W1 : Tensor, shape (m, n)
        The tuned weights as stored, on any device. Where they would fit in a narrower dtype, that one's rounding
        counts (:func:`storage_dtype`).
    W0 : Tensor, shape (m, n), optional
        The base. Needed for base_rounded, and to see where the rounding error follows the update (Notes).
    base_rounded : bool
        Count W0's rounding too: W0 was rounded after training as W1 was. A base that the tuning started from is
        exact, whatever its dtype.
    seed : int
        Of the draws; torch's global generator is not touched.

    Returns
    -------
    StorageNoise

    Raises
    ------
    UsageError
        If shapes do not fit, a dtype is not one of floating point, or base_rounded comes without W0.

    Notes
    -----
    *Floor.* Rounding to nearest errs by up to half a spacing either way. Three matrices of uniform ± ulp(W1) / 2 are
    drawn, and the largest of their σ₁ is the floor (by Lanczos, to 1e-3). A value counts if it is above that by more
    than 5 %, or by two scales of the Tracy-Widom law where that is more (8 % at 64 × 64): the largest of four draws is
    not always among the first three. Where a few entries or rows have most of the noise, draws differ by more; if the
    first three do by half that margin, five others are made, and a value counts above the largest of the eight plus
    their range. Of one row or column, it counts above the largest that rounding can make, √Σ(ulp / 2)². With
    base_rounded one draw stands for both roundings, with their joint variance.

    *What takes part.* Rows and columns that did not change at all (tokens never seen) hold no error and are left out
    of everything here. Elsewhere an entry that did not change has the error -D: drawn uniform up to √3 times dW's root
    mean square where ulp / 2 is more, which keeps outliers that swallow their update from raising the floor. Where
    over 10 % are unchanged though the typical change is beyond 16 spacings, the update itself is sparse (a mask):
    unchanged entries hold no error and do not count as swallowed. A sparse update of a few spacings cannot be told
    from a swallowed one, and is called swallowed.

    *Swallowed.* Where more than half of the entries are unchanged, the error is mostly -D itself. The rank of what is
    left says little about the rank of what was learned: None. The floor is then the one of all entries. Rows and
    columns without a change count as unchanged here where changes are of one spacing, or if other rows have hardly
    any: then they were trained, and faded out.

    *Re-rounding.* With W0 on the dtype's grid the error is a function of the update, entry by entry. Where updates are
    small or take few values, it has directions of its own that stand above noise. So a count of 2 to 128 is put to
    the test where the values above the floor have a gap: is the smallest k at a gap such that rounding W0 + [dW]_k in
    the storage dtype leaves a σ_{k+1} as large as the observed one (:mod:`rankprobe.linalg.rerounding`)? Needs W0.
    With base_rounded the base before its rounding is drawn; the error of both depends on the update, too.

    *Bulk.* bulk_to_floor is the self-consistent t at which the values below t times the floor have the energy of
    t times the drawn noise. It is not cut by storage_rank: rounding that was not counted stays visible.

    Examples
    --------
    >>> draw = torch.Generator().manual_seed(0)
    >>> W0, u, v = (torch.randn(s, generator=draw, dtype=torch.float64) for s in ((128, 96), (128, 1), (1, 96)))
    >>> W1 = (W0 + 0.02 * u @ v).bfloat16()
    >>> dW = W1.double() - W0
    >>> found = storage_noise(torch.linalg.svdvals(dW), dW, W1)
    >>> found.rank, round(found.bulk_to_floor, 1), int((torch.linalg.svdvals(dW) > 1e-3).sum())
    (1, 1.0, 96)
    """
    _check(S, dW, W1, W0, base_rounded)
    arithmetic = float(S[0]) * max(dW.shape) * torch.finfo(S.dtype).eps
    changed = dW != 0
    rows, columns = changed_block(changed)
    m, n = len(rows), len(columns)
    if m == 0:
        return StorageNoise(0, 0.0, math.nan, False)
    generator = torch.Generator(device=dW.device).manual_seed(seed)
    dtype = storage_dtype(W1)
    unchanged = 1 - int(changed.sum()) / (m * n)
    typical = _typical_change(dW, W1, dtype, generator)
    sparse = unchanged > _SPARSE and typical > _FAR
    swallowed = not sparse and (unchanged > 0.5 or _faded(changed, typical))
    # Where an entry did not change, the error is -D there: no larger than changes are, and nothing under a mask.
    most = 0.0 if sparse else math.inf if swallowed else 2 * math.sqrt(3 / (m * n)) * float(dW.norm())
    scale, unit = _spacings([W1, W0] if base_rounded else [W1], changed, most, rows, columns)
    size = float(scale.norm()) * unit / math.sqrt(12)
    drawn = [_top_of_noise(scale, generator) * unit for _ in range(_DRAWS)]
    floor, margin = max(drawn), 1 + max(0.05, 2 * fluctuation(m, n))
    if max(drawn) - min(drawn) > (margin - 1) / 2 * floor:
        drawn += [_top_of_noise(scale, generator) * unit for _ in range(_MORE_DRAWS)]
        margin = max(margin, (2 * max(drawn) - min(drawn)) / floor)
    del scale
    S = S[: min(m, n)].double()
    bulk = _bulk(S, floor, size, m, n)
    if swallowed:
        return StorageNoise(None, floor, bulk, True)
    # One row or column has one value, and three draws of it say little: there the largest that rounding can make.
    threshold = max(floor * margin if min(m, n) > 1 else math.sqrt(3) * size, arithmetic)
    rank = int((threshold < S).sum())
    if W0 is not None and 2 <= rank <= min(_REROUND_RANK, min(m, n) - 1):
        base_dtype = storage_dtype(W0) if base_rounded else None
        if (m, n) != dW.shape:
            dW, W0 = dW[rows][:, columns], W0[rows.to(W0.device)][:, columns.to(W0.device)]
        rank = explained_rank(S, dW, W0, dtype, rank, floor, margin, generator, base_dtype)
    return StorageNoise(rank, floor, bulk, False)


def changed_block(changed: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the rows and of the columns with an entry that is not zero or False: the part that noise can be in.

    Examples
    --------
    >>> [index.tolist() for index in changed_block(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))]
    [[0], [1]]
    """
    return changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]


def _top_of_noise(scale: Tensor, generator: torch.Generator) -> float:
    """σ₁ of one draw of uniform noise of that width."""
    noise = torch.rand(scale.shape, generator=generator, dtype=scale.dtype, device=scale.device)
    return top_value(noise.sub_(0.5).mul_(scale), generator)


def _faded(changed: Tensor, typical: float) -> bool:
    """Whether most of all entries are unchanged, and not because some rows or columns were never trained.

    Those stand apart. Where rounding swallows an update whose rows differ in size, changes are of a spacing or two, and
    rows fade out: about as many have changes in less than a quarter of their entries as have none.
    """
    if 2 * int(changed.sum()) >= changed.numel():
        return False
    if typical <= _ONE_STEP:
        return True
    for axis in (1, 0):
        share = changed.sum(axis) / max(1, int(changed.any(1 - axis).sum()))
        if 0 < int((share == 0).sum()) <= 4 * int(((share > 0) & (share < 0.25)).sum()):
            return True
    return False


def _typical_change(dW: Tensor, W1: Tensor, dtype: torch.dtype, generator: torch.Generator) -> float:
    """Median |dW| / ulp(W1) of the entries that changed, of a sample where they are many."""
    if dW.numel() > _SAMPLE:
        picked = torch.randint(dW.numel(), (_SAMPLE,), generator=generator, device=dW.device)
        i, j = picked // dW.shape[1], picked % dW.shape[1]
        dW, W1 = dW[i, j], W1[i.to(W1.device), j.to(W1.device)]
    steps = (dW.abs() / spacing(W1.to(dW.device), dtype))[dW != 0]
    return float(steps.median()) if len(steps) else 0.0


def _spacings(
    stored: list[Tensor], changed: Tensor, most: float, rows: Tensor, columns: Tensor
) -> tuple[Tensor, float]:
    """Width of the rounding noise at each entry of the rows and columns in float32, and its unit.

    In units because the spacing of small float32 weights has no square that float32 can hold. Two roundings have the
    variance of one whose width is the root of the sum of squares, and the largest value of noise depends on no more.
    """
    m, n = len(rows), len(columns)
    scale = torch.zeros(m, n, dtype=torch.float32, device=rows.device)
    dtypes = [storage_dtype(W) for W in stored]
    unit = max(float(spacing(torch.stack(W.aminmax()), dtype).max()) for W, dtype in zip(stored, dtypes, strict=True))
    step = max(1, CHUNK // n)
    for i in range(0, m, step):
        part = scale[i : i + step]
        for W, dtype in zip(stored, dtypes, strict=True):
            width = spacing(_part(W, rows[i : i + step], columns).to(scale.device), dtype).div_(unit)
            part.copy_(width if len(stored) == 1 else torch.hypot(part, width.float()))
        if most < math.inf:
            still = ~_part(changed, rows[i : i + step], columns)
            part[still] = part[still].clamp(max=most / unit)
    return scale, unit


def _part(W: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Those rows and columns, without a copy of all columns where all are meant."""
    part = W[rows.to(W.device)]
    return part if len(columns) == W.shape[1] else part[:, columns.to(W.device)]


def _bulk(S: Tensor, floor: float, size: float, m: int, n: int) -> float:
    """The t at which the values of S below t * floor are those of noise of norm t * size.

    From a first guess by the median, which signal pushes up. k directions of signal leave noise the energy of
    m - k by n - k entries.
    """
    p = len(S)
    middle = float((S[(p - 1) // 2] + S[p // 2]) / 2)
    t = middle / math.sqrt(max(m, n) * mp_median(min(m, n) / max(m, n))) / (size / math.sqrt(m * n))
    energy = S.square().flip(0).cumsum(0).flip(0)
    seen = set()
    while True:
        k = int((1.05 * t * floor < S).sum())
        if k in seen or k > 0.9 * p:
            return t
        seen.add(k)
        t = math.sqrt(float(energy[k]) / ((m - k) * (n - k))) / (size / math.sqrt(m * n))


def _check(S: Tensor, dW: Tensor, W1: Tensor, W0: Tensor | None, base_rounded: bool) -> None:
    if dW.ndim != 2 or W1.shape != dW.shape or (W0 is not None and W0.shape != dW.shape):
        got = " and ".join(str(tuple(T.shape)) for T in (dW, W1, W0) if T is not None)
        raise UsageError(must("dW, W1 and W0", "be matrices of one shape", got, "Pass the three of one update"))
    if S.shape != (min(dW.shape),):
        got = f"shape {tuple(S.shape)} for a dW {tuple(dW.shape)}"
        raise UsageError(must("S", "hold all min(m, n) singular values", got, "Pass svdvals_dense(dW)"))
    check_values(S)
    if base_rounded and W0 is None:
        raise UsageError(must("W0", "be given for base_rounded", None, "Pass the base, or leave base_rounded out"))
