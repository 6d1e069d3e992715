"""What sweep and reproduce-paper share: doing planned studies with a bar, renewing the tables as runs end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from rankprobe.cli.command import as_typed, command_line
from rankprobe.cli.progress import TerminalObserver, say_record
from rankprobe.cli.render import Renewal, answer_lines, render
from rankprobe.cli.show import raise_bad
from rankprobe.cli.shown import CHOOSING, SHOWS, once_named, shown, while_choosing, with_those_of
from rankprobe.cli.tracking import track_run
from rankprobe.errors import UsageError, WorkError, must
from rankprobe.experiment.apart import settings_apart
from rankprobe.experiment.executors import IN_TURN, Executor
from rankprobe.experiment.latency import LatencyPlan, execute_latency
from rankprobe.experiment.live import LiveFile
from rankprobe.experiment.output import claim_output, hold_output, read_plan
from rankprobe.experiment.store import ERROR_FILE, LockedError, finished, read_record
from rankprobe.experiment.sweep import PlannedStudy, run_study, untuned_note
from rankprobe.experiment.unmeasured import Unmeasured, bare, guarded, say_once, unless_given_up, unmeasured

# Pictures and pages are for people, who look now and then.
_PAGES_EVERY_S = 60.0


@dataclass(frozen=True)
class Extra:
    """A measurement beside the trainings.

    Attributes
    ----------
    after : int
        It is done when so many of the studies are.
    entry : dict
        What the plan has of it, so that a report can be made again: ``{"pairs": {"r8-r64": run_id}}``.
    run : callable
        ``run(observer, stop, executor)``; yields when tables are worth renewing.
    lines : tuple of str
        What a dry run says of it; none where there is nothing to do now.
    weights_of : tuple of str
        Run ids of those whose weights it still needs.
    steps : int
        Optimiser steps that it has left, as far as that is known before.
    """

    after: int
    entry: dict
    run: Callable[[TerminalObserver, Callable[[], bool], Executor], Iterator[None]]
    lines: tuple[str, ...] = ()
    weights_of: tuple[str, ...] = ()
    steps: int = 0

    @property
    def name(self) -> str:
        """Its first key in the plan: ``pairs``."""
        return next(iter(self.entry))


def run_studies(
    studies: Sequence[PlannedStudy],
    out: Path,
    *,
    name: str,
    title: str,
    latency: LatencyPlan | None = None,
    measure_latency: bool = True,
    keep_weights: bool = True,
    need_weights: bool = False,
    everything: Sequence[PlannedStudy] | None = None,
    extras: Sequence[Extra] = (),
    main: str | None = None,
    hours: float | None = None,
    executor: Executor = IN_TURN,
    paper: bool = False,
    then: Callable[[], tuple[Sequence[PlannedStudy], Sequence[WorkError]]] | None = None,
    settings: Mapping[str, object] | None = None,
    track: Sequence[str] = (),
    pack: int = 1,
) -> None:
    """Do what is left, with a progress bar; tables, pictures and pages are renewed as runs end.

    ``everything`` holds all the studies that the folder is about, where ``studies`` is only the part to do now: what
    else is finished already is reported too. ``main`` is the run_id of any run of the comparison that the report is
    about. With ``need_weights`` finished runs that dropped what they trained are done again; without, only those whose
    weights are still needed. After ``hours`` nothing new is begun. ``paper`` asks for the paper's own tables. ``then``
    names the studies that follow from what these ones showed, the report is about the first of them, and why others
    cannot be done; until then the folder shows what it did. ``settings`` go into the plan. ``track`` names trackers
    that finished runs go to. Up to ``pack`` LoRA runs are trained as one. Ends with the report's answer on the
    terminal.

    Raises
    ------
    UsageError
        If the folder is not to be written to.
    WorkError
        If a run diverged or failed, its functional rank could not be measured or no rate could be chosen; all others
        are done and reported first.
    """
    planned = list(everything or studies)
    plan = {
        "name": name,
        "title": title,
        "command": command_line(),
        **_named(planned),
        "latency": latency.run_id if latency else None,
        "note": untuned_note(studies),
        "main": main,
        "paper": paper,
        **(settings or {}),
    }
    for extra in extras:
        for key, value in extra.entry.items():
            plan[key] = {**plan[key], **value} if isinstance(value, dict) and key in plan else value
    runs_folder = planned[0].runs[0].folder.parent
    if out.resolve().is_relative_to(runs_folder.resolve()):
        raise UsageError(must("--out", f"be outside the run store {runs_folder}", out, "Pass another --out"))
    earlier = (read_plan(out) if out.is_dir() else None) or {}
    plan |= once_named(earlier, plan, plan["runs"]) if then is None else while_choosing(earlier, plan)
    # What chooses the rates is needed for its losses alone.
    keep = keep_weights and then is None
    weights_of = {run_id for extra in extras for run_id in extra.weights_of}

    def wanted(study: PlannedStudy) -> set[str]:
        return weights_of | {run.run_id for run in study.runs} if need_weights and then is None else weights_of

    live_file = LiveFile(out, command=as_typed())
    steps = sum(study.steps_left(wanted(study)) for study in studies) + sum(extra.steps for extra in extras)
    observer = TerminalObserver(steps, live_file)
    ends = None if hours is None else time.monotonic() + 3600 * hours

    def stop() -> bool:
        return ends is not None and time.monotonic() > ends

    bad: dict[str, dict] = {}
    given_up: list[WorkError] = []
    tables, pages = Renewal(), Renewal(least_s=_PAGES_EVERY_S)

    def say_others() -> None:
        if SHOWS not in plan or CHOOSING in plan:
            return
        apart = _apart(set(shown(earlier)) - set(plan["runs"]), planned, runs_folder)
        observer.say(f"rankprobe: warning: {out} showed other runs{apart}; its tables are replaced, the runs stay in "
                     f"{runs_folder}.")  # fmt: skip

    ended = {run_id for run_id in plan["runs"] if finished(runs_folder / run_id)}

    def count() -> None:
        observer.count(len(ended.intersection(plan["runs"])), len(plan["runs"]))

    def renew() -> None:
        if pages.due():
            with pages, tables:  # pages come with their tables: both rest
                render(out, plan, runs_folder)
        elif tables.due():
            with tables:
                render(out, plan, runs_folder, figures=False)

    todo, number = list(studies), 0
    latency_left = measure_latency and latency is not None
    with hold_output(out, plan), observer.live():
        count()
        say_others()
        if plan["note"]:
            observer.say(f"rankprobe: warning: {plan['note']}.")
        while todo:
            study, number = todo.pop(0), number + 1
            # After the first round: every table has its first row by then, and a killed job still has latency, which
            # is measured while nothing else runs.
            for part in _first_round_and_rest(study) if latency_left else [study]:
                said: set[str] = set()
                work = run_study(
                    part, keep_weights=keep, weights_of=wanted(part), observer=observer, stop=stop, executor=executor,
                    pack=pack,
                )  # fmt: skip
                for record in unless_given_up(work, given_up):
                    say_record(observer, record, again=record["run_id"] in said)
                    said.add(record["run_id"])
                    if record["status"] != "failed":
                        ended.add(record["run_id"])
                    count()
                    for line in track_run(runs_folder / record["run_id"], track, out / "trackers"):
                        observer.say(f"rankprobe: warning: {line}.")
                    # A rate that diverges while rates are being chosen is what a grid's edge is for; tuning.csv has it.
                    chosen_between = record["status"] == "diverged" and record["task"]["split"] == "tuning"
                    if record["status"] != "ok" and not chosen_between:
                        bad[record["run_id"]] = record
                    renew()
                if latency_left and not stop():
                    latency_left = not _latency(latency, observer, stop, given_up)
            for extra in extras:
                if extra.after == number:
                    error_file = runs_folder / f"{out.name}-{extra.name}-{ERROR_FILE}"
                    before = len(given_up)
                    work = guarded(extra.run(observer, stop, executor), extra.name, error_file)
                    for _ in unless_given_up(work, given_up):
                        claim_output(out, plan)  # an extra's entry may have grown
                        renew()
                    for error in given_up[before:]:
                        say_once(error, observer)
                    if extra.lines and not stop() and len(given_up) == before:  # all of it was measured
                        error_file.unlink(missing_ok=True)
            if not todo and then is not None and not stop():
                render(out, plan, runs_folder, figures=False)  # where no rate can be chosen, the tables say why
                (chosen, not_chosen), then, keep = then(), None, keep_weights
                given_up += not_chosen
                if not chosen:
                    continue
                todo = list(chosen)
                planned += todo
                named = _named(planned)
                # What stands of a study that cannot be done now is no reason to take it away.
                plan |= with_those_of(earlier, named) if not_chosen else named
                plan |= {"note": untuned_note(planned), "main": todo[0].runs[0].run_id}
                for word in (CHOOSING, SHOWS):
                    plan.pop(word, None)
                plan |= once_named(earlier, plan, [run.run_id for study in todo for run in study.runs])
                claim_output(out, plan)
                ended |= {run_id for run_id in plan["runs"] if finished(runs_folder / run_id)}
                count()
                say_others()
                observer.expect(sum(study.steps_left(wanted(study)) for study in todo))
        if latency_left and not stop():
            _latency(latency, observer, stop, given_up, last=True)
        observer.begin("tables, pictures and pages", 0)
        found = render(out, plan, runs_folder)
    for line in answer_lines(found):
        click.echo(f"{line}\n")
    click.echo(f"{out / 'report.html'}")
    if stop():
        done = sum(bool(finished(runs_folder / run_id)) for run_id in plan["runs"])
        click.echo(f"Stopped after {hours:g} hours with {done} of {len(plan['runs'])} runs; the same command goes on.")
    for error in given_up[0 if bad else 1 :]:  # the command ends with one error
        say_once(error, observer)
    raise_bad(bad.values(), len(plan["runs"]), runs_folder)
    if given_up:
        raise given_up[0]


def _named(studies: Sequence[PlannedStudy]) -> dict[str, list[str]]:
    """A plan's runs, and for people what each is of."""
    runs = [run for study in studies for run in study.runs]
    several = len({run.source.sha256 for run in runs}) > 1
    labels = [f"{run.source.name} on {run.spec.configuration}" if several else run.spec.configuration for run in runs]
    return {"runs": [run.run_id for run in runs], "labels": labels}


