"""Direct LAPACK decompositions of a dense matrix in float64: what the faster paths are held against.

torch's LAPACK (MKL in the published wheels) is used: on 2 cores its divide-and-conquer SVD took 21 ms where SciPy's
took 26 ms for the singular values of 1536 x 384, and 40 against 48 ms with vectors. On one core SciPy's is the faster
of the two for square matrices (78 against 91 ms for 768 x 768) and the slower for tall ones (221 against 206 ms for
3072 x 768). A QR first, where tall, is LAPACK's own business: done outside it gained 10 % at 3072 x 768 and lost 24 %
at 768 x 768.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.linalg.matrix import checked, in_use, not_converged, tall_of, that_count


def svdvals_dense(M: Tensor, *, name: str = "M") -> Tensor:
    """Singular values of a dense matrix, by a direct decomposition.

    Parameters
    ----------
    M : Tensor, shape (m, n), any floating dtype
        Upcast to float64; decomposed on the device it is on.
    name : str
        What error messages call the matrix.

    Returns
    -------
    Tensor, shape (min(m, n),), float64
        Non-increasing, in the units of M.

    Raises
    ------
    UsageError
        If M is not a matrix of finite floating-point numbers.
    WorkError
        If the SVD does not converge.

    Notes
    -----
    A direct decomposition, never one of the Gram matrix, whose error ``sqrt(eps) * sigma_max`` would hide the small
    singular values that ranks are counted from; :func:`~rankprobe.linalg.decompose.singular_values` takes that road
    where it does no harm. Rows that are exactly zero (the tokens that a fine-tuning never saw) are left out first: they
    change no singular value.

    Examples
    --------
    >>> svdvals_dense(torch.tensor([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]]))
    tensor([4., 3.], dtype=torch.float64)
    """
    tall, _ = tall_of(checked(M, name))
    try:
        return torch.linalg.svdvals(tall[that_count(in_use(tall, 1), tall.shape[1])])
    except torch.linalg.LinAlgError as error:
        raise not_converged(name, error) from error


def svd_dense(M: Tensor, k: int | None = None, *, name: str = "M") -> tuple[Tensor, Tensor, Tensor]:
    """Reduced SVD of a dense matrix, or its k leading triplets.

    Parameters
    ----------
    M : Tensor, shape (m, n), any floating dtype
        Upcast to float64; decomposed on the device it is on.
    k : int, optional
        How many triplets to keep, 1 .. min(m, n); all where it is None. The whole SVD is computed in any case:
        :func:`~rankprobe.linalg.decompose.leading` is the one to call for a few.
    name : str
        What error messages call the matrix.

    Returns
    -------
    U, S, Vh : Tensor, shapes (m, k), (k,) and (k, n), float64
        As ``torch.linalg.svd(M, full_matrices=False)``; ``U[:, :j] * S[:j] @ Vh[:j]`` is the best rank-j part.

    Raises
    ------
    UsageError
        If M is not a matrix of finite floating-point numbers, or k is out of range.
    WorkError
        If the SVD does not converge.

    References
    ----------
    Eckart & Young (1936), Psychometrika 1, 211-218: the truncated SVD is the best approximation of its rank.

    Examples
    --------
    >>> U, S, Vh = svd_dense(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), k=1)
    >>> U * S @ Vh
    tensor([[3., 0.],
            [0., 0.]], dtype=torch.float64)
    """
    tall, transposed = tall_of(checked(M, name))
    p = tall.shape[1]
    if k is not None and not 1 <= k <= p:
        raise UsageError(must("k", f"be from 1 to min(m, n) = {p} of {name}", k, "Pass another k"))
    rows = that_count(in_use(tall, 1), p)
    try:
        part, S, Vh = torch.linalg.svd(tall[rows], full_matrices=False)
    except torch.linalg.LinAlgError as error:
        raise not_converged(name, error) from error
    U = part
    if part.shape[0] < tall.shape[0]:
        U = part.new_zeros(tall.shape[0], p)
        U[rows] = part
    if transposed:
        U, Vh = Vh.T, U.T
    return U[:, :k], S[:k], Vh[:k]
