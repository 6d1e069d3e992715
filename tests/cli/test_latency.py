"""``rankprobe latency --table1``: what is printed and written, and what is refused before anything is timed."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import pandas as pd
import pytest
import transformers

from rankprobe.experiment import latency as measurement
from rankprobe.experiment.latency_variants import Architecture
from rankprobe.paper import table1 as paper
from tests.cli.lab import furnish, rankprobe, refused

COMPUTE = ("--threads", "1", "--device", "cpu")
# Of a model of width 8: the paper's bottlenecks divided by 64, at least 1.
WIDTH, BLOCKS = 8, 2


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """GPT-2 medium's place is taken by a model of width 8, whose timings are short."""
    monkeypatch.chdir(tmp_path)

    def architecture(shrink: int) -> Architecture:
        sizes = {"vocab_size": 50, "n_embd": WIDTH, "n_layer": BLOCKS, "n_head": 2, "n_positions": 512}
        return Architecture(f"tiny-{shrink}", transformers.GPT2Config(**sizes))

    monkeypatch.setattr(paper, "table1_architecture", architecture)
    quick = functools.partial(measurement.measure_latency, min_time_s=1e-5, warmup=1)
    monkeypatch.setattr(measurement, "measure_latency", quick)
    return tmp_path


def test_a_table_with_intervals_and_the_papers_overheads(tiny):
    result = rankprobe("latency", "--table1", "--shapes", "1x128", *COMPUTE, "--budget", "1")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if " 1 x 128 " in line}
    assert list(rows) == ["base", "base_copy", "lora_merged", "lora_unmerged", "adapter_l", "adapter_h"]
    assert rows["adapter_h"].rstrip().endswith("+30.3") and rows["adapter_l"].rstrip().endswith("+20.7")
    assert "float32" in result.stdout and "tiny-" in result.stdout and "r=4 on q,v" in result.stdout
    (folder,) = Path("runs").iterdir()
    assert json.loads((folder / "run.json").read_text())["spec"]["dtype"] == "float32"


def test_out_holds_the_table_and_the_picture_and_can_be_renewed(tiny):
    words = ("latency", "--table1", "--shapes", "1x128", *COMPUTE, "--budget", "1", "--out", "out", "--format", "csv")
    first = rankprobe(*words)
    assert first.exit_code == 0, first.output
    assert sorted(p.name for p in Path("out").iterdir()) == ["plan.json", "table1.csv", "table1.png", "table1.svg"]
    printed = pd.read_csv(io.StringIO(first.stdout))
    pd.testing.assert_frame_equal(printed, pd.read_csv("out/table1.csv"))
    for variant, modules in (("adapter_l", BLOCKS), ("adapter_h", 2 * BLOCKS)):
        row = printed.set_index("variant").loc[variant]
        b = row["bottleneck"]
        assert row["method_params"] == modules * (2 * WIDTH * b + b + WIDTH) + 2 * modules * WIDTH
    again = pd.read_csv(io.StringIO(rankprobe(*words).stdout))
    assert not again["latency_ms"].equals(printed["latency_ms"])  # measured anew
    assert again["latency_ms"].equals(pd.read_csv("out/table1.csv")["latency_ms"])


@pytest.mark.parametrize(("words", "shrink"), [((), "4"), (("--full",), "1")])
def test_a_cpu_times_a_smaller_model_unless_asked_for_the_papers(tiny, words, shrink):
    result = rankprobe("latency", "--table1", *words, "--shapes", "1x128", *COMPUTE, "--budget", "1", "--format", "csv")
    table = pd.read_csv(io.StringIO(result.stdout)).set_index("variant")
    assert set(table["model"]) == {f"tiny-{shrink}"}
    assert table.loc["adapter_l", "bottleneck"] == {"1": 222, "4": 56}[shrink]


def test_dtype_says_what_weights_are_held_in(tiny):
    words = ("latency", "--table1", "--shapes", "1x128", *COMPUTE, "--budget", "1", "--format", "csv")
    table = pd.read_csv(io.StringIO(rankprobe(*words, "--dtype", "bfloat16").stdout))
    assert set(table["dtype"]) == {"bfloat16"}


