"""How many LoRA runs a sweep trains as one: measured when it is planned, and then kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rankprobe.errors import RankprobeError, UsageError, must
from rankprobe.experiment.pack_groups import pack_groups
from rankprobe.experiment.pack_timing import PackTiming, measure_pack
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.store import finished

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
    """The size of packs that pays for all runs on this machine, by a few steps of each; 1 where packing does not.

    Runs of each model, task and choice of targets are measured by themselves: the smallest size that is the fastest a
    run for some of them is taken for all. A model that cannot be packed makes it 1, as no size does for its runs.

    Parameters
    ----------
    runs : sequence of PlannedRun
        Of one study or several.
    measure : callable
        Times a group of them.
    say : callable
        Told what was measured, a line each size.
    """
    groups = pack_groups(runs, max(1, len(runs)))
    size = max(SIZES)
    for group in groups:
        about = f"{group[0].source.name} on {group[0].task.name}, {group[0].spec.targets}: " if len(groups) > 1 else ""
        best = _fastest(group, size, measure, lambda line, about=about: say(about + line))
        if best < len(group):  # else a larger size would make the same packs of these
            size = best
        if size == 1:
            break
    return min(size, max(map(len, groups), default=1))


def _fastest(
    group: Sequence[PlannedRun],
    most: int,
    measure: Callable[[Sequence[PlannedRun]], PackTiming],
    say: Callable[[str], None],
) -> int:
    """The size up to ``most`` that is fastest a run for runs that go together."""
    best, gain = 1, 1.0
    for size in dict.fromkeys(min(size, len(group), most) for size in SIZES):
        try:
            timing = measure(max(pack_groups(group, size), key=len))
        except UsageError as error:
            say(f"all runs are done one by one. {error}")
            return 1
        except RankprobeError as error:  # it does not fit into memory
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


def settled_pack(
    asked: str | None,
    earlier: object,
    *,
    default: str,
    choose: Callable[[], int],
    packed: Callable[[], bool] = lambda: True,
) -> int:
    """What a sweep takes: what it took when it was begun, else what is asked for, else the default.

    A pack's results differ from lone runs' in the last bits, so that a sweep that is gone on with must not change it
    once some of its runs ended in a pack. Before, another size or none is the way out where the first cannot be done.

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
    packed : callable
        Whether a finished run of the sweep was in a pack; only asked where the size would change.

    Raises
    ------
    UsageError
        If another size is asked for than the sweep was begun with, and its finished runs are of that one.
    """
    wanted = parse_pack(asked if asked is not None else default)
    if not isinstance(earlier, int):
        return choose() if wanted is None else wanted
    if asked is None or wanted in (None, earlier):
        return earlier
    if earlier > 1 and not packed():  # from off to packs is no way out of anything, and lone runs may have ended
        return wanted
    rule = f"stay what the sweep was begun with, {'off' if earlier == 1 else earlier}"
    raise UsageError(must("--pack", rule, asked, f"Leave it out, or pass --pack {asked} with another --out"))


def some_packed(plan: Mapping, runs: Path) -> bool:
    """Whether a finished run of a sweep's plan was trained in a pack.

    Parameters
    ----------
    plan : mapping
        plan.json; its ``runs`` are looked at.
    runs : Path
        The run store.
    """
    return any((finished(runs / run_id) or {}).get("pack") for run_id in plan.get("runs") or ())
