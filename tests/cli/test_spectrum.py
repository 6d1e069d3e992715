"""``rankprobe spectrum`` on real files: pairs, adapters, runs; one line for every mistake."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from rankprobe.analysis.spectrum_tables import read_ranks
from rankprobe.experiment.store import lock
from rankprobe.weights.adapter import Factors, save_adapter
from tests.cli.lab import COMPUTE, FILES, SMALL, rankprobe, refused
from tests.tiny_models import make_tiny

CPU = ("--device", "cpu", "--threads", "1")
QUERY = "encoder.layer.{}.attention.self.query"


def gaussian(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tune(base, folder, change):
    """A copy of a model's folder with ``change(name, W, seed)`` of every tensor; None leaves it out."""
    shutil.copytree(base, folder)
    W = load_file(folder / "model.safetensors")
    changed = {name: change(name, W[name], seed) for seed, name in enumerate(sorted(W))}
    changed = {name: w.contiguous() for name, w in changed.items() if w is not None}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def planted(rank, size=1e-3):
    def change(name, W, seed):
        if W.ndim != 2:
            return W + 0.01
        return W + size * gaussian(len(W), rank, seed=seed) @ gaussian(rank, W.shape[1], seed=seed + 500)

    return change


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """base and tuned (rank 3 everywhere), the same in bfloat16 with an update that it swallowed, an adapter."""
    folder = tmp_path_factory.mktemp("spectrum")
    make_tiny("bert", folder / "base")
    make_tiny("gpt2", folder / "other")
    tune(folder / "base", folder / "tuned", planted(3))
    tune(folder / "base", folder / "base16", lambda name, W, seed: W.bfloat16())
    small = planted(3, 2e-6)
    tune(folder / "base16", folder / "swallowed", lambda name, W, seed: small(name, W.float(), seed).bfloat16())
    factors = {
        f"bert.{QUERY.format(i)}": Factors(gaussian(32, 2, seed=i), gaussian(2, 32, seed=i + 9), 8.0, 4.0)
        for i in (0, 1)
    }
    save_adapter(folder / "adapter", factors, {}, rslora=False, dropout=0.0, fan_in_fan_out=False, modules_to_save=[])
    torch.save({f"{QUERY.format(0)}.lora_{f}": gaussian(*s, seed=3) for f, s in (("A", (3, 32)), ("B", (32, 3)))},
               folder / "loralib.bin")  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def here(bench, tmp_path, monkeypatch):
    """A working directory with the inputs in it."""
    for file in bench.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_pictures(monkeypatch):
    """The page without pictures, where they are not the question: they take seconds."""
    monkeypatch.setattr("rankprobe.report.spectrum_plots.draw_spectrum", lambda result: [])


def spectrum(*arguments):
    return rankprobe("spectrum", *arguments, *CPU)


def ok(result):
    assert result.exit_code == 0, result.stderr
    return result


def test_a_pair_gives_tables_pictures_and_a_page(bench):
    result = ok(spectrum("base", "tuned"))
    out = Path("results/spectrum-tuned")
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    drawn = ("spectra", "energy_rank", "storage_rank")
    pictures = {f"figures/{name}.{end}" for name in drawn for end in ("svg", "png")}
    tables = {"ranks.csv", "spectra.csv", "vectors.csv"}
    assert files == {*tables, *pictures, "report.html", "report.md", "plan.json", ".done"}
    ranks, spectra = read_ranks(out / "ranks.csv"), pd.read_csv(out / "spectra.csv")
    W0, W1 = (load_file(bench / side / "model.safetensors") for side in ("base", "tuned"))
    assert sorted(ranks.name) == sorted(name for name, w in W0.items() if w.ndim == 2)
    big = ranks[ranks[["m", "n"]].min(axis=1) > 3]
    assert (big.storage_rank == 3).all() and big.mp_rank.median() == 3 and (big.numerical_rank > 3).all()
    for name in (QUERY.format(1) + ".weight", "embeddings.word_embeddings.weight"):
        S = torch.linalg.svdvals(W1[name].double() - W0[name].double())
        assert spectra[spectra.name == name].sigma.tolist() == pytest.approx(S.tolist(), rel=1e-6)
    assert len(pd.read_csv(out / "vectors.csv")) == sum(w.ndim == 1 for w in W0.values())
    assert result.stdout.endswith(f"{out}/report.html\n")
    for text in ("by kind", "by layer", "storage", "3 directions stand above the noise of rounding to float32"):
        assert text in result.stdout
    page = (out / "report.html").read_text()
    assert "Rank of the update from base to tuned" in page and page.count("data:image/svg+xml") == 3
    assert "noise floor" in (out / "figures" / "spectra.svg").read_text()
    assert str(Path.cwd()) not in page + (out / "plan.json").read_text()


