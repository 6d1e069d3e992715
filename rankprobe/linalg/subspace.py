"""How much two subspaces share: overlap φ, principal angles, and what two random subspaces share by chance.

Everything here depends on subspaces alone: no result changes with the signs of vectors, nor with a rotation within a
subspace that is compared as a whole.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from rankprobe.errors import UsageError, must

# Columns of an SVD in float64 are orthonormal to 1e-14; vectors stored as float32 to 1e-6.
_ORTHONORMAL = 1e-5


def overlap(X: Tensor, Y: Tensor) -> Tensor:
    """Subspace similarity φ(X, Y, a, b) = ||X_aᵀ Y_b||_F² / min(a, b) for all leading a and b.

    Parameters
    ----------
    X, Y : Tensor, shapes (n, i) and (n, j), any floating dtype
        Orthonormal columns, most important first: singular vectors in their order.

    Returns
    -------
    Tensor, shape (i, j), float64
        Entry ``[a - 1, b - 1]`` is φ of the first a columns of X and the first b of Y: 0 where they are orthogonal, 1
        where one span holds the other. Dimensionless.

    Raises
    ------
    UsageError
        If X or Y is not a matrix with orthonormal columns, or they differ in length.

    Notes
    -----
    One product XᵀY; its squares, summed cumulatively along both axes, are all the norms at once.

    References
    ----------
    Hu et al. (2021), arXiv:2106.09685, equation 4 and appendix G. The appendix's "(1/p)(1 − d²)" does not follow from
    its d² = p − Σσ²; 1 − d²/p does, and is this.

    Examples
    --------
    >>> overlap(torch.eye(4)[:, :2], torch.eye(4)[:, [1, 0, 3]])
    tensor([[0., 1., 1.],
            [1., 1., 1.]], dtype=torch.float64)
    """
    X, Y = _basis(X, "X"), _basis(Y, "Y")
    _same_space(X, Y)
    shared = (X.T @ Y).square().cumsum(0).cumsum(1)
    i, j = (torch.arange(1, size + 1, device=X.device) for size in shared.shape)
    return (shared / torch.minimum(i[:, None], j[None, :])).clamp(0.0, 1.0)


def overlap_moments(n: int, i, j) -> tuple:
    """Mean and variance of φ(X, Y, i, j) for random subspaces of dimensions i and j; both exact.

    Parameters
    ----------
    n : int
        Dimension of the space.
    i, j : int or integer array
        Dimensions of the two subspaces, 1 .. n; arrays broadcast.

    Returns
    -------
    mean, variance : float or ndarray

    Raises
    ------
    UsageError
        If a dimension is out of range.

    Notes
    -----
    For X fixed and Y uniform (Haar) on the subspaces of dimension j, the projectors' tr(PQ) has mean ij / n and
    variance ``2 i (n - i) j (n - j) / (n² (n - 1) (n + 2))``; φ is tr(PQ) / min(i, j). Overlaps of several independent
    random subspaces are uncorrelated pair by pair, so their mean has this variance over the number of pairs.

    References
    ----------
    Moments of a random projection matrix, e.g. Chikuse (2003), Statistics on Special Manifolds, chapter 4.

    Examples
    --------
    >>> overlap_moments(4, 1, 2)
    (0.5, 0.08333333333333333)
    """
    if n < 1 or np.any(np.less(i, 1)) or np.any(np.less(j, 1)) or np.any(np.greater(i, n)) or np.any(np.greater(j, n)):
        raise UsageError(must("i and j", f"be dimensions from 1 to n = {n}", f"{i} and {j}", "Pass those of subspaces"))
    i, j = np.broadcast_arrays(np.asarray(i, dtype=float), np.asarray(j, dtype=float))
    small = np.minimum(i, j)
    mean = i * j / n / small
    variance = 2 * i * (n - i) * j * (n - j) / (n**2 * max(n - 1, 1) * (n + 2)) / small**2
    return (mean, variance) if mean.ndim else (float(mean), float(variance))


def random_overlap(n: int, i, j, level: float = 0.95) -> tuple:
    """What φ(X, Y, i, j) is for random subspaces: its mean, and the interval that holds it with a given probability.

    Parameters
    ----------
    n : int
        Dimension of the space.
    i, j : int or integer array
        Dimensions of the two subspaces, 1 .. n; arrays broadcast.
    level : float
        Probability of the interval, with equal tails.

    Returns
    -------
    mean, low, high : float or ndarray
        Dimensionless, in [0, 1].

    Raises
    ------
    UsageError
        If a dimension or the level is out of range.

    Notes
    -----
    Mean and variance are exact (:func:`overlap_moments`). The interval is that of the Beta law with these moments on
    φ's range, from max(0, i + j - n) / min(i, j) to 1. It is the exact law where i, j, n - i or n - j is 1 (a sum of
    Dirichlet shares) and agrees with simulation elsewhere.

    Examples
    --------
    >>> mean, low, high = random_overlap(768, 8, 8)
    >>> f"{mean:.4f} [{low:.4f}, {high:.4f}]"
    '0.0104 [0.0072, 0.0143]'
    """
    if not 0 < level < 1:
        raise UsageError(must("level", "be between 0 and 1", level, "Pass 0.95, say"))
    mean, variance = overlap_moments(n, i, j)
    i, j = np.broadcast_arrays(np.asarray(i, dtype=float), np.asarray(j, dtype=float))
    least = np.maximum(0.0, i + j - n) / np.minimum(i, j)
    width = 1 - least
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (mean - least) / width
        total = share * (1 - share) * width**2 / variance - 1
        tail = (1 - level) / 2
        ends = [least + width * betaincinv(share * total, (1 - share) * total, q) for q in (tail, 1 - tail)]
    # A subspace that is the whole space overlaps in one way only.
    low, high = (np.where(width > 0, end, mean) for end in ends)
    return (mean, low, high) if i.ndim else (mean, float(low), float(high))


def principal_angles(X: Tensor, Y: Tensor) -> Tensor:
    """Principal angles between the spans of X and Y, accurate for tiny and for right angles alike.

    Parameters
    ----------
    X, Y : Tensor, shapes (n, i) and (n, j), any floating dtype
        Orthonormal columns.

    Returns
    -------
    Tensor, shape (min(i, j),), float64
        Radians in [0, π/2], ascending; the sum of their squared cosines is ``min(i, j) φ(X, Y, i, j)``.

    Raises
    ------
    UsageError
        If X or Y is not a matrix with orthonormal columns, or they differ in length.

    Notes
    -----
    The singular values of XᵀY are the cosines, which say nothing about angles below ``sqrt(eps)``; those of the part
    of one basis that is orthogonal to the other's span are the sines, which say nothing near 90°. The angle is taken
    from both, as ``atan2(sine, cosine)``.

    References
    ----------
    Björck & Golub (1973), Mathematics of Computation 27, 579-594; Knyazev & Argentati (2002), SIAM Journal on
    Scientific Computing 23, 2008-2040.

    Examples
    --------
    >>> X = torch.eye(3)[:, :1]
    >>> Y = torch.tensor([[1.0], [1e-6], [0.0]])
    >>> f"{float(principal_angles(X, Y)):.2e}"
    '1.00e-06'
    """
    X, Y = _basis(X, "X"), _basis(Y, "Y")
    _same_space(X, Y)
    if X.shape[1] < Y.shape[1]:
        X, Y = Y, X
    product = X.T @ Y
    cosines = torch.linalg.svdvals(product)
    sines = torch.linalg.svdvals(Y - X @ product).flip(0)
    return torch.atan2(sines, cosines)


@lru_cache(maxsize=64)
def random_angles(n: int, i: int, j: int, *, draws: int = 400, seed: int = 0) -> Tensor:
    """Principal angles between random subspaces, drawn.

    Parameters
    ----------
    n : int
        Dimension of the space.
    i, j : int
        Dimensions of the two subspaces, 1 .. n.
    draws : int
        How many independent pairs.
    seed : int
        The same draws for the same seed.

    Returns
    -------
    Tensor, shape (draws, min(i, j)), float64
        Radians, ascending in each row.

    Raises
    ------
    UsageError
        If a dimension is out of range.

    Notes
    -----
    With X the first j coordinates and Y spanned by Gaussian vectors, the squared cosines are the eigenvalues of a
    matrix-variate Beta: only the two triangular factors of the Gaussian blocks matter (Bartlett), so that a draw costs
    min(i, j)³ whatever n is.

    References
    ----------
    Muirhead (1982), Aspects of Multivariate Statistical Theory, theorems 3.2.14 (Bartlett) and 3.3.1 (Beta).
    """
    if not (1 <= i <= n and 1 <= j <= n):
        raise UsageError(must("i and j", f"be dimensions from 1 to n = {n}", f"{i} and {j}", "Pass those of subspaces"))
    k, wide = min(i, j), max(i, j)
    rng = np.random.default_rng(seed)
    inside, outside = _gaussian_factor(rng, draws, wide, k), _gaussian_factor(rng, draws, n - wide, k)
    Q = torch.linalg.qr(torch.cat([inside, outside], dim=1))[0]
    rows = inside.shape[1]
    cosines = torch.linalg.svdvals(Q[:, :rows])
    sines = torch.zeros_like(cosines)  # more dimensions than the space has left: the rest of the angles are 0
    found = torch.linalg.svdvals(Q[:, rows:])
    sines[:, k - found.shape[1] :] = found.flip(1)
    return torch.atan2(sines, cosines)


def _gaussian_factor(rng: np.random.Generator, draws: int, rows: int, columns: int) -> Tensor:
    """A matrix R with RᵀR as GᵀG for Gaussian G (rows, columns): triangular where G is tall, else G itself."""
    if rows < columns:
        return torch.from_numpy(rng.standard_normal((draws, rows, columns)))
    R = np.triu(rng.standard_normal((draws, columns, columns)), 1)
    diagonal = np.arange(columns)
    R[:, diagonal, diagonal] = np.sqrt(rng.chisquare(rows - diagonal, size=(draws, columns)))
    return torch.from_numpy(R)


def _basis(X: Tensor, name: str) -> Tensor:
    """X in float64, or the reason why it is no orthonormal basis."""
    if X.ndim != 2 or X.numel() == 0 or not X.dtype.is_floating_point:
        got = f"shape {tuple(X.shape)}, {X.dtype}"
        raise UsageError(must(name, "be a floating-point matrix with a column a direction", got, "Pass (n, k)"))
    X = X.detach().double()
    error = float((X.T @ X - torch.eye(X.shape[1], dtype=X.dtype, device=X.device)).abs().max())
    if not error <= _ORTHONORMAL:  # NaN too
        got = f"columns whose products are off by {error:.2g}"
        raise UsageError(must(name, "have orthonormal columns", got, "Pass singular vectors, as columns"))
    return X


def _same_space(X: Tensor, Y: Tensor) -> None:
    if X.shape[0] != Y.shape[0]:
        got = f"{X.shape[0]} and {Y.shape[0]}"
        raise UsageError(must("X and Y", "have vectors of one length", got, "Pass directions of equal matrices"))
