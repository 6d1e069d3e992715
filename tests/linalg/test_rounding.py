"""The spacing of the formats, bit by bit and against numpy, and the largest value of noise."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from rankprobe.errors import UsageError
from rankprobe.linalg.rounding import storage_dtype, top_value, ulp

HALVES = (torch.bfloat16, torch.float16)
STORED = (*HALVES, torch.float32)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, scale=0.02):
    return scale * torch.randn(shape, dtype=torch.float64, generator=draw(seed))


@pytest.mark.parametrize("dtype", HALVES)
def test_ulp_is_the_step_to_the_next_number_for_every_number_of_16_bits(dtype):
    bits = torch.arange(2**15 - 1, dtype=torch.int16)
    W, above = bits.view(dtype), (bits + 1).view(dtype)
    both = W.isfinite() & above.isfinite()
    assert int(both.sum()) > 30_000 and int((W[both] < torch.finfo(dtype).smallest_normal).sum()) > 100
    step = above[both].double() - W[both].double()
    assert torch.equal(ulp(W[both]).double(), step)
    assert torch.equal(ulp(-W[both]).double(), step)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ulp_is_numpys_spacing(dtype):
    info = np.finfo(dtype)
    generator = np.random.default_rng(0)
    exponents = generator.uniform(np.log2(float(info.smallest_subnormal)), np.log2(float(info.max)) - 1, 2000)
    W = np.concatenate([np.exp2(exponents).astype(dtype), [0.0, 1.0, info.tiny, info.smallest_subnormal]]).astype(dtype)
    np.testing.assert_array_equal(ulp(torch.from_numpy(W)).numpy().astype(np.float64), np.spacing(W).astype(np.float64))


@pytest.mark.parametrize("dtype", STORED)
def test_rounding_errs_by_half_an_ulp_at_most_and_uniformly(dtype):
    W0 = normal(400, 400)
    W1 = W0.to(dtype)
    error = (W1.double() - W0) / ulp(W1)
    assert float(error.abs().max()) <= 0.5 + 1e-4  # torch rounds float64 to halves by way of float32
    assert float(error.square().mean()) == pytest.approx(1 / 12, rel=0.01)


def test_storage_dtype_sees_through_widening():
    W = normal(300, 200)
    for dtype in STORED:
        assert storage_dtype(W.to(dtype)) == dtype
        assert storage_dtype(W.to(dtype).float()) == dtype
        assert storage_dtype(W.to(dtype).double()) == dtype
        assert storage_dtype(W.to(dtype).float().T) == dtype
    assert storage_dtype(W) == torch.float64
    last = W.bfloat16().float()
    last[-1, -1] += 1e-6  # one entry in the last place decides
    assert storage_dtype(last) == torch.float32
    assert storage_dtype(torch.tensor([2.0**-24, 3 * 2.0**-24])) == torch.float16  # subnormal there: coarser
    assert storage_dtype(torch.tensor([1 + 2.0**-10])) == torch.float16
    assert storage_dtype(torch.tensor([(1 + 2.0**-10) * 2.0**20])) == torch.float32  # digits of float16, not its range


@pytest.mark.parametrize("shape", [(64, 64), (300, 40), (40, 300), (500, 400), (1, 30), (30, 1), (1, 1)])
def test_top_value_is_scipys(shape):
    for seed in range(3):
        N = (torch.rand(shape, generator=draw(seed)) - 0.5).float()
        exact = scipy.linalg.svdvals(N.double().numpy())[0]
        assert top_value(N, draw(seed)) == pytest.approx(exact, rel=1.5e-3)


def test_top_value_of_low_rank_and_of_zero():
    left, right = (torch.linalg.qr(normal(n, 1))[0] for n in (50, 30))
    assert top_value((3 * left @ right.T).float(), draw()) == pytest.approx(3.0, rel=1e-5)
    assert top_value(torch.zeros(50, 30), draw()) == 0.0


def test_error_text():
    with pytest.raises(UsageError, match="W must be bfloat16, float16, float32 or float64. Got torch.int8. Dequantise"):
        ulp(torch.zeros(3, dtype=torch.int8))
    with pytest.raises(UsageError, match="Got torch.float8_e4m3fn."):
        storage_dtype(torch.zeros(3).to(torch.float8_e4m3fn))
    with pytest.raises(UsageError, match="W must be finite. Got NaN or infinite entries."):
        ulp(torch.tensor([1.0, math.inf]))
