"""Fastfood against the dense P of its formula, its exact transpose, and what is expected of it over seeds."""

import math

import pytest
import torch
from scipy.linalg import hadamard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rankprobe.errors import UsageError
from rankprobe.linalg import fastfood
from rankprobe.linalg.fastfood import Fastfood

# d: 1, a power of two, not one, D itself (both), one more than a power of two; D: a multiple of L or not, below L.
SHAPES = [(1, 1), (1, 5), (2, 7), (4, 16), (5, 5), (5, 6), (8, 8), (9, 64), (33, 100), (33, 64), (64, 1000), (100, 700)]
SHAPES += [(600, 2100)]


def make(d, D, seed=0, dtype=torch.float64):
    return Fastfood(d, D, seed=seed, dtype=dtype)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_formula(P):
    """Dense P from its parts, each block multiplied out: H diag(G) Pi H diag(B) / sqrt(D L)."""
    H = torch.from_numpy(hadamard(P.L).astype("float64"))
    blocks = []
    for B, permutation, G in zip(P.signs.double(), P.permutation.long(), P.gaussian, strict=True):
        Pi = torch.eye(P.L, dtype=torch.float64)[permutation]
        blocks.append(H @ torch.diag(G) @ Pi @ H @ torch.diag(B))
    return torch.cat(blocks)[: P.D, : P.d] / math.sqrt(P.D * P.L)


def by_unit_vectors(P):
    return torch.stack([P(e) for e in torch.eye(P.d, dtype=torch.float64)], dim=1)


