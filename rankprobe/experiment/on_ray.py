"""Pieces as tasks of a Ray cluster: each with its cores, and a GPU where it computes on one."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from rankprobe.errors import UsageError, WorkError, must
from rankprobe.experiment.errand import (
    Answer,
    Errand,
    Files,
    install,
    install_error,
    read_files,
    run_errand,
    wait_until_seen,
)
from rankprobe.experiment.observer import Observer
from rankprobe.experiment.pieces import Agenda, Piece
from rankprobe.experiment.planned_run import PlannedRun
from rankprobe.experiment.store import LockedError
from rankprobe.experiment.unmeasured import Unmeasured

# More than a process on this machine gets: a node that goes, as cheap ones do, is not its run's fault.
_LOSSES = 4
# Sent beyond what fits now, so that a cluster that grows with its queue has a reason to.
_AHEAD = 2
_LOOK_AGAIN_S = 1.0
_HOW = {"NodeDiedError": "its node was lost", "OutOfMemoryError": "its node ran out of memory"}


def import_ray() -> ModuleType:
    """The package ray.

    Raises
    ------
    UsageError
        If it is not installed.
    """
    try:
        import ray

        return ray
    except ImportError:
        rule, next_step = "have the package ray", "pip install 'rankprobe[ray]', or leave it out"
        raise UsageError(must("--executor ray", rule, "no such package", next_step)) from None


@contextlib.contextmanager
def connect(address: str | None = None) -> Iterator[OnRay]:
    """An executor on a Ray cluster, inside the block.

    Parameters
    ----------
    address : str, optional
        ``auto`` or host:port of a cluster that runs. None takes the one that RAY_ADDRESS names or that was started on
        this machine, else starts one on this machine alone.

    Raises
    ------
    WorkError
        If there is no cluster at the address.
    """
    ray = import_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here reports to nobody
    ours = not ray.is_initialized()
    if ours:
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except (OSError, ValueError, RuntimeError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            got = f"{address or 'none that runs'} ({why})"
            next_step = "Start one with: ray start --head. Or leave out --address"
            raise WorkError(must("the Ray cluster", "answer", got, next_step)) from None
    try:
        yield OnRay(ray)
    finally:
        if ours:
            ray.shutdown()


def _knock(address: str | None) -> None:
    """Ask for a connection to host:port: Ray itself would try for minutes.

    Raises
    ------
    OSError
        If nobody answers there.
    """
    host, _, port = (address or "").rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


class OnRay:
    """Does pieces as Ray tasks; see :class:`executors.Executor`. Made by :func:`connect`.

    A node that sees the driver's run store writes into it, under the same locks as a process on this machine. Any other
    sends the run's folder back, and this process puts it into the store when it is complete. Rows are sent to a node
    once. A run whose worker or node was lost is sent again, three times at most. The model has to be on every node; so
    has this version of rankprobe.

    Parameters
    ----------
    ray : module
        Connected to a cluster.
    """

    def __init__(self, ray: ModuleType) -> None:
        self._ray = ray
        self._shared: list[tuple[object, object, Any]] = []
        self._task = ray.remote(run_errand)

    @property
    def width(self) -> int:
        """Cores of the cluster: the most that it can do at once."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def __call__(self, pieces: Sequence[Piece], observer: Observer, stop: Callable[[], bool]) -> Iterator[dict]:
        """See :class:`executors.Executor`.

        Raises
        ------
        UsageError
            If no node is large enough for a run.
        UsageError, WorkError, OSError, MemoryError
            What a task raised; the others are cancelled then.
        Unmeasured
            At the end, if a functional rank could not be measured, or lost its worker too often.
        """
        if not pieces:
            return
        pieces = [replace(piece, runs=tuple(_absolute(run) for run in piece.runs)) for piece in pieces]
        needs = self._needs(pieces[0])
        agenda = Agenda(pieces, observer, stop)
        under_way: dict[Any, tuple[Piece, int]] = {}
        with _probe(pieces[0]) as probe:
            try:
                while agenda:
                    records = []
                    while len(under_way) < self._room(needs):
                        piece, found = agenda.next()
                        records += found
                        if piece is not None:
                            lane = min(set(range(len(under_way) + 1)) - {lane for _, lane in under_way.values()})
                            observer.lane(lane).begin(piece.runs[0].spec.label, piece.steps)
                            observer.lane(lane).stage("train", 0, 0, "on the cluster")
                            under_way[self._send(piece, probe, needs)] = piece, lane
                        elif not found:
                            break
                    yield from records
                    if not under_way:
                        if not records:
                            agenda.pause()
                        continue
                    ended, _ = self._ray.wait(list(under_way), timeout=_LOOK_AGAIN_S)
                    for _, lane in under_way.values():  # no news is news: it is being worked on
                        observer.lane(lane).stage("train", 0, 0, "on the cluster")
                    for ref in ended:
                        piece, lane = under_way.pop(ref)
                        answer = self._answer(ref)
                        if isinstance(answer, Answer) and answer.what == "send":
                            there = [run for run in piece.runs if piece.record(run)]
                            sent = {run.run_id: read_files(run.folder) for run in there}
                            under_way[self._send(piece, probe, needs, sent)] = piece, lane
                            continue
                        yield from self._take(piece, answer, agenda, observer.lane(lane))
                agenda.close()
            finally:
                for ref in under_way:
                    with contextlib.suppress(Exception):
                        self._ray.cancel(ref, force=True)

    def _needs(self, piece: Piece) -> dict[str, float]:
        """Resources of a run, which are those of all runs of a study.

        Raises
        ------
        UsageError
            If no node has them.
        """
        spec = piece.runs[0].spec
        needs = {"CPU": float(spec.threads)} | ({"GPU": 1.0} if spec.device == "cuda" else {})
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in needs}
        # A head without cores of its own may start nodes on demand: nothing is known of these.
        if most["CPU"] and (short := [name for name, amount in needs.items() if most[name] < amount]):
            got = ", ".join(f"{needs[name]:g} {name} where the largest node has {most[name]:g}" for name in short)
            raise UsageError(must("a run", "fit on a node of the Ray cluster", got, "Pass --threads, or --device cpu"))
        return needs

    def _room(self, needs: dict[str, float]) -> int:
        there = self._ray.cluster_resources()
        return _AHEAD + min(math.floor(there.get(name, 0.0) / amount) for name, amount in needs.items())

    def _send(
        self, piece: Piece, probe: tuple[str, str], needs: dict[str, float], sent: dict[str, Files] | None = None
    ) -> Any:
        """Send a piece; its model and rows lie in Ray's object store, once."""
        source, task = piece.runs[0].source, piece.runs[0].task
        shared = next((ref for s, t, ref in self._shared if s == source and t is task), None)
        if shared is None:
            shared = self._ray.put((source, task))
            self._shared.append((source, task, shared))
        errand = Errand.of(piece, *probe, sent)
        # Retries are counted here rather than by Ray, which would tell nobody.
        task = self._task.options(num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0), max_retries=0)
        return task.remote(errand, shared)

    def _answer(self, ref: Any) -> Answer | str:
        """A task's answer; or, in words, how its worker was lost.

        Raises
        ------
        WorkError
            If the task could not even begin, as where rankprobe is not installed on a node.
        """
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except (exceptions.RayTaskError, exceptions.RuntimeEnvSetupError) as error:
            got = str(error).strip().splitlines()[-1]
            next_step = "Install this version of rankprobe on every node"
            raise WorkError(must("a node of the cluster", "be able to do a run", got, next_step)) from None
        except exceptions.RayError as error:
            return _HOW.get(type(error).__name__, "its Ray worker was lost")

    def _take(self, piece: Piece, answer: Answer | str, agenda: Agenda, lane: Observer) -> list[dict]:
        """Put away what came back; the records of it."""
        if isinstance(answer, str):
            lane.drop()
            return agenda.lost(piece, answer, losses=_LOSSES)
        if answer.what == "error" and isinstance(answer.error, Unmeasured):
            lane.begin("", 0)
            install_error(piece, answer.made)
            agenda.unmeasured(piece, answer.error)
            return []
        if answer.what == "error":
            raise answer.error
        if answer.what == "end":
            try:
                if answer.made:
                    install(piece, answer.made)
                else:
                    wait_until_seen(piece, answer.records)
            except LockedError as error:
                answer = Answer("locked", error=error)
        if answer.what == "locked":
            lane.drop()
            agenda.locked(piece, answer.error)
        else:
            lane.begin("", 0)
            agenda.end(piece)
        return agenda.news(piece, answer.records)


def _absolute(run: PlannedRun) -> PlannedRun:
    """The run with paths that mean the same in another working directory."""
    source = replace(run.source, path=run.source.path.absolute())
    return replace(run, folder=run.folder.absolute(), source=source)


@contextlib.contextmanager
def _probe(piece: Piece) -> Iterator[tuple[str, str]]:
    """A file in the run store by which a node tells whether it sees the store: its name and its content."""
    store = piece.runs[0].folder.parent
    store.mkdir(parents=True, exist_ok=True)
    name, token = f".probe-{secrets.token_hex(8)}", secrets.token_hex(16)
    (store / name).write_text(token, encoding="ascii")
    try:
        yield name, token
    finally:
        (store / name).unlink(missing_ok=True)