def test_formats_for_programs(no_pictures):
    csv = ok(spectrum("base", "tuned", "--by", "matrix", "--format", "csv"))
    printed = pd.read_csv(io.StringIO(csv.stdout))
    pd.testing.assert_frame_equal(printed, pd.read_csv("results/spectrum-tuned/ranks.csv"), check_dtype=False)
    rows = json.loads(ok(spectrum("base", "tuned", "--format", "json")).stdout)
    assert [row["kind"] for row in rows] == ["q", "k", "v", "o", "up", "down", "other, outside", "embed"]
    layers = json.loads(ok(spectrum("base", "tuned", "--format", "json", "--by", "layer")).stdout)
    assert [(row["layer"], row["matrices"], row["storage_rank"]) for row in layers] == [(0, 6, 3), (1, 6, 3)]


def test_include_and_exclude(no_pictures):
    ok(spectrum("base", "tuned", "--include", r"layer\.1\.", "--exclude", "output|query", "--out", "some"))
    names = set(read_ranks("some/ranks.csv").name)
    assert names == {f"encoder.layer.1.{part}.weight" for part in ("attention.self.key", "attention.self.value",
                                                                   "intermediate.dense")}  # fmt: skip
    refused(spectrum("base", "tuned", "--include", "nothing"), 2, "include .*must leave a matrix")
    refused(spectrum("base", "tuned", "--include", "(", "--out", "x"), 2, "include must be a regular expression")
    assert not Path("x").exists() and not Path("results").exists()


def test_values_only(no_pictures):
    result = ok(spectrum("base", "tuned", "--values-only"))
    out = Path("results/spectrum-tuned")
    assert {p.name for p in out.iterdir()} == {"ranks.csv", "spectra.csv", "vectors.csv", "plan.json", ".done"}
    ranks = read_ranks(out / "ranks.csv")
    assert ranks[["storage_rank", "storage_floor"]].isna().all(axis=None) and ranks.energy_rank_90.notna().all()
    assert result.stdout.endswith("ranks.csv\n") and "storage" not in result.stdout


def test_another_share_of_the_energy(no_pictures):
    result = ok(spectrum("base", "tuned", "--energy", "0.6"))
    ranks = read_ranks("results/spectrum-tuned/ranks.csv")
    assert (ranks.energy_rank_50 <= ranks.energy_rank_60).all() and (ranks.energy_rank_60 <= ranks.energy_rank_90).all()
    assert "energy rank 60: directions that hold 60 %" in " ".join(result.stdout.split())


def test_a_base_that_was_rounded_too(no_pictures):
    for out, options in (("one", ()), ("two", ("--base-rounded",))):
        ok(spectrum("base", "tuned", "--out", out, "--include", "query", *options))
    one, two = (read_ranks(f"{out}/ranks.csv").storage_floor for out in ("one", "two"))
    assert (two / one).median() == pytest.approx(2**0.5, rel=0.1)
    refused(spectrum("adapter", "--base-rounded"), 2, "--base-rounded must be of a dense update")


