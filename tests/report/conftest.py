"""One synthetic study for every test that only reads it."""

from __future__ import annotations

import pytest

from rankprobe.paper.published import published
from rankprobe.report.findings import find
from tests.report.synthetic import make_latency, realistic_study


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> list[dict]:
    """The main job's runs with 600 evaluation rows."""
    return realistic_study(tmp_path_factory.mktemp("runs"), n=600)


@pytest.fixture(scope="session")
def findings(study):
    """All their tables."""
    return find(study, make_latency(), published())
