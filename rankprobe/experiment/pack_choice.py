"""How many LoRA runs a sweep trains as one: measured when it is planned, and then kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rankprobe.errors import RankprobeError, UsageError, must
from rankprobe.experiment.pack_groups import pack_groups
from rankprobe.experiment.pack_timing import PackTiming, measure_pack
from rankprobe.experiment.planned_run import PlannedRun

# What is tried on a GPU, from the smallest; the first that is no faster than the one before ends it.
SIZES = (2, 4, 8, 16, 32, 64)
# A larger pack has to be this much faster a run than a smaller one: it needs more memory, and its runs end together.
_WORTH = 1.05


def choose_pack(
    runs: Sequence[PlannedRun],
    *,
    measure: Callable[[Sequence[PlannedRun]], PackTiming] = measure_pack,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """The size of packs that is fastest a run on this machine, by a few steps of each; 1 where packing does not pay.

    Parameters
    ----------
    runs : sequence of PlannedRun
        A study's.
    measure : callable
        Times a group of them.
    say : callable
        Told what was measured, a line each size.
    """
    best, gain = 1, 1.0
    largest = max((len(group) for group in pack_groups(runs, max(SIZES))), default=1)
    for size in dict.fromkeys(min(size, largest) for size in SIZES):
        groups = pack_groups(runs, size)
        if not groups:
            break
        try:
            timing = measure(max(groups, key=len))
        except RankprobeError as error:  # it does not fit into memory, or the model cannot be packed
            say(f"packs of {size}: {error}")
            break
        say(f"packs of {timing.members}: a step of a run takes {timing.packed_step_s * 1000:.3g} ms, alone "
            f"{timing.lone_step_s * 1000:.3g} ms: {timing.speedup:.2f} times as fast")  # fmt: skip
        if not timing.pays or timing.speedup < _WORTH * gain:
            break
        best, gain = size, timing.speedup
    return best


def parse_pack(text: str) -> int | None:
    """``--pack``: a size, 1 for ``off``, None for ``auto``.

    >>> parse_pack("8"), parse_pack("off"), parse_pack("auto")
    (8, 1, None)

    Raises
    ------
    UsageError
        If it is none of these.
    """
    if text == "auto":
        return None
    size = 1 if text == "off" else int(text) if text.isdecimal() else 0
    if size < 1:
        raise UsageError(must("--pack", "be auto, off or a number of runs", repr(text), "Pass --pack 8, say"))
    return size


def settled_pack(asked: str | None, earlier: object, *, default: str, choose: Callable[[], int]) -> int:
    """What a sweep takes: what it took when it was begun, else what is asked for, else the default.

    A pack's results differ from lone runs' in the last bits, so that a sweep that is gone on with must not change it.

    Parameters
    ----------
    asked : str or None
        ``--pack``, where it was given.
    earlier : object
        ``pack`` of the sweep's plan.json; None where it is new.
    default : str
        As ``asked``.
    choose : callable
        Measures, for ``auto``.

    Raises
    ------
    UsageError
        If another size is asked for than the sweep was begun with.
    """
    wanted = parse_pack(asked if asked is not None else default)
    if not isinstance(earlier, int):
        return choose() if wanted is None else wanted
    if asked is not None and wanted not in (None, earlier):
        rule = f"stay what the sweep was begun with, {'off' if earlier == 1 else earlier}"
        raise UsageError(must("--pack", rule, asked, "Leave it out, or pass another --out"))
    return earlier
