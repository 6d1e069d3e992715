"""What extract keeps, what it carries beside, what it loses, and what it says of all that."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file, save_file

from rankprobe.analysis.extract import extract, read_extraction
from rankprobe.analysis.spectrum import spectrum_of
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


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_checkpoint_wrapped_module"])
def test_a_resized_adapter_names_the_bases_modules_where_its_blocks_were_wrapped(tmp_path, wrapper):
    adapter(tmp_path / "r8", shapes_of(weights()), 8, seed=1)
    shutil.copytree(tmp_path / "r8", tmp_path / "wrapped")
    file = tmp_path / "wrapped" / "adapter_model.safetensors"
    tensors = {re.sub(r"(layers\.\d+\.)", rf"\1{wrapper}.", name): t for name, t in load_file(file).items()}
    assert all(f".{wrapper}." in name for name in tensors)
    save_file(tensors, file)
    plain, wrapped = (tmp_path / f"{name} r3" for name in ("r8", "wrapped"))
    extract(opened(None, tmp_path / "r8"), plain, rank=3)
    extract(opened(None, tmp_path / "wrapped"), wrapped, rank=3)
    config = [json.loads((out / "adapter_config.json").read_text()) for out in (plain, wrapped)]
    assert config[0]["target_modules"] == config[1]["target_modules"]
    assert load_file(plain / file.name).keys() == load_file(wrapped / file.name).keys()


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


def test_an_adapter_whose_key_is_the_end_of_others_is_written_with_whole_paths(tmp_path):
    W0 = {"dense.weight": gaussian(6, 6).float(), "layers.0.dense.weight": gaussian(6, 6, seed=1).float()}
    W1 = {**W0, "dense.weight": W0["dense.weight"] + 1}
    extract(opened(W0, W1), tmp_path / "a", rank=2)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == "dense"  # a string is a regular expression of whole paths to peft
