"""The driver's part of Ray, on a stand-in that runs tasks at once and can lose them; tests/ray has a real cluster."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rankprobe.errors import UsageError, WorkError
from rankprobe.experiment import errand as errands
from rankprobe.experiment import pieces
from rankprobe.experiment.on_ray import OnRay, connect
from rankprobe.experiment.store import lock
from rankprobe.experiment.sweep import run_study
from tests.experiment.test_jobs import FULL, HEAD, LORA, Listener, base, planned, task  # noqa: F401 (fixtures)


class RayError(Exception):
    """As Ray's."""


class NodeDiedError(RayError):
    """As Ray's."""


class RayTaskError(RayError):
    """As Ray's."""


@dataclass(frozen=True, eq=False)
class Ref:
    """A task that was sent."""

    function: Callable
    errand: errands.Errand
    shared: tuple


class Cluster:
    """Ray as far as the driver uses it: a task runs when it is waited for.

    ``lose`` tasks end with the loss of their node; with ``apart`` the workers do not see the store.
    """

    exceptions = SimpleNamespace(
        RayError=RayError, RayTaskError=RayTaskError, RuntimeEnvSetupError=type("R", (RayError,), {})
    )

    def __init__(self, *, lose=0, cpus=2.0):
        self.lose, self.cpus, self.stored, self.asked, self.most, self.cancelled = lose, cpus, [], [], 0, []

    def cluster_resources(self):
        return {"CPU": 2 * self.cpus}

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": self.cpus}}] * 2

    def put(self, value):
        self.stored.append(value)
        return len(self.stored) - 1

    def remote(self, function):
        cluster = self

        class Sendable:
            def remote(self, errand, shared):
                return Ref(function, errand, cluster.stored[shared])

        class Task(Sendable):
            def options(self, **resources):
                cluster.asked.append(resources)
                return Sendable()

        return Task()

    def wait(self, refs, timeout):
        self.most = max(self.most, len(refs))
        return refs[:1], refs[1:]

    def get(self, ref):
        if self.lose:
            self.lose -= 1
            raise NodeDiedError("gone")
        return ref.function(ref.errand, ref.shared)

    def cancel(self, ref, *, force):
        self.cancelled.append(ref)


@pytest.fixture
def apart(monkeypatch):
    """No node sees the driver's store."""
    monkeypatch.setattr(errands.Errand, "sees_the_store", property(lambda self: False))


def bytes_of(study):
    paths = (path for run in study.runs for path in sorted(run.folder.glob("*.csv")))
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory, base, task):  # noqa: F811
    study = planned(tmp_path_factory.mktemp("one"), base, task, replace(FULL, seeds=1), LORA, truncate=("full",))
    assert len(list(run_study(study))) == 4
    return bytes_of(study)


@pytest.mark.parametrize("where", ["shared store", "sent back"])
def test_the_same_bytes_as_in_turn_with_a_lost_node(tmp_path, base, task, in_turn, where, request):  # noqa: F811
    if where == "sent back":
        request.getfixturevalue("apart")
    study = planned(tmp_path / "runs", base, task, replace(FULL, seeds=1), LORA, truncate=("full",))
    cluster, listener = Cluster(lose=2), Listener()
    records = list(run_study(study, executor=OnRay(cluster), observer=listener))
    assert len(records) == 4 and {record["status"] for record in records} == {"ok"}
    assert bytes_of(study) == in_turn and any("functional_rank" in name for name in in_turn)
    assert len(cluster.stored) == 1, "the rows are sent once"
    assert {"num_cpus": 1.0, "num_gpus": 0, "max_retries": 0} in cluster.asked and 1 < cluster.most <= 6
    assert len(listener.lines) == 2 and all("its node was lost; it is done again" in line for line in listener.lines)
    assert not list((tmp_path / "runs").glob(".probe*")) and not list((tmp_path / "runs").glob("*/.incoming*"))
    assert len(list(run_study(study, executor=OnRay(Cluster(lose=99))))) == 3, "what is finished is not sent"


def test_a_run_that_loses_every_node_is_recorded_as_failed(tmp_path, base, task):  # noqa: F811
    study = planned(tmp_path / "runs", base, task, HEAD)
    [record] = run_study(study, executor=OnRay(Cluster(lose=4)))
    assert record["status"] == "failed" and "Got its node was lost, 4 times" in record["error"]
    assert [r["status"] for r in run_study(study, executor=OnRay(Cluster(lose=3)))] == ["ok"]


@pytest.mark.parametrize("where", ["shared store", "sent back"])
def test_what_another_process_holds_comes_last(tmp_path, base, task, where, request, monkeypatch):  # noqa: F811
    if where == "sent back":
        request.getfixturevalue("apart")
    monkeypatch.setattr(pieces, "_LATER_S", 0.05)
    study = planned(tmp_path / "runs", base, task, replace(LORA, seeds=1), HEAD)
    listener = Listener()
    work = run_study(study, executor=OnRay(Cluster()), observer=listener)
    with lock(study.runs[0].folder):
        assert next(work)["run_id"] == study.runs[1].run_id
    assert [record["run_id"] for record in work] == [study.runs[0].run_id] and "process" in listener.lines[0]


def test_a_mistake_of_the_user_cancels_the_others(tmp_path, base, task):  # noqa: F811
    wrong = planned(tmp_path / "runs", base, task, replace(LORA, r=999, seeds=1), HEAD)
    cluster = Cluster()
    with pytest.raises(UsageError, match="r must be"):
        list(run_study(wrong, executor=OnRay(cluster)))
    assert len(cluster.cancelled) == 1


def test_a_run_that_fits_on_no_node_is_refused(tmp_path, base, task):  # noqa: F811
    study = planned(tmp_path / "runs", base, task, HEAD)
    with pytest.raises(UsageError, match="must fit on a node of .* Got 1 CPU where the largest node has 0.5"):
        list(run_study(study, executor=OnRay(Cluster(cpus=0.5))))


def test_a_node_without_rankprobe_is_said_in_a_line(tmp_path, base, task, monkeypatch):  # noqa: F811
    def lost(ref):
        raise RayTaskError("ray::run_errand()\nModuleNotFoundError: No module named 'rankprobe'")

    cluster = Cluster()
    monkeypatch.setattr(cluster, "get", lost)
    study = planned(tmp_path / "runs", base, task, HEAD)
    with pytest.raises(WorkError, match=r"Got ModuleNotFoundError: No module named 'rankprobe'. Install this version"):
        list(run_study(study, executor=OnRay(cluster)))


def test_an_address_where_nobody_answers(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=None))
    with pytest.raises(WorkError, match=r"the Ray cluster must answer. Got 127.0.0.1:9 \(.*refused\). Start one with"):
        connect("127.0.0.1:9").__enter__()  # nothing listens on port 9 of this machine


def test_paths_mean_the_same_in_another_working_directory(tmp_path, base, task, monkeypatch):  # noqa: F811
    monkeypatch.chdir(base.path.parent)
    run = planned(Path("runs"), replace(base, path=Path(base.path.name)), task, HEAD)
    cluster = Cluster()
    work = run_study(run, executor=OnRay(cluster))
    (tmp_path / "elsewhere").mkdir()
    get = cluster.get

    def from_elsewhere(ref):
        with monkeypatch.context() as there:
            there.chdir(tmp_path / "elsewhere")
            return get(ref)

    monkeypatch.setattr(cluster, "get", from_elsewhere)
    assert [record["status"] for record in work] == ["ok"]
    assert (base.path.parent / "runs").is_dir() and not list((tmp_path / "elsewhere").iterdir())