def test_other_methods_are_timed_on_ones_own_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path)
    words = ("latency", "--model", "base", "--shapes", "1x16", *COMPUTE, "--budget", "1", "--targets", "q")
    methods = ("--bottlenecks", 3, 2, "--prefix-length", 4)
    table = pd.read_csv(io.StringIO(rankprobe(*words, *methods, "--format", "csv").stdout)).set_index("variant")
    assert list(table.index[-4:]) == ["adapter_l", "adapter_h", "prefix", "prompt"]
    assert list(table.loc[["adapter_l", "adapter_h"], "bottleneck"]) == [3, 2]
    blocks, width = 2, 32
    assert table.loc["prompt", "method_params"] == 4 * width
    assert table.loc["prefix", "method_params"] == blocks * 4 * width
    shown = rankprobe(*words, *methods)
    assert shown.exit_code == 0 and f"{blocks * 4 * width}" in shown.stdout and "prompt" in shown.stdout
    assert "prompt" not in rankprobe(*words).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prefix-length", "4"), "prefix_length must come with bottlenecks. Got 4. Pass both, or neither"),
        (("--bottlenecks", "3", "2", "--prefix-length", "0"), "prefix_length must be at least 1. Got 0"),
        (("--bottlenecks", "0", "2"), "bottleneck must be at least 1. Got 0"),
        (("--bottlenecks", "3", "2", "--prefix-length", "129"), r"prefix_length must be at most \d+, what texts of"),
        (("--table1", "--bottlenecks", "3", "2"), "--table1 must be given without options that choose the model"),
    ],
)
def test_methods_that_cannot_be_timed_are_refused(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path)
    model = () if "--table1" in words else ("--model", "base", "--shapes", "1x16", "--targets", "q")
    refused(rankprobe("latency", *model, *COMPUTE, "--budget", "1", *words), 2, message)


def test_an_interrupted_table_goes_on(tiny, monkeypatch):
    done, real = [], measurement.measure_latency

    def measured(callers, make_inputs, shapes, **settings):
        if shapes == [(16, 256)] and not done.count((16, 256)):
            done.append((16, 256))
            raise KeyboardInterrupt
        done.extend(shapes)
        return real(callers, make_inputs, shapes, **settings)

    monkeypatch.setattr(measurement, "measure_latency", measured)
    words = ("latency", "--table1", "--shapes", "1x128,16x256", *COMPUTE, "--budget", "1")
    assert rankprobe(*words).exit_code != 0
    assert rankprobe(*words).exit_code == 0
    assert done == [(1, 128), (16, 256), (16, 256)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--full"], "--full must come with --table1. Got no --table1"),
        (["--out", "here"], "--out must come with --table1"),
        (["--full", "--out", "here"], "--full and --out must come with --table1"),
        (["--table1", "--model", "base"], "--table1 must be given without options that choose .* Got --model"),
        (["--table1", "--full", "--model", "base"], "--table1 must be given without options .* Got --model"),
        (["--table1", "--r", "8", "--targets", "q"], "--table1 must .* Got --r and --targets"),
        (["--table1", "--shapes", "8x64"], "shapes must be of Table 1: 32x512, 16x256, 1x128. Got 8x64"),
        (["--table1", "--shapes", "8"], "shapes must be batch x length pairs"),
        (["--table1", "--runs", "a-file"], "run store must be a folder"),
        (["--table1", "--out", "a-file"], "output folder must be a folder"),
        (["--table1", "--out", "other"], "output folder must be empty or hold an earlier plan.json"),
        (["--table1", "--device", "cuda"], "device must be auto, cpu, or cuda where there is one"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny, monkeypatch, words, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    Path("a-file").write_text("x")
    Path("other").mkdir()
    Path("other/thesis.tex").write_text("x")
    refused(rankprobe("latency", *words), 2, message)
    assert not list(Path(".").rglob("run.json")) and not Path("here").exists()
