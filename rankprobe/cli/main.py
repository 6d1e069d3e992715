"""The command group: one place where errors become a line and an exit code."""

from __future__ import annotations

import _thread
import contextlib
import errno
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import click

from rankprobe import __version__
from rankprobe.errors import RankprobeError, must

# Before any command imports them: no half-finished progress bars of other libraries between ours.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_PRESS_AGAIN_S = 0.05

_COMMANDS = {
    "reproduce-paper": ("reproduce", "reproduce_paper"),
    "finetune": ("finetune", "finetune"),
    "sweep": ("sweep", "sweep"),
    "spectrum": ("spectrum", "spectrum"),
    "compare": ("compare", "compare"),
    "extract": ("extract", "extract"),
    "allocate": ("allocate", "allocate"),
    "intrinsic-dim": ("intrinsic_dim", "intrinsic_dim"),
    "latency": ("latency", "latency"),
    "params": ("params", "params"),
    "data": ("data", "data"),
    "report": ("report", "report"),
    "status": ("status", "status"),
}


class Group(click.Group):
    """Loads a command's module when it is asked for, and turns our errors into one line on stderr."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the main job first."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the command's module; it imports nothing heavy itself."""
        if name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[name]
        return getattr(__import__(f"rankprobe.cli.{module}", fromlist=[attribute]), attribute)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; exit code 2 for bad use, 1 for failed work, 130 for an interrupt."""
        warnings.showwarning = _show_warning
        for stream in (sys.stdout, sys.stderr):
            # A terminal or a pipe that is not UTF-8 gets "?" for what it cannot show, not a traceback.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        with _noted_interrupts() as pressed:
            try:
                return super().invoke(ctx)
            except (Exception, KeyboardInterrupt) as error:
                # Compiled readers (pandas' CSV parser is one) turn an interrupt inside them into an error of their own.
                if pressed or isinstance(error, KeyboardInterrupt):
                    # A second Ctrl-C ends the process at once: nothing half-written is ever trusted.
                    signal.signal(signal.SIGINT, signal.SIG_DFL)
                    fail("interrupted. What is finished is kept; the same command goes on from there.", 130)
                self._explain(error)

    def _explain(self, error: Exception) -> None:
        """End with one line about what a user can mend; raise the rest, which are our own mistakes."""
        try:
            raise error
        except RankprobeError as error:
            fail(str(error), error.exit_code)
        except BrokenPipeError:
            # `rankprobe params | head`: the reader has left, and that is no error.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it stays open until the process ends)
            sys.exit(0)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
            what, rule = ("the disk", "have room") if full else (error.filename or "a file", "be readable and writable")
            got = f"{error.strerror or error}{f' ({error.filename})' if full and error.filename else ''}"
            next_step = "Free space" if full else "Correct it or choose another folder"
            again = "run the same command again: it goes on where it stopped"
            fail(must(str(what), rule, got, f"{next_step}, and {again}"), 1)
        except UnicodeEncodeError as error:
            got = ascii(error.object[error.start : error.end])
            fail(must("names and texts", "be valid Unicode", got, "Rename the file or folder"), 2)
        except (MemoryError, RuntimeError) as error:
            # torch has types of its own: a RuntimeError of its allocator's words, OutOfMemoryError on a GPU.
            torchs = "can't allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError"
            if not (torchs or isinstance(error, MemoryError)):
                raise
            next_step = "Lower the batch size or the length and run the same command again"
            fail(must("the work", "fit into memory", "no more of it", next_step), 1)


@contextlib.contextmanager
def _noted_interrupts() -> Iterator[list[bool]]:
    """A list that Ctrl-C adds to inside the block, besides raising KeyboardInterrupt where the program then is.

    Python prints and drops what is raised inside a ``__del__`` or a callback from C. A Ctrl-C that falls there is
    pressed once more, a moment later, when the program is somewhere else.
    """
    pressed: list[bool] = []
    before = sys.unraisablehook

    def note(number: int, frame: object) -> None:
        pressed.append(True)
        signal.default_int_handler(number, frame)

    def press_again() -> None:
        if signal.getsignal(signal.SIGINT) is not note:  # another Ctrl-C has come through by now
            return
        if hasattr(signal, "pthread_kill"):  # it wakes a thread that waits, too
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        else:
            _thread.interrupt_main()

    def on_dropped(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
            return
        again = threading.Timer(_PRESS_AGAIN_S, press_again)
        again.daemon = True
        again.start()

    # Left alone where the caller has a handler of its own, or is a thread (only the main one may set handlers).
    main_thread = threading.current_thread() is threading.main_thread()
    if main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, note)
        sys.unraisablehook = on_dropped
    try:
        yield pressed
    finally:
        if sys.unraisablehook is on_dropped:
            sys.unraisablehook = before
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *_: object) -> None:
    """Our own warnings as one line; a library's are for its developers."""
    if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1]):
        click.echo(f"rankprobe: warning: {' '.join(str(message).split())}", err=True)


def fail(message: str, code: int) -> None:
    """Print one line on stderr and exit."""
    click.echo(f"rankprobe: {' '.join(message.split())}", err=True)
    sys.exit(code)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", prog_name="rankprobe")
def main() -> None:
    """What rank does your fine-tuning need, and is LoRA really as good here?

    rankprobe full-fine-tunes and LoRA-fine-tunes the same pretrained model, takes the SVD of every weight
    update, sweeps r, and puts accuracy, trainable parameters and latency side by side.

    \b
    Examples:
      rankprobe reproduce-paper --scale smoke     a first look, a few minutes
      rankprobe sweep --r 1,4,16 --seeds 2        which r does docmatch need?
      rankprobe finetune --method lora --r 8      one run
    """


if __name__ == "__main__":
    main()
