"""What extract keeps, carries, loses and says; interrupts, full disks and mistakes."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file, save_file

from rankprobe.analysis import extract_matrices
from rankprobe.analysis.extract import extract, read_extraction
from rankprobe.analysis.spectrum import spectrum_of
from rankprobe.errors import UsageError
from rankprobe.weights.inputs import open_input
from rankprobe.weights.pair import pair
from tests.analysis.fine_tuned import fine_tune
from tests.analysis.tunings import adapter, gaussian, noise, shapes_of, tuned, weights

SEQUENCES = "AutoModelForSequenceClassification"
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "extraction.csv", "extraction.json"}


def opened(base, changed):
    return pair(None if base is None else open_input(base), open_input(changed), fused=True)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return fine_tune("bert", SEQUENCES, tmp_path_factory.mktemp("bert"))


@pytest.fixture
def small():
    """Four matrices in memory and a tuning of them."""
    W0 = {name: W.float() for name, W in weights(layers=2, kinds=("q", "up")).items()}
    return W0, {name: W.float() for name, W in tuned(W0, noise(3)).items()}


def files_in(folder):
    return {file.name for file in folder.iterdir()}


# --- what is kept ---


@pytest.mark.parametrize("rule", [{"rank": 5}, {"energy": 0.8}, {"budget": 900}])
def test_the_table_tells_what_scipy_finds(small, tmp_path, rule):
    W0, W1 = small
    done = extract(opened(W0, W1), tmp_path / "a", **rule)
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert [row["name"] for row in done.rows] == list(W1)
    for row in done.rows:
        dW = (W1[row["name"]].double() - W0[row["name"]].double()).numpy()
        S, k = scipy.linalg.svdvals(dW), row["r"]
        path = f"base_model.model.{row['name'].removesuffix('.weight')}"
        BA = stored[f"{path}.lora_B.weight"].double() @ stored[f"{path}.lora_A.weight"].double()
        assert row["fro_norm"] == pytest.approx(np.linalg.norm(S))
        assert row["kept_energy"] == pytest.approx((S[:k] ** 2).sum() / (S**2).sum(), rel=1e-6)
        assert row["residual"] == pytest.approx(np.linalg.norm(dW - BA.numpy()), rel=1e-5)
        assert np.linalg.norm(dW - BA.numpy()) <= 1.001 * np.linalg.norm(S[k:]) + 1e-6 * row["fro_norm"]
        assert row["parameters"] == k * (row["m"] + row["n"]) == sum(
            stored[f"{path}.lora_{f}.weight"].numel() for f in "AB")
    total = sum(row["fro_norm"] ** 2 for row in done.rows)
    kept = sum(row["kept_energy"] * row["fro_norm"] ** 2 for row in done.rows)
    assert done.summary["kept_energy"] == pytest.approx(kept / total)
    assert done.summary["parameters"] == sum(t.numel() for t in stored.values())
    assert done.summary["size_bytes"] == sum(t.nbytes for t in stored.values())
    assert done.summary["tuned_bytes"] == sum(t.nbytes for t in W1.values())


def test_a_share_is_held_in_every_matrix_by_the_fewest(small):
    W0, W1 = small
    for row in extract(opened(W0, W1), None, energy=0.9).rows:
        S = scipy.linalg.svdvals((W1[row["name"]].double() - W0[row["name"]].double()).numpy()) ** 2
        assert row["r"] == np.searchsorted(np.cumsum(S) / S.sum(), 0.9) + 1


def test_a_budget_is_spent_where_it_holds_most_of_the_whole_network(small):
    W0, W1 = small
    W1 = {name: W0[name] + (W - W0[name]) * (10 if "layers.1" in name else 1) for name, W in W1.items()}
    done = extract(opened(W0, W1), None, budget=1000)
    S = {name: scipy.linalg.svdvals((W1[name] - W0[name]).double().numpy()) for name in W0}
    offers = sorted(((s**2 / sum(W0[name].shape), name) for name in S for s in S[name]), reverse=True)
    ranks, left = dict.fromkeys(W0, 0), 1000
    for _, name in offers:
        cost = sum(W0[name].shape)
        if cost > left:
            break
        ranks[name], left = ranks[name] + 1, left - cost
    shown = {row["name"]: row["r"] for row in done.rows}
    assert all(shown[name] >= k for name, k in ranks.items())
    assert done.summary["parameters"] <= 1000 and done.summary["budget_slack"] < 0.05
    assert shown["model.layers.1.self_attn.q_proj.weight"] > shown["model.layers.0.self_attn.q_proj.weight"]
    assert {one["name"] for one in done.lost} == {name for name, k in shown.items() if k == 0}


def test_noise_keeps_the_planted_rank_in_bf16(tmp_path):
    W0 = {f"layers.{i}.q_proj.weight": gaussian(160, 120, seed=i).bfloat16() for i in range(2)}
    W1 = {name: (W.double() + 0.3 * gaussian(160, 4, seed=9) @ gaussian(4, 120, seed=10)).bfloat16()
          for name, W in W0.items()}
    W1["layers.1.q_proj.weight"] = W0["layers.1.q_proj.weight"]
    done = extract(opened(W0, W1), tmp_path / "a", noise=True)
    assert [row["r"] for row in done.rows] == [4, 0] and done.rows[0]["storage_rank"] == 4
    assert done.lost == []  # what did not change is not lost


def test_an_adapter_pairs_with_the_base_to_the_same_spectrum(bert, tmp_path):
    """What was written is read back by this program's own reader: names, alpha, transposes, embeddings."""
    base, changed = bert
    extract(opened(base, changed), tmp_path / "a", rank=10_000)
    theirs, sigma = spectrum_of(pair(open_input(base), open_input(changed)), noise=False)
    for side in (base, None):
        ours, sigma_ours = spectrum_of(pair(open_input(side) if side else None, open_input(tmp_path / "a")))
        assert set(ours["name"]) == set(theirs["name"]) and len(ours) == len(theirs)
        both = pd.merge(sigma, sigma_ours, on=["name", "index"])
        assert len(both) == len(sigma)
        np.testing.assert_allclose(both["sigma_x"], both["sigma_y"], atol=2e-7 * float(sigma["sigma"].max()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_residual_is_of_the_factors_as_they_are_stored(small, tmp_path, dtype):
    W0, W1 = small
    done = extract(opened(W0, W1), tmp_path / "a", rank=10_000, dtype=dtype)
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {t.dtype for t in stored.values()} == {getattr(torch, dtype)}
    for row in done.rows:
        path = f"base_model.model.{row['name'].removesuffix('.weight')}"
        BA = stored[f"{path}.lora_B.weight"].double() @ stored[f"{path}.lora_A.weight"].double()
        dW = W1[row["name"]].double() - W0[row["name"]].double()
        assert row["residual"] == pytest.approx(float((dW - BA).norm()), rel=1e-6)
        assert 1e-5 < row["relative_error"] < 0.02 and row["kept_energy"] == pytest.approx(1)


def test_a_resized_adapter_has_the_residual_of_its_stored_factors(tmp_path):
    adapter(tmp_path / "r8", shapes_of(weights()), 8, seed=1)
    done = extract(opened(None, tmp_path / "r8"), tmp_path / "r3", rank=3, dtype="bfloat16")
    before, after = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("r8", "r3"))
    for row in done.rows:
        path = f"base_model.model.{row['name'].removesuffix('.weight')}"
        dW, BA = (t[f"{path}.lora_B.weight"].double() @ t[f"{path}.lora_A.weight"].double() for t in (before, after))
        assert row["residual"] == pytest.approx(float((dW - BA).norm()), rel=1e-9)


# --- what is carried, and what is lost ---


def test_every_changed_parameter_is_kept_carried_or_told_as_lost(tmp_path):
    base, changed = fine_tune("roberta", SEQUENCES, tmp_path)
    W = load_file(changed / "model.safetensors")
    W["roberta.encoder.layer.0.own.gate"] = gaussian(3, seed=1).float()
    W["roberta.encoder.layer.0.own_matrix"] = gaussian(3, 3, seed=1).float()
    save_file(W, changed / "model.safetensors", metadata={"format": "pt"})
    done = extract(opened(base, changed), None, rank=2, exclude=r"layer\.1\..*(query|LayerNorm)")
    told = [*(one["name"] for one in (*done.rows, *done.beside, *done.lost)), *done.left_out]
    missed = [name for name in W if name not in told and not any(name.startswith(f"{whole}.") for whole in told)]
    assert missed == []
    assert {one["name"] for one in done.lost} == {"roberta.encoder.layer.0.own.gate",
                                                  "roberta.encoder.layer.0.own_matrix"}
    assert sum("query" in name for name in done.left_out) == 2 and sum("LayerNorm" in n for n in done.left_out) == 4
    norm = float(W["roberta.encoder.layer.0.own.gate"].double().norm())
    assert next(one for one in done.lost if "gate" in one["name"])["change"] == pytest.approx(norm)


def test_a_changed_convolution_is_saved_whole_and_kept_of_all_counts_it(small, tmp_path):
    W0, W1 = small
    W0["patch.projection.weight"] = gaussian(4, 3, 2, 2, seed=5).float()
    W1["patch.projection.weight"] = W0["patch.projection.weight"] + 5
    done = extract(opened(W0, W1), tmp_path / "a", rank=2)
    assert [(one["name"], one["why"]) for one in done.beside] == [("patch.projection", "convolution")]
    change = done.beside[0]["change"]
    assert change == pytest.approx(5 * math.sqrt(48))
    total = sum(row["fro_norm"] ** 2 for row in done.rows)
    kept = done.summary["kept_energy"] * total
    assert done.summary["kept_of_all"] == pytest.approx((kept + change**2) / (total + change**2))
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    torch.testing.assert_close(stored["base_model.model.patch.projection.weight"], W1["patch.projection.weight"])


def test_added_tokens_save_the_embedding_whole_and_say_how_to_load_it(bert, tmp_path):
    base, changed = bert
    longer = tmp_path / "longer"
    longer.mkdir()
    W = load_file(changed / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    rows = len(W[name])
    W[name] = torch.cat([W[name], torch.ones(2, 32)])
    save_file(W, longer / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((changed / "config.json").read_text())
    (longer / "config.json").write_text(json.dumps({**config, "vocab_size": rows + 2}))
    done = extract(opened(base, longer), None, rank=2)
    carried = {one["name"]: one for one in done.beside}
    assert "2 rows more" in carried["bert.embeddings.word_embeddings"]["why"]
    assert any(f"resize_token_embeddings({rows + 2})" in note for note in done.notes)


def test_a_head_is_carried_whatever_is_asked_for(bert):
    done = extract(opened(*bert), None, rank=2, include="query", exclude="classifier|key")
    assert {row["kind"] for row in done.rows} == {"q"}
    query = "bert.encoder.layer.{}.attention.self.query.bias"
    assert [one["name"] for one in done.beside] == ["classifier", query.format(0), query.format(1)]


def test_files_written_and_what_they_say(bert, tmp_path):
    base, changed = bert
    out = tmp_path / "deep" / "a"
    done = extract(opened(base, changed), out, rank=4, base_model="someone/bert", command="rankprobe extract ...")
    assert files_in(out) == FILES and done.folder == out
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/bert" and config["r"] == config["lora_alpha"] == 4
    readme = (out / "README.md").read_text()
    for words in ("base_model: someone/bert", "rankprobe extract ...", "num_labels=3", "## Not carried",
                  'AutoModelForSequenceClassification.from_pretrained("someone/bert"'):
        assert words in readme
    table = pd.read_csv(out / "extraction.csv")
    assert table["name"].tolist() == [row["name"] for row in done.rows]
    assert table["r"].tolist() == [row["r"] for row in done.rows]
    assert read_extraction(out) == done
    assert str(tmp_path) not in "".join((out / name).read_text() for name in FILES if not name.endswith("safetensors"))


def test_a_resized_adapter_keeps_its_bases_name_but_no_path(tmp_path):
    for name, kept in (("org/model", "org/model"), ("/home/me/model", "")):
        folder = adapter(tmp_path / name.replace("/", "-"), shapes_of(weights()), 4)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": name}))
        assert extract(opened(None, folder), None, rank=2).summary["base_model"] == kept


# --- dry runs, the second call, interrupts, the disk ---


def test_a_dry_run_tells_the_same_and_writes_nothing(bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for rule in ({"rank": 3}, {"budget": 2000}):
        dry = extract(opened(*bert), None, **rule)
        assert files_in(tmp_path) == set() and dry.folder is None
        wet = extract(opened(*bert), tmp_path / "a", **rule, overwrite=True)
        assert dry == wet
        for file in (tmp_path / "a").iterdir():
            file.unlink()
        (tmp_path / "a").rmdir()


def test_the_same_call_again_reads_what_is_there(small, tmp_path, monkeypatch):
    first = extract(opened(*small), tmp_path / "a", rank=3)
    monkeypatch.setattr(extract_matrices, "leading_part", None)  # not called
    assert extract(opened(*small), tmp_path / "a", rank=3) == first


def test_a_folder_of_other_work_is_left_alone(small, tmp_path):
    W0, W1 = small
    extract(opened(W0, W1), tmp_path / "a", rank=3)
    with pytest.raises(UsageError, match="be of the same settings. Got .*extracted with --rank 3"):
        extract(opened(W0, W1), tmp_path / "a", rank=4)
    with pytest.raises(UsageError, match="be of the same models"):
        extract(opened(W0, tuned(W0, noise(9))), tmp_path / "a", rank=3)
    before = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "a" / "mine.txt").write_text("mine")
    extract(opened(W0, W1), tmp_path / "a", rank=4, overwrite=True)
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() != before
    assert files_in(tmp_path / "a") == {*FILES, "mine.txt"}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    (tmp_path / "c").write_text("a file")
    for out, message in (("b", "be new, empty, or hold an earlier"), ("c", "must be a folder")):
        for overwrite in (False, True):
            with pytest.raises(UsageError, match=message):
                extract(opened(W0, W1), tmp_path / out, rank=3, overwrite=overwrite)
    assert files_in(tmp_path / "b") == {"notes.txt"}


@pytest.mark.parametrize("rule", [{"rank": 3}, {"budget": 900}])
def test_after_an_interrupt_the_same_call_goes_on(small, tmp_path, monkeypatch, rule):
    whole = extract(opened(*small), tmp_path / "whole", **rule)
    passes = 2 if "budget" in rule else 1
    begun = []

    def interrupt(matrix):
        begun.append(matrix.name)
        if len(begun) == 4 * (passes - 1) + 3:  # the third matrix's factors
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(opened(*small), tmp_path / "a", **rule, progress=interrupt)
    assert not files_in(tmp_path / "a") & FILES
    decomposed, real = [], extract_matrices.leading_part
    monkeypatch.setattr(extract_matrices, "leading_part",
                        lambda delta, *a, **how: decomposed.append(delta.name) or real(delta, *a, **how))
    assert extract(opened(*small), tmp_path / "a", **rule) == whole
    assert decomposed == list(small[0])[2:]
    assert files_in(tmp_path / "a") == FILES
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_work_of_other_settings_is_not_taken_up(small, tmp_path):
    def interrupt(matrix):
        if "layers.1" in matrix.name:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(opened(*small), tmp_path / "a", rank=2, progress=interrupt)
    done = extract(opened(*small), tmp_path / "a", rank=5)
    assert {row["r"] for row in done.rows} == {5} and files_in(tmp_path / "a") == FILES


@pytest.mark.parametrize("size", [200, 3000, 20_000])
def test_a_full_disk_leaves_no_adapter_and_the_same_call_goes_on(small, tmp_path, size):
    resource = pytest.importorskip("resource")
    whole = extract(opened(*small), tmp_path / "whole", rank=20)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # stands for a disk with so much room
        with pytest.raises(OSError) as caught:
            extract(opened(*small), tmp_path / "a", rank=20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename
    assert not files_in(tmp_path / "a") & FILES
    assert extract(opened(*small), tmp_path / "a", rank=20) == whole
    assert files_in(tmp_path / "a") == FILES


def test_stopped_while_files_are_put_in_place_the_same_call_mends_it(small, tmp_path, monkeypatch):
    from pathlib import Path

    whole = extract(opened(*small), tmp_path / "whole", rank=3)
    real, moved = Path.replace, []

    def kill(self, target):
        if self.parent.name == "new":
            moved.append(self.name)
            if len(moved) == 5:
                raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        extract(opened(*small), tmp_path / "a", rank=3)
    assert moved[-2:] == ["adapter_config.json", "extraction.json"]  # no config before the weights are there
    monkeypatch.undo()
    assert extract(opened(*small), tmp_path / "a", rank=3) == whole
    assert files_in(tmp_path / "a") == FILES


# --- mistakes ---


def test_an_update_of_zero_is_refused_and_leaves_nothing(small, tmp_path):
    W0, _ = small
    for rule in ({"rank": 3}, {"energy": 0.9}, {"noise": True}, {"budget": 500}):
        with pytest.raises(UsageError, match="TUNED must differ from BASE. Got no change in 4 matrices"):
            extract(opened(W0, {name: W.clone() for name, W in W0.items()}), tmp_path / "a", **rule)
    assert files_in(tmp_path) == set()


def test_a_budget_too_small_names_the_least(small, tmp_path):
    with pytest.raises(UsageError, match="Got 40. Pass --budget 48 or more"):
        extract(opened(*small), tmp_path / "a", budget=40)
    assert files_in(tmp_path) == set()


def test_noise_is_no_rule_for_an_adapter(tmp_path):
    adapter(tmp_path / "r4", shapes_of(weights()), 4)
    with pytest.raises(UsageError, match="--noise must be asked of whole models"):
        extract(opened(None, tmp_path / "r4"), tmp_path / "a", noise=True)
    assert files_in(tmp_path) == {"r4"}


def test_a_swallowed_update_is_told_as_such(tmp_path):
    W0 = {"layers.0.q_proj.weight": gaussian(160, 120).bfloat16()}
    W1 = {name: (W.double() + 1e-5 * gaussian(160, 1, seed=2) @ gaussian(1, 120, seed=3)).bfloat16()
          for name, W in W0.items()}
    with pytest.raises(UsageError, match="whose dtype swallowed them. Pass --rank, --energy or --budget"):
        extract(opened(W0, W1), tmp_path / "a", noise=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of --rank, --energy, --noise and --budget. Got none"),
        ({"rank": 2, "noise": True}, "Got --rank and --noise"),
        ({"rank": 2, "embeddings": "all"}, "--embeddings must be one of lora, whole, drop"),
        ({"rank": 2, "dtype": "float64"}, "--dtype must be one of float32, bfloat16, float16"),
        ({"rank": 2, "include": "("}, "include must be a regular expression"),
        ({"rank": 2, "include": "nothing_like_it"}, "leave a matrix or a vector. Got include 'nothing_like_it'"),
        ({"rank": 2, "exclude": "nothing_like_it"}, "exclude must match a parameter's name"),
        ({"rank": 2, "exclude": "layers"}, "leave a matrix or a vector"),
    ],
)
def test_mistakes_in_options(small, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        extract(opened(*small), tmp_path / "a", **options)
    assert files_in(tmp_path) == set()


def test_nan_in_one_matrix_names_it_and_leaves_nothing(small, tmp_path):
    W0, W1 = small
    name = "model.layers.1.mlp.up_proj.weight"
    W1[name][3, 4] = torch.nan
    with pytest.raises(UsageError, match=f"{name} must be finite"):
        extract(opened(W0, W1), tmp_path / "a", rank=2)
    assert files_in(tmp_path) == set()


def test_factors_beyond_float16_ask_for_float32(small, tmp_path):
    W0, W1 = small
    huge = {name: W0[name] + 1e12 * (W1[name] - W0[name]) for name in W0}
    adapter(tmp_path / "r4", shapes_of(W0), 4, factors=lambda name, B, A: (1e9 * B, 1e9 * A))
    message = r"_proj.weight must have factors that fit into float16. Got values up to [1-9]\S*e\+"
    for sides in ((W0, huge), (None, tmp_path / "r4")):
        with pytest.raises(UsageError, match=message):
            extract(opened(*sides), tmp_path / "a", rank=2, dtype="float16")
    assert files_in(tmp_path) == {"r4"}


def test_models_with_no_matrix_in_common_but_norms(tmp_path):
    W0, W1 = {"norm.weight": torch.ones(4)}, {"norm.weight": torch.zeros(4)}
    with pytest.raises(UsageError, match="have a linear layer to give factors"):
        extract(opened(W0, W1), tmp_path / "a", rank=2)


def test_an_adapter_whose_key_is_the_end_of_others_is_written_with_whole_paths(tmp_path):
    W0 = {"dense.weight": gaussian(6, 6).float(), "layers.0.dense.weight": gaussian(6, 6, seed=1).float()}
    W1 = {**W0, "dense.weight": W0["dense.weight"] + 1}
    extract(opened(W0, W1), tmp_path / "a", rank=2)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == "dense"  # a string is a regular expression of whole paths to peft
