"""The table of every weight update: right numbers beside the right names."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from rankprobe.analysis.spectrum import COLUMNS, RANK_COLUMNS, spectrum
from rankprobe.analysis.spectrum_tables import medians
from rankprobe.errors import UsageError
from rankprobe.weights.delta import Delta


def dense(dW, name="a.0.query.weight", layer=0, kind="q", base_norm=10.0):
    return Delta(name, layer, kind, tuple(dW.shape), "float32", "float32", base_norm, dW=dW)


def factored(B, A, scaling, name="a.0.query.weight", base_norm=10.0):
    return Delta(name, 0, "q", (B.shape[0], A.shape[1]), "float32", "float32", base_norm, B=B, A=A, scaling=scaling)


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
    assert table.kind.tolist() == ["v", "q"] and table.matrices.tolist() == [2, 1]
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
