"""A furnished folder to run commands in, and a report without pictures where they are not the question."""

from __future__ import annotations

import shutil

import pytest

from tests.cli.lab import furnish


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
