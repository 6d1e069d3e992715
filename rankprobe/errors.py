"""What can go wrong, in one clear line each.

A message reads ``<what> must <rule>. Got <value>. <next step>.``; :func:`must` writes it. Library code raises
these; only ``rankprobe.cli`` turns them into an exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RankprobeError(Exception):
    """Base of every error a user can cause; ``exit_code`` is what the command line returns."""

    exit_code = 1


class UsageError(RankprobeError, ValueError):
    """Something that was asked for cannot be: a wrong name, value, file or folder (exit code 2)."""

    exit_code = 2


class WorkError(RankprobeError, RuntimeError):
    """Work that was asked for rightly and failed: a full disk, diverged training, no network (exit code 1)."""


def must(what: str, rule: str, got: object, next_step: str) -> str:
    """One line that says what is wrong, the value, and what to do.

    What cannot be printed, as names in a damaged file may have it, is escaped.

    Examples
    --------
    >>> must("r", "be at least 1", 0, "Pass --r 1 or more")
    'r must be at least 1. Got 0. Pass --r 1 or more.'
    """
    end = "" if next_step.endswith(("?", ".")) else "."
    line = f"{what} must {rule}. Got {got}. {next_step}{end}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def nearest(word: str, words: Iterable[str]) -> str:
    """A next step that names the nearest valid word.

    >>> nearest("loar", ("full", "lora"))
    "Did you mean 'lora'?"
    """
    names = {name.lower(): name for name in words}
    found = difflib.get_close_matches(str(word).lower(), names, n=1, cutoff=0.4)
    return f"Did you mean {names[found[0]]!r}?" if found else "Pass one of those"