class LargestTensor(TorchDispatchMode):
    """The most numbers in any tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            # An expanded tensor is as large as what is behind it.
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize(("d", "D"), SHAPES)
def test_forward_is_the_dense_P_of_the_formula(d, D):
    P = make(d, D)
    assert (1 << max(0, math.ceil(math.log2(d)))) == P.L and math.ceil(D / P.L) == P.blocks
    dense = by_formula(P)
    torch.testing.assert_close(by_unit_vectors(P), dense, rtol=0, atol=1e-12)
    theta = random(d)
    torch.testing.assert_close(P(theta), dense @ theta, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("d", "D"), SHAPES)
def test_gradient_is_the_transpose(d, D):
    P = make(d, D)
    theta, y = random(d).requires_grad_(), random(D, seed=1)
    (P(theta) * y).sum().backward()
    torch.testing.assert_close(theta.grad, by_unit_vectors(P).T @ y, rtol=0, atol=1e-12)
    torch.testing.assert_close(theta.grad, P.adjoint(y), rtol=0, atol=0)


@pytest.mark.parametrize(("d", "D"), SHAPES)
def test_adjoint_identity(d, D):
    P = make(d, D)
    theta, y = random(d, seed=2), random(D, seed=3)
    assert float(P(theta) @ y) == pytest.approx(float(theta @ P.adjoint(y)), rel=1e-11, abs=1e-12)


def test_gradcheck():
    P = make(5, 19)
    assert torch.autograd.gradcheck(P, random(5).requires_grad_())


def test_linear():
    P = make(100, 1000)
    a, b = random(100), random(100, seed=1)
    torch.testing.assert_close(P(2 * a - 3 * b), 2 * P(a) - 3 * P(b), rtol=0, atol=1e-12)
    assert not P(torch.zeros(100)).any()


@pytest.mark.parametrize("chunk", [1, 64, 300, 1 << 12])
def test_pieces_of_any_size_give_the_same(chunk, monkeypatch):
    P = make(60, 1000)
    theta, y = random(60), random(1000)
    whole = P(theta), P.adjoint(y)
    monkeypatch.setitem(fastfood._CHUNK, "cpu", chunk)
    torch.testing.assert_close(P(theta), whole[0], rtol=0, atol=1e-13)
    torch.testing.assert_close(P.adjoint(y), whole[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("d", [1, 2, 50, 1000, 2000, 5000])
def test_H_B_and_Pi_are_exactly_orthogonal(d):
    P = make(d, 3 * d)
    assert set(P.signs.unique().tolist()) <= {-1, 1}
    # Each number once in every row: a permutation matrix.
    rows = P.permutation.sort(dim=1).values.long()
    torch.testing.assert_close(rows, torch.arange(P.L).expand(P.blocks, P.L), rtol=0, atol=0)
    # H H = L I, exactly: integers up to L² are exact in float64.
    x = torch.randint(-9, 10, (2, P.L), generator=torch.Generator().manual_seed(0)).double()
    once = P._transform(x.clone(), torch.empty_like(x))[0].clone()
    assert torch.equal(P._transform(once.clone(), torch.empty_like(x))[0], P.L * x)
    torch.testing.assert_close(once @ once.T, P.L * x @ x.T, rtol=0, atol=0)
    small = hadamard(P.L) if P.L <= 2048 else None
    assert small is None or torch.equal(once, x @ torch.from_numpy(small).double())


def test_signs_permutations_and_gaussian_are_what_they_should_be():
    P = make(256, 1 << 18)
    n = P.signs.numel()
    assert abs(float(P.signs.double().mean())) < 5 / math.sqrt(n)
    assert abs(float(P.gaussian.mean())) < 5 / math.sqrt(n)
    assert abs(float(P.gaussian.square().mean()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float(P.gaussian.pow(4).mean()) - 3) < 5 * math.sqrt(96 / n)
    # Where a number goes is uniform: chi² over all (number, place) pairs, mean (L - 1)², variance about 2 (L - 1)².
    counts = torch.zeros(P.L, P.L, dtype=torch.float64)
    counts.index_put_(
        (torch.arange(P.L).expand(P.blocks, P.L), P.permutation.long()), torch.tensor(1.0).double(), accumulate=True
    )
    expected = P.blocks / P.L
    chi2, freedom = float(((counts - expected) ** 2 / expected).sum()), (P.L - 1) ** 2
    assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)
    # No two blocks share their parts.
    for part in (P.signs, P.permutation, P.gaussian):
        assert len(torch.unique(part, dim=0)) == P.blocks


@pytest.mark.parametrize(("d", "D"), [(6, 64), (8, 512)])
def test_expected_gram_matrix_is_the_identity(d, D):
    """Where D is a multiple of L, each entry of PᵀP has mean δ and variance 2 / D: G² has variance 2."""
    draws = 400
    gram = torch.stack([P.T @ P for P in (by_unit_vectors(make(d, D, seed)) for seed in range(draws))])
    deviation = (gram.mean(0) - torch.eye(d, dtype=torch.float64)) / math.sqrt(2 / (D * draws))
    assert float(deviation.abs().max()) < 5  # of d² entries: 4e-5 by chance
    # Their spread is the one derived, so the bound above means what it says.
    variance = gram.var(0).diagonal().mean()
    assert float(variance) == pytest.approx(2 / D, rel=0.25)


@pytest.mark.parametrize(("d", "D"), [(6, 11), (5, 5), (7, 23)])
def test_expected_gram_matrix_where_the_last_block_is_cut(d, D):
    draws = 700
    gram = torch.stack([P.T @ P for P in (by_unit_vectors(make(d, D, seed)) for seed in range(draws))])
    error = gram.std(0) / math.sqrt(draws)
    assert float(((gram.mean(0) - torch.eye(d, dtype=torch.float64)) / error).abs().max()) < 5


def test_an_entry_has_variance_one_by_D():
    entries = torch.stack([by_unit_vectors(make(6, 20, seed)) for seed in range(500)])
    assert float(entries.square().mean()) == pytest.approx(1 / 20, rel=0.03)


def test_seed_decides_and_threads_do_not():
    def parts(seed, threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            P = make(100, 5000, seed, torch.float32)
        finally:
            torch.set_num_threads(before)
        return P.signs, P.permutation, P.gaussian

    for one, two in zip(parts(3, 1), parts(3, 2), strict=True):
        assert torch.equal(one, two)
    for one, other in zip(parts(3, 1), parts(4, 1), strict=True):
        assert not torch.equal(one, other)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make(5, 50)
    assert torch.equal(torch.rand(3), expected)


def test_float32_is_the_same_P_to_rounding():
    exact, single = make(1000, 50_000), make(1000, 50_000, dtype=torch.float32)
    theta, y = random(1000), random(50_000)
    torch.testing.assert_close(single(theta.float()).double(), exact(theta), rtol=0, atol=1e-6)
    torch.testing.assert_close(single.adjoint(y.float()).double(), exact.adjoint(y), rtol=0, atol=1e-5)
    assert single(theta.float()).dtype == torch.float32


def test_autocast_does_not_round_it():
    P = make(100, 3000, dtype=torch.float32)
    theta = random(100).float().requires_grad_()
    plain = P(theta)
    with torch.autocast("cpu", torch.bfloat16):
        out = P(theta)
        (gradient,) = torch.autograd.grad(out, theta, torch.ones(3000))
    assert out.dtype == torch.float32
    assert torch.equal(out, plain)
    assert torch.equal(gradient, P.adjoint(torch.ones(3000)))


def test_no_dense_matrix_and_memory_of_the_order_of_D():
    d, D = 3000, 1 << 17
    with LargestTensor() as seen:
        P = make(d, D, dtype=torch.float32)
        theta = torch.ones(d, requires_grad=True)
        P(theta).sum().backward()
    assert P.blocks * P.L <= seen.numel <= 4 * D  # int8 storage is counted in its own numbers; d D would be 3000 D
    kept = sum(buffer.nbytes for buffer in P.buffers())
    assert kept <= 7 * P.blocks * P.L + 2 * 4 * 32**2


@pytest.mark.parametrize(("d", "D"), [(100, 1 << 16), (1000, 1 << 16), (10_000, 1 << 16), (60_000, 1 << 18)])
def test_products_grow_as_D_log_d(d, D):
    """Two transforms of at most ⌈log2(L) / 5⌉ stages, each 2 · 32 operations a number."""
    P = make(d, D, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        P.project(torch.ones(d))
        forward = counter.get_total_flops()
        P.adjoint(torch.ones(D))
    assert 0 < forward <= 2 * math.ceil(math.log2(P.L) / 5) * 64 * D
    assert counter.get_total_flops() == 2 * forward


def test_only_what_was_asked_for_is_written():
    P = make(40, 100)
    room = torch.full((130,), 7.0, dtype=torch.float64)
    out = P.project(random(40), out=room[:100])
    assert out.data_ptr() == room.data_ptr()
    torch.testing.assert_close(out, P(random(40)), rtol=0, atol=0)
    assert (room[100:] == 7).all()


@pytest.mark.parametrize(
    ("d", "D", "message"),
    [
        (0, 10, "d must be from 1 to D = 10, the number of weights. Got 0. Pass another d."),
        (-3, 10, "d must be from 1 to D = 10, the number of weights. Got -3. Pass another d."),
        (11, 10, "d must be from 1 to D = 10, the number of weights. Got 11. Pass another d."),
    ],
)
def test_d_out_of_range(d, D, message):
    with pytest.raises(UsageError) as error:
        make(d, D)
    assert str(error.value) == message
