"""The table of every weight update: right numbers beside the right names."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from rankprobe.analysis.rank_columns import COLUMNS, INTEGERS, NOISE_RANKS, RANK_COLUMNS
from rankprobe.analysis.spectrum import spectrum, spectrum_of
from rankprobe.analysis.spectrum_tables import medians, read_ranks, storage_by_dtype, swallowed
from rankprobe.errors import UsageError
from rankprobe.linalg.noise import storage_noise
from rankprobe.weights.delta import Delta
from rankprobe.weights.pair import pair
from tests.weights.memory import Memory, bert_like, nudged


def dense(dW, name="a.0.query.weight", layer=0, kind="q", base_norm=10.0):
    return Delta(name, layer, kind, tuple(dW.shape), "float32", "float32", base_norm, dW=dW)


def factored(B, A, scaling, name="a.0.query.weight", base_norm=10.0):
    return Delta(name, 0, "q", (B.shape[0], A.shape[1]), "float32", "float32", base_norm, B=B, A=A, scaling=scaling)


def stored(W0, update, dtype, name="a.0.query.weight", **fields):
    """What a file holds of W0 and W0 + update in a storage dtype, and their difference."""
    W0 = W0.to(dtype)
    W1 = (W0.double() + update).to(dtype)
    dtypes = (str(dtype).removeprefix("torch."),) * 2
    dW = W1.double() - W0.double()
    return Delta(name, fields.pop("layer", 0), fields.pop("kind", "q"), tuple(dW.shape), *dtypes,
                 float(W0.double().norm()), dW=dW, W0=W0, W1=W1)  # fmt: skip


def low_rank(m, n, r, sigma, seed=5):
    """A matrix with r singular values of one size."""
    U, V = (torch.linalg.qr(normal(k, r, seed=seed + k))[0] for k in (m, n))
    return sigma * U @ V.T


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_closed_form():
    dW = torch.zeros(4, 6)
    dW[1, 2], dW[3, 0] = 2.0, 1.0
    ranks, spectra = spectrum([dense(dW)])
    row = ranks.iloc[0].to_dict()
    assert row["fro_norm"] == pytest.approx(math.sqrt(5))
    assert row["relative_change"] == pytest.approx(math.sqrt(5) / 10)
    assert row["unchanged_fraction"] == 22 / 24
    expected = {
        "name": "a.0.query.weight",
        "layer": 0,
        "kind": "q",
        "m": 4,
        "n": 6,
        "source": "dense",
        "sigma_max": 2,
        "stable_rank": 1.25,
        "energy_rank_50": 1,
        "energy_rank_90": 2,
        "energy_rank_95": 2,
        "energy_rank_99": 2,
        "numerical_rank": 2,
        "residual": 0,
        "dtype_base": "float32",
        "dtype_tuned": "float32",
    }
    assert {key: row[key] for key in expected} == expected
    assert spectra.to_dict("list") == {"name": ["a.0.query.weight"] * 4, "index": [1, 2, 3, 4], "sigma": [2, 1, 0, 0]}


def test_columns_are_the_contracts():
    W0 = normal(3, 3)
    W1 = W0 + 0.1 * normal(3, 3, seed=1)
    ranks, spectra = spectrum([dataclasses.replace(dense(W1 - W0), W0=W0, W1=W1, dtype_tuned="float64")])
    assert tuple(ranks.columns) == COLUMNS
    assert list(spectra.columns) == ["name", "index", "sigma"]
    assert not ranks.isna().any(axis=None)


def test_spectra_are_numpys():
    matrices = {f"m{i}": normal(*shape, seed=i) for i, shape in enumerate([(5, 9), (9, 5), (7, 7)])}
    _, spectra = spectrum(dense(M, name) for name, M in matrices.items())
    for name, M in matrices.items():
        sigma = spectra[spectra.name == name].sigma
        np.testing.assert_allclose(sigma, np.linalg.svd(M.numpy(), compute_uv=False), rtol=1e-12)


def test_factors_say_the_same_as_their_product():
    B, A = normal(20, 3, seed=1).float(), normal(3, 12, seed=2).float()
    product = 2.0 * B.double() @ A.double()
    (f, f_spectra), (d, d_spectra) = spectrum([factored(B, A, 2.0)]), spectrum([dense(product)])
    same = ["fro_norm", "relative_change", "sigma_max", *RANK_COLUMNS]
    np.testing.assert_allclose(f[same].to_numpy(float), d[same].to_numpy(float), rtol=1e-9)
    assert f.source[0] == "factored" and math.isnan(f.unchanged_fraction[0])
    assert len(f_spectra) == 3 and len(d_spectra) == 12
    assert d_spectra.sigma[3:].max() < 1e-12 * d_spectra.sigma[0]


def test_nothing_is_found_where_nothing_changed():
    W0 = normal(8, 6)
    ranks, spectra = spectrum([dense(W0 - W0.clone())])
    assert (ranks[["fro_norm", "relative_change", "sigma_max", *RANK_COLUMNS]] == 0).all(axis=None)
    assert ranks.unchanged_fraction[0] == 1 and (spectra.sigma == 0).all()


def test_a_planted_direction_is_found():
    W0, u, v = normal(30, 20), normal(30, 1, seed=1), normal(1, 20, seed=2)
    ranks, _ = spectrum([dense((W0 + u @ v) - W0)])
    assert ranks[["energy_rank_50", "energy_rank_99"]].iloc[0].tolist() == [1, 1]
    assert ranks.stable_rank[0] == pytest.approx(1, abs=1e-12)
    assert ranks.fro_norm[0] == pytest.approx(float(u.norm() * v.norm()))


def test_ranks_do_not_depend_on_scale_or_orientation():
    M = normal(15, 9)
    rows = [spectrum([dense(other)])[0][list(RANK_COLUMNS)].iloc[0] for other in (M, 1e-120 * M, M.T.clone())]
    for other in rows[1:]:
        np.testing.assert_allclose(other.to_numpy(float), rows[0].to_numpy(float), rtol=1e-10)


def test_norms_of_tiny_updates_do_not_vanish():
    assert spectrum([dense(1e-180 * torch.eye(4, dtype=torch.float64))])[0].fro_norm[0] == pytest.approx(2e-180)


def test_numerical_rank_knows_the_precision_of_dW():
    M = torch.diag(torch.tensor([1.0, 1e-9], dtype=torch.float64))
    assert spectrum([dense(M)])[0].numerical_rank[0] == 2
    assert spectrum([dense(M.float())])[0].numerical_rank[0] == 1


def test_what_has_no_layer_or_base():
    embed = Delta("embeddings.weight", None, "embed", (3, 2), "float32", "float32", float("nan"), dW=normal(3, 2))
    ranks, _ = spectrum([dense(normal(2, 2)), embed, dense(normal(2, 2), "b", 1, base_norm=0.0)])
    assert ranks.layer.tolist() == [0, pd.NA, 1] and str(ranks.layer.dtype) == "Int64"
    assert ranks.relative_change.isna().tolist() == [False, True, True]


def test_one_delta_is_read_at_a_time():
    log = []

    def deltas():
        for i in range(3):
            log.append(f"read {i}")
            yield dense(normal(3, 3, seed=i), f"w{i}")

    spectrum(deltas(), progress=lambda delta: log.append(f"done {delta.name}"))
    assert log == ["read 0", "done w0", "read 1", "done w1", "read 2", "done w2"]


def test_no_deltas_give_empty_tables(tmp_path):
    ranks, spectra = spectrum([])
    assert tuple(ranks.columns) == COLUMNS and len(ranks) == len(spectra) == 0


def test_tables_survive_csv(tmp_path):
    ranks, spectra = spectrum([dense(normal(4, 3)), dense(normal(3, 5), "b", None)])
    for table in (ranks, spectra):
        table.to_csv(tmp_path / "t.csv", index=False)
        back = pd.read_csv(tmp_path / "t.csv").astype({"layer": "Int64"} if "layer" in table else {})
        pd.testing.assert_frame_equal(back, table, check_exact=True, check_dtype=False)


def test_medians_by_kind_and_by_layer():
    ranks, _ = spectrum(
        [
            dense(torch.diag(torch.tensor(d)), f"w{i}", i, kind)
            for i, (d, kind) in enumerate([([1.0, 0.0, 0.0], "v"), ([1.0, 1.0, 0.0], "q"), ([1.0, 1.0, 1.0], "v")])
        ]
    )
    table = medians(ranks)
    assert table.kind.tolist() == ["q", "v"] and table.matrices.tolist() == [1, 2]
    assert table.stable_rank.tolist() == [2.0, 2.0] and table.numerical_rank.tolist() == [2.0, 2.0]
    assert medians(ranks, "layer")[["layer", "matrices", "stable_rank"]].values.tolist() == [
        [0, 1, 1],
        [1, 1, 2],
        [2, 1, 3],
    ]


def test_bad_updates_are_named():
    bad = normal(3, 3)
    bad[1, 1] = torch.nan
    with pytest.raises(UsageError, match="dW of x.key.weight must be finite. Got 1 NaN and 0 infinite of 9 entries."):
        spectrum([dense(normal(2, 2)), dense(bad, "x.key.weight")])
    with pytest.raises(UsageError, match="A of dW of y.weight must be finite"):
        spectrum([factored(torch.ones(2, 1), torch.tensor([[torch.inf, 0.0]]), 1.0, "y.weight")])
    with pytest.raises(UsageError, match="deltas must have names of their own. Got w twice"):
        spectrum([dense(normal(2, 2), "w"), dense(normal(2, 2), "w")])


def test_noise_columns_are_linalgs():
    delta = stored(normal(96, 64), low_rank(96, 64, 3, 2.0), torch.bfloat16)
    ranks, spectra = spectrum([delta])
    row, S = ranks.iloc[0], torch.tensor(spectra.sigma.to_numpy())
    found = storage_noise(S, delta.dW, delta.W1, W0=delta.W0)
    assert (row.storage_rank, row.storage_floor) == (found.rank, found.floor) == (3, pytest.approx(found.floor))
    assert row.bulk_to_floor == found.bulk_to_floor == pytest.approx(1, abs=0.05)
    assert row[list(NOISE_RANKS)].tolist() == [3, 3, 3] and row.numerical_rank == 64
    assert row.mp_edge < S[2] and row.gd_threshold < S[2]
    assert row.unchanged_fraction == float((delta.dW == 0).double().mean())


def test_a_base_that_was_rounded_too_raises_the_floor():
    delta = stored(normal(96, 64), low_rank(96, 64, 3, 2.0), torch.bfloat16)
    one, two = (spectrum([delta], base_rounded=on)[0].storage_floor[0] for on in (False, True))
    assert two / one == pytest.approx(math.sqrt(2), rel=0.05)


def test_what_the_storage_dtype_swallowed_has_no_storage_rank():
    update = low_rank(96, 64, 3, 0.02)
    W0 = normal(96, 64)
    ranks, _ = spectrum([stored(W0, update, torch.bfloat16), stored(W0, update, torch.float64, "b")])
    assert ranks.storage_rank.tolist() == [pd.NA, 3] and swallowed(ranks).tolist() == [True, False]
    assert ranks.unchanged_fraction[0] > 0.5 and ranks.storage_floor[0] > ranks.sigma_max[0]
    lost, kept = storage_by_dtype(ranks)
    assert (lost.dtype, lost.matrices, lost.swallowed) == ("bfloat16", 1, 1)
    assert (kept.dtype, kept.matrices, kept.swallowed) == ("float64", 1, 0) and math.isnan(kept.unchanged_swallowed)
    assert lost.unchanged == lost.unchanged_swallowed == ranks.unchanged_fraction[0]


def test_no_noise_is_drawn_where_it_is_not_wanted_or_cannot_be_known():
    W0, update = normal(20, 10), low_rank(20, 10, 2, 1.0)
    delta = stored(W0, update, torch.float32)
    dequantised = dataclasses.replace(delta, name="b", dtype_tuned="int8")
    without = dataclasses.replace(delta, name="c", W0=None, W1=None)
    factors = factored(normal(20, 2), normal(2, 10), 1.0, "d")
    storage = ["storage_rank", "storage_floor", "bulk_to_floor"]
    assert spectrum([delta], noise=False)[0][storage].isna().all(axis=None)
    ranks, _ = spectrum([delta, dequantised, without, factors])
    assert ranks[storage].isna().all(axis=1).tolist() == [False, True, True, True]
    white = ["mp_rank", "gd_rank", "mp_edge", "gd_threshold"]
    assert ranks[white].notna().all(axis=1).tolist() == [True, True, True, False]
    assert not swallowed(ranks).any()


def test_counts_do_not_hang_on_the_gram_matrixs_error():
    """The rounding of a float32 pair lies where squaring loses digits: the update is taken off it first."""
    W0 = normal(400, 300)
    near = stored(W0, low_rank(400, 300, 2, 200.0), torch.float32)
    far = stored(W0, low_rank(400, 300, 2, 200.0), torch.bfloat16, "b")
    ranks, spectra = spectrum([near, far])
    assert ranks.decomposition.tolist() == ["deflated", "gram"] and ranks.storage_rank.tolist() == [2, 2]
    exact = np.linalg.svd(near.dW.numpy(), compute_uv=False)
    np.testing.assert_allclose(spectra.sigma[:300], exact, rtol=1e-9, atol=1e-13 * exact[0])


def test_other_shares_of_the_energy_get_columns():
    dW = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    ranks, _ = spectrum([dense(dW)], energies=(0.975, 0.5, 0.6))
    shares = [c for c in ranks.columns if c.startswith("energy")]
    assert shares == ["energy_rank_50", "energy_rank_60", "energy_rank_97.5"]
    assert ranks[shares].iloc[0].tolist() == [1, 1, 3]


def test_medians_leave_out_what_was_swallowed():
    ranks, _ = spectrum([
        stored(normal(96, 64), low_rank(96, 64, 3, 0.02), torch.bfloat16, "lost"),
        stored(normal(96, 64), low_rank(96, 64, 2, 2.0), torch.bfloat16, "kept", layer=1),
        stored(normal(96, 64), low_rank(96, 64, 1, 2.0), torch.bfloat16, "outside", layer=None, kind="embed"),
    ])  # fmt: skip
    kinds, layers = medians(ranks, outside=True), medians(ranks, "layer")
    assert kinds.kind.tolist() == ["q", "embed"] and kinds.swallowed.tolist() == [1, 0]
    assert kinds.numerical_rank.tolist() == [64, 64] and kinds.storage_rank.tolist() == [2, 1]
    assert kinds.change_share.sum() == pytest.approx(1)
    assert layers.swallowed.tolist() == [1, 0] and layers.matrices.tolist() == [1, 1]
    assert layers.storage_rank.isna().tolist() == layers.energy_rank_90.isna().tolist() == [True, False]
    assert layers.relative_change.notna().all() and layers.unchanged_fraction[0] == ranks.unchanged_fraction[0]


def test_a_pair_is_read_matrix_by_matrix():
    W0 = bert_like()
    pairing = pair(Memory(W0, "base"), Memory(nudged(W0), "tuned"))
    ranks, spectra = spectrum_of(pairing, noise=False)
    assert ranks.name.tolist() == [m.name for m in pairing.matrices] == spectra.name.drop_duplicates().tolist()
    name = "encoder.layer.1.attention.self.key.weight"
    row = ranks[ranks.name == name].iloc[0]
    assert row.fro_norm == pytest.approx(float((nudged(W0)[name].double() - W0[name].double()).norm()))
    assert row.relative_change == pytest.approx(row.fro_norm / float(W0[name].double().norm()))


def test_tables_are_read_as_they_were_made_also_those_of_earlier_versions(tmp_path):
    ranks, _ = spectrum([stored(normal(9, 7), low_rank(9, 7, 2, 1.0), torch.float32),
                         factored(normal(4, 2), normal(2, 5), 1.0, "NA", base_norm=math.nan)])  # fmt: skip
    ranks.to_csv(tmp_path / "ranks.csv", index=False)
    pd.testing.assert_frame_equal(read_ranks(tmp_path / "ranks.csv"), ranks, check_exact=True)
    ranks.drop(columns=[*NOISE_RANKS, "storage_floor", "bulk_to_floor"]).to_csv(tmp_path / "ranks.csv", index=False)
    earlier = read_ranks(tmp_path / "ranks.csv")
    assert earlier[list(NOISE_RANKS)].isna().all(axis=None) and not swallowed(earlier).any()
    assert [str(earlier[c].dtype) for c in INTEGERS] == ["Int64"] * 4
