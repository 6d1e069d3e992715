"""The command that runs, as others may repeat it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence


def command_line() -> str:
    """``rankprobe ...`` without folders of this machine."""
    command = shlex.join(["rankprobe", *without_folders(sys.argv[1:])])
    return command.encode(errors="replace").decode()  # a file's name may be no Unicode, which no page can hold


def as_typed() -> str:
    """``rankprobe ...`` with all folders, for this machine's user alone."""
    return shlex.join(["rankprobe", *sys.argv[1:]]).encode(errors="replace").decode()


def without_folders(words: Sequence[str]) -> list[str]:
    """The command as others may repeat it: folders of this machine are left out, of other paths only the name stays.

    >>> without_folders(["sweep", "--out", "here", "--model=/home/me/bert", "../x/a.csv", "--r", "1,2"])
    ['sweep', '--model=bert', 'a.csv', '--r', '1,2']
    """
    kept, skip = [], False
    for word in words:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if skip:
            skip = False
        elif option in ("--out", "--runs", "--data-dir"):
            skip = not equals
        elif not equals and option:
            kept.append(option)
        else:
            # A hub name has a slash too, and is no folder here; a study that ships is named by its place here.
            local = (
                os.path.isabs(value)
                or value.startswith((".", "~"))
                or (os.path.exists(value) and not value.startswith("studies/"))
            )
            kept.append(f"{option}{equals}{os.path.basename(os.path.normpath(value)) if local else value}")
    return kept
