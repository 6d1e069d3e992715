"""What a command at work says of itself, for ``rankprobe status`` in another terminal: a small file in its folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rankprobe.experiment.store import write_atomic

LIVE_FILE = ".live.json"
# A reader takes a process on another machine, which it cannot ask for, as gone when its file is this old.
_SILENT_S = 120.0


@dataclass(frozen=True)
class Live:
    """A moment of a command.

    Attributes
    ----------
    now : tuple of str
        What is being done, a line a worker: ``"LoRA r=8 q,v seed 0: 120/250 loss 0.412"``.
    done, total : int
        Optimiser steps.
    eta_s : float or None
        Seconds left; None while that is not known.
    pid : int
    host : str
    at : float
        Seconds since the epoch, by the writer's clock.
    born : str
        When the process began, as the system tells it: another may have its number by now. Empty where it does not.
    command, directory : str
        What was typed, and where.
    """

    now: tuple[str, ...]
    done: int
    total: int
    eta_s: float | None
    pid: int
    host: str
    at: float
    born: str = ""
    command: str = ""
    directory: str = ""

    @property
    def works(self) -> bool:
        """Whether the process is still there."""
        if self.host != socket.gethostname():
            return abs(time.time() - self.at) < _SILENT_S
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:  # another user's
            pass
        return not self.born or _born(self.pid) in ("", self.born)


def _born(pid: int) -> str:
    """When a process began, in ticks since this boot, with the boot; empty where Linux does not say."""
    with contextlib.suppress(OSError, IndexError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # The name, in parentheses, may have blanks and parentheses of its own; the 20th word behind it is the start.
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return f"{boot} {stat.rpartition(')')[2].split()[19]}"
    return ""


class LiveFile:
    """Keeps a folder's live file up to date; every few seconds is enough, and a disk that is full is no reason to stop.

    Parameters
    ----------
    folder : Path
        An output folder.
    every_s : float
        Least time between two writes.
    command : str
        What was typed to start this process.
    """

    def __init__(self, folder: Path, *, every_s: float = 2.0, command: str = "") -> None:
        self._path, self._every, self._last = Path(folder) / LIVE_FILE, every_s, -float("inf")
        self._command, self._born, self._directory = command, _born(os.getpid()), ""
        with contextlib.suppress(OSError):  # it may have been deleted
            self._directory = os.getcwd()

    def tell(self, now: tuple[str, ...], done: int, total: int, eta_s: float | None) -> None:
        """Write what is being done, unless that was said a moment ago."""
        clock = time.monotonic()
        if clock - self._last < self._every:
            return
        self._last = clock
        live = Live(now, done, total, eta_s, os.getpid(), socket.gethostname(), time.time(), self._born, self._command,
                    self._directory)  # fmt: skip
        with contextlib.suppress(OSError):
            write_atomic(self._path, json.dumps(asdict(live)) + "\n")

    def end(self) -> None:
        """Take the file away: nothing is being done any more."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def read_live(folder: Path) -> Live | None:
    """What a folder's command said last; None where it has ended, or never began, or what it said is not readable."""
    try:
        said = json.loads((Path(folder) / LIVE_FILE).read_text(encoding="utf-8"))
        return Live(**{**said, "now": tuple(said["now"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
