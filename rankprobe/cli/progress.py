"""Progress of long work on a terminal: one bar for everything, one line for what runs now."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rankprobe.cli.show import best_epoch
from rankprobe.experiment.live import LiveFile
from rankprobe.experiment.observer import HELD_OUT
from rankprobe.experiment.outcome import learned_nothing

_PLAIN_EVERY_S = 30.0


class TerminalObserver:
    """Draws a progress bar with an ETA, and a line for each of several workers; where stderr is no terminal, prints a
    line now and then instead.

    Parameters
    ----------
    total_steps : int
        Optimiser steps of all the work that is left.
    live_file : LiveFile, optional
        Told the same, for ``rankprobe status``.
    """

    def __init__(self, total_steps: int, live_file: LiveFile | None = None) -> None:
        self.console = Console(stderr=True)
        self._live_file = live_file
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
        self._over = 0  # steps of what is over
        self._runs = ""
        self._lanes: dict[int, _Lane] = {}
        self._own = _Lane(self, None)
        self._start = self._said = time.monotonic()

    def expect(self, steps: int) -> None:
        """More work has come to light: so many optimiser steps."""
        self._progress.update(self._task, total=(self._progress.tasks[0].total or 0) + steps)

    def count(self, done: int, total: int) -> None:
        """So many of the runs are done."""
        self._runs = f"{done:,} of {total:,} runs"
        self._show()

    def lane(self, number: int) -> _Lane:
        """A worker's line, below the bar for everything."""
        if number not in self._lanes:
            task = self._progress.add_task("", total=1, note="", visible=False)
            self._lanes[number] = _Lane(self, task)
        return self._lanes[number]

    def begin(self, label: str, steps: int) -> None:
        """A run starts, in this process."""
        self._own.begin(label, steps)

    def stage(self, name: str, done: int, total: int, note: str = "") -> None:
        """A stage of the current run moved on."""
        self._own.stage(name, done, total, note)

    def drop(self) -> None:
        """What was under way begins again."""
        self._own.drop()

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _show(self) -> None:
        """Draw anew; all lanes' steps count, so that the ETA is right with any number of them."""
        lanes = [lane for lane in (self._own, *self._lanes.values()) if lane.label]
        completed = self._over + sum(lane.done for lane in (self._own, *self._lanes.values()))
        working = [lane for lane in lanes if lane is not self._own]
        label = f"{len(working)} at once" if working else self._own.label
        note = "" if working else self._own.note
        words = ", ".join(word for word in (self._runs, label) if word)
        self._progress.update(self._task, completed=completed, description=words, note=note)
        for lane in self._lanes.values():
            lane.draw(self._progress)
        # A bisection finds more to do than was known before: how much is left is then not known.
        now, total = time.monotonic(), max(self._progress.tasks[0].total or 1, completed)
        eta_s = (now - self._start) * (total - completed) / completed if 0 < completed < total else None
        lines = tuple(f"{lane.label}: {lane.note}" for lane in working or [self._own])
        if self._live_file is not None:
            self._live_file.tell(lines, int(completed), int(total), eta_s)
        if not self.console.is_terminal and now - self._said > _PLAIN_EVERY_S:
            self._said = now
            eta = "ETA unknown" if eta_s is None else f"ETA {eta_s / 60:.0f} min"
            said = ", ".join(word for word in (self._runs, f"{completed / total:.0%}", eta) if word)
            print(f"{' | '.join(lines)} ({said})", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def live(self) -> Iterator[TerminalObserver]:
        """Show the bar inside the block; after it nothing is under way."""
        try:
            with self._progress if self.console.is_terminal else contextlib.nullcontext():
                yield self
        finally:
            if self._live_file is not None:
                self._live_file.end()


class _Lane:
    """What one worker is at: its label is empty while it does nothing."""

    def __init__(self, whole: TerminalObserver, task: TaskID | None) -> None:
        self.label, self.note, self.done, self.steps = "", "", 0, 0
        self._whole, self._task = whole, task

    def lane(self, number: int) -> _Lane:
        """A worker does one run at a time."""
        return self

    def say(self, line: str) -> None:
        """As the whole says it."""
        self._whole.say(line)

    def begin(self, label: str, steps: int) -> None:
        """A run starts; the one before is over, also where it ended early."""
        self._whole._over += self.steps
        self.label, self.note, self.done, self.steps = label, "loading", 0, steps
        if self._task is not None:
            self._whole._progress.reset(self._task)  # its clock and its ETA are the run's own
        self._whole._show()

    def stage(self, name: str, done: int, total: int, note: str = "") -> None:
        """A stage of the run moved on."""
        words = {"train": "", HELD_OUT: "held-out rows ", "evaluate": "evaluating ", "svd": "SVD of dW ",
                 "truncate": "truncating dW "}  # fmt: skip
        count = f"{done:,}/{total:,}" if total else ""
        if name != HELD_OUT:
            self.done = done if name == "train" else self.steps
        self.note = f"{words.get(name, name + ' ')}{count} {note}".strip()
        self._whole._show()

    def drop(self) -> None:
        """The run's steps are to be done again."""
        self.label, self.note, self.done, self.steps = "", "", 0, 0
        self._whole._show()

    def draw(self, progress: Progress) -> None:
        """Renew the lane's own line."""
        if self._task is not None:
            progress.update(
                self._task, description=f"  {self.label}", note=self.note, completed=self.done,
                total=max(1, self.steps), visible=bool(self.label),
            )  # fmt: skip


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
        line += f", {ended}" if (ended := best_epoch(record)) else ""
        if learned_nothing(record):
            line += f"; not shown to be better than the commonest class ({record['task']['majority']:.4f})"
    else:
        line = f"{record['status']}: {record['error']}"
    observer.say(f"{record['run_id']}: {line}")
