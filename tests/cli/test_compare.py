"""``rankprobe compare`` on real files: models, adapters, runs, loralib files; one line for every mistake."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from rankprobe.weights.adapter import Factors, save_adapter
from tests.cli.lab import COMPUTE, FILES, SMALL, rankprobe, refused
from tests.tiny_models import make_tiny

QUERY = "encoder.layer.{}.attention.self.query"
QUERIES = (QUERY.format(0), QUERY.format(1))
CPU = ("--device", "cpu", "--threads", "1")


def gaussian(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tune(base, folder, seed, size=0.02):
    """A copy of a model's folder with noise on every matrix."""
    shutil.copytree(base, folder)
    W = load_file(folder / "model.safetensors")
    for i, (name, w) in enumerate(sorted(W.items())):
        if w.ndim == 2:
            W[name] = w + size * gaussian(*w.shape, seed=seed + i)
    save_file(W, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def adapt(folder, r, seed, modules=QUERIES, shape=(32, 32)):
    """A PEFT adapter of Gaussian factors."""
    m, n = shape
    factors = {
        f"bert.{path}": Factors(gaussian(m, r, seed=seed + i), gaussian(r, n, seed=seed + 50 + i), 2.0 * r, 2.0)
        for i, path in enumerate(modules)
    }
    save_adapter(Path(folder), factors, {}, rslora=False, dropout=0.0, fan_in_fan_out=False, modules_to_save=[])
    return Path(folder)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """base, two models tuned from it, two adapters and a loralib file."""
    folder = tmp_path_factory.mktemp("compare")
    make_tiny("bert", folder / "base")
    tune(folder / "base", folder / "one", 1)
    tune(folder / "base", folder / "two", 500)
    adapt(folder / "r2", 2, 1)
    adapt(folder / "r4", 4, 90)
    torch.save({f"{QUERY.format(0)}.lora_{f}": gaussian(*s, seed=3) for f, s in (("A", (3, 32)), ("B", (32, 3)))},
               folder / "loralib.bin")
    return folder


@pytest.fixture(autouse=True)
def here(bench, tmp_path, monkeypatch):
    """A working directory with the inputs in it."""
    for file in bench.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)


def compare(*arguments):
    return rankprobe("compare", *arguments, *CPU)


def ok(result):
    assert result.exit_code == 0, result.stderr
    return result


def test_two_tuned_models():
    result = ok(compare("one", "two", "--base", "base", "--top", "4"))
    out = Path("results/compare-one-two")
    assert str(out / "report.html") in result.stdout and "matrices, medians by kind" in result.stdout
    table = pd.read_csv(out / "compare.csv")
    assert {"q", "k", "v", "o", "up", "down", "embed"} <= set(table["kind"])
    # Two token types have two directions.
    assert (table["r_x"] == table[["m", "n"]].min(axis=1).clip(upper=4)).all()
    assert not table[[c for c in table if c not in ("layer",)]].isna().to_numpy().any()
    for name in ("overlap", "angles", "amplification", "intruders", "intruder_cosines"):
        assert len(pd.read_csv(out / f"{name}.csv")), name
    control = pd.read_csv(out / "intruders.csv").query("side == 'W0'")
    assert len(control) and (control["intruders"] == 0).all()
    assert {p.name for p in out.iterdir() if p.name.startswith(".parts")} == set()
    assert (out / "figures" / "overlap.svg").exists() and (out / "report.md").exists()
    plan = json.loads((out / "plan.json").read_text())
    assert plan["name"] == "compare one two"


def test_two_adapters_of_two_ranks():
    ok(compare("r2", "r4"))
    out = Path("results/compare-r2-r4")
    table = pd.read_csv(out / "compare.csv")
    assert (table["r_x"] == 2).all() and (table["r_y"] == 4).all() and len(table) == 2
    assert not (out / "amplification.csv").exists() and not (out / "intruders.csv").exists()


def test_an_adapter_beside_a_full_model():
    result = ok(compare("r2", "one", "--base", "base", "--top", "3"))
    table = pd.read_csv("results/compare-r2-one/compare.csv")
    assert len(table) == 2 and set(table["source_x"]) == {"factored"} and set(table["source_y"]) == {"dense"}
    assert "matrices are only in Y" in result.stderr
    sides = pd.read_csv("results/compare-r2-one/amplification.csv")["side"]
    assert sides.tolist() == ["X", "Y", "X", "Y"]


def test_a_loralib_file_with_its_alpha():
    refused(compare("loralib.bin", "r2"), 2, "alpha")
    for alphas in (("--alpha-x", "6"), ("--alpha-x", "3")):
        ok(compare("loralib.bin", "r2", "--base", "base", *alphas, "--out", f"out{alphas[1]}"))
    factors = [pd.read_csv(f"out{a}/amplification.csv").query("side == 'X'")["factor"].iloc[0] for a in "63"]
    assert factors[0] == pytest.approx(2 * factors[1])


def test_runs_find_their_base(tmp_path, monkeypatch):
    """A LoRA run and a full run of rankprobe by name: no --base."""
    from tests.cli.lab import furnish

    folder = tmp_path / "lab"
    folder.mkdir()
    furnish(folder)
    monkeypatch.chdir(folder)
    common = ("finetune", "--model", "base", *FILES, *COMPUTE, *SMALL, "--lr", "1e-3")
    for method in (("--method", "lora", "--r", "2"), ("--method", "full")):
        ok(rankprobe(*common, *method))
    lora, full = sorted((p.name for p in Path("runs").iterdir()), key=lambda name: name.startswith("full"))
    ok(compare(lora, full, "--out", "out", "--top", "8"))
    table = pd.read_csv("out/compare.csv")
    assert set(table["kind"]) == {"q", "v"} and (table["r_x"] == 2).all() and len(table) == 4
    assert set(pd.read_csv("out/amplification.csv")["side"]) == {"X", "Y"}


