"""``rankprobe spectrum [BASE] TUNED``: measure a pair into an output folder, or go on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from rankprobe.analysis.rank_columns import ENERGY_SHARES
from rankprobe.cli.command import command_line
from rankprobe.cli.progress import TerminalObserver
from rankprobe.errors import UsageError, WorkError, must
from rankprobe.experiment.output import PLAN_FILE, claim_output, read_plan, release_output
from rankprobe.experiment.spectrum_files import RANKS_FILE, TABLES, measure_into
from rankprobe.experiment.store import lock
from rankprobe.weights.inputs import base_of, open_input
from rankprobe.weights.pair import Matrix, Pairing, pair

# Part of what identifies the work in a folder. Raised whenever the same inputs would give other tables than before.
_SEMANTICS = 1
_OURS = (*TABLES, ".done", "report.html", "report.md")


def measure_pair(
    inputs: tuple[str, ...], *, runs: Path, by: str | None, form: str, threads: int | None, include: str | None,
    exclude: str | None, energy: float, values_only: bool, base_rounded: bool, alpha: float | None, device: str,
    out: Path | None, overwrite: bool,
) -> None:
    """Measure what is left of a pair, write tables, pictures and pages, and print.

    Raises
    ------
    UsageError
        If the inputs cannot be paired, hold NaN, or the folder is of other work.
    WorkError
        If another process uses the folder.
    """
    import torch

    from rankprobe.training.precision import pick_device

    device = pick_device(device)
    if threads:
        torch.set_num_threads(threads)
    pairing = _open(inputs, runs=runs, alpha=alpha, include=include, exclude=exclude)
    _check(pairing, base_rounded=base_rounded)
    energies = sorted({*ENERGY_SHARES, energy})
    what = {"energies": energies, "base_rounded": base_rounded, "device": device, "noise": not values_only}
    options = {**what, "include": include, "exclude": exclude, "alpha": alpha}
    plan = _plan(pairing, options)
    out = out or Path("results") / f"spectrum-{_slug(pairing.tuned.label)}"
    for note in pairing.notes:
        click.echo(f"rankprobe: note: {note.rstrip('.')}.", err=True)
    with _claimed(out, plan, overwrite=overwrite):
        _measure(out, pairing, what)
        _show(out, pairing, by=by, form=form, energy=energy, pages=not values_only,
              settings=_settings(pairing, options, threads or torch.get_num_threads()))  # fmt: skip


def _open(inputs: tuple[str, ...], *, runs: Path, alpha: float | None, include, exclude) -> Pairing:
    tuned = open_input(inputs[-1], alpha=alpha, role="TUNED", runs=runs)
    where = inputs[0] if len(inputs) == 2 else base_of(inputs[-1], runs)
    base = open_input(where, role="BASE", runs=runs) if where is not None else None
    return pair(base, tuned, include=include, exclude=exclude)


def _check(pairing: Pairing, *, base_rounded: bool) -> None:
    if not pairing.matrices:
        got = f"none in {pairing.tuned.label}"
        raise UsageError(must("BASE and TUNED", "have a matrix to compare", got, "Change --include and --exclude"))
    if base_rounded and not any(matrix.source == "dense" for matrix in pairing.matrices):
        got = f"the adapter {pairing.tuned.label}"
        raise UsageError(must("--base-rounded", "be of a dense update", got, "Leave it out"))


def _plan(pairing: Pairing, options: dict) -> dict:
    """What the folder is for; inputs and options are recognised by hashes, so that no path is written."""
    sides = [side.fingerprint if side is not None else "" for side in (pairing.base, pairing.tuned)]
    # The order of the matrices is part of it: the tables are taken up at a place, not by name.
    options = {**options, "semantics": _SEMANTICS, "matrices": [(m.name, m.shape) for m in pairing.matrices]}
    return {
        "name": f"spectrum of {pairing.tuned.label}",
        "command": command_line(),
        "inputs": _hash(sides),
        "options": _hash(options),
    }


@contextmanager
def _claimed(out: Path, plan: dict, *, overwrite: bool) -> Iterator[None]:
    """The output folder, of this plan and for this process alone; given back where nothing came of it."""
    with ExitStack() as stack:
        there = out.is_dir() and (out / PLAN_FILE).exists()
        if there:  # locked before anything in it is judged or deleted: another process may be at work
            stack.enter_context(_locked(out))
            earlier = read_plan(out)
            differs = _differs(earlier, plan)
            if overwrite and _is_ours(earlier):
                _clear(out)
            elif differs:
                next_step = "Pass another --out, or --overwrite to replace it"
                raise UsageError(must("output folder", "be of the same inputs and options", f"{out} with {differs}",
                                      next_step))  # fmt: skip
        claim_output(out, plan)
        if not there:
            stack.enter_context(_locked(out))
        try:
            yield
        except BaseException as error:
            # Where the inputs are at fault, corrected ones are other inputs: nothing of this is to be taken up.
            if not there and (isinstance(error, UsageError) or _nothing_in(out)):
                _clear(out)
                release_output(out)
            raise
        (out / ".lock").unlink(missing_ok=True)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(out))
        except WorkError:
            next_step = "Wait for the other to end, or pass another --out"
            got = "a second one"
            raise WorkError(must(f"{out}", "be used by one process at a time", got, next_step)) from None
        yield


def _is_ours(earlier: dict | None) -> bool:
    return earlier is not None and earlier["name"].startswith("spectrum of ")


def _differs(earlier: dict | None, plan: dict) -> str:
    """In what an earlier plan of ours differs; empty where it does not, or where another command's is refused later."""
    if not _is_ours(earlier):
        return ""
    if earlier.get("name") != plan["name"]:
        return f"what is the {earlier['name']}"
    return next((f"other {what}" for what in ("inputs", "options") if earlier.get(what) != plan[what]), "")


