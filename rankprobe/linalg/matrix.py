"""A matrix before it is decomposed: checked, upcast, brought into range, without what is exactly zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rankprobe.errors import UsageError, WorkError, must

# Squares of what lies beyond 2**±300 come near the ends of float64's range, and their sums beyond it.
_FAR = 300
# Rows and columns are nearly always told from zero by their first so many entries.
_PROBE = 64


def checked(M: Tensor, name: str) -> Tensor:
    """M in float64, or the reason why it cannot be decomposed."""
    return _checked(M, name)[0]


def _checked(M: Tensor, name: str) -> tuple[Tensor, float]:
    """M in float64 and its largest magnitude; both extremes are seen before it is upcast, where they cost less."""
    if M.ndim != 2 or M.numel() == 0:
        raise UsageError(must(name, "be a matrix with at least one entry", f"shape {tuple(M.shape)}", "Pass (m, n)"))
    if not M.dtype.is_floating_point:
        raise UsageError(must(name, "be real floating point", M.dtype, "Convert it first"))
    M = M.detach()
    given = M
    # They are NaN or infinite where an entry is: 0.1 ms for 768 x 768, where a count of the bad ones takes 3.7.
    if M.device.type == "cpu":
        # Through NumPy, on one thread: torch's, woken for a millisecond's work, spin on the cores that SciPy's need
        # next, and a whole decomposition of 768 x 768 on two threads takes 62 ms instead of 37.
        array = (M if M.dtype in (torch.float32, torch.float64) else M.double()).numpy()
        low, high = float(array.min()), float(array.max())
        M = torch.from_numpy(array.astype(np.float64, copy=False))
    else:
        low, high = map(float, torch.aminmax(M))
        M = M.double()
    if not (math.isfinite(low) and math.isfinite(high)):
        got = f"{int(given.isnan().sum())} NaN and {int(given.isinf().sum())} infinite of {given.numel()} entries"
        raise UsageError(must(name, "be finite", got, "Look for a training that diverged or a damaged file"))
    return M, max(-low, high)


def tall_of(M: Tensor) -> tuple[Tensor, bool]:
    """M or its transpose, whichever has no fewer rows than columns: LAPACK takes 21 ms for it, 39 ms for the other."""
    return (M, False) if M.shape[0] >= M.shape[1] else (M.T, True)


def in_use(M: Tensor, dim: int) -> Tensor:
    """Which rows (``dim`` 1) or columns (``dim`` 0) are not zero; ``any`` alone takes as long as two products.

    Of an update that half of the entries missed, 64 zeros in a row are one in 2**64.
    """
    probed = _any(M.narrow(dim, 0, min(_PROBE, M.shape[dim])), dim)
    return probed if bool(probed.all()) else _any(M, dim)


def _any(M: Tensor, dim: int) -> Tensor:
    return torch.from_numpy(M.numpy().any(axis=dim)) if M.device.type == "cpu" else M.any(dim=dim)


def that_count(used: Tensor, least: int) -> Tensor | slice:
    """Indices of the rows (or columns) in use, and of enough others that ``least`` are left, in order."""
    count = int(used.sum())
    if count == len(used):
        return slice(None)
    if count < least:
        used = used.clone()
        used[(~used).nonzero()[: least - count, 0]] = True
    return used.nonzero()[:, 0]


@dataclass(frozen=True)
class Core:
    """What is left of M to decompose: ``M = core * 2**exponent`` with zero rows and columns put back.

    Attributes
    ----------
    tall : Tensor, shape (a, b) with a >= b, float64
        M or its transpose, without rows and columns that are exactly zero.
    rows, columns : Tensor of int64, or slice
        Where those of ``tall`` lie in M or its transpose.
    transposed : bool
    exponent : int
        0 unless M's entries are so large or small that their squares would leave float64's range.
    shape : (int, int)
        Of M.
    """

    tall: Tensor
    rows: Tensor | slice
    columns: Tensor | slice
    transposed: bool
    exponent: int
    shape: tuple[int, int]


def core_of(M: Tensor, name: str, least: int = 0) -> Core | None:
    """The core of M, with at least ``least`` rows and columns; None if M is zero.

    Rows that are exactly zero are the tokens that a fine-tuning never saw: most of an embedding's.
    """
    M, largest = _checked(M, name)
    if largest == 0:
        return None
    shape, exponent = (M.shape[0], M.shape[1]), math.frexp(largest)[1]
    M, transposed = tall_of(M)
    rows, columns = that_count(in_use(M, 1), least), that_count(in_use(M, 0), least)
    if not isinstance(rows, slice):
        M = M[rows]
    if not isinstance(columns, slice):
        M = M[:, columns]
    if abs(exponent) <= _FAR:
        exponent = 0
    M = times_power(M, -exponent)
    if M.shape[0] < M.shape[1]:  # fewer rows than columns were in use
        return Core(M.T, columns, rows, not transposed, exponent, shape)
    return Core(M, rows, columns, transposed, exponent, shape)


def times_power(x: Tensor, exponent: int) -> Tensor:
    """``x * 2**exponent``, also where the power alone is out of range."""
    half = exponent // 2
    return x * 2.0**half * 2.0 ** (exponent - half) if exponent else x


def not_converged(name: str, error: Exception) -> WorkError:
    reason = str(error).splitlines()[0].rstrip(".")
    return WorkError(must(f"The SVD of {name}", "converge", reason, "Report it with the matrix"))
