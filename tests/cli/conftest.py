"""A furnished folder to run commands in, and a report without pictures where they are not the question."""

from __future__ import annotations

import multiprocessing
import shutil

import pytest

from tests.cli.crashes import CONFIGURED, finished_records, results_of
from tests.cli.crashes import no_pictures as tables_only
from tests.cli.lab import furnish, run_in


@pytest.fixture(scope="session")
def _furnished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("furnished")
    furnish(folder)
    return folder


@pytest.fixture
def bench(_furnished, tmp_path, monkeypatch):
    """The working directory, with ``base``, train.csv and eval.csv; see :mod:`tests.cli.lab`."""
    shutil.copytree(_furnished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_pictures(monkeypatch):
    """Tables are written, pictures and pages are not: they take seconds."""
    monkeypatch.setattr("rankprobe.report.report.write_pages", lambda *args, **kwargs: None)


@pytest.fixture(scope="session")
def children():
    """Starts commands as processes forked from a clean one that has imported everything, so that each takes moments."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["rankprobe.cli.work", "rankprobe.cli.sweep", "tests.cli.lab", "transformers.models.bert.modeling_bert"]
    )
    started = []

    def start(folder, arguments, prepare=None):
        child = context.Process(target=run_in, args=(str(folder), tuple(map(str, arguments)), prepare))
        child.start()
        started.append(child)
        return child

    yield start
    for child in started:
        if child.is_alive():
            child.kill()
        child.join(10)


@pytest.fixture(scope="session")
def undisturbed_folder(tmp_path_factory, children):
    """Where the sweep was done that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    furnish(folder)
    child = children(folder, CONFIGURED, tables_only)
    child.join(120)
    assert child.exitcode == 0, (folder / "stderr").read_text()
    return folder


@pytest.fixture(scope="session")
def undisturbed(undisturbed_folder):
    """Its files and tables."""
    files, tables = results_of(undisturbed_folder)
    assert len(finished_records(undisturbed_folder)) == 4
    assert {"methods.csv", "rank_sweep.csv", "ranks.csv", "claims.csv"} <= set(tables)
    return files, tables
