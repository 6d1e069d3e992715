"""Comparisons that cannot be made, are made in part, or are interrupted and taken up again."""

import json
import math

import pandas as pd
import pytest

from rankprobe.analysis import compare as module
from rankprobe.analysis.compare import collect, compare, compare_sides
from rankprobe.analysis.compare_inputs import open_sides
from rankprobe.analysis.compare_tables import by_kind
from rankprobe.errors import UsageError
from tests.analysis.tunings import adapter, gaussian, name_of, noise, shapes_of, tuned, weights

# --- what is left out, and what is refused ---


def test_zero_updates_are_named_and_others_go_on(tmp_path):
    W0 = weights()
    still = name_of(1, "v")
    one = tuned(W0, lambda name, W, i: 0 * W if name == still else noise(1)(name, W, i))
    found = compare(one, tuned(W0, noise(2)), W0)
    assert still not in set(found.matrices["name"]) and len(found.matrices) == 3
    assert found.skipped.set_index("name").loc[still, "reason"] == "the update of X is zero: no directions"
    for table in (found.matrices, found.overlap, found.angles, found.amplification):
        assert not table.isna().to_numpy().any()
    zero_B = adapter(tmp_path / "zero", shapes_of(W0), 2, factors=lambda name, B, A: (B * (name != still), A))
    found = compare(tuned(W0, noise(2)), zero_B, W0)
    assert found.skipped.set_index("name").loc[still, "reason"] == "the update of Y is zero: no directions"


def test_no_change_at_all_is_refused():
    W0 = weights()
    with pytest.raises(UsageError, match="have changed a matrix that both have. Got 4 updates without a direction"):
        compare({n: W.clone() for n, W in W0.items()}, tuned(W0, noise(1)), W0)


def test_nan_names_the_matrix():
    W0 = weights()
    bad = tuned(W0, noise(1))
    bad[name_of(1, "q")][2, 3] = math.nan
    with pytest.raises(UsageError, match=r"model\.layers\.1\.self_attn\.q_proj.* must be finite"):
        compare(tuned(W0, noise(2)), bad, W0)


def test_a_full_model_needs_its_base(tmp_path):
    W0 = weights()
    with pytest.raises(UsageError, match="Y must come with the base it was tuned from"):
        compare(adapter(tmp_path / "x", shapes_of(W0), 2), tuned(W0, noise(1)))


def test_of_a_is_for_adapters_alone(tmp_path):
    W0 = weights()
    with pytest.raises(UsageError, match="of A must be of two adapters. Got Y = "):
        compare(adapter(tmp_path / "x", shapes_of(W0), 2), tuned(W0, noise(1)), W0, of="A")
    with pytest.raises(UsageError, match="of must be one of right, left, A"):
        compare(W0, W0, W0, of="middle")


def test_of_a_leaves_out_what_an_adapter_holds_whole(tmp_path):
    """PEFT's modules_to_save: a matrix that the base has too, and that has no factors."""
    W0 = weights() | {"score.weight": gaussian(3, 24, seed=5)}
    factored = {name: shape for name, shape in shapes_of(W0).items() if name != "score.weight"}
    whole = {"score.weight": W0["score.weight"].float() + 1}
    x, y = (adapter(tmp_path / side, factored, 2, seed, whole=whole) for side, seed in (("x", 1), ("y", 50)))
    assert "score.weight" in set(compare(x, y, W0).matrices["name"])
    found = compare(x, y, W0, of="A")
    assert set(found.matrices["name"]) == set(factored)
    assert found.skipped.set_index("name")["reason"]["score.weight"] == "saved whole: there is no factor A"


def test_nothing_in_common_and_other_shapes(tmp_path):
    x = adapter(tmp_path / "x", shapes_of(weights(kinds=("q",))), 2)
    y = adapter(tmp_path / "y", shapes_of(weights(kinds=("v",))), 2)
    with pytest.raises(UsageError, match="X and Y must share a weight matrix. Got 2 in X"):
        compare(x, y)
    wide = adapter(tmp_path / "wide", shapes_of(weights(kinds=("q",), n=32)), 2)
    with pytest.raises(UsageError, match=r"share a weight matrix of one shape. Got .*\(24, 24\) in X, \(32, 32\) in Y"):
        compare(x, wide)
    both = adapter(tmp_path / "both", {**shapes_of(weights()), name_of(0, "q"): (8, 8)}, 2)
    found = compare(adapter(tmp_path / "all", shapes_of(weights()), 2), both)
    assert len(found.matrices) == 3 and "shapes differ" in found.skipped["reason"].iloc[0]
    found = compare(x, adapter(tmp_path / "more", shapes_of(weights(kinds=("q", "v"))), 2))
    assert (found.skipped["reason"] == "only in Y").sum() == 2 and "2 matrices are only in Y" in found.notes