def _apart(earlier: set[str], planned: Sequence[PlannedStudy], runs_folder: Path) -> str:
    """What sets runs that a folder showed apart from all that are planned now, after a colon; empty where nothing."""
    try:
        records = [read_record(runs_folder / run_id) for run_id in sorted(earlier)]
    except UsageError:  # a damaged record of a run that this call does not need
        return ""
    trained = [record for record in records if record and record["kind"] == "train" and record["status"] != "failed"]
    apart = settings_apart(trained, [run for study in planned for run in study.runs])
    return f": {apart}" if apart else ""


def _first_round_and_rest(study: PlannedStudy) -> list[PlannedStudy]:
    first, *rest = study.rounds() or [study]
    left = tuple(run for round_ in rest for run in round_.runs)
    return [first, replace(study, runs=left, truncate=())] if left else [first]


def _latency(
    plan: LatencyPlan,
    observer: TerminalObserver,
    stop: Callable[[], bool],
    given_up: list[WorkError],
    *,
    last: bool = False,
) -> bool:
    """Measure; False where another process is at it, which is given up at last."""
    observer.begin("latency", 0)
    try:
        with unmeasured("latency", plan.folder / ERROR_FILE):
            execute_latency(plan, observer=observer, stop=stop)
    except LockedError as error:
        if last:
            given_up.append(bare(error))
        else:
            observer.say(f"latency: {error}")
        return False
    except Unmeasured as error:
        given_up.append(bare(error))
        say_once(error, observer)
    return True
