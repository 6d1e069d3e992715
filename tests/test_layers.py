"""Imports inside rankprobe point down the list of layers only, the ones inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "rankprobe"
# The package itself offers what these have.
OFFERED = ("api", "callback")
# Top to bottom; a module may import from its own layer and from those below.
LAYERS = (
    "cli",
    "paper",
    "report",
    "experiment",
    "callback",
    "training",
    "methods",
    "tasks",
    "api",
    "analysis",
    "weights",
    "linalg",
    "errors",
)


def imported_modules(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every module of rankprobe that a source imports, wherever the import stands.

    ``from rankprobe import weights`` and ``from . import lora`` may name a module or an object in one; both readings
    name the same layer, so the longer is given.
    """
    parts = module.split(".")
    package = parts if is_package else parts[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            names = [str(node.args[0].value)] if called in ("import_module", "__import__", "lazy_import") else []
        else:
            continue
        for name in names:
            if name.split(".")[0] == "rankprobe":
                yield node.lineno, name


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What a module imports and may not, one line each."""
    own = module.split(".")[1] if "." in module else None
    found = []
    for line, name in imported_modules(source, module, is_package):
        target = name.split(".")[1] if "." in name else None
        if target not in LAYERS:
            continue  # rankprobe itself: __version__ and the like
        if own == "__main__":
            continue
        if own is None and target in OFFERED:
            continue
        if own not in LAYERS:
            found.append(f"{module}:{line} imports {name}, but the package's top level imports no layer")
        elif LAYERS.index(target) < LAYERS.index(own):
            found.append(f"{module}:{line} imports {name}, which is above it")
    return found


def _modules() -> dict[str, Path]:
    modules = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return modules


def test_every_module_belongs_to_a_layer():
    strangers = {name.split(".")[1] for name in _modules() if "." in name} - set(LAYERS) - {"__main__"}
    assert not strangers, f"not in the list of layers: {sorted(strangers)}"


@pytest.mark.parametrize("module", _modules())
def test_imports_point_down(module):
    file = _modules()[module]
    assert violations(file.read_text(encoding="utf-8"), module, file.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rankprobe.weights.delta", "from rankprobe.analysis.spectrum import spectrum"),
        ("rankprobe.weights.delta", "import rankprobe.training.train as t"),
        ("rankprobe.weights.delta", "def f():\n    from rankprobe.cli.main import main"),
        ("rankprobe.weights.delta", "from ..methods import lora"),
        ("rankprobe.weights.delta", "from .. import methods"),
        ("rankprobe.weights.delta", "from rankprobe import tasks"),
        ("rankprobe.weights.delta", "if TYPE_CHECKING:\n    from rankprobe.tasks.task import Task"),
        ("rankprobe.weights.delta", "try:\n    import rankprobe.report\nexcept ImportError:\n    pass"),
        ("rankprobe.weights.delta", "import importlib\nimportlib.import_module('rankprobe.experiment.runs')"),
        ("rankprobe.errors", "from rankprobe.linalg import rank"),
        ("rankprobe.report.claims", "from rankprobe.paper import published"),
        ("rankprobe.experiment.runs", "from rankprobe.report import tables"),
        ("rankprobe", "from rankprobe.cli.main import main"),
    ],
)
def test_a_planted_upward_import_is_caught(module, source):
    assert len(violations(source, module)) == 1


def test_an_upward_import_of_a_package_file_is_caught():
    assert violations("from ..cli import main", "rankprobe.weights", is_package=True)
    assert not violations("from . import delta", "rankprobe.weights", is_package=True)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rankprobe.weights.delta", "import torch\nfrom rankprobe.errors import UsageError\nfrom . import source"),
        (
            "rankprobe.cli.main",
            "from rankprobe.report.html import write\nfrom rankprobe.linalg.rank import stable_rank",
        ),
        ("rankprobe.paper.reproduce", "from rankprobe.report import claims"),
        ("rankprobe.cli.main", "from rankprobe import __version__"),
        ("rankprobe", "from rankprobe import api"),
        ("rankprobe.weights.delta", "text = 'from rankprobe.cli import main'"),
    ],
)
def test_a_downward_import_is_not(module, source):
    assert violations(source, module) == []
