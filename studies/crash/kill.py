"""Kill a sweep with SIGKILL at random moments, start it again, and compare all it made with an undisturbed one's.

python studies/crash/kill.py --kills 30 --out results/crash
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SWEEP = (
    "sweep --model base --train train.csv --eval eval.csv --text text --label label --dtype float32 --device cpu "
    "--max-length 16 --epochs 2 --batch-size 8 --lr full=1e-4 --lr lora=4e-3 --lr head=0.1 --r 1,2 --seeds 2 --out out"
).split()
IN_TURN, TWO = ("--threads", "1"), ("--threads", "2", "--jobs", "2")
# What is killed, and in which kind of sweep. Each run has one thread in both: they are the same runs.
VICTIMS = (("the sweep, runs in turn", IN_TURN), ("the sweep, two workers", TWO), ("one of two workers", TWO))
# Times and memory differ between two undisturbed sweeps too.
MEASURED = ["train_time_s", "tokens_per_s", "peak_memory_bytes", "started", "eval_time_s"]
KILLS_A_SWEEP = 3


def furnish(folder: Path) -> None:
    """A model with random weights, 40 training rows and 20 evaluation rows."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = "sum of the mean list array index file good bad row column".split()
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rng = random.Random(0)
    for name, n in (("train", 40), ("eval", 20)):
        rows = (f"{' '.join(rng.choices(words, k=6))},{('neg', 'pos')[i % 2]}\n" for i in range(n))
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(rows))


def command(folder: str, arguments: tuple[str, ...]) -> None:
    """The sweep, in a process of its own; tables only, since pictures take longer than all runs."""
    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    import rankprobe.report.report
    from rankprobe.cli.main import main

    rankprobe.report.report.write_pages = lambda *args, **kwargs: None
    main([*SWEEP, *arguments], prog_name="rankprobe")


def start(folder: Path, arguments: tuple[str, ...]) -> multiprocessing.process.BaseProcess:
    """Start the sweep, forked from a process that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rankprobe.cli.work", "rankprobe.cli.sweep", "transformers"])
    process = context.Process(target=command, args=(str(folder), arguments))
    process.start()
    return process


def finished(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of writing and content of every finished run's record."""
    return {p.parent.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.glob("runs/*/run.json")}


def results(folder: Path) -> tuple[dict[str, bytes], dict[str, pd.DataFrame]]:
    """Bytes of what runs wrote, and the sweep's tables without times and memory."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("runs/*/*.csv"))}
    tables = {p.name: pd.read_csv(p).drop(columns=MEASURED, errors="ignore") for p in folder.glob("out/tables/*.csv")}
    return files, tables


def same(one: tuple, other: tuple) -> bool:
    """Whether two sweeps ended with the same."""
    tables = one[1].keys() == other[1].keys() and all(table.equals(other[1][name]) for name, table in one[1].items())
    return one[0] == other[0] and tables


def holders(folder: Path) -> set[int]:
    """Living processes that hold an unfinished run: the sweep's own where it does them in turn, else workers."""
    pids = set()
    for path in folder.glob("runs/*/.lock"):
        pid = path.read_text().partition(" ")[0]
        if pid.isdigit() and not (path.parent / "run.json").exists() and alive(int(pid)):
            pids.add(int(pid))
    return pids


def alive(pid: int) -> bool:
    """Whether a process is there, and not only because nobody has asked after its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def at_work(folder: Path, process: multiprocessing.process.BaseProcess) -> set[int]:
    """Wait until a sweep is at a run; nobody where it ended before."""
    while process.is_alive():
        if found := holders(folder):
            return found
        time.sleep(0.005)
    return set()


def seconds_until_gone(pids: set[int], patience: float = 60.0) -> float:
    """How long some processes outlive this moment; infinite where they do not end."""
    begun = time.monotonic()
    while any(alive(pid) for pid in pids):
        if time.monotonic() - begun > patience:
            return float("inf")
        time.sleep(0.01)
    return time.monotonic() - begun


@dataclass
class Kill:
    """One kill and what came of it: finished runs that were lost or changed by then, and the sweep's end."""

    sweep: int
    victim: str
    moment_s: float
    finished: int
    workers_gone_s: float | None
    lost: int = 0
    changed: int = 0
    same_results: bool = False


def disturbed(folder: Path, number: int, rng: random.Random, duration: dict[tuple, float]) -> list[Kill]:
    """A sweep that is killed up to three times, and then done to its end."""
    kills: list[Kill] = []
    safe: dict[str, tuple[int, bytes]] = {}
    while True:
        victim, arguments = VICTIMS[rng.randrange(len(VICTIMS))] if len(kills) < KILLS_A_SWEEP else ("", IN_TURN)
        process = start(folder, arguments)
        if victim and at_work(folder, process):
            begun = time.monotonic()
            process.join(rng.uniform(0, duration[arguments]))
            workers = at_work(folder, process) - {process.pid} if arguments == TWO else set()
            hit = rng.choice(sorted(workers) or [None]) if victim == "one of two workers" else process.pid
            if process.is_alive() and hit is not None:
                with contextlib.suppress(ProcessLookupError):  # a worker that has just ended
                    os.kill(hit, signal.SIGKILL)
                kill = Kill(number, victim, round(time.monotonic() - begun, 3), len(finished(folder)), None)
                kills.append(kill)
                if workers and hit == process.pid:
                    kill.workers_gone_s = round(seconds_until_gone(workers), 3)
        process.join()  # where a worker was hit the sweep does its run again by itself
        now = finished(folder)
        if kills:
            kills[-1].lost += len(safe.keys() - now.keys())
            kills[-1].changed += sum(now[name] != record for name, record in safe.items() if name in now)
        safe = now
        if process.exitcode == 0:
            return kills
        if process.exitcode != -signal.SIGKILL:
            raise SystemExit(f"exit code {process.exitcode}:\n{(folder / 'log').read_text()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "crash")
    options = parser.parse_args()
    rng, kills, begun = random.Random(options.seed), [], time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        duration, expected = {}, None
        for arguments in (IN_TURN, TWO):
            folder = base / f"undisturbed-{len(duration)}"
            folder.mkdir()
            furnish(folder)
            process = start(folder, arguments)
            at_work(folder, process)
            since = time.monotonic()
            process.join()
            duration[arguments] = time.monotonic() - since
            if process.exitcode or (expected is not None and not same(results(folder), expected)):
                raise SystemExit(f"undisturbed sweeps differ:\n{(folder / 'log').read_text()}")
            expected = results(folder)
            print(f"undisturbed, {' '.join(arguments)}: {duration[arguments]:.1f} s of work", flush=True)
        number = 0
        while len(kills) < options.kills:
            number += 1
            folder = base / f"sweep-{number}"
            folder.mkdir()
            furnish(folder)
            found = disturbed(folder, number, rng, duration)
            for kill in found:
                kill.same_results = same(results(folder), expected)
            kills += found
            verdict = "the same results" if all(kill.same_results for kill in found) else "OTHER RESULTS"
            print(f"sweep {number}: {len(found)} kills, {len(kills)} in all, {verdict}", flush=True)
    table = pd.DataFrame([vars(kill) for kill in kills[: options.kills]])
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "kills.csv", index=False)
    print(table.to_string())
    other = (~table["same_results"]).sum()
    print(f"{len(table)} kills in {number} sweeps, {time.monotonic() - begun:.0f} s")
    print(f"finished runs: {table['lost'].sum()} lost, {table['changed'].sum()} changed; other results: {other} kills")


if __name__ == "__main__":
    main()
