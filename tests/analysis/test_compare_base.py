"""Comparisons against W0 and between layers: intruders with their control, amplification, grids of layers."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from rankprobe.analysis.compare import compare, compare_sides
from rankprobe.analysis.compare_inputs import open_sides
from rankprobe.analysis.compare_tables import across_layers
from tests.analysis.tunings import adapter, gaussian, name_of, noise, shapes_of, tuned, weights

# --- W0: amplification and intruders ---


def test_intruders_are_counted_with_their_control():
    W0 = weights(layers=2, kinds=("q", "up"), n=40)

    def planted(name, W, i):
        if "q_proj" not in name:
            return 0.01 * gaussian(*W.shape, seed=i)
        u, v = (torch.nn.functional.normalize(gaussian(k, seed=s + i), dim=0) for k, s in ((40, 3), (40, 9)))
        return 30.0 * torch.outer(u, v)

    found = compare(tuned(W0, planted), tuned(W0, noise(5, 0.001)), W0, intruder_k=5)
    table = found.intruders.set_index(["kind", "side"])["intruders"]
    assert table.loc[("q", "X")].tolist() == [1, 1] and table.loc[("up", "X")].tolist() == [0, 0]
    assert table.xs("Y", level="side").tolist() == table.xs("W0", level="side").tolist() == [0] * 4
    control = found.cosines.query("side == 'W0'")
    assert control["cosine"].min() > 1 - 1e-9 and (control["base_index"] == control["index"]).all()
    assert len(found.cosines) == 4 * 3 * 5
    first = found.cosines.query("side == 'X' and kind == 'q' and index == 1")
    assert (first["cosine"] < 0.5).all()
    strict = compare(tuned(W0, planted), tuned(W0, noise(5, 0.001)), W0, intruder_k=5, intruder_eps=1.0)
    assert (strict.intruders["intruders"] >= found.intruders["intruders"]).all()


def test_w1_equal_to_w0_up_to_a_factor_has_no_intruder_and_its_own_amplification():
    W0 = weights(kinds=("q",))
    found = compare(tuned(W0, lambda name, W, i: 0.5 * W), tuned(W0, noise(1)), W0, top=3)
    mine = found.amplification.query("side == 'X'")
    np.testing.assert_allclose(mine["on_update"], mine["on_base"], rtol=1e-9)
    np.testing.assert_allclose(mine["factor"], 0.5, rtol=1e-9)
    assert found.intruders.query("side == 'X'")["intruders"].sum() == 0


def test_intruders_can_be_left_out_and_are_of_blocks_alone():
    W0 = {**weights(kinds=("q",)), "model.embed_tokens.weight": gaussian(50, 24, seed=8)}
    one, two = tuned(W0, noise(1)), tuned(W0, noise(2))
    assert compare(one, two, W0, intruders=False).intruders.empty
    found = compare(one, two, W0)
    assert set(found.intruders["kind"]) == {"q"} and set(found.amplification["kind"]) == {"q", "embed"}


def test_two_bases_are_kept_apart():
    """X and Y tuned from different bases: each against its own, each base with its own control."""
    A, B = weights(kinds=("q",)), weights(kinds=("q",), seed=700)
    x, y = (open_sides(tuned(W, noise(seed)), tuned(W, noise(9)), W) for seed, W in ((1, A), (2, B)))
    sides = dataclasses.replace(x, y=y.x, pairs=[(a, b) for (a, _), (b, _) in zip(x.pairs, y.pairs, strict=True)])
    assert not sides.one_base and x.one_base
    found = compare_sides(sides, top=3, intruder_k=4)
    assert set(found.cosines["side"]) == {"X", "Y", "W0 of X", "W0 of Y"}
    alone = [compare(tuned(W, noise(seed)), tuned(W, noise(9)), W, top=3, intruder_k=4) for seed, W in ((1, A), (2, B))]
    for side, other in zip("XY", alone, strict=True):
        for table in ("amplification", "cosines"):
            mine, theirs = (getattr(c, table).query("side == @of").drop(columns="side").reset_index(drop=True)
                            for c, of in ((found, side), (other, "X")))
            pd.testing.assert_frame_equal(mine, theirs)


# --- layers against layers ---


def test_layers_against_layers_is_what_overlap_gives_pair_by_pair(tmp_path):
    W0 = weights(layers=3, kinds=("q", "up"))
    x, y = adapter(tmp_path / "x", shapes_of(W0), 3, seed=1), adapter(tmp_path / "y", shapes_of(W0), 2, seed=2)
    found = compare(x, y, across_layers=True)
    assert len(found.layers) == 2 * 9 and (found.layers["r"] == 2).all()
    names = list(W0)
    for row in found.layers.itertuples():
        i, j = names.index(name_of(row.layer_x, row.kind)), names.index(name_of(row.layer_y, row.kind))
        V = []
        for r, seed, at in ((3, 1, i), (2, 2, j)):
            m, n = W0[names[at]].shape
            B, A = gaussian(m, r, seed=seed + at).float(), gaussian(r, n, seed=seed + 1000 + at).float()
            V.append(torch.linalg.svd(B.double() @ A.double())[2][:2])
        assert row.phi == pytest.approx(float((V[0] @ V[1].T).square().sum()) / 2, abs=1e-9)
    summary = across_layers(found).set_index(["kind", "which"])
    assert summary.loc[("q", "same layer"), "pairs"] == 3 and summary.loc[("q", "other layers"), "pairs"] == 6


def test_an_adapters_layers_among_themselves(tmp_path):
    W0 = weights(layers=5, kinds=("q",))
    shared = gaussian(24, seed=3)

    def factors(name, B, A):
        if ".3." in name or ".4." in name:  # layers 3 and 4 share a direction, the others nothing
            A = torch.cat([20 * shared[None], A[1:]])
        return B, A

    x = adapter(tmp_path / "x", shapes_of(W0), 2, factors=factors)
    found = compare(x, x, across_layers=True)
    grid = found.layers.pivot(index="layer_x", columns="layer_y", values="phi").to_numpy()
    np.testing.assert_allclose(grid, grid.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(grid), 1.0)
    row = across_layers(found).iloc[0]
    assert row["which"] == "other layers" and row["pairs"] == 10
    assert {row["layer_x"], row["layer_y"]} == {3, 4} and row["largest_phi"] > 0.45
    off = grid[np.tril_indices(5, -1)]
    assert row["mean_phi"] == pytest.approx(off.mean())
    # Ten pairs of random planes in 24 dimensions: the exact mean, and an interval narrower than one pair's by sqrt(10).
    spread = (2 * 2 * 22 * 2 * 22 / (24**2 * 23 * 26)) ** 0.5 / 2
    assert row["random_mean"] == pytest.approx(2 / 24)
    assert row["random_high"] - row["random_mean"] == pytest.approx(1.96 * spread / 10**0.5, rel=1e-3)


def test_layers_of_an_adapter_of_chance_are_at_chance(tmp_path):
    x = adapter(tmp_path / "x", shapes_of(weights(layers=12, kinds=("q",), n=40)), 3, seed=5)
    row = across_layers(compare(x, x, across_layers=True)).iloc[0]
    assert row["pairs"] == 66 and row["random_low"] - 0.004 < row["mean_phi"] < row["random_high"] + 0.004
    assert row["above"] < 0.12


def test_across_layers_with_one_layer_says_so(tmp_path):
    x = adapter(tmp_path / "x", shapes_of(weights(layers=1)), 2)
    found = compare(x, x, across_layers=True)
    assert found.layers.empty and any("in two layers" in note for note in found.notes)
