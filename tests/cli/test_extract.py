"""``rankprobe extract``: what it prints and writes, and one line for every mistake."""

from __future__ import annotations

import io
import json
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from rankprobe.analysis import extract_matrices
from rankprobe.experiment.store import lock
from tests.analysis.fine_tuned import fine_tune, logits, with_adapter
from tests.cli.lab import rankprobe, refused
from tests.tiny_models import make_tiny

SEQUENCES = "AutoModelForSequenceClassification"
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "extraction.csv", "extraction.json"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """``base`` and ``tuned`` of BERT."""
    folder = tmp_path_factory.mktemp("extract")
    fine_tune("bert", SEQUENCES, folder)
    return folder


@pytest.fixture
def here(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("base", "tuned"):
        (tmp_path / name).symlink_to(models / name)
    return tmp_path


def extract(*arguments):
    return rankprobe("extract", *arguments, "--device", "cpu")


def made(here):
    """Names in the folder beside the two models."""
    return {file.name for file in here.iterdir()} - {"base", "tuned"}


def test_the_table_the_sizes_and_code_that_loads_it(here):
    result = extract("base", "tuned", "--rank", 4, "--out", "a")
    assert result.exit_code == 0, result.stderr
    out = result.stdout
    for words in ("tuned − base, --rank 4", "Carried beside the factors", "classifier", "task head", "of tuned's",
                  "kept energy", "parameters in factors and"):
        assert words in out
    assert "Not carried" not in out
    assert {file.name for file in (here / "a").iterdir()} == FILES
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith("  ") and line.split()}
    table = pd.read_csv(here / "a" / "extraction.csv")
    parameters = table.groupby("kind")["parameters"].sum()
    assert rows["all"][1:3] == [str(len(table)), "2–4"] and rows["all"][-1] == f"{parameters.sum():,}"
    assert rows["q"][1:3] == ["2", "4"] and rows["q"][-1] == f"{parameters['q']:,}"
    code = out[out.index("from transformers import") :]
    loaded: dict = {}
    exec(code, loaded)  # what is shown runs as it is
    theirs = logits(with_adapter(here / "base", SEQUENCES, here / "a"))
    torch.testing.assert_close(logits(loaded["model"].eval()), theirs)


def test_a_dry_run_writes_nothing_and_tells_the_same_sums(here):
    dry = extract("base", "tuned", "--budget", 2500, "--dry-run")
    assert dry.exit_code == 0 and made(here) == set()
    wet = extract("base", "tuned", "--budget", 2500, "--out", "ADAPTER")
    assert dry.stdout == wet.stdout and "No other ranks within this budget hold more" in dry.stdout
    again = extract("base", "tuned", "--budget", 2500, "--out", "ADAPTER")
    assert again.stdout == wet.stdout


def test_what_is_lost_is_shown(here):
    result = extract("base", "tuned", "--energy", 0.5, "--embeddings", "drop", "--dry-run")
    lost = result.stdout[result.stdout.index("Not carried") :]
    assert "word_embeddings" in lost and "embeddings are dropped, as asked" in lost


def test_tables_for_programs(here):
    csv = extract("base", "tuned", "--energy", 0.7, "--out", "a", "--format", "csv")
    table = pd.read_csv(io.StringIO(csv.stdout))
    assert table["name"].tolist() == pd.read_csv(here / "a" / "extraction.csv")["name"].tolist()
    rows = json.loads(extract("base", "tuned", "--energy", 0.7, "--dry-run", "--format", "json").stdout)
    assert [row["r"] for row in rows] == table["r"].tolist()
    assert [row["residual"] for row in rows] == pytest.approx(table["residual"].tolist(), rel=1e-12)


def test_an_adapter_alone_is_resized_and_names_its_own_size(here):
    extract("base", "tuned", "--rank", 8, "--out", "r8")
    result = extract("r8", "--rank", 2, "--out", "r2")
    assert result.exit_code == 0 and "of r8's" in result.stdout and "num_labels=3" in result.stdout
    assert {t.shape[0] for name, t in load_file("r2/adapter_model.safetensors").items() if "lora_A" in name} == {2}
    assert rankprobe("spectrum", "r2", "--values-only", "--out", "s", "--device", "cpu").exit_code == 0
    assert set(pd.read_csv("s/ranks.csv")["numerical_rank"]) == {2}