def test_adapters_that_name_different_bases_are_noted(tmp_path):
    folders = []
    for name in ("one", "two"):
        folder = adapter(tmp_path / name, shapes_of(weights()), 2, seed=len(folders))
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": f"base-{name}"}))
        folders.append(folder)
    found = compare(*folders)
    assert "X and Y name different bases: base-one and base-two" in found.notes


@pytest.mark.parametrize(("options", "words"), [
    ({"top": 0}, "top must be at least 1"),
    ({"intruder_k": -1}, "intruder_k must be at least 0"),
    ({"intruder_eps": 0}, "intruder_eps must be above 0"),
    ({"include": "nothing_like_this"}, "include"),
])
def test_options_out_of_range(options, words):
    W0 = weights()
    with pytest.raises(UsageError, match=words):
        compare(tuned(W0, noise(1)), tuned(W0, noise(2)), W0, **options)


def test_include_and_exclude():
    W0 = weights()
    one, two = tuned(W0, noise(1)), tuned(W0, noise(2))
    assert set(compare(one, two, W0, include="q_proj").matrices["kind"]) == {"q"}
    assert compare(one, two, W0, exclude=r"layers\.0").matrices["layer"].tolist() == [1, 1]


# --- streaming ---


def test_an_interrupt_leaves_what_is_done_and_the_next_call_goes_on(monkeypatch):
    W0 = weights(layers=3)
    one, two = tuned(W0, noise(1)), tuned(W0, noise(2))
    whole = compare(one, two, W0, top=4, across_layers=True)
    sides, store, seen = open_sides(one, two, W0), {}, []

    def stop(matrix):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(matrix.name)

    with pytest.raises(KeyboardInterrupt):
        compare_sides(sides, top=4, across_layers=True, progress=stop, store=store)
    part = collect(sides, store, of="right")
    assert sorted(part.matrices["name"]) == sorted(seen) and len(part.matrices) == 4
    store = json.loads(json.dumps(store))
    measured = []
    real = module.measure
    monkeypatch.setattr(module, "measure", lambda x, y, **k: measured.append(x.name) or real(x, y, **k))
    again = compare_sides(sides, top=4, across_layers=True, store=store)
    assert sorted([*measured, *seen]) == sorted(W0)
    for table in ("matrices", "overlap", "angles", "amplification", "intruders", "cosines", "layers"):
        left, right = getattr(again, table), getattr(whole, table)
        pd.testing.assert_frame_equal(left, right, check_categorical=False)


def test_one_matrix_is_read_at_a_time_and_one_input_once(monkeypatch):
    W0 = weights(layers=3)
    one, two = tuned(W0, noise(1)), tuned(W0, noise(2))
    reads = []
    for same in (True, False):
        sides = open_sides(one, one if same else two, W0)
        counted = []
        for side in {id(sides.x): sides.x, id(sides.y): sides.y}.values():
            for i, matrix in enumerate(side.matrices):
                def read(i=i, read=matrix.read, counted=counted):
                    counted.append(i)
                    return read()

                object.__setattr__(matrix, "read", read)
        compare_sides(sides)
        reads.append(counted)
    assert reads == [[0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]]


def test_by_kind_is_medians():
    W0 = weights(layers=3)
    found = compare(tuned(W0, noise(1)), tuned(W0, noise(2)), W0, top=3)
    table = by_kind(found).set_index("kind")
    for kind in ("q", "v"):
        mine = found.matrices.query("kind == @kind")
        assert table.loc[kind, "phi_1_1"] == mine["phi_1_1"].median() and table.loc[kind, "matrices"] == 3
        factors = found.amplification.query("kind == @kind and side == 'Y'")["factor"]
        assert table.loc[kind, "factor_y"] == factors.median()
