"""A real cluster of two nodes on this machine: a sweep on it loses a node, and ends with the tables of one without."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import threading
from pathlib import Path

import pandas as pd
import pytest

from tests.cli.crashes import finished_records, results_of
from tests.cli.lab import SWEEP, furnish, rankprobe, refused

# Not imported before its settings are there, which it reads once.
missing = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra 'ray': make test-ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow, missing]

COMMAND = (*SWEEP, "--epochs", "10", "--r", "1,2", "--seeds", "2", "--out", "out")
_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
# A loaded machine starts Ray's many processes slowly; and every address is 127.0.0.1, which Ray else replaces.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_health_check_timeout_ms": "60000",
    # Workers import the checkout that the tests are of.
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
}


@contextlib.contextmanager
def free_ports(n):
    """Ports nobody listens on, a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    yield ports


def node():
    """Settings of a node with one core."""
    with free_ports(len(_PORTS)) as ports:
        # With fixed ports a node need not wait for its agents, of which it asks an answer within 15 seconds.
        return dict(zip(_PORTS, ports, strict=True)) | {
            "num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80_000_000,
            "include_dashboard": False, "include_log_monitor": False,
        }  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    """Two nodes; the driver is on the head, which stays."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _SETTINGS.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        found = Cluster(initialize_head=True, head_node_args=node())
        try:
            found.add_node(**node())
            yield found
        finally:
            found.shutdown()


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory):
    """The folder of the same sweep by the local executor."""
    folder = tmp_path_factory.mktemp("local")
    furnish(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("rankprobe.report.report.write_pages", lambda *args, **kwargs: None)
        result = rankprobe(*COMMAND)
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def bench(tmp_path, monkeypatch):
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rankprobe.report.report.write_pages", lambda *args, **kwargs: None)
    return tmp_path


def assert_equal(folder, other):
    files, tables = results_of(folder)
    expected_files, expected_tables = results_of(other)
    assert files == expected_files and any("functional_rank.csv" in name for name in files)
    assert list(tables) == list(expected_tables)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, expected_tables[name], obj=name)


def raylet_of(some_node) -> int:
    return some_node.all_processes["raylet"][0].process.pid


def at_work_below(runs: Path, raylet: int) -> str:
    """A run that a worker of a node is at; empty where there is none."""
    for lock in runs.glob("*/.lock"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(lock.read_text().split()[0])
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet and not (lock.parent / "run.json").exists():
                return lock.parent.name
    return ""


def test_a_sweep_that_loses_a_node_in_the_middle(bench, cluster, in_turn):
    [second] = cluster.worker_nodes
    killed, over = [], threading.Event()

    def kill():
        while not killed and not over.wait(0.02):
            if finished_records(bench) and (run := at_work_below(bench / "runs", raylet_of(second))):
                killed.append((run, finished_records(bench)))
                cluster.remove_node(second, allow_graceful=False)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        result = rankprobe(*COMMAND, "--executor", "ray", "--address", cluster.address)
    finally:
        over.set()
        thread.join()
    assert result.exit_code == 0, result.stderr
    [(run, before)] = killed
    assert f"{run}: its node was lost; it is done again" in " ".join(result.stderr.split())
    after = finished_records(bench)
    assert {path: after[path] for path in before} == before, "no finished run is lost or changed"
    assert_equal(bench, in_turn)
    assert not list(bench.glob("runs/.probe*"))


def test_nodes_that_do_not_see_the_store_send_runs_back(bench, cluster, in_turn, monkeypatch):
    from rankprobe.experiment import on_ray

    @contextlib.contextmanager
    def never_seen(piece):
        yield ".probe-none", "none"

    monkeypatch.setattr(on_ray, "_probe", never_seen)
    result = rankprobe(*COMMAND, "--executor", "ray", "--address", cluster.address)
    assert result.exit_code == 0, result.stderr
    assert_equal(bench, in_turn)
    assert not list(bench.glob("runs/*/.incoming*"))


def test_threads_that_no_node_has_are_refused(bench, cluster):
    threads = ["3" if word == "1" and COMMAND[i - 1] == "--threads" else word for i, word in enumerate(COMMAND)]
    result = rankprobe(*threads, "--executor", "ray", "--address", cluster.address)
    refused(result, 2, "a run must fit on a node of the Ray cluster. Got 3 CPU where the largest node has 1")
