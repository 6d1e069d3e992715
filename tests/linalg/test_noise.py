"""storage_rank on updates whose rank is known, and where it has to decline."""

import math

import numpy as np
import pytest
import torch

from rankprobe.errors import UsageError
from rankprobe.linalg.noise import storage_noise, ulp

HALVES = (torch.bfloat16, torch.float16)
STORED = (*HALVES, torch.float32)


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


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("shape", [(64, 64), (160, 60), (60, 160)])
def test_rounding_alone_has_rank_zero_and_the_floor_is_its_top_value(dtype, shape):
    for seed in range(5):
        W0 = normal(*shape, seed=seed)
        W1 = W0.to(dtype)
        found = noise_of(W0, W1, W0=W0)
        assert (found.rank, found.swallowed) == (0, False)
        assert found.bulk_to_floor == pytest.approx(1, abs=0.04)
        assert found.floor == pytest.approx(float(torch.linalg.matrix_norm(W1.double() - W0, 2)), rel=0.08)


def test_rounding_alone_has_rank_zero_where_a_few_weights_have_most_of_it():
    """Above the floor by 8 % is where one in ten of these are."""
    wrong = higher = 0
    for seed in range(60):
        tails = normal(3, 64, 64, seed=seed + 60, scale=1).square().mean(0).sqrt()  # Student's t of 3 degrees
        rows = normal(64, 1, seed=seed + 60, scale=1.5).exp()
        for W0 in (normal(64, 64, seed=seed) / tails, normal(64, 64, seed=seed) * rows):
            found = noise_of(W0, W0.bfloat16(), W0=W0)
            wrong += found.rank != 0
            higher += float(torch.linalg.matrix_norm(W0.bfloat16().double() - W0, 2)) > 1.08 * found.floor
    assert wrong <= 2 and higher >= 6


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("k", [1, 4, 16])
@pytest.mark.parametrize("same_dtype_base", [False, True])
def test_planted_rank_is_found(dtype, k, same_dtype_base):
    W0 = normal(128, 96, seed=k)
    if same_dtype_base:
        W0 = W0.to(dtype).double()
    edge = typical_ulp(W0.to(dtype)) / math.sqrt(12) * (math.sqrt(128) + math.sqrt(96))
    for times in (30.0, 300.0) if same_dtype_base else (3.0, 30.0):
        W1 = (W0 + planted(128, 96, k, times * edge)).to(dtype)
        found = noise_of(W0, W1, W0=W0)
        assert found.rank == k
    assert found.bulk_to_floor == pytest.approx(1, abs=0.08)
    # Far above the rounding of every spacing: the plain count of values would say 96.
    dW = W1.double() - W0
    assert int((torch.linalg.svdvals(dW) > 1e-4 * edge).sum()) == 96


def test_what_lies_far_below_the_edge_is_not_seen():
    W0 = normal(128, 96)
    edge = typical_ulp(W0.bfloat16()) / math.sqrt(12) * (math.sqrt(128) + math.sqrt(96))
    assert noise_of(W0, (W0 + planted(128, 96, 4, 0.2 * edge)).bfloat16()).rank == 0


def test_many_planted_cases():
    """At least 98 % where the contract holds: under half unchanged, every planted value twice the error's largest."""
    right = plain = cases = 0
    for seed in range(150):
        choose = np.random.default_rng(seed)
        m, n = ((64, 64), (128, 64), (100, 150))[choose.integers(3)]
        dtype, k = STORED[choose.integers(3)], int((1, 4, 16)[choose.integers(3)])
        W0 = normal(m, n, seed=seed).to(dtype).double()
        edge = typical_ulp(W0.to(dtype)) / math.sqrt(12) * (math.sqrt(m) + math.sqrt(n))
        D = planted(m, n, k, edge * float(np.exp(choose.uniform(0, 5))), seed=seed)
        W1 = (W0 + D).to(dtype)
        error = float(torch.linalg.matrix_norm(W1.double() - W0 - D, 2))
        if (W1.double() == W0).double().mean() >= 0.5 or torch.linalg.svdvals(D)[k - 1] < 2 * error:
            continue
        cases += 1
        right += noise_of(W0, W1, W0=W0).rank == k
        plain += noise_of(W0, W1).rank == k
    assert cases >= 80
    assert right >= 0.98 * cases
    assert plain <= right


