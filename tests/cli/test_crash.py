"""Killed, interrupted, out of disk or in each other's way: the same command goes on and its results are the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest

from tests.cli.crashes import CONFIGURED, finished_records, no_pictures, results_of, wait_for
from tests.cli.lab import FILES, FINETUNE, assert_one_line, furnish, rankprobe, refused

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

ENDLESS = (*FINETUNE, "--epochs", "100000", "--lr", "1e-3")


# What a child does before its command runs: classes and functions at the top level, since it gets them pickled.


class Kill:
    """Kills the process with SIGKILL at the nth time that it comes to a place, which is one of the methods."""

    def __init__(self, place: str, nth: int = 1) -> None:
        self.place, self.left = place, nth

    def __call__(self) -> None:
        getattr(self, self.place)()

    def now(self) -> None:
        """Count down, and kill."""
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)

    def training(self) -> None:
        """After a step of the training."""
        from rankprobe.experiment import runs

        train = runs.train

        def killed(*args, progress, **kwargs):
            def step(*figures):
                progress(*figures)
                self.now()

            return train(*args, progress=step, **kwargs)

        runs.train = killed

    def weights(self) -> None:
        """After the weights are saved, before run.json is written."""
        from rankprobe.experiment import runs

        save = runs.save_trained

        def killed(*args):
            save(*args)
            self.now()

        runs.save_trained = killed

    def _replace(self, name: str) -> None:
        replace = os.replace

        def killed(source, target):
            if Path(target).name == name:
                self.now()
            replace(source, target)

        os.replace = killed

    def record(self) -> None:
        """With run.json written but under its temporary name."""
        self._replace("run.json")

    def tables(self) -> None:
        """In the middle of the tables."""
        self._replace("rank_sweep.csv")

    def plan(self) -> None:
        """While the output folder is claimed."""
        self._replace("plan.json")

    def truncation(self) -> None:
        """While functional rank is measured."""
        self._replace("truncation.csv")


class Both:
    """Several preparations."""

    def __init__(self, *parts) -> None:
        self.parts = parts

    def __call__(self) -> None:
        for part in self.parts:
            part()


@pytest.mark.parametrize(
    ("kill", "finished"),
    [
        (Kill("plan"), 0),
        (Kill("training", 7), 1),
        (Kill("weights", 3), 2),
        (Kill("record", 4), 3),
        (Kill("tables", 1), 1),  # later renewals come when they are due
        (Kill("truncation", 3), 2),
    ],
    ids=lambda value: f"{value.place}-{value.left}" if isinstance(value, Kill) else "",
)
def test_killed_at_any_moment_the_same_command_goes_on(bench, children, undisturbed, kill, finished):
    child = children(bench, CONFIGURED, Both(no_pictures, kill))
    child.join(60)
    assert child.exitcode == -signal.SIGKILL, (bench / "stderr").read_text()
    before = finished_records(bench)
    assert len(before) == finished
    again = children(bench, CONFIGURED, no_pictures)
    again.join(60)
    assert again.exitcode == 0, (bench / "stderr").read_text()
    after = finished_records(bench)
    assert len(after) == 4 and {path: after[path] for path in before} == before, "no finished run is redone"
    files, tables = results_of(bench)
    assert files == undisturbed[0], "predictions, ranks, spectra and functional ranks are the same bytes"
    assert list(tables) == list(undisturbed[1])
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, undisturbed[1][name], obj=name)
    left = {path.name[1:].partition(".")[0] for path in bench.glob("runs/*/.*")} - {"lock"}
    assert left <= {"truncation"}, "no temporary file of an unfinished run stays"


def test_the_same_command_in_two_processes_gives_the_same_bytes(tmp_path, children, undisturbed):
    furnish(tmp_path)
    child = children(tmp_path, CONFIGURED, no_pictures)
    child.join(60)
    assert child.exitcode == 0 and results_of(tmp_path)[0] == undisturbed[0]


def test_sigint_while_training(bench, children):
    child = children(bench, ENDLESS)
    wait_for(lambda: list(bench.glob("runs/*/.lock")))
    time.sleep(0.5)
    os.kill(child.pid, signal.SIGINT)
    child.join(20)
    assert child.exitcode == 130
    assert (
        bench / "stderr"
    ).read_text() == "rankprobe: interrupted. What is finished is kept; the same command goes on from there.\n"
    assert not list(bench.rglob("run.json"))
    refused(rankprobe("spectrum", next(iter(os.listdir("runs")))), 2, "must be the folder of a finished run")


def test_sigint_between_runs_keeps_the_finished(bench, children, undisturbed):
    command = [*CONFIGURED, "--epochs", "20"]
    child = children(bench, command, no_pictures)
    wait_for(lambda: list(bench.glob("runs/*/run.json")))
    os.kill(child.pid, signal.SIGINT)
    child.join(20)
    said = (bench / "stderr").read_text()
    assert child.exitcode == 130, said
    assert said.splitlines()[-1].startswith("rankprobe: interrupted."), said
    before = finished_records(bench)
    assert 1 <= len(before) < 4
    again = children(bench, command, no_pictures)
    again.join(120)
    assert again.exitcode == 0
    assert {path: seen for path, seen in finished_records(bench).items() if path in before} == before


def swallow_interrupt() -> None:
    """What pandas' compiled CSV parser does at times with Ctrl-C while it reads: it reports an error of its own."""
    from rankprobe.cli import render

    def build_report(*args, **kwargs):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            pass
        raise pd.errors.ParserError("Error tokenizing data. C error: Calling read(nbytes) on source failed.")

    # Unlike an assignment, this fails where the name has moved to another module.
    mock.patch.object(render, "build_report", build_report).start()