def _clear(out: Path) -> None:
    figures = out / "figures"
    for file in figures.glob("*.*"):
        file.unlink()
    if figures.is_dir():
        figures.rmdir()
    for name in (*_OURS, PLAN_FILE):  # the plan last: what is left of a kill is still known as ours
        (out / name).unlink(missing_ok=True)


def _nothing_in(out: Path) -> bool:
    try:
        with (out / RANKS_FILE).open("rb") as file:
            return sum(1 for _ in file) < 2
    except OSError:
        return True


def _measure(out: Path, pairing: Pairing, what: dict) -> None:
    costs: dict[str, int] = {}
    observer: TerminalObserver | None = None

    def left(todo: list[Matrix]) -> None:
        nonlocal observer
        # The bar counts whole steps. Of factors no product is decomposed: their cost is that of two QRs.
        cost = {m.name: m.cost if m.source == "dense" else 1e3 * sum(m.shape) for m in todo}
        unit = max(1.0, sum(cost.values()) / 1e6)
        costs.update({name: max(1, round(c / unit)) for name, c in cost.items()})
        observer = TerminalObserver(sum(costs.values()))
        stack.enter_context(observer.live())
        done = len(pairing.matrices) - len(todo)
        if done:
            observer.say(f"rankprobe: {done} of {len(pairing.matrices)} matrices are done already")

    def begin(number: int, matrix: Matrix) -> None:
        observer.begin(matrix.name, costs[matrix.name])
        observer.stage("matrix", number, len(pairing.matrices))

    with ExitStack() as stack:
        measure_into(out, pairing, **what, left=left, begin=begin)


def _show(out: Path, pairing: Pairing, *, by, form: str, energy: float, pages: bool, settings: dict) -> None:
    from rankprobe.cli.spectrum_tables import print_ranks
    from rankprobe.report.spectrum_result import read_result

    base = pairing.base.label if pairing.base is not None else None
    tuned = pairing.tuned.label
    result = read_result(out, base=base, tuned=tuned, energy=energy, notes=pairing.notes, spectra=pages)
    if pages:
        from rankprobe.report.spectrum_page import write_spectrum

        write_spectrum(out, result, settings=settings)
    title = f"{tuned} − {base}" if base else tuned
    print_ranks(result.ranks, by=by, form=form, energy=energy, title=f"dW = {title}")
    click.echo(str(out / ("report.html" if pages else RANKS_FILE)), err=form != "table")


def _settings(pairing: Pairing, options: dict, threads: int) -> dict[str, str]:
    from rankprobe.experiment.provenance import device_record, git_state, versions

    packages, commit = versions(), git_state()
    return {
        "command": command_line(),
        "base": pairing.base.label if pairing.base is not None else "not at hand",
        "tuned": pairing.tuned.label,
        "include": options["include"] or "",
        "exclude": options["exclude"] or "",
        "alpha": f"{options['alpha']:g}" if options["alpha"] is not None else "",
        "base rounded": "yes" if options["base_rounded"] else "no: a base that the tuning started from is exact",
        "device": f"{device_record(options['device'], threads)['name']}, {threads} threads",
        "versions": ", ".join(f"{name} {packages[name]}" for name in ("rankprobe", "torch", "numpy", "scipy")),
        "commit": commit["commit"][:12] + (" and changes" if commit["dirty"] else "") if commit["commit"] else "",
    }


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._@-]+", "-", label).strip("-.") or "input"


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
