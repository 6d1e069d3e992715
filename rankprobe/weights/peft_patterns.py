"""Keys of PEFT's rank_pattern and alpha_pattern: which module each is meant for, found in bounded time and memory."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping

import regex

from rankprobe.errors import UsageError, must

_LONGEST = 100_000
_MOST_REPEATS = 10_000
_COUNTS = re.compile(r"\{(\d*),?(\d*)\}")
_SECONDS = 0.5


def check_pattern(what: str, pattern: str) -> None:
    """Refuse what is no regular expression, or too large a one.

    Parameters
    ----------
    what : str
        For messages.
    pattern : str

    Raises
    ------
    UsageError

    Notes
    -----
    It has to be one for ``re``, which PEFT uses. Matching is left to ``regex``: it can be stopped, and ends at once for
    most of those that ``re`` would search for hours, ``(.*)*x``. In exchange it takes memory for every counted repeat,
    so that their product is bounded.
    """
    if _repeats(pattern) > _MOST_REPEATS or len(pattern) > _LONGEST:
        rule = f"have at most {_LONGEST:,} characters and repeats of {_MOST_REPEATS:,} in all"
        raise UsageError(must(what, rule, repr(pattern[:160]), "Write it without them"))
    try:
        re.compile(pattern)
        regex.compile(pattern)
    except (re.error, regex.error, RecursionError, OverflowError, ValueError) as error:
        got = f"{pattern[:160]!r} ({str(error)[:80]})"
        raise UsageError(must(what, "be regular expressions", got, "Correct the key")) from None


def check_matches(what: str, patterns: Iterable[str], paths: Collection[str]) -> None:
    """Refuse a pattern that no module's path matches.

    Raises
    ------
    UsageError
    """
    for pattern in patterns:
        if paths and not any(_matches(pattern, path) for path in paths):
            got = f"{pattern[:160]!r}, which matches none of {len(paths)}, such as {next(iter(paths))}"
            raise UsageError(must(what, "match a module of the adapter", got, "Correct the key"))


def by_pattern(patterns: Mapping[str, object], path: str, default: object) -> object:
    """PEFT's rule: a key is a regular expression for the end of the path, the first that matches wins."""
    return next((value for pattern, value in patterns.items() if _matches(pattern, path)), default)


def _matches(pattern: str, path: str) -> bool:
    try:
        return regex.match(rf"(.*\.)?({pattern})$", path, timeout=_SECONDS) is not None
    except TimeoutError:
        got = f"{pattern[:160]!r}, which takes longer for {path[:160]}"
        next_step = "Write it without a repeat of a repeat"
        raise UsageError(must("A pattern's key", f"be matched within {_SECONDS:g} s", got, next_step)) from None


def _repeats(pattern: str) -> float:
    """Upper bound of how often counted repeats, one in another, repeat."""
    numbers = [max(int(digits[:9]) for digits in found if digits) for found in _COUNTS.findall(pattern) if any(found)]
    return math.prod(map(float, (n for n in numbers if n > 1)))
