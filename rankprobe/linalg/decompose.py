"""Singular value decompositions in float64: every way in, one place to import from.

- ``singular_values``: all values of a dense matrix, fast, with their error;
- ``leading``: a few triplets of a dense matrix, as many as asked or as a share of the energy needs;
- ``svdvals_dense``, ``svd_dense``: direct LAPACK decompositions, what the two above are held against;
- ``svdvals_factored``, ``svd_factored``: of a LoRA update from its factors.
"""

from rankprobe.linalg.direct import svd_dense, svdvals_dense
from rankprobe.linalg.factored import svd_factored, svdvals_factored
from rankprobe.linalg.leading import Leading, leading
from rankprobe.linalg.values import Values, singular_values

__all__ = [
    "Leading",
    "Values",
    "leading",
    "singular_values",
    "svd_dense",
    "svd_factored",
    "svdvals_dense",
    "svdvals_factored",
]
