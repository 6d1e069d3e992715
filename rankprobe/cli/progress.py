"""Progress of long work on a terminal: one bar for everything, one line for what runs now."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PLAIN_EVERY_S = 30.0


class TerminalObserver:
    """Draws a progress bar with an ETA; where stderr is no terminal, prints a line now and then instead.

    Parameters
    ----------
    total_steps : int
        Optimiser steps of all the work that is left.
    """

    def __init__(self, total_steps: int) -> None:
        self.console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            speed_estimate_period=300,
        )
        self._task = self._progress.add_task("starting", total=max(1, total_steps), note="")
        self._label, self._base, self._steps = "", 0, 0
        self._start = self._said = time.monotonic()

    def begin(self, label: str, steps: int) -> None:
        """A run starts."""
        self._label, self._base, self._steps = label, self._base + self._steps, steps
        self._show(self._base, label, "loading")

    def stage(self, name: str, done: int, total: int, note: str = "") -> None:
        """A stage of the current run moved on."""
        words = {"train": "", "evaluate": "evaluating ", "svd": "SVD of dW ", "truncate": "truncating dW "}
        count = f"{done:,}/{total:,}" if total else ""
        completed = self._base + (done if name == "train" else self._steps)
        self._show(completed, self._label, f"{words.get(name, name + ' ')}{count} {note}".strip())

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _show(self, completed: int, label: str, note: str) -> None:
        self._progress.update(self._task, completed=completed, description=label, note=note)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._said > _PLAIN_EVERY_S:
            self._said = now
            total = self._progress.tasks[0].total or 1
            left = (now - self._start) * (total - completed) / completed if completed else float("nan")
            eta = f"ETA {left / 60:.0f} min" if completed else "ETA unknown"
            print(f"{label}: {note} ({completed / total:.0%}, {eta})", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def live(self) -> Iterator[TerminalObserver]:
        """Show the bar inside the block."""
        if self.console.is_terminal:
            with self._progress:
                yield self
        else:
            yield self


@contextlib.contextmanager
def reading() -> Iterator[Callable[[str, int, int], None]]:
    """A bar while sources are parsed; nothing where all is cached or stderr is no terminal."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {}

        def progress(package: str, done: int, total: int) -> None:
            if package not in tasks:
                tasks[package] = bar.add_task(f"parsing {package}", total=total)
            bar.update(tasks[package], completed=done, visible=done < total)

        yield progress


def say_record(observer: TerminalObserver, record: dict, *, again: bool) -> None:
    """A line about a run that ended; it comes a second time when its functional rank is there."""
    metric = record["task"]["metrics"][0]
    if again:
        line = "functional rank measured"
    elif record["status"] == "ok":
        line = f"{metric} {record['metrics'][metric]:.4f}, {record['timings']['train_time_s']:.0f} s of training"
    else:
        line = f"{record['status']}: {record['error']}"
    observer.say(f"{record['run_id']}: {line}")
