"""The folder that tables, pictures and the report go to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from rankprobe.errors import UsageError, WorkError, must
from rankprobe.experiment.store import LockedError, lock, write_atomic

PLAN_FILE = "plan.json"


def marked(name: str, *choices: str) -> Path:
    """``results/NAME-MARK``, a folder of its own for each data set, model and setting: none replaces another's tables.

    >>> marked("sweep", "r = 8", "a data set's sha256").as_posix()
    'results/sweep-539c0d'
    """
    return Path("results") / f"{name}-{hashlib.sha256(chr(10).join(choices).encode()).hexdigest()[:6]}"


def claim_output(out: Path, plan: dict) -> None:
    """Make an output folder and mark it with its plan, or take one of the same plan up again.

    Parameters
    ----------
    out : Path
    plan : dict
        What the folder is for: its ``name`` must be the same when the folder is taken up again; the rest is replaced.

    Raises
    ------
    UsageError
        If the folder holds files that rankprobe did not put there, or another plan's.
    WorkError
        If it cannot be written.
    """
    out = Path(out)
    _check(out, plan)
    with _writable(out):
        _write_plan(out, plan)


@contextlib.contextmanager
def hold_output(out: Path, plan: dict) -> Iterator[None]:
    """As :func:`claim_output`, for this command alone while the block runs: two would take turns in replacing tables.

    Raises
    ------
    UsageError
        As :func:`claim_output`; nothing is put into the folder then.
    WorkError
        If another command holds the folder, or it cannot be written.
    """
    out = Path(out)
    _check(out, plan)
    with contextlib.ExitStack() as stack:
        try:
            with _writable(out):
                stack.enter_context(lock(out))
        except LockedError as error:
            got = f"{out}, which {error.holder} holds"
            next_step = "Wait for the other to end, or pass another --out"
            raise WorkError(must("output folder", "be used by one command at a time", got, next_step)) from None
        try:
            with _writable(out):
                _write_plan(out, plan)
            yield
        finally:
            (out / ".lock").unlink(missing_ok=True)


def _check(out: Path, plan: dict) -> None:
    """Refuse a folder that is not this plan's to write to; nothing is made."""
    if out.exists() and not out.is_dir():
        raise UsageError(must("output folder", "be a folder", out, "Pass another --out"))
    # What a kill leaves: while the plan was first written its temporary file, while it was replaced a lock.
    ours = (".gitignore", ".lock", f".{PLAN_FILE}.")
    if out.is_dir() and any(not p.name.startswith(ours) for p in out.iterdir()):
        earlier = read_plan(out)
        if earlier is None:
            raise UsageError(
                must("output folder", f"be empty or hold an earlier {PLAN_FILE}", out, "Pass another --out")
            )
        if earlier.get("name") != plan["name"]:
            raise UsageError(
                must(
                    "output folder",
                    f"be of {plan['name']!r}",
                    f"{out}, which is of {earlier.get('name')!r}",
                    "Pass another --out",
                )
            )


@contextlib.contextmanager
def _writable(out: Path) -> Iterator[None]:
    """Turn what a folder that cannot be written raises into one line."""
    try:
        yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise WorkError(
            must("output folder", "be writable", f"{out} ({error.strerror})", "Pass another --out")
        ) from None


def _write_plan(out: Path, plan: dict) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise PermissionError(13, "Permission denied")
    write_atomic(out / PLAN_FILE, json.dumps(plan, indent=1) + "\n")


def release_output(out: Path) -> None:
    """Take back a folder that :func:`claim_output` has just made, where nothing was put into it."""
    for name in (PLAN_FILE, ".lock"):
        (out / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds something after all: it stays
        out.rmdir()


def study_plan(out: Path) -> dict:
    """The plan of a folder of sweep or reproduce-paper.

    Raises
    ------
    UsageError
        If there is none, or it is of a command without runs.
    """
    plan = read_plan(out)
    rule = "be an output folder of sweep or reproduce-paper"
    if plan is None:
        raise UsageError(must("DIR", rule, out, "Pass one with plan.json"))
    if "inputs" in plan:  # of spectrum or compare, whose pages are made from the weights
        raise UsageError(must("DIR", rule, f"{out}, the {plan['name']}", f"Run again: {plan.get('command')}"))
    if not isinstance(plan.get("runs"), list):
        raise UsageError(must(f"{Path(out) / PLAN_FILE}", "name runs", "none", "Run the command that wrote it again"))
    return plan


def read_plan(out: Path) -> dict | None:
    """An output folder's plan; None where there is none.

    Raises
    ------
    UsageError
        If plan.json is damaged.
    """
    try:
        plan = json.loads((Path(out) / PLAN_FILE).read_text(encoding="utf-8"))
        if not isinstance(plan, dict) or not isinstance(plan.get("name"), str):
            raise ValueError("no valid name")
        return plan
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UsageError(
            must(
                f"{Path(out) / PLAN_FILE}",
                "be a plan that rankprobe wrote",
                error,
                "Delete it and run the same command again",
            )
        ) from None
