"""Loading decoders as language models: what a checkpoint holds is kept, encoders and broken folders are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankprobe.errors import UsageError
from rankprobe.weights.pretrained import find_model, load_causal_lm
from tests.tiny_models import KINDS, make_tiny
from tests.weights.test_pretrained import BROKEN

DECODERS = ("gpt2", "llama")
HEADLESS = {"gpt2": [], "llama": ["lm_head.weight"]}  # GPT-2's output layer is its embeddings; this Llama's is not


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_saved_without_a_head(kind, tmp_path):
    source = find_model(make_tiny(kind, tmp_path / kind))
    model, tokenizer, missing = load_causal_lm(source, seed=0)
    assert missing == HEADLESS[kind]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32} and not model.training
    state = model.state_dict()
    for name, tensor in load_file(source.path / "model.safetensors").items():
        assert torch.equal(state[f"{model.base_model_prefix}.{name}"], tensor)
    # Neither has a pad token of its own.
    assert tokenizer.pad_token == tokenizer.eos_token and tokenizer.padding_side == "right"
    assert model.config.pad_token_id == tokenizer.eos_token_id


def test_what_is_missing_depends_on_the_seed_alone_and_the_global_random_state_is_kept(tmp_path):
    source = find_model(make_tiny("llama", tmp_path / "llama"))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = load_causal_lm(source, seed=1)[0].lm_head.weight
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(load_causal_lm(source, seed=1)[0].lm_head.weight, first)
    assert not torch.equal(load_causal_lm(source, seed=2)[0].lm_head.weight, first)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_whole_language_model_lacks_nothing(kind, tmp_path):
    model, tokenizer, _ = load_causal_lm(find_model(make_tiny(kind, tmp_path / "base")), seed=3)
    model.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    again, _, missing = load_causal_lm(find_model(tmp_path / "whole"), seed=4)
    assert missing == []
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in DECODERS])
def test_encoders_are_refused(kind, tmp_path):
    source = find_model(make_tiny(kind, tmp_path / kind))
    with pytest.raises(UsageError, match=f"The model must be a decoder, .*Got '{kind}' in .*GPT-2 or Llama") as error:
        load_causal_lm(source, seed=0)
    assert "\n" not in str(error.value)


def test_a_bert_that_was_made_a_decoder_is_one(tmp_path):
    folder = make_tiny("bert", tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"is_decoder": True}))
    model, tokenizer, missing = load_causal_lm(find_model(folder), seed=0)
    assert missing and all(name.startswith("cls.") for name in missing)
    ids = tokenizer("good film", return_tensors="pt")["input_ids"]
    other = ids.clone()
    other[0, -1] = 7
    with torch.inference_mode():  # its tokens see nothing of what follows
        torch.testing.assert_close(model(ids).logits[0, :-1], model(other).logits[0, :-1], rtol=0, atol=0)


def test_half_precision_checkpoints_become_float32(tmp_path):
    folder = make_tiny("gpt2", tmp_path / "gpt2")
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model, _, _ = load_causal_lm(find_model(folder), seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def _drop_block(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "h.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def _narrow(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_inner": 80}))


_SAME = ("truncated weights", "empty weights", "a pickle that runs code", "no tokenizer", "bad tokenizer")
DAMAGE = {
    **{what: BROKEN[what] for what in _SAME},
    "a block missing": (_drop_block, "must cover its embeddings and blocks"),
    "another width": (_narrow, "must cover its embeddings and blocks"),
    "unknown architecture": (BROKEN["unknown architecture"][0], "The model must be a decoder"),
    "foreign code": (BROKEN["foreign code"][0], "The model must be a decoder"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_broken_folder_is_one_clear_line(what, tmp_path):
    folder = make_tiny("gpt2", tmp_path / "tiny-gpt2")
    damage, message = DAMAGE[what]
    damage(folder)
    with pytest.raises(UsageError, match=message) as caught:
        load_causal_lm(find_model(folder), seed=0)
    assert "\n" not in str(caught.value) and "tiny-gpt2" in str(caught.value)
    assert not (folder / "owned").exists()


def test_real_models_lack_nothing(shared):
    for name, parameters in (("chemtsv3-gpt2-smiles-0.5m", 460_992), ("stories260k-llama", 260_032)):
        model, _, missing = load_causal_lm(find_model(shared / "models" / name), seed=0)
        assert missing == [] and sum(p.numel() for p in model.parameters()) == parameters