@pytest.mark.parametrize("dtype", HALVES)
def test_a_second_rounding_shows_in_the_bulk_and_can_be_counted(dtype):
    W0 = normal(256, 128)
    W1 = (W0 + planted(256, 128, 4, 0.5)).to(dtype)
    uncounted = noise_of(W0.to(dtype), W1, W0=W0.to(dtype))
    counted = noise_of(W0.to(dtype), W1, W0=W0.to(dtype), base_rounded=True)
    # W1 is a little larger than W0, and so is its spacing
    two = math.sqrt(1 + (typical_ulp(W0.to(dtype)) / typical_ulp(W1)) ** 2)
    assert two > 1.33
    assert uncounted.bulk_to_floor == pytest.approx(two, rel=0.02) and uncounted.rank > 4
    assert counted.bulk_to_floor == pytest.approx(1, rel=0.02) and counted.rank == 4
    assert counted.floor == pytest.approx(uncounted.floor * two, rel=0.05)


def test_training_that_rounds_at_every_step_shows_in_the_bulk():
    W = W0 = normal(200, 150).bfloat16()
    for step in range(9):
        W = (W.double() + normal(200, 150, seed=step, scale=0.002)).bfloat16()
    assert noise_of(W0, W, W0=W0).bulk_to_floor > 3


def test_bulk_is_not_cut_by_what_stands_above_it():
    W0 = normal(128, 96)
    for k in (0, 8, 24):
        W1 = (W0 + planted(128, 96, k, 0.5)).half() if k else W0.half()
        assert noise_of(W0, W1).bulk_to_floor == pytest.approx(1, abs=0.04)


def test_subnormals_have_their_own_spacing():
    W0 = normal(96, 64, scale=2e-6)  # float16's subnormals are 6e-8 apart
    W1 = (W0 + planted(96, 64, 1, 5e-6)).half()
    assert int((W1.abs() < 6e-5).sum()) == W1.numel()
    found = noise_of(W0, W1, W0=W0)
    assert found.rank == 1 and found.bulk_to_floor == pytest.approx(1, abs=0.04)
    assert found.floor == pytest.approx(2**-24 / math.sqrt(12) * (math.sqrt(96) + 8), rel=0.05)


def test_bfloat16_saved_as_float32_has_bfloat16s_noise():
    W0 = normal(128, 64)
    W1 = (W0 + planted(128, 64, 4, 0.3)).bfloat16()
    assert noise_of(W0, W1.float()) == noise_of(W0, W1)
    assert noise_of(W0, W1).rank == 4
    assert noise_of(W0, (W0 + planted(128, 64, 4, 0.3)).float()).floor < 1e-4 * noise_of(W0, W1).floor


def test_a_dtype_that_swallowed_the_update_gets_no_rank():
    W0 = normal(128, 64).bfloat16()
    W1 = (W0.double() + planted(128, 64, 4, 0.02 * typical_ulp(W0) * math.sqrt(128 * 64))).bfloat16()
    unchanged = float((W1 == W0).double().mean())
    assert 0.5 < unchanged < 1
    found = noise_of(W0, W1, W0=W0)
    assert found.swallowed and found.rank is None and found.floor > 0


@pytest.mark.parametrize("seed", [3, 15, 18])
def test_rows_that_faded_out_count_as_swallowed(seed):
    """Without them fewer than half are unchanged: but they were trained, as the rows with few changes tell."""
    W0 = normal(64, 64, seed=seed).bfloat16()
    u, v = normal(64, 1, seed=seed + 100, scale=1), normal(64, 1, seed=seed + 200, scale=1)
    W1 = (W0.double() + 0.65 * typical_ulp(W0) * u @ v.T).bfloat16()
    changed = W1 != W0
    left = changed[changed.any(1)][:, changed.any(0)]
    assert float(changed.double().mean()) < 0.5 < float(left.double().mean())
    assert noise_of(W0, W1, W0=W0).swallowed


def test_no_update_is_rank_zero_and_not_swallowed():
    W0 = normal(64, 32).half()
    found = noise_of(W0, W0, W0=W0)
    assert (found.rank, found.floor, found.swallowed) == (0, 0.0, False) and math.isnan(found.bulk_to_floor)


