"""A bench for attacks on the command line: a tiny model and tiny files in a folder, and commands run on them."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from click.testing import CliRunner, Result

from rankprobe.cli.main import main
from tests.tiny_models import make_tiny

COLUMNS = ("--text", "text", "--label", "label")
FILES = ("--train", "train.csv", "--eval", "eval.csv", *COLUMNS)
COMPUTE = ("--threads", "1", "--dtype", "float32", "--device", "cpu")
SMALL = ("--max-length", "16", "--epochs", "1", "--batch-size", "8")
# With rates of their own, or each command would warn that the tuned ones are of another model.
FINETUNE = ("finetune", "--model", "base", *FILES, *COMPUTE, *SMALL, "--lr", "1e-3")
RATES = ("--lr", "full=1e-4", "--lr", "lora=4e-3", "--lr", "head=0.1")
SWEEP = ("sweep", "--model", "base", *FILES, *COMPUTE, *SMALL, *RATES)
_WORDS = "sum of the mean list array index file good bad row column".split()


def texts(n: int, seed: int = 0) -> list[str]:
    """Random texts of six words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(_WORDS, k=6)) for _ in range(n)]


def csv(path: str, rows: Sequence[Sequence[object]], header: str = "text,label", encoding: str = "utf-8") -> None:
    """Write a CSV file."""
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    Path(path).write_bytes("".join(f"{line}\n" for line in lines if line).encode(encoding))


def furnish(folder: Path) -> None:
    """Put the model ``base`` (bert, 130 positions, hidden 32), train.csv and eval.csv into a folder."""
    make_tiny("bert", folder / "base")
    for name, n, seed in (("train", 40, 0), ("eval", 20, 1)):
        csv(str(folder / f"{name}.csv"), [(text, ("neg", "pos")[i % 2]) for i, text in enumerate(texts(n, seed))])


def rankprobe(*arguments: object) -> Result:
    """Run a command in this process; an exception that would reach a user as a traceback is raised."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="rankprobe")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(result: Result, code: int, message: str) -> None:
    """Check that a command ended with this exit code and one line on stderr that a regular expression is found in."""
    assert_one_line(result.stderr, message)
    assert result.exit_code == code, result.stderr


def assert_one_line(stderr: str, message: str) -> None:
    """Check that stderr is one ``rankprobe: <what> must <rule>. Got <value>. <next step>.`` with the message in it."""
    assert re.fullmatch(r"rankprobe: \S.* must .+\. Got .+\. \S.+[.?]\n", stderr), stderr
    assert re.search(message, stderr), stderr


def run_in(folder: str, arguments: Sequence[str], prepare: Callable[[], None] | None) -> None:
    """Run a command as a process of its own, to be the target of a forked child.

    stdout and stderr go to the files ``stdout`` and ``stderr`` of the folder.

    Parameters
    ----------
    folder : str
        Working directory.
    arguments : sequence of str
    prepare : callable, optional
        Called first; it patches what the test needs.
    """
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code: object = 99
    try:
        if prepare is not None:
            prepare()
        main([*arguments], prog_name="rankprobe")
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 98)