def test_after_an_interrupt_the_same_command_goes_on(here, monkeypatch):
    command = ("base", "tuned", "--rank", 3, "--out", "new/a")
    done, real = [], extract_matrices.leading_part

    def interrupted(delta, *arguments, **how):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(delta.name)
        return real(delta, *arguments, **how)

    monkeypatch.setattr(extract_matrices, "leading_part", interrupted)
    result = extract(*command)
    assert result.exit_code == 130 and "the same command goes on from there" in result.stderr
    assert not {file.name for file in (here / "new" / "a").iterdir()} & FILES
    more = []
    monkeypatch.setattr(extract_matrices, "leading_part",
                        lambda delta, *a, **how: more.append(delta.name) or real(delta, *a, **how))
    assert extract(*command).exit_code == 0
    assert not set(done) & set(more) and {file.name for file in (here / "new" / "a").iterdir()} == FILES
    assert len(done) + len(more) == len(pd.read_csv("new/a/extraction.csv"))


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(here):
    resource = pytest.importorskip("resource")
    command = ("base", "tuned", "--rank", 30, "--out", "a")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
        result = extract(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused(result, 1, "goes on where it stopped")
    assert extract(*command).exit_code == 0
    assert {file.name for file in (here / "a").iterdir()} == FILES


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("base", "tuned", "--out", "a"), "Got none of them"),
        (("base", "tuned", "--out", "a", "--rank", "3", "--noise"), "Got --rank and --noise"),
        (("base", "tuned", "--out", "a", "--rank", "0"), "--rank must be a whole number of at least 1. Got 0"),
        (("base", "tuned", "--out", "a", "--energy", "nan"), "--energy must be above 0"),
        (("base", "tuned", "--rank", "3"), "no --out. Pass --out adapter, or --dry-run"),
        (("base", "tuned", "tuned", "--rank", "3", "--out", "a"), "Got 3 inputs"),
        (("tuned", "--rank", "3", "--out", "a"), "TUNED must be an adapter or come with its base"),
        (("base", "base", "--rank", "3", "--out", "a"), "TUNED must differ from BASE"),
        (("base", "nowhere/at/all", "--rank", "3", "--out", "a"), "which does not exist"),
        (("base", "tuned", "--budget", "20", "--out", "a"), "hold a direction, 34 parameters at least. Got 20"),
        (("base", "tuned", "--rank", "3", "--include", "[", "--out", "a"), "regular expression"),
        (("base", "tuned", "--rank", "3", "--include", "none", "--out", "a/b/c"), "leave a matrix"),
    ],
)
def test_one_line_for_each_and_nothing_is_left(here, arguments, message):
    refused(extract(*arguments), 2, message)
    assert made(here) == set()


def test_other_architectures_and_swapped_sides(here):
    make_tiny("llama", here / "llama")
    refused(extract("llama", "tuned", "--rank", 2, "--out", "a"), 2, "be of one architecture")
    refused(extract("tuned", "base", "--rank", 2, "--out", "a"), 2, "Swap the two")
    assert made(here) == {"llama"}


def test_infinity_in_one_matrix_is_named(here):
    shutil.copytree("tuned", "broken")
    W = load_file("broken/model.safetensors")
    W["bert.encoder.layer.1.attention.self.key.weight"][0, 0] = torch.inf
    save_file(W, "broken/model.safetensors", metadata={"format": "pt"})
    refused(extract("base", "broken", "--rank", 2, "--out", "a"), 2, "layer.1.attention.self.key.weight")
    assert made(here) == {"broken"}


def test_noise_of_an_adapter(here):
    extract("base", "tuned", "--rank", 4, "--out", "r4")
    refused(extract("base", "r4", "--noise", "--out", "a"), 2, "--noise must be asked of whole models")
    assert made(here) == {"r4"}


def test_output_that_is_not_ours_is_left_as_it_is(here):
    (here / "mine").mkdir()
    (here / "mine" / ".lock").write_text("another program's")
    (here / "mine" / "thesis.txt").write_text("all of it")
    refused(extract("base", "tuned", "--rank", 2, "--out", "mine", "--overwrite"), 2, "be new, empty")
    assert (here / "mine" / ".lock").read_text() == "another program's"
    refused(extract("base", "tuned", "--rank", 2, "--out", "tuned"), 2, "be new, empty")
    (here / "file").write_text("text")
    refused(extract("base", "tuned", "--rank", 2, "--out", "file"), 2, "must be a folder")
    refused(extract("base", "tuned", "--rank", 2, "--out", "file/a"), 1, "file")


def test_output_in_use_and_of_other_settings(here):
    with lock(here / "a"):
        refused(extract("base", "tuned", "--rank", 2, "--out", "a"), 1, "used by one process at a time")
    assert extract("base", "tuned", "--rank", 2, "--out", "a").exit_code == 0
    refused(extract("base", "tuned", "--rank", 3, "--out", "a"), 2, "Pass another --out, or --overwrite")
    assert extract("base", "tuned", "--rank", 3, "--out", "a", "--overwrite").exit_code == 0
    assert set(pd.read_csv("a/extraction.csv")["r"]) == {2, 3}  # two token types have no third direction
    assert {file.name for file in (here / "a").iterdir()} == FILES


def test_into_the_folder_it_is_called_in(here, monkeypatch):
    (here / "work").mkdir()
    monkeypatch.chdir(here / "work")
    assert extract("../base", "../tuned", "--rank", 2, "--out", ".").exit_code == 0
    assert {file.name for file in (here / "work").iterdir()} == FILES