def test_rows_and_columns_that_were_never_trained_take_no_part():
    W0 = normal(1000, 64).bfloat16()
    W1 = W0.clone()
    seen, trained = torch.arange(3, 1000, 8), torch.arange(0, 60)
    part = (W0[seen][:, trained].double() + planted(len(seen), 60, 2, 0.5)).bfloat16()
    W1[seen[:, None], trained] = part
    assert float((W1 == W0).double().mean()) > 0.8
    found = noise_of(W0, W1, W0=W0)
    alone = noise_of(W0[seen][:, trained], part, W0=W0[seen][:, trained])
    assert found.rank == alone.rank == 2 and not found.swallowed
    assert found.floor == pytest.approx(alone.floor, rel=1e-6)
    assert found.bulk_to_floor == pytest.approx(alone.bulk_to_floor, rel=1e-6)


def test_a_masked_update_is_sparse_and_not_swallowed():
    W0 = normal(128, 128).float()
    mask = torch.rand(128, 128, generator=draw(1)) < 0.1
    W1 = torch.where(mask, W0 + normal(128, 128, seed=2, scale=0.001).float(), W0)
    found = noise_of(W0, W1, W0=W0)
    assert not found.swallowed and found.rank == 128  # a random mask is of full rank
    # The same share unchanged, but by a spacing or two: the dtype's doing as far as anyone can see
    W1 = torch.where(mask, W0 + 2 * ulp(W0), W0)
    assert noise_of(W0, W1, W0=W0).swallowed


def test_an_outlier_that_swallows_its_update_does_not_hide_the_others():
    W0 = normal(64, 64)
    W0[5, 7] = 8.0  # spacing 2**-4 in bfloat16, beside 2**-13 for most
    W0 = W0.bfloat16()
    W1 = (W0.double() + planted(64, 64, 2, 0.02)).bfloat16()
    assert float(ulp(W1).max()) / 2 > 0.02
    assert noise_of(W0, W1, W0=W0).rank == 2


def test_answers_repeat_and_leave_the_global_generator_alone():
    W0 = normal(128, 64).bfloat16()
    W1 = (W0.double() + planted(128, 64, 2, 0.05)).bfloat16()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    found = noise_of(W0, W1, W0=W0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert noise_of(W0, W1, W0=W0) == found
    assert noise_of(W0, W1, W0=W0, seed=1).floor != found.floor


@pytest.mark.parametrize("change", [lambda M: M.T, lambda M: M * 2.0**-3, lambda M: -M.flip(0)])
def test_transposed_and_rescaled_by_powers_of_two_it_is_the_same_rank(change):
    W0 = normal(150, 80).bfloat16()
    W1 = (W0.double() + planted(150, 80, 3, 0.05)).bfloat16()
    found, changed = noise_of(W0, W1, W0=W0), noise_of(change(W0), change(W1), W0=change(W0))
    assert changed.rank == found.rank == 3
    assert changed.bulk_to_floor == pytest.approx(found.bulk_to_floor, rel=0.01)


def test_spacings_too_small_to_square_in_float32():
    W0 = normal(64, 48, scale=1e-25)
    W1 = (W0 + planted(64, 48, 2, 2e-29)).float()
    found = noise_of(W0, W1, W0=W0)
    assert found.rank == 2 and found.bulk_to_floor == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1), (2, 50)])
def test_a_row_has_a_rank_of_one_where_it_changed_by_more_than_rounding(shape):
    W0 = normal(*shape)
    assert noise_of(W0, W0.bfloat16()).rank == 0
    assert noise_of(W0, (W0 + 1).bfloat16()).rank == 1


def test_float64_pairs_count_above_the_arithmetic():
    W0 = normal(60, 40)
    W1 = W0 + planted(60, 40, 3, 1e-6)
    assert noise_of(W0, W1, W0=W0).rank == 3


def test_error_text():
    W = normal(4, 3)
    dW, S = W, torch.linalg.svdvals(W)
    with pytest.raises(UsageError, match=r"W1 and W0 must be matrices of one shape. Got \(4, 3\) and \(3, 4\)."):
        storage_noise(S, dW, W.T)
    with pytest.raises(UsageError, match=r"S must hold all min\(m, n\) singular values. Got shape \(2,\) for a dW"):
        storage_noise(S[:2], dW, W)
    with pytest.raises(UsageError, match="W0 must be given for base_rounded. Got None."):
        storage_noise(S, dW, W, base_rounded=True)
    with pytest.raises(UsageError, match=r"S must be finite. Got S\[0\]=nan. Pass the output of svdvals"):
        storage_noise(S * math.nan, dW, W)
