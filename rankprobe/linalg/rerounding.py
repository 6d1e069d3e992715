"""What rank of an update explains its singular values, once the update is rounded in the way that the weights were.

Where updates are of the order of the storage dtype's spacing, the error of rounding W0 + D is no noise: with W0 on the
grid it depends on D's entry alone (-D where that is below half a spacing). A rank-1 D then leaves, in
W1 - W0, smaller values that follow D and stand above any floor for noise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rankprobe.linalg.decompose import svd_factored
from rankprobe.linalg.rounding import CHUNK, spacing, top_value

_CORRECTIONS = 2
_OVERSAMPLING = 8
_GAP = 1.2  # a rank ends where the values fall by this factor at least
_CANDIDATES = 4
_DETAIL = 1.2
_FAR_OFF = 0.5  # corrections have moved a value by a fifth at most


def explained_rank(
    S: Tensor,
    dW: Tensor,
    W0: Tensor,
    dtype: torch.dtype,
    most: int,
    floor: float,
    margin: float,
    generator: torch.Generator,
    base_dtype: torch.dtype | None = None,
) -> int:
    """Smallest k for which an update of rank k, rounded, leaves a σ_{k+1} as large as the observed one.

    Parameters
    ----------
    S : Tensor, shape (p,), float64
        Singular values of dW.
    dW, W0 : Tensor, shape (m, n)
    dtype : torch.dtype
        Storage dtype of W1.
    most : int
        Rank above the plain floor: the answer where no smaller k explains what is seen.
    floor : float
        Of noise, in the units of S.
    margin : float
        S[k] may exceed the re-rounded value by this factor; by 1.2 where that value is above the floor itself: what
        follows the update depends on details of it that [dW]_k does not tell.
    generator : torch.Generator
    base_dtype : torch.dtype, optional
        What W0 was rounded to after training: the base that was rounded with the update is then drawn, uniform within
        half a spacing around W0. Without it W0 is exact.

    Returns
    -------
    int
        From 1 to most. Tried are the four widest gaps between neighbouring values, from the top.

    Notes
    -----
    A parametric bootstrap by one draw. Rounding also changes the leading values (it shrinks an update below half a
    spacing, and stretches one just above), so [dW]_k is not the update that was rounded: the difference between
    [dW]_k and what its own rounding makes of it is added back, up to twice. studies/planted-ranks has the share of
    ranks that this puts right.

    Only gaps are tried: a k that is too large re-rounds part of the noise, and does not always explain what a smaller
    one does, so that bisection would not find that one.
    """
    gaps = S[: most - 1] / S[1:most]
    widest = gaps.topk(min(_CANDIDATES, len(gaps)))
    tried = sorted(int(i) + 1 for i, gap in zip(widest.indices, widest.values, strict=True) if gap >= _GAP)
    if not tried:
        return most
    U, s, Vh = _leading(dW.float(), _random(dW.shape[1], tried[-1] + _OVERSAMPLING, generator), 4)
    stored = partial(_stored, W0=W0, dtype=dtype, base_dtype=base_dtype, generator=generator)
    for k in tried:
        value = float(S[k])
        enough = min(value / margin, max(floor * margin, value / _DETAIL))
        if _explains(enough, U[:, :k] * s[:k], Vh[:k], stored, generator):
            return k
    return most


def _explains(
    value: float,
    left: Tensor,
    right: Tensor,
    stored: Callable[[Tensor, Tensor], Tensor],
    generator: torch.Generator,
) -> bool:
    """Whether storing an update of rank k whose k leading parts come out as left @ right leaves a σ_{k+1} >= value."""
    k = len(right)
    B, A = left, right
    for correction in range(_CORRECTIONS + 1):
        N = stored(B, A)
        U, s, Vh = _leading(N, _start(A, generator), 1)
        seen = U[:, :k] * s[:k], Vh[:k]
        N -= seen[0] @ seen[1]
        left_over = top_value(N, generator)
        if left_over >= value:
            return True
        if left_over < _FAR_OFF * value or correction == _CORRECTIONS:
            return False
        del N
        corrected = torch.cat([B, left, -seen[0]], 1), torch.cat([A, right, seen[1]])
        U, s, Vh = (part.float() for part in svd_factored(*corrected))
        B, A = U[:, :k] * s[:k], Vh[:k]
    return False


def _stored(
    B: Tensor,
    A: Tensor,
    *,
    W0: Tensor,
    dtype: torch.dtype,
    base_dtype: torch.dtype | None,
    generator: torch.Generator,
) -> Tensor:
    """W0 + B @ A rounded to dtype, minus W0, in float32: that holds a difference of neighbours on a grid."""
    N = torch.empty(len(B), A.shape[1], dtype=torch.float32, device=B.device)
    step = max(1, CHUNK // A.shape[1])
    limit = torch.finfo(dtype).max
    for i in range(0, len(B), step):
        base = W0[i : i + step].to(B.device).double()
        tuned = base + B[i : i + step] @ A
        if base_dtype is not None:
            drawn = torch.rand(base.shape, dtype=base.dtype, device=base.device, generator=generator).sub_(0.5)
            tuned += drawn.mul_(spacing(W0[i : i + step].to(base.device), base_dtype))
        N[i : i + step] = tuned.clamp_(-limit, limit).to(dtype).double().sub_(base)
    return N


def _start(A: Tensor, generator: torch.Generator) -> Tensor:
    """A's directions, where the leading ones of a matrix near B @ A are, and a few random ones."""
    return torch.cat([A.T, _random(A.shape[1], _OVERSAMPLING, generator)], 1)


def _random(n: int, k: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, k, dtype=torch.float32, device=generator.device, generator=generator)


def _leading(M: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triplets by subspace iteration; as good as a float32 residual against noise needs."""
    width = min(start.shape[1], *M.shape)
    Q = torch.linalg.qr(M @ start[:, :width])[0]
    for _ in range(steps):
        Q = torch.linalg.qr(M @ torch.linalg.qr(M.T @ Q)[0])[0]
    U, s, Vh = torch.linalg.svd(Q.T @ M, full_matrices=False)
    return Q @ U, s, Vh
