"""Errors of rounding that follow the update: small values with directions of their own, which are no rank."""

import math

import numpy as np
import pytest
import torch

from rankprobe.linalg import noise
from rankprobe.linalg.noise import storage_noise, ulp


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, scale=0.02):
    return scale * torch.randn(shape, dtype=torch.float64, generator=draw(seed))


def orthonormal(n, k, seed):
    return torch.linalg.qr(normal(n, k, seed=seed))[0]


def planted(m, n, k, sigma, seed=0):
    """Rank k, all singular values sigma."""
    return sigma * orthonormal(m, k, seed + 1) @ orthonormal(n, k, seed + 2).T


def noise_of(before, after, **options):
    dW = after.double() - before.double()
    return storage_noise(torch.linalg.svdvals(dW), dW, after, **options)


def typical_ulp(W):
    return float(ulp(W).double().square().mean().sqrt())


def test_error_that_follows_the_update_is_not_taken_for_rank():
    """Rank 1 with updates of the order of a spacing: values above any noise, and none of them an update's."""
    mended = 0
    for seed in range(6):
        W0 = normal(256, 256, seed=seed).bfloat16().double()
        u, v = (normal(256, 1, seed=part + seed, scale=1) for part in (10, 20))
        D = typical_ulp(W0.bfloat16()) * u @ v.T
        W1 = (W0 + D).bfloat16()
        unchanged = float((W1.double() == W0).double().mean())
        assert 0.3 < unchanged < 0.5
        mended += noise_of(W0, W1).rank > 1
        assert noise_of(W0, W1, W0=W0).rank == 1
        assert noise_of(W0, W1, W0=W0.bfloat16()).rank == 1
    assert mended == 6


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_a_second_direction_is_not_explained_away(share):
    """As above, with a second direction of the update's own beside what follows from the first."""
    W0 = normal(256, 256).bfloat16().double()
    u, v = normal(256, 1, seed=1, scale=1), normal(256, 1, seed=2, scale=1)
    first = typical_ulp(W0.bfloat16()) * u @ v.T
    second = planted(256, 256, 1, share * float(torch.linalg.matrix_norm(first, 2)), seed=5)
    W1 = (W0 + first + second).bfloat16()
    assert noise_of(W0, W1, W0=W0).rank == 2


@pytest.mark.parametrize(("seed", "k", "dtype"), [(147, 1, torch.float16), (847, 1, torch.float16),
                                                  (984, 1, torch.bfloat16), (888, 4, torch.bfloat16)])  # fmt: skip
def test_two_roundings_of_a_small_update_are_not_taken_for_rank(monkeypatch, seed, k, dtype):
    """Four of the 8 of 1,490 such updates that the floor alone gets wrong; a base drawn anew explains 7 of them."""
    choose = np.random.default_rng(seed)
    choose.choice([1, 4])
    W0 = normal(64, 64, seed=seed, scale=0.02 + 0.03 * choose.random())
    B, A = normal(64, k, seed=seed + 10**5, scale=1), normal(k, 64, seed=seed + 2 * 10**5, scale=1)
    D = choose.uniform(0.6, 6) / math.sqrt(k) * typical_ulp(W0.to(dtype)) * B @ A
    before, after = W0.to(dtype), (W0 + D).to(dtype)
    assert noise_of(before, after, W0=before, base_rounded=True).rank == k
    monkeypatch.setattr(noise, "explained_rank", lambda S, dW, W0, dtype, most, *_: most)
    assert noise_of(before, after, W0=before, base_rounded=True).rank == k + 1
