"""Spacing of the floating-point formats that weights are stored in."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from rankprobe.errors import UsageError, must

_INTEGERS = {torch.float32: (torch.int32, 0x7F800000), torch.float64: (torch.int64, 0x7FF0000000000000)}
_STORED = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_NOTHING = 1e-5  # what is left of a vector when only rounding is
CHUNK = 1 << 22  # entries worked on at a time: temporaries stay small beside a large matrix


def ulp(W: Tensor) -> Tensor:
    """Spacing of W's dtype at each entry: the unit in the last place.

    Parameters
    ----------
    W : Tensor, any shape, bfloat16, float16, float32 or float64

    Returns
    -------
    Tensor, W's shape, float32 (float64 for float64)
        ``2 ** (max(floor(log2 |w|), e_min) - digits)``, a power of two: rounding to nearest errs by at most half of
        it. Subnormal entries and zeros have the spacing of the subnormal range, 2**-24 in float16. On a power of two
        it is the spacing above; the one below is half of that.

    Raises
    ------
    UsageError
        If W has another dtype, or holds NaN or infinity.

    References
    ----------
    Goldberg (1991), ACM Computing Surveys 23, 5-48, section 1.2; IEEE 754-2019, section 3.3.

    Examples
    --------
    >>> ulp(torch.tensor([1.0, -1.5, 2.0, 0.0], dtype=torch.bfloat16)).tolist()[:3]
    [0.0078125, 0.0078125, 0.015625]
    >>> ulp(torch.zeros(1, dtype=torch.float16)).log2()
    tensor([-24.])
    """
    _checked_dtype(W)
    if not bool(W.isfinite().all()):
        raise UsageError(must("W", "be finite", "NaN or infinite entries", "Look for a training that diverged"))
    return spacing(W, W.dtype)


def spacing(W: Tensor, dtype: torch.dtype) -> Tensor:
    """As :func:`ulp`, of a dtype that W's entries fit in, and unchecked."""
    info = torch.finfo(dtype)
    wide = W.detach().to(torch.float64 if torch.float64 in (dtype, W.dtype) else torch.float32)
    integer, exponent = _INTEGERS[wide.dtype]
    # The exponent's bits alone, read as a number, are the power of two below |w|; of a subnormal they are 0.
    power = (wide.view(integer) & exponent).view(wide.dtype)
    return power.clamp_(min=info.smallest_normal).mul_(info.eps)


def storage_dtype(W: Tensor) -> torch.dtype:
    """The narrowest dtype that holds every entry of W exactly: what W was stored in before it was widened.

    Parameters
    ----------
    W : Tensor, any shape, bfloat16, float16, float32 or float64

    Returns
    -------
    torch.dtype
        The first of bfloat16 (8 binary digits), float16 (11), float32 (24) that holds W, else float64. Never wider
        than W's own. Where both halves hold W, the one whose spacing is larger on the whole: float16's subnormals have
        so few digits that bfloat16 holds them too.

    Raises
    ------
    UsageError
        If W has another dtype.

    Notes
    -----
    A model that was trained in bfloat16 and saved as float32 has the rounding of bfloat16. Numbers that were
    dequantised from 8 or 4 bits times a scale look like full float32 here: their rounding is not found.

    Examples
    --------
    >>> storage_dtype(torch.tensor([0.1]).bfloat16().float()), storage_dtype(torch.tensor([0.1]))
    (torch.bfloat16, torch.float32)
    """
    _checked_dtype(W)
    W = W.detach().reshape(-1)
    narrower = _STORED[: _STORED.index(W.dtype)]
    held = [*(dtype for dtype in narrower if _holds(W, dtype)), W.dtype]
    if held[:2] == [torch.bfloat16, torch.float16]:
        return max(held[:2], key=lambda dtype: float(spacing(W, dtype).sum(dtype=torch.float64)))
    return held[0]


def _holds(W: Tensor, dtype: torch.dtype) -> bool:
    """Whether every entry survives the way to dtype and back; most tensors that do not show it in the first few."""
    bounds = [0, *range(1 << 12, len(W), CHUNK), len(W)]
    parts = (W[i:j] for i, j in itertools.pairwise(bounds))
    return all(bool((part.to(dtype).to(W.dtype) == part).all()) for part in parts)


def _checked_dtype(W: Tensor) -> None:
    if W.dtype not in _STORED:
        rule = "be bfloat16, float16, float32 or float64"
        raise UsageError(must("W", rule, W.dtype, "Dequantise it, or convert it to the dtype it was trained in"))


def top_value(N: Tensor, generator: torch.Generator, *, tolerance: float = 5e-4) -> float:
    """Largest singular value of a matrix by Lanczos bidiagonalisation: right to about 1e-3 of it, from below.

    Parameters
    ----------
    N : Tensor, shape (m, n), float32 or float64
    generator : torch.Generator
        Of the start vector, on N's device.
    tolerance : float
        Stop when eight more steps raise the value by less than this share of it.

    Returns
    -------
    float

    Notes
    -----
    A noise matrix has no gap below its largest value; 24 steps reached 1.6e-3 of it at 2048 × 512 in the
    worst of six, 32 reached 3e-5. Each costs two products with a vector.

    References
    ----------
    Golub & Kahan (1965), SIAM Journal on Numerical Analysis 2, 205-224, with full reorthogonalisation.
    """
    if N.shape[0] < N.shape[1]:
        N = N.T  # as many steps as the shorter side has see all of it
    m, n = N.shape
    most = min(n, 96)
    v = torch.randn(n, dtype=N.dtype, device=N.device, generator=generator)
    left, right = N.new_zeros(most, m), N.new_zeros(most + 1, n)
    right[0] = v / v.norm()
    core = torch.zeros(most, most + 1, dtype=torch.float64)
    value, size = 0.0, 0.0
    for j in range(most):
        u = N @ right[j]
        for _ in range(2):  # once is not enough where little is left
            u -= (left[:j] @ u) @ left[:j]
        core[j, j] = length = float(u.norm())
        size = max(size, length)
        if length <= _NOTHING * size:  # right[j] adds no direction: all that N has is seen
            break
        left[j] = u / length
        v = N.T @ left[j]
        for _ in range(2):
            v -= (right[: j + 1] @ v) @ right[: j + 1]
        core[j, j + 1] = length = float(v.norm())
        size = max(size, length)
        if length <= _NOTHING * size:
            break
        right[j + 1] = v / length
        if j % 8 == 7:
            last, value = value, float(torch.linalg.matrix_norm(core[: j + 1, : j + 1], 2))
            if value <= last * (1 + tolerance):
                return value
    return float(torch.linalg.matrix_norm(core[: j + 1, : j + 1], 2))
