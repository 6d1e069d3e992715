"""What an output folder shows while its plan changes: its last answer, until there is one run of the new plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# A plan's own words for it. Of the runs that the folder shows, and the runs of which one that ended well replaces them:
SHOWS = "shows"
# Rates are still being chosen, so that the runs that follow have no names yet:
CHOOSING = "choosing"


def shown(plan: dict) -> list[str]:
    """Ids of the runs that a folder's tables are of."""
    return plan[SHOWS]["runs"] if SHOWS in plan else plan.get("runs") or []


def with_those_of(earlier: dict, plan: dict) -> dict[str, list[str]]:
    """A plan's runs with their labels, behind those of an earlier plan."""
    labels = dict(zip(plan["runs"], plan["labels"], strict=True))
    before = earlier.get("runs") or []
    known = dict(zip(before, earlier.get("labels") or before, strict=False))
    return {"runs": list(known | labels), "labels": list((known | labels).values())}


def while_choosing(earlier: dict, plan: dict) -> dict:
    """What a plan says besides while rates are chosen.

    Parameters
    ----------
    earlier : dict
        The folder's plan before; empty where there was none.
    plan : dict
        With the runs that choose the rates.
    """
    said = {CHOOSING: True} | with_those_of(earlier, plan)
    if SHOWS in earlier or (earlier.get("runs") and not earlier.get(CHOOSING)):
        said[SHOWS] = {"runs": shown(earlier), "until": []}  # there is an answer to keep, and nothing yet to replace it
    return said


def once_named(earlier: dict, plan: dict, until: Sequence[str]) -> dict:
    """What a plan that names all its runs says besides: nothing where all that the folder shows is among them.

    Parameters
    ----------
    earlier, plan : dict
    until : sequence of str
        Ids of the runs that have something to show instead.
    """
    before = shown(earlier)
    return {SHOWS: {"runs": before, "until": list(until)}} if set(before) - set(plan["runs"]) else {}


def replaced(plan: dict, runs: Iterable[dict]) -> bool:
    """Whether one of these runs is what the folder's last answer was kept for."""
    return any(run["status"] == "ok" and run["run_id"] in plan[SHOWS]["until"] for run in runs)