def test_the_storage_dtype_swallowed_the_update():
    result = ok(spectrum("base16", "swallowed", "--exclude", "token_type"))
    out = Path("results/spectrum-swallowed")
    ranks = read_ranks(out / "ranks.csv")
    assert len(ranks) == 15 and ranks.storage_rank.isna().all() and (ranks.unchanged_fraction > 0.5).all()
    said = re.search(r"bfloat16 swallowed the update: (\d\d(?:\.\d)?) % of the weights did not change", result.stdout)
    weights = ranks.m * ranks.n
    assert float(said[1]) == pytest.approx(100 * (ranks.unchanged_fraction * weights).sum() / weights.sum(), abs=0.06)
    assert "swallowed" in result.stdout.split("by layer")[0] and "energy" not in result.stdout
    page = (out / "report.html").read_text()
    assert "bfloat16 swallowed the update" in page and "takes" not in page
    assert not (out / "figures" / "storage_rank.svg").exists() and not (out / "figures" / "energy_rank.svg").exists()
    assert (out / "figures" / "spectra.svg").exists()


def test_an_adapter_needs_no_base():
    result = ok(spectrum("adapter"))
    ranks = read_ranks("results/spectrum-adapter/ranks.csv")
    assert ranks.numerical_rank.tolist() == [2, 2] and set(ranks.source) == {"factored"}
    B, A = gaussian(32, 2, seed=0), gaussian(2, 32, seed=9)
    assert ranks.fro_norm[0] == pytest.approx(4 * float((B @ A).norm()), rel=1e-5)
    said = "The numerical rank is 2 in all 2 factored updates."
    assert said in result.stdout and said in Path("results/spectrum-adapter/report.md").read_text()
    assert "‖dW‖/‖W0‖" not in result.stdout
    ok(spectrum("base", "adapter", "--out", "with"))
    assert read_ranks("with/ranks.csv").relative_change.notna().all()


def test_loralibs_alpha_is_asked_for(no_pictures):
    refused(spectrum("loralib.bin"), 2, "lora_alpha must be known.*--alpha")
    norms = []
    for alpha in (3, 6):
        ok(spectrum("loralib.bin", "--alpha", alpha, "--out", f"a{alpha}"))
        norms.append(read_ranks(f"a{alpha}/ranks.csv").fro_norm[0])
    assert norms[1] == pytest.approx(2 * norms[0])


def test_what_is_on_one_side_or_skipped_is_listed(bench, tmp_path, no_pictures):
    def change(name, W, seed):
        return None if "pooler" in name else torch.cat([W, W[:2]]) if "word_emb" in name else W + 0.01 * W.flip(0)

    tune(bench / "base", tmp_path / "less", change)
    ok(spectrum("base", "less"))
    listed = pd.read_csv("results/spectrum-less/not_compared.csv").set_index("name").reason
    assert listed["pooler.dense.weight"] == listed["pooler.dense.bias"] == "only in base"
    assert listed["embeddings.word_embeddings.weight"] == "2 rows only in less; the others are compared"
    page = Path("results/spectrum-less/report.md").read_text()
    assert "Not compared" in page and "pooler.dense.weight" in page


def test_sides_that_are_no_pair(bench, tmp_path):
    tune(bench / "tuned", tmp_path / "headed", lambda name, W, seed: W)
    W = load_file(tmp_path / "headed" / "model.safetensors") | {"classifier.weight": gaussian(2, 32, seed=1)}
    save_file({k if "cl" in k else f"bert.{k}": w for k, w in W.items()}, tmp_path / "headed" / "model.safetensors")
    refused(spectrum("headed", "base"), 2, "BASE and TUNED must .*swap|BASE must .*")
    refused(spectrum("base", "other"), 2, "BASE and TUNED must .*architecture")
    refused(spectrum("adapter", "base"), 2, "BASE must ")
    refused(spectrum("tuned"), 2, "TUNED must be an adapter or come with its base")
    refused(spectrum("base", "missing/model.bin"), 2, "TUNED must be .*does not exist")
    refused(spectrum("a", "b", "c"), 2, "Got 3 inputs")
    assert not Path("results").exists()


