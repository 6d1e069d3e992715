"""``rankprobe spectrum`` as a process of its own: interrupted, killed, gone on with, and the memory that it takes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from rankprobe.analysis.spectrum_tables import read_ranks
from tests.cli.lab import rankprobe

ROOT = Path(__file__).parents[2]
CPU = ("--device", "cpu", "--threads", "1")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def gaussian(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write_pair(folder, shapes, dtype=torch.float32):
    """A Llama-like base and a tuned side with Gaussian changes, one file each."""
    for side in ("long0", "long1"):
        (folder / side).mkdir()
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_attention_heads": 4}
        (folder / side / "config.json").write_text(json.dumps(config))
    sides = {"long0": {}, "long1": {}}
    for layer, (m, n) in enumerate(shapes):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        W = gaussian(m, n, seed=layer)
        sides["long0"][name], sides["long1"][name] = W.to(dtype), (W + 0.1 * gaussian(m, n, seed=layer + 999)).to(dtype)
    for side, tensors in sides.items():
        save_file(tensors, folder / side / "model.safetensors")


def start(*arguments, program=("-m", "rankprobe.cli.main")):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *program, "spectrum", *arguments, *CPU]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finished(*arguments):
    """The same in this process."""
    result = rankprobe("spectrum", *arguments, *CPU)
    assert result.exit_code == 0, result.stderr
    return result


def rows(path):
    return path.read_bytes().count(b"\n") - 1 if path.is_file() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_the_same_command_goes_on(tmp_path, number):
    write_pair(tmp_path, [(224, 224)] * 80)
    command, out = ("long0", "long1", "--out", "out", "--format", "csv", "--by", "matrix"), Path("out")
    with start(*command) as process:
        try:
            end = time.monotonic() + 60
            while rows(out / "ranks.csv") < 5 and process.poll() is None:
                assert time.monotonic() < end
                time.sleep(0.005)
            process.send_signal(number)
            said = process.communicate(timeout=30)[1]
        finally:
            process.kill()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert said == "rankprobe: interrupted. What is finished is kept; the same command goes on from there.\n"
    else:
        assert process.returncode == -signal.SIGKILL
    done, stopped = rows(out / "ranks.csv"), (out / "ranks.csv").read_bytes()
    before = read_ranks(out / "ranks.csv")
    assert 5 <= done < 80 and before.sigma_max.gt(0).all(), "the tables are readable"
    assert set(pd.read_csv(out / "spectra.csv").name) >= set(before.name)
    again = finished(*command)
    assert re.search(r"(\d+) of 80 matrices are done already", again.stderr)[1] in (str(done), str(done - 1))
    finished(*command[:3], "whole", *command[4:])
    for name in ("ranks.csv", "spectra.csv"):  # another process may round the last digit otherwise
        pd.testing.assert_frame_equal(pd.read_csv(out / name), pd.read_csv(Path("whole", name)), rtol=1e-6)
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(again.stdout)), pd.read_csv(out / "ranks.csv"))
    kept = pd.read_csv(io.BytesIO(stopped)).head(done - 1)
    pd.testing.assert_frame_equal(pd.read_csv(out / "ranks.csv").head(done - 1), kept, check_exact=True)


# ru_maxrss of a child also counts its parent, whose memory it has until it runs a program of its own; VmHWM does not.
_OWN_PEAK = """
import atexit, re, sys
status = lambda: re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
atexit.register(lambda: print("peak KiB", status(), file=sys.stderr))
from rankprobe.cli.main import main
main(prog_name="rankprobe")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read where Linux has it")
def test_memory_is_bounded_by_the_largest_matrix_not_by_the_checkpoint(tmp_path):
    """400 MB of two checkpoints, in files of 200; the bound is 548 MiB, of which the imports take most."""
    write_pair(tmp_path, [(16384, 64)] * 100, torch.bfloat16)
    with start("long0", "long1", "--out", "out", "--values-only", program=("-c", _OWN_PEAK)) as process:
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 0 and rows(Path("out/ranks.csv")) == 100
    assert int(said.split()[-1]) / 1024 <= 6 * 16384 * 64 * 8 / 2**20 + 500
