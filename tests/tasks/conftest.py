"""Packages made for a test: sources only, on the import path, under a folder called tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKPROBE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder to install packages in; its own path has a part called tests, which must not matter."""
    folder = tmp_path / "tests" / "lib" / "test" / "site-packages"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(folder))
    return folder