def test_nan_is_named_and_nothing_half_is_left(bench, tmp_path):
    name = QUERY.format(1) + ".weight"
    tune(bench / "tuned", tmp_path / "bad", lambda n, W, seed: W * float("nan") if n == name else W)
    refused(spectrum("base", "bad"), 2, f"{name} must be finite .*--exclude")
    refused(spectrum("base", "bad", "--include", "query", "--exclude", r"layer\.0", "--out", "first"), 2, "be finite")
    assert not Path("first").exists() and not Path("results/spectrum-bad").exists()
    ok(spectrum("base", "bad", "--exclude", re.escape(name)))


def test_report_is_of_runs(no_pictures):
    ok(spectrum("base", "tuned", "--out", "out"))
    refused(rankprobe("report", "out"), 2, "DIR must be .*Got out, the spectrum of tuned. Run again: ")


def test_the_same_command_again_measures_nothing(no_pictures):
    ok(spectrum("base", "tuned"))
    before = Path("results/spectrum-tuned/ranks.csv").read_bytes()
    again = ok(spectrum("base", "tuned", "--by", "layer"))
    assert "16 of 16 matrices are done already" in again.stderr
    assert Path("results/spectrum-tuned/ranks.csv").read_bytes() == before


def test_an_output_folder_is_of_one_pair_and_its_options(no_pictures):
    ok(spectrum("base", "tuned", "--out", "out"))
    must = "output folder must be of the same inputs and options. Got out with "
    refused(spectrum("base", "tuned", "--out", "out", "--include", "query"), 2, must + "other options")
    refused(spectrum("tuned", "base", "--out", "out", "--include", "query"), 2, "Got out")
    refused(spectrum("adapter", "--out", "out"), 2, must + "what is the spectrum of tuned")
    ok(spectrum("adapter", "--out", "out", "--overwrite"))
    assert len(read_ranks("out/ranks.csv")) == 2 and not Path("out/vectors.csv").exists()
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("all of it")
    for options in ((), ("--overwrite",)):
        refused(spectrum("adapter", "--out", "mine", *options), 2, "output folder must be empty")
    assert os.listdir("mine") == ["thesis.txt"]
    Path("file").touch()
    refused(spectrum("adapter", "--out", "file"), 2, "output folder must be a folder")


def test_two_at_once(no_pictures):
    ok(spectrum("adapter", "--out", "out"))
    before = Path("out/ranks.csv").read_bytes()
    with lock(Path("out")):
        for options in ((), ("--overwrite",)):
            refused(spectrum("adapter", "--out", "out", *options), 1, "must be used by one process at a time")
    assert Path("out/ranks.csv").read_bytes() == before


def test_a_finished_run_shows_its_ranks_and_is_measured_when_asked(tmp_path, monkeypatch, no_pictures):
    from tests.cli.lab import furnish

    room = tmp_path / "room"
    room.mkdir()
    furnish(room)
    monkeypatch.chdir(room)
    ok(rankprobe("finetune", "--model", "base", *FILES, *COMPUTE, *SMALL, "--lr", "1e-3", "--method", "full"))
    run = next(Path("runs").iterdir())
    stored = pd.read_csv(run / "ranks.csv")
    for where in (run, run.name):
        printed = pd.read_csv(io.StringIO(ok(rankprobe("spectrum", where, "--by", "matrix", "--format", "csv")).stdout))
        pd.testing.assert_frame_equal(printed[stored.columns], stored, check_dtype=False)
    assert f"dW of {run.name}, by kind" in ok(rankprobe("spectrum", run)).stdout and not Path("results").exists()
    only = ok(rankprobe("spectrum", run, "--include", "query", "--by", "matrix", "--format", "csv"))
    assert len(pd.read_csv(io.StringIO(only.stdout))) == 2
    refused(rankprobe("spectrum", run, "--energy", "0.6"), 2, "--energy must be a share that the run has measured")
    ok(spectrum("base", run, "--out", "again"))
    again = read_ranks("again/ranks.csv").set_index("name").fro_norm
    named = stored.set_index(stored.name.str.removeprefix("bert.")).fro_norm.drop("classifier.weight")
    again.index = again.index.str.removeprefix("bert.")
    pd.testing.assert_series_equal(again[named.index], named, rtol=1e-6)
    assert len(again) == len(named) == 16
