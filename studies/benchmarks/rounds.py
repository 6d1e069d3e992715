"""Timings taken in interleaved rounds and kept on disk, for the benchmarks beside this file.

Every case is a few ways to do one thing. A round runs each of them once, in random order, so that a ratio within a
round is hardly touched by the machine's mood; after each round everything is written, so that a benchmark that is cut
loses one round at most, can be read at any time, and goes on where it was when it is started again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch

from rankprobe.experiment.provenance import device_record, git_state, versions
from rankprobe.training.latency import median_interval

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "benchmarks"
# Fewer rounds give no interval of the median: their extremes are shown instead.
_LEAST_FOR_INTERVAL = 6


def seconds_of(
    call: Callable[[], object], repeat: int = 1, device: str = "cpu", *, rest_s: float = 0.0
) -> Callable[[], float]:
    """A timer of a call: seconds of one, the mean of ``repeat`` in a row for what is too short to time alone.

    ``rest_s`` is slept through before: threads that a library keeps spinning after a call (OpenBLAS's for some 25 ms,
    OpenMP's for a few) would take a core from the next way's, and none of that is a cost of the way being timed.
    """
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)

    def measure() -> float:
        wait()
        time.sleep(rest_s)
        start = time.perf_counter()
        for _ in range(repeat):
            call()
        wait()
        return (time.perf_counter() - start) / repeat

    return measure


class Book:
    """What a benchmark has found so far, as ``NAME.json`` (everything) and ``NAME.csv`` (a row for each figure).

    What another machine, other versions or another state of the measured code had found is not mixed in: such a file is
    kept as ``NAME.before.json`` and a new one is begun.

    Parameters
    ----------
    name : str
        Of the benchmark and its files.
    out : Path
        Folder of the files.
    device : str
        ``cpu`` or ``cuda``.
    code : iterable of str
        Folders and files below ``rankprobe/`` that are measured.
    settings : dict
        What else makes figures comparable.
    """

    def __init__(self, name: str, out: Path, *, device: str = "cpu", code: Iterable[str] = ("linalg",), **settings):
        self.json, self.csv = out / f"{name}.json", out / f"{name}.csv"
        self.rows: dict[str, Callable[[dict], list[dict]]] = {}
        packages = {k: v for k, v in versions().items() if k in ("python", "torch", "numpy", "scipy", "rankprobe")}
        same = {
            "device": device_record(device, torch.get_num_threads()),
            "cores": os.cpu_count(),
            "versions": packages,
            "code_sha256": _digest(code),
            "settings": json.loads(json.dumps(settings)),
        }
        self.record: dict = {"command": f"python studies/benchmarks/{name}.py", **same, "cases": {}}
        if self.json.is_file():
            before = json.loads(self.json.read_text(encoding="utf-8"))
            if all(before.get(key) == value for key, value in same.items()):
                self.record = before
            else:
                self.json.replace(self.json.with_suffix(".before.json"))
                click.echo(f"{self.json.name} is of another machine or code: begun anew, the old one kept beside it")
        out.mkdir(parents=True, exist_ok=True)

    def case(self, name: str) -> dict:
        """What is known of a case: ``seconds`` by way, one a round, ``facts`` and the machine's load at each round."""
        return self.record["cases"].setdefault(name, {"seconds": {}, "facts": {}, "load": []})

    def rounds_of(self, name: str) -> int:
        """How many rounds of a case are done."""
        return len(self.case(name)["load"])

    def run(self, name: str, timers: dict[str, Callable[[], float]], rounds: int, *, warm: bool = True) -> dict:
        """Do the rounds that a case still lacks, each written at once; ``warm``: an untimed one before the first."""
        found = self.case(name)
        done = self.rounds_of(name)
        for number in range(-1 if warm else 0, rounds - done):
            order = np.random.default_rng([done + max(0, number), len(name)]).permutation(list(timers)).tolist()
            if number < 0 and done >= rounds:
                break
            load = os.getloadavg()[0]
            seconds = {way: timers[way]() for way in order}
            if number < 0:
                continue
            self.add(name, seconds, load)
            click.echo(f"\r{name}: round {self.rounds_of(name)} of {rounds}", nl=done + number + 1 >= rounds, err=True)
        return found

    def add(self, name: str, seconds: dict[str, float], load: float) -> None:
        """Keep a round's seconds by way; ``load`` is the machine's before it began."""
        found = self.case(name)
        for way, took in seconds.items():
            found["seconds"].setdefault(way, []).append(took)
        found["load"].append(round(load, 2))
        self.write()

    def write(self) -> None:
        """Both files, whole or not at all."""
        self.record["git"] = git_state()
        _replace(self.json, json.dumps(self.record, indent=1) + "\n")
        table = self.table()
        if len(table):
            _replace(self.csv, table.to_csv(index=False, float_format="%.6g"))

    def table(self) -> pd.DataFrame:
        """A row for each figure of the cases that have a function in ``rows``."""
        found = self.record["cases"]
        rows = [{"case": name, **row} for name in found if name in self.rows for row in self.rows[name](found[name])]
        return pd.DataFrame(rows)


def resident_peak(pid: int) -> int:
    """Largest resident memory of a process so far, in bytes; 0 once it has ended.

    To be asked while it runs: wait4's ru_maxrss counts the parent's memory, which a child has until it is a program.
    """
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except FileNotFoundError:
        return 0
    return 1024 * int(found[1]) if found else 0


def interval_of(ratios: np.ndarray) -> tuple[float, float]:
    """Of the median: 95 % by order statistics from six rounds on, the extremes below."""
    if len(ratios) < _LEAST_FOR_INTERVAL:
        return float(ratios.min()), float(ratios.max())
    low, high = median_interval(ratios)
    return float(low), float(high)


def verdict_of(low: float, high: float, *, least: float | None = None, most: float | None = None) -> str:
    """Whether a bound is met by a whole interval, missed by all of it, or undecided; empty without one.

    >>> verdict_of(4.1, 5.0, least=4), verdict_of(1.9, 2.1, most=2), verdict_of(2.1, 2.2, most=2), verdict_of(1, 2)
    ('met', 'undecided', 'missed', '')
    """
    if least is None and most is None:
        return ""
    if least is not None:
        return "met" if low >= least else "missed" if high < least else "undecided"
    return "met" if high <= most else "missed" if low > most else "undecided"


def faster(found: dict, ours: str, other: str, bound: float | None = None) -> list[dict]:
    """How many times faster one way is than another: the median of the ratios within rounds, and its interval.

    95 % by order statistics from six rounds on, the extremes below. Nothing while no round is done.
    """
    if ours not in found["seconds"] or other not in found["seconds"]:
        return []
    a, b = (np.asarray(found["seconds"][way]) for way in (ours, other))
    ratios = b / a
    low, high = interval_of(ratios)
    return [
        {
            "measure": f"{ours} by {other}", "value": float(np.median(ratios)), "unit": "times faster",
            "low": low, "high": high, "n": len(ratios), "bound": "" if bound is None else f">= {bound:g}",
            "verdict": verdict_of(low, high, least=bound),
            "ours_s": float(np.median(a)), "other_s": float(np.median(b)),
        }
    ]  # fmt: skip


def figure(measure: str, value: float | None, unit: str, most: float | None = None) -> list[dict]:
    """A figure that is not a time, by the most that it may be; nothing where it is not known yet."""
    if value is None:
        return []
    verdict = "" if most is None else "met" if value <= most else "missed"
    bound = "" if most is None else f"<= {most:g}"
    return [{"measure": measure, "value": value, "unit": unit, "bound": bound, "verdict": verdict}]


def show(table: pd.DataFrame) -> None:
    """Print a table of figures."""
    click.echo(table.to_string(index=False, float_format=lambda x: f"{x:.4g}", na_rep=""))


def _digest(code: Iterable[str]) -> str:
    sha = hashlib.sha256()
    for name in code:
        path = ROOT / "rankprobe" / name
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            sha.update(file.read_bytes())
    return sha.hexdigest()[:16]


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