def test_gpt2s_fused_matrices_are_compared_in_parts():
    make_tiny("gpt2", "gpt2")
    for seed, name in ((1, "a"), (400, "b")):
        tune(Path("gpt2"), Path(name), seed)
    ok(compare("a", "b", "--base", "gpt2", "--include", "attn", "--no-intruders"))
    table = pd.read_csv("results/compare-a-b/compare.csv")
    assert set(table["kind"]) == {"q", "k", "v", "o"} and ((table["m"] == 32) & (table["n"] == 32)).all()


def test_an_adapter_with_itself_across_layers():
    result = ok(compare("r4", "r4", "--across-layers", "--of", "left"))
    assert "same input" in result.stderr and "φ(r, r) between layers" in result.stdout
    grid = pd.read_csv("results/compare-r4/layers.csv")
    assert len(grid) == 4 and grid.query("layer_x == layer_y")["phi"].tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("form", ["csv", "json"])
def test_formats_are_clean_on_stdout(form):
    result = ok(compare("r2", "r4", "--format", form))
    read = pd.read_csv(io.StringIO(result.stdout)) if form == "csv" else pd.DataFrame(json.loads(result.stdout))
    pd.testing.assert_frame_equal(read, pd.read_csv("results/compare-r2-r4/compare.csv"), check_dtype=False)
    assert "report.html" in result.stderr


def test_include_exclude_and_no_intruders():
    ok(compare("one", "two", "--base", "base", "--include", r"layer\.1\.", "--exclude", "output", "--no-intruders"))
    out = Path("results/compare-one-two")
    table = pd.read_csv(out / "compare.csv")
    assert (table["layer"] == 1).all() and not table["name"].str.contains("output").any()
    assert not (out / "intruders.csv").exists() and (out / "amplification.csv").exists()


def test_an_interrupt_keeps_what_is_done_and_the_next_call_goes_on(monkeypatch):
    from rankprobe.analysis import compare as module

    real, seen = module.measure, []

    def measure(x, y, **options):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(x.name)
        return real(x, y, **options)

    command = ("one", "two", "--base", "base", "--include", "attention", "--top", "2")
    with monkeypatch.context() as patch:
        patch.setattr(module, "measure", measure)
        result = compare(*command)
    assert result.exit_code == 130 and "goes on from there" in result.stderr
    out = Path("results/compare-one-two")
    assert pd.read_csv(out / "compare.csv")["name"].tolist() == seen and not (out / "report.html").exists()
    again = []
    monkeypatch.setattr(module, "measure", lambda x, y, **o: again.append(x.name) or real(x, y, **o))
    ok(compare(*command))
    table = pd.read_csv(out / "compare.csv")
    assert len(table) == 8 and set(again) == set(table["name"]) - set(seen) and (out / "report.html").exists()
    # Other settings are other work: nothing is taken up.
    again.clear()
    ok(compare(*command[:-1], "3"))
    assert len(again) == 8


def test_the_page_names_no_folder_of_this_machine(tmp_path):
    ok(compare(tmp_path / "r2", tmp_path / "r4", "--out", tmp_path / "out"))
    for file in ("report.html", "report.md", "plan.json", "compare.csv"):
        assert str(tmp_path) not in (tmp_path / "out" / file).read_text(encoding="utf-8")


@pytest.mark.parametrize(("arguments", "message"), [
    (("one", "two"), "X must come with the base it was tuned from"),
    (("r2", "one"), "Y must come with the base it was tuned from"),
    (("r2", "nothing-here"), "nothing-here"),
    (("one", "base", "--base", "base"), "have changed a matrix that both have"),
    (("r2", "one", "--base", "base", "--of", "A"), "of A must be of two adapters"),
    (("r2", "r4", "--base", "r4"), "base must be a full model"),
    (("r2", "r4", "--include", "("), "regular expression"),
    (("r2", "r4", "--include", "nowhere"), "include"),
    (("r2", "other-modules"), "share a weight matrix"),
    (("r2", "other-shape"), "share a weight matrix of one shape"),
    (("r2", "nan"), "must be finite"),
    (("r2", "r4", "--out", "base"), "output folder must be empty"),
    (("r2", "r4", "--out", "loralib.bin"), "output folder must be a folder"),
])
def test_mistakes_get_one_line_and_leave_nothing(arguments, message):
    adapt("other-modules", 2, 1, modules=("encoder.layer.0.attention.self.key",))
    adapt("other-shape", 2, 1, shape=(16, 16))
    folder = adapt("nan", 2, 1)
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")
    before = set(Path(".").rglob("*"))
    result = compare(*arguments)
    assert result.exit_code == 2, result.stderr
    lines = [line for line in result.stderr.splitlines(keepends=True) if not line.startswith("rankprobe: note:")]
    assert len(lines) == 1 and message in lines[0] and " must " in lines[0] and " Got " in lines[0]
    assert before == {p for p in Path(".").rglob("*") if p.name != "results"}