def test_sigint_that_a_library_turns_into_its_own_error(bench, children):
    child = children(bench, CONFIGURED, swallow_interrupt)
    child.join(60)
    said = (bench / "stderr").read_text()
    assert child.exitcode == 130 and said.splitlines()[-1].startswith("rankprobe: interrupted."), said
    assert "Traceback" not in said


def test_sigint_twice_ends_a_process_that_hangs_on_its_way_out(bench):
    code = (
        "import atexit, time; atexit.register(time.sleep, 120)\n"
        "from rankprobe.cli.main import main; main(prog_name='rankprobe')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", code, *ENDLESS], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            wait_for(lambda: list(bench.glob("runs/*/.lock")) or process.poll() is not None)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            line = process.stderr.readline()
            assert line.startswith("rankprobe: interrupted."), line
            time.sleep(0.2)
            assert process.poll() is None, "it hangs, as it was told to"
            process.send_signal(signal.SIGINT)
            start = time.monotonic()
            process.wait(20)
            assert time.monotonic() - start < 10 and process.returncode == -signal.SIGINT
            assert process.stderr.read() == ""
        finally:
            process.kill()
    assert not list(bench.rglob("run.json"))


def test_sigint_that_falls_into_a_finaliser_is_not_lost():
    code = """if True:
        import signal, time
        from rankprobe.cli.main import _noted_interrupts

        class Finalised:
            def __del__(self):
                signal.raise_signal(signal.SIGINT)

        try:
            with _noted_interrupts() as pressed:
                it = Finalised()
                del it
                assert pressed
                time.sleep(60)
        except KeyboardInterrupt:
            print("interrupted")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.stdout == "interrupted\n" and done.stderr == ""


def test_no_network_for_a_name_on_the_hub(bench):
    # Nothing listens on port 9 of this machine, which is as good as no network.
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(bench / "hub"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "rankprobe.cli.main", "finetune", "--model", "nobody/no-such-model", *FILES],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert_one_line(done.stderr, "must be on this machine or on a hub that answers. Got 'nobody/no-such-model'")
    assert done.returncode == 1 and not Path("runs").exists()


class Hold:
    """Trains one step, says so with a file, and waits for another file."""

    def __call__(self) -> None:
        from rankprobe.experiment import runs

        train = runs.train

        def held(*args, progress, **kwargs):
            def step(*figures):
                progress(*figures)
                Path("held").touch()
                wait_for(Path("go").exists)

            return train(*args, progress=step, **kwargs)

        runs.train = held


def test_two_processes_on_one_run(bench, children):
    child = children(bench, FINETUNE, Hold())
    wait_for((bench / "held").exists)
    refused(rankprobe(*FINETUNE), 1, "runs/lora-.* must be used by one process at a time")
    assert rankprobe(*FINETUNE, "--r", "2").exit_code == 0, "another run of the same store is nobody's business"
    (bench / "go").touch()
    child.join(30)
    assert child.exitcode == 0, (bench / "stderr").read_text()
    records = finished_records(bench)
    assert len(records) == 2 and rankprobe(*FINETUNE).exit_code == 0 and finished_records(bench) == records


class SmallFiles:
    """Lets no file grow over a number of bytes: a disk that refuses, for which no one need be root."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self) -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_weights_that_the_system_refuses_to_write(bench, children, method):
    """safetensors' own error, which is no OSError."""
    command = [*FINETUNE, "--method", method]
    child = children(bench, command, SmallFiles(6_000))
    child.join(30)
    assert child.exitcode == 1
    assert_one_line((bench / "stderr").read_text(), r"runs/.* must be readable and writable. Got File too large")
    assert not list(bench.rglob("run.json"))
    assert rankprobe(*command).exit_code == 0 and len(finished_records(bench)) == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB, where the tests may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True).returncode
    ):
        pytest.skip("may not mount a file system")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs tmpfs")
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_disk_that_is_full(bench, small_disk, method):
    command = [*FINETUNE, "--method", method, "--runs", small_disk / "runs"]
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (8_192 if method == "full" else 45_056))
    refused(
        rankprobe(*command),
        1,
        "the disk must have room. Got No space left on device .* Free space, and run the same command",
    )
    assert not list(small_disk.rglob("run.json"))
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    assert rankprobe(*command).exit_code == 0
    [path] = small_disk.rglob("run.json")
    assert json.loads(path.read_text())["status"] == "ok"


def test_sigterm_leaves_nothing_that_is_trusted(bench, children):
    child = children(bench, ENDLESS)
    wait_for(lambda: list(bench.glob("runs/*/.lock")))
    child.terminate()
    child.join(20)
    assert child.exitcode == -signal.SIGTERM and not list(bench.rglob("run.json"))
    with contextlib.suppress(FileNotFoundError):
        assert "Traceback" not in (bench / "stderr").read_text()
    assert rankprobe(*FINETUNE).exit_code == 0
