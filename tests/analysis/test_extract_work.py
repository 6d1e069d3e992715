"""Extractions on disk: dry runs, second calls, interrupts, full disks, and mistakes that leave nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rankprobe.analysis import extract_matrices
from rankprobe.analysis.extract import extract
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
