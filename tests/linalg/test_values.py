"""All singular values of dense matrices where a fast way could go wrong, against LAPACK's slowest and steadiest one."""

import numpy as np
import pytest
import scipy.linalg
import torch

from rankprobe.errors import UsageError
from rankprobe.linalg.decompose import leading, singular_values
from rankprobe.linalg.rank import numerical_rank

EPS = 2.0**-52


def gaussian(m, n, seed=0):
    return torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_values(S, m, n, seed=0):
    S = torch.as_tensor(np.asarray(S, dtype=float))
    U, V = (torch.linalg.qr(gaussian(side, len(S), seed + i)).Q for i, side in enumerate((m, n)))
    return U * S @ V.T


def exact(M):
    """QR iteration: neither the Gram matrix nor divide and conquer."""
    return torch.from_numpy(scipy.linalg.svd(M.double().numpy(), compute_uv=False, lapack_driver="gesvd"))


def rounding_pair(m, n, r, scale=1e-3):
    """The difference of two float32 matrices of which the tuned one was rounded after a rank-r update."""
    W0 = 0.02 * gaussian(m, n).float()
    return (W0.double() + scale * gaussian(m, r, 1) @ gaussian(r, n, 2)).float().double() - W0.double()


p = 160
i = np.arange(p)
# name: (matrix, ways that may be taken)
CASES = {
    "gaussian": (lambda: gaussian(p, p), {"gram"}),
    "tall": (lambda: gaussian(700, p), {"gram"}),
    "very tall": (lambda: gaussian(30_000, 100), {"gram"}),
    "all equal": (lambda: with_values(np.ones(p), p, 200), {"gram"}),
    "nearly equal": (lambda: with_values(1 + 1e-12 * i, p, 200), {"gram"}),
    "two clusters": (lambda: with_values(np.where(i < 7, 1.0, 1e-9), 300, p), {"deflated"}),
    "two clusters, the strong one large": (lambda: with_values(np.where(i < 60, 1.0, 1e-9), 300, p), {"direct"}),
    "three clusters": (lambda: with_values(np.select([i < 5, i < 12], [1.0, 1e-4], 1e-8), 300, p), {"deflated"}),
    "clusters far apart": (lambda: with_values(np.select([i < 5, i < 12], [1, 1e-7], 1e-12), 300, p), {"deflated"}),
    "clusters too far apart": (lambda: with_values(np.select([i < 5, i < 12], [1, 1e-7], 1e-15), 300, p), {"direct"}),
    "planted 10 times above": (lambda: with_values(np.where(i < 9, 1.0, 0.1 * np.exp(-i / 11)), p, p), None),
    "planted over a bulk": (lambda: gaussian(p, p) + 1e5 * gaussian(p, 4, 1) @ gaussian(4, p, 2), {"deflated"}),
    "graded": (lambda: with_values(10.0 ** (-i / 10), p, p), {"direct"}),
    "steep power": (lambda: with_values((1.0 + i) ** -4, p, p), None),
    "one above all": (lambda: with_values(np.r_[1e9, np.ones(p - 1)], p, p), {"deflated"}),
    "rank 5": (lambda: gaussian(p, 5) @ gaussian(5, 200, 1), {"direct"}),
    "rank 5 in float32": (lambda: (gaussian(p, 5) @ gaussian(5, 200, 1)).float(), {"deflated"}),
    "rank 5 in bfloat16": (lambda: (gaussian(p, 5) @ gaussian(5, 200, 1)).bfloat16(), {"gram"}),
    "rounding": (lambda: rounding_pair(300, p, 4), {"deflated"}),
    "constant": (lambda: torch.full((p, 200), 3.0, dtype=torch.float64), {"direct"}),
    "nearly constant": (lambda: 1 + 1e-9 * gaussian(p, 200), {"deflated"}),
    "Hilbert": (lambda: torch.from_numpy(1.0 / (i[:, None] + i + 1)), {"direct"}),
    "diagonal over 400 decades": (lambda: torch.diag(torch.logspace(200, -200, p, dtype=torch.float64)), {"direct"}),
    "half the rows zero": (lambda: gaussian(400, p) * (torch.arange(400) % 2)[:, None], {"gram"}),
    "columns twice": (lambda: gaussian(400, p // 2).repeat(1, 2), {"direct"}),
    "a row": (lambda: gaussian(1, 500), {"direct"}),
    "a column": (lambda: gaussian(500, 1), {"direct"}),
    "one entry": (lambda: torch.tensor([[-3.0]]), {"direct"}),
}


# The diagonal has no room to be scaled in.
SCALED = [(case, s) for case in CASES if "decades" not in case for s in (1e-30, 1e30, 2.0**-1000, 2.0**900)]


@pytest.mark.parametrize(("case", "scale"), [*((case, 1.0) for case in CASES), *SCALED])
def test_no_value_is_off_by_more_than_what_is_claimed(case, scale):
    make, ways = CASES[case]
    M = make() if scale == 1 else make().double() * scale
    found, reference = singular_values(M), exact(M.double() / scale) * scale
    assert ways is None or found.method in ways
    assert len(found.S) == min(M.shape) and bool((found.S[:-1] >= found.S[1:]).all()) and bool((found.S >= 0).all())
    off = float(((found.S - reference) / reference[0]).abs().max())
    # The oracle errs, too, by a few eps of the first value.
    assert off <= found.error + 4 * EPS * max(M.shape) ** 0.5
    assert found.error <= 1e-7
    if found.method != "direct":  # what is given by a fast way is known to a tenth of itself at least
        np.testing.assert_allclose(found.S / scale, reference / scale, rtol=0.1)
        assert float(found.S[-1]) >= 10 * EPS * float(found.S[0])


@pytest.mark.parametrize("r", [1, 4, 16])
@pytest.mark.parametrize("gap", [3.0, 30.0, 1e3, 1e6, 1e9])
def test_a_strong_part_is_taken_off_without_a_trace(r, gap):
    bulk = gaussian(400, 300)
    strong = with_values(gap * 40 * np.linspace(2, 1, r), 400, 300)
    found, reference = singular_values(bulk + strong), exact(bulk + strong)
    np.testing.assert_allclose(found.S[r:], reference[r:], rtol=1e-6, atol=4 * EPS * 20 * float(reference[0]))
    np.testing.assert_allclose(found.S[:r], reference[:r], rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("r", [1, 8, 40])
def test_the_numerical_rank_of_a_low_rank_update_is_what_a_direct_decomposition_gives(dtype, r):
    M = (gaussian(500, r) @ gaussian(r, 200, 1)).to(dtype)
    assert int(numerical_rank(singular_values(M).S, tuple(M.shape), torch.finfo(dtype).eps)) == r


def test_it_does_not_matter_how_the_matrix_lies_in_memory():
    M = rounding_pair(300, 160, 3)
    S = singular_values(M).S
    strided = torch.zeros(600, 320, dtype=torch.float64)
    strided[::2, ::2] = M
    for same in (M.T, M.T.contiguous().T, strided[::2, ::2], M.flip(0), -M):
        torch.testing.assert_close(singular_values(same).S, S, rtol=1e-8, atol=1e-14 * float(S[0]))


def test_the_matrix_is_left_as_it_was():
    for make, _ in CASES.values():
        M = make()
        kept = M.clone()
        singular_values(M)
        leading(M, 1)
        assert torch.equal(M, kept)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (200, 150)])
def test_zero_and_the_smallest_numbers_that_there_are(shape):
    assert singular_values(torch.zeros(shape)).S.tolist() == [0.0] * min(shape)
    least = torch.full(shape, 5e-324, dtype=torch.float64)
    expected = 5e-324 * round((shape[0] * shape[1]) ** 0.5)
    S = singular_values(least).S
    assert float(S[0]) == expected and not S[1:].any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_not_a_number_is_told_wherever_it_hides(bad, dtype):
    M = torch.ones(300, 200, dtype=dtype)
    M[299, 199] = bad
    for call in (singular_values, lambda M: leading(M, 4)):
        with pytest.raises(UsageError, match="M must be finite. Got"):
            call(M)


def test_rows_and_columns_that_are_zero_in_most_entries_are_still_used():
    M = torch.zeros(300, 200, dtype=torch.float64)
    M[7, 150], M[200, 199], M[299, 0] = 3.0, -2.0, 1.0
    for found in (singular_values(M).S, singular_values(M.T).S, leading(M, 3).S, leading(M.T, 3).S):
        np.testing.assert_allclose(found[:4], [3.0, 2.0, 1.0, 0.0][: len(found)], atol=1e-15)
