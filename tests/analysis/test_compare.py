"""Comparisons of whole tunings: planted directions, invariances, chance, and adapters against numpy."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from rankprobe.analysis.compare import compare
from tests.analysis.tunings import adapter, gaussian, noise, shapes_of, tuned, weights

# --- what is found ---


def test_a_planted_shared_direction_is_found_and_only_there():
    W0 = weights()
    u = [torch.nn.functional.normalize(gaussian(24, seed=s), dim=0) for s in range(4)]
    one = tuned(W0, lambda name, W, i: 2.0 * torch.outer(u[0], u[1]))
    two = tuned(W0, lambda name, W, i: -3.0 * torch.outer(u[2], u[1] if ".0." in name else u[3]))
    right, left = compare(one, two, W0), compare(one, two, W0, of="left")
    first = right.matrices.set_index("name")["phi_1_1"]
    assert (right.matrices["r_x"] == 1).all() and (right.matrices["r_y"] == 1).all()
    for name in W0:
        assert first[name] == pytest.approx(1.0 if ".0." in name else float(u[1] @ u[3]) ** 2, abs=1e-9)
    assert left.matrices["phi_1_1"].tolist() == pytest.approx([float(u[0] @ u[2]) ** 2] * 4)
    assert right.matrices["share_x_in_y"].tolist() == pytest.approx(first.tolist())
    assert right.overlap["phi"].tolist() == pytest.approx(first.tolist())


def test_a_rotated_and_noisy_shared_subspace_is_found_at_its_size():
    """Three shared directions, mixed and scaled otherwise on each side, under noise: φ(3, 3) is near 1, φ(6, 6) not."""
    W0 = weights(layers=1, kinds=("q",), n=60)
    V = torch.linalg.qr(gaussian(60, 3))[0]

    def with_shared(seed):
        return lambda name, W, i: gaussian(60, 3, seed=seed) @ gaussian(3, 3, seed=seed + 1) @ V.T + 0.02 * gaussian(
            60, 60, seed=seed + 2)

    found = compare(tuned(W0, with_shared(1)), tuned(W0, with_shared(5)), W0, top=6)
    phi = found.overlap.pivot(index="i", columns="j", values="phi").to_numpy()
    row = found.matrices.iloc[0]
    assert phi[2, 2] > 0.95 and phi[5, 5] < 0.65 and row["best_i"] <= 3 and row["best_j"] <= 3
    assert (found.angles["angle_deg"].iloc[:3] < 20).all()
    assert (found.angles["angle_deg"] < found.angles["random_low"]).iloc[:3].all()
    assert phi[5, 5] == pytest.approx(row["phi_min_min"]) == pytest.approx(row["phi_rx_ry"])


def test_independent_tunings_share_what_chance_gives():
    """The control: nothing shared, 80 matrices; the random mean is met and its interval holds about 95 % of them."""
    W0 = weights(layers=40, n=24)
    found = compare(tuned(W0, noise(1)), tuned(W0, noise(50_000)), W0, top=4, intruders=False)
    table = found.matrices
    assert table["phi_min_min"].mean() == pytest.approx(4 / 24, rel=0.05)
    inside = table["phi_min_min"].between(table["phi_min_min_random_low"], table["phi_min_min_random_high"])
    assert 0.87 <= inside.mean() <= 1
    assert table["angle_min_deg"].mean() == pytest.approx(table["angle_min_random_mean"].iloc[0], rel=0.05)
    angles = found.angles.groupby("index")[["angle_deg", "random_mean"]].mean()
    np.testing.assert_allclose(angles["angle_deg"], angles["random_mean"], rtol=0.04)
    assert table["share_x_in_y"].mean() == pytest.approx(4 / 24, rel=0.1)
    assert (table["share_x_in_y_random"] == 4 / 24).all()


def test_an_input_with_itself_agrees_everywhere_and_says_so():
    W0 = weights()
    one = tuned(W0, noise(3))
    found = compare(one, one, W0, top=5)
    phi = found.overlap
    nested = phi[phi["i"] <= phi["j"]]
    assert nested["phi"].tolist() == pytest.approx([1.0] * len(nested))
    assert found.angles["angle_deg"].max() < 1e-10 and found.same
    assert any("same input" in note for note in found.notes)
    copied = compare(one, {name: W.clone() for name, W in one.items()}, W0, top=5)
    assert copied.overlap["phi"].tolist() == pytest.approx(phi["phi"].tolist())


def test_swapping_x_and_y_transposes_and_scaling_an_update_changes_nothing_but_its_norms():
    W0 = weights()
    one, two = tuned(W0, noise(3)), tuned(W0, noise(7))
    there, back = compare(one, two, W0, top=5), compare(two, one, W0, top=5)
    merged = there.overlap.merge(back.overlap, left_on=["name", "i", "j"], right_on=["name", "j", "i"])
    assert len(merged) == len(there.overlap) == 4 * 25
    np.testing.assert_allclose(merged["phi_x"], merged["phi_y"], atol=1e-9)
    np.testing.assert_allclose(there.matrices["share_x_in_y"], back.matrices["share_y_in_x"], atol=1e-9)
    scaled = {name: W0[name] + 8 * (W - W0[name]) for name, W in one.items()}
    again = compare(scaled, two, W0, top=5)
    np.testing.assert_allclose(again.overlap["phi"], there.overlap["phi"], atol=1e-7)
    factors = [c.amplification.query("side == 'X'")["factor"].to_numpy() for c in (again, there)]
    np.testing.assert_allclose(factors[0], 8 * factors[1], rtol=1e-6)


def test_a_rotation_of_all_inputs_changes_nothing_on_the_right():
    W0 = weights(kinds=("q",))
    R = torch.linalg.qr(gaussian(24, 24, seed=77))[0]
    one, two = tuned(W0, noise(3)), tuned(W0, noise(7))
    plain = compare(one, two, W0, top=4).overlap["phi"]
    turned = compare(*({name: W @ R for name, W in side.items()} for side in (one, two, W0)), top=4).overlap["phi"]
    np.testing.assert_allclose(turned, plain, atol=1e-7)


# --- adapters ---


def test_adapters_against_numpy(tmp_path):
    W0 = weights(kinds=("q", "up"))
    x = adapter(tmp_path / "x", shapes_of(W0), 3, seed=1, alpha=6)
    y = adapter(tmp_path / "y", shapes_of(W0), 5, seed=2)
    found = {of: compare(x, y, W0, of=of) for of in ("right", "left", "A")}
    for i, (name, W) in enumerate(W0.items()):
        m, n = W.shape
        dW, ofA = [], []
        for r, seed, scaling in ((3, 1, 2.0), (5, 2, 1.0)):
            B = gaussian(m, r, seed=seed + i).float().double().numpy()
            A = gaussian(r, n, seed=seed + 1000 + i).float().double().numpy()
            dW.append((np.linalg.svd(scaling * B @ A), r))
            ofA.append(np.linalg.svd(A)[2][:r].T)
        sides = {"right": [svd[2][:r].T for svd, r in dW], "left": [svd[0][:, :r] for svd, r in dW], "A": ofA}
        for of, (X, Y) in sides.items():
            mine = found[of].overlap[lambda t, name=name: t["name"] == name]
            mine = mine.pivot(index="i", columns="j", values="phi").to_numpy()
            expected = [[np.square(X[:, :a].T @ Y[:, :b]).sum() / min(a, b) for b in range(1, 6)] for a in range(1, 4)]
            np.testing.assert_allclose(mine, expected, atol=1e-10)
        updates = [(U[:, :r] * S[:r]) @ Vh[:r] for (U, S, Vh), r in dW]
        for of, (X, Y) in sides.items():
            row = found[of].matrices[lambda t, name=name: t["name"] == name].iloc[0]
            for (one, other), span, own, r in ((("x", "y"), Y, updates[0], 5), (("y", "x"), X, updates[1], 3)):
                inside = span.T @ own if of == "left" else own @ span
                share = np.linalg.norm(inside) ** 2 / np.linalg.norm(own) ** 2
                assert row[f"share_{one}_in_{other}"] == pytest.approx(share, rel=1e-9)
                assert row[f"share_{one}_in_{other}_random"] == pytest.approx(r / span.shape[0])
        rows = found["right"].amplification[lambda t, name=name: t["name"] == name].set_index("side")
        for side, ((U, S, Vh), r) in zip("XY", dW, strict=True):
            W0n = W.numpy()
            row = rows.loc[side]
            assert row["r"] == r and row["base_norm"] == pytest.approx(np.linalg.norm(W0n))
            assert row["update_norm"] == pytest.approx(np.linalg.norm(S[:r]))
            assert row["on_update"] == pytest.approx(np.linalg.norm(U[:, :r].T @ W0n @ Vh[:r].T))
            own = np.linalg.svd(W0n)
            assert row["on_base"] == pytest.approx(np.linalg.norm(own[1][:r]))
            assert row["on_random"] == pytest.approx(r * np.linalg.norm(W0n) / math.sqrt(m * n))
            assert row["factor"] == pytest.approx(row["update_norm"] / row["on_update"])
    assert (found["left"].matrices["dim"] == found["left"].matrices["m"]).all()
    assert (found["A"].matrices["dim"] == found["A"].matrices["n"]).all()


def test_adapters_need_no_base_and_say_what_is_left_out(tmp_path):
    W0 = weights()
    found = compare(adapter(tmp_path / "x", shapes_of(W0), 2), adapter(tmp_path / "y", shapes_of(W0), 4, seed=9))
    assert found.amplification.empty and found.intruders.empty and found.cosines.empty
    assert len(found.matrices) == 4 and (found.matrices["source_x"] == "factored").all()
    assert any("No base is at hand for X and Y" in note for note in found.notes)
    assert found.matrices["energy_x"].tolist() == pytest.approx([1.0] * 4) and found.layers.empty


def test_an_adapter_and_the_model_it_is_merged_into_are_one_update(tmp_path):
    W0 = weights()
    x = adapter(tmp_path / "x", shapes_of(W0), 3, seed=4, alpha=6)

    def merged(name, W, i):
        B, A = gaussian(W.shape[0], 3, seed=4 + i), gaussian(3, W.shape[1], seed=1004 + i)
        return 2.0 * B.float().double() @ A.float().double()

    found = compare(x, tuned(W0, merged), W0)
    table = found.matrices
    assert (table["source_x"] == "factored").all() and (table["source_y"] == "dense").all()
    # Rounding of W0 + dW in float64 is no direction of the update.
    assert (table["r_x"] == 3).all() and (table["r_y"] == 3).all()
    assert table["phi_min_min"].tolist() == pytest.approx([1.0] * 4) and table["angle_max_deg"].max() < 1e-5
    norms = [found.amplification.query(f"side == '{side}'").drop(columns="side") for side in "XY"]
    pd.testing.assert_frame_equal(*(table.reset_index(drop=True) for table in norms))
    cosines = {side: rows["cosine"].to_numpy() for side, rows in found.cosines.groupby("side")}
    np.testing.assert_allclose(cosines["X"], cosines["Y"], atol=1e-9)


def test_a_split_of_b_and_a_changes_the_factors_directions_and_not_those_of_dw(tmp_path):
    W0 = weights(layers=1, kinds=("q",))
    skew = torch.diag(torch.tensor([1.0, 30.0, 0.01], dtype=torch.float64)) @ gaussian(3, 3, seed=5)
    x = adapter(tmp_path / "x", shapes_of(W0), 3, seed=1)
    y = adapter(tmp_path / "y", shapes_of(W0), 3, seed=1,
                factors=lambda name, B, A: (B @ torch.linalg.inv(skew), skew @ A))
    right, of_A = compare(x, y), compare(x, y, of="A")
    diagonal = right.overlap.query("i == j")["phi"]
    np.testing.assert_allclose(diagonal, 1.0, atol=1e-5)
    assert of_A.overlap.query("i == j == 1")["phi"].iloc[0] < 0.99
    assert of_A.matrices["phi_min_min"].iloc[0] == pytest.approx(1.0, abs=1e-5)  # the whole row space is the same


def test_top_cuts_adapters_and_dense_updates_alike(tmp_path):
    W0 = weights(layers=1)
    x, y = adapter(tmp_path / "x", shapes_of(W0), 6), tuned(W0, noise(3))
    whole, cut = compare(x, y, W0), compare(x, y, W0, top=2)
    assert (whole.matrices["r_x"] == 6).all() and (whole.matrices["r_y"] == 24).all()  # of 64 that a dense one may have
    assert (cut.matrices["r_x"] == 2).all() and (cut.matrices["r_y"] == 2).all()
    joined = cut.overlap.merge(whole.overlap, on=["name", "i", "j"])
    np.testing.assert_allclose(joined["phi_x"], joined["phi_y"], atol=1e-9)
    assert (cut.matrices["energy_y"] < 0.5).all() and whole.matrices["energy_y"].tolist() == pytest.approx([1.0, 1.0])


def test_a_prefix_on_one_side_only(tmp_path):
    x = adapter(tmp_path / "x", shapes_of(weights()), 2)
    y = adapter(tmp_path / "y", shapes_of(weights(prefix="")), 2, seed=50)
    found = compare(x, y)
    assert found.matrices["name"].tolist() == list(weights()) and found.skipped.empty
    back = compare(y, x)
    assert back.matrices["name"].tolist() == list(weights(prefix="")) and back.skipped.empty
