"""Sources of packages that tests install by writing them."""

from __future__ import annotations

from pathlib import Path


def write_package(site: Path, name: str, modules: dict[str, str]) -> None:
    """Write ``{"pkg": {"sub/mod": source}}`` as files; ``__init__`` raises when it is imported, if not given."""
    for module, source in {"__init__": "raise RuntimeError('imported')\n", **modules}.items():
        path = site / name / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")


def module_source(tag: str, functions: int = 6) -> str:
    """A module of documented functions whose docstrings hold ``tag``."""
    return "".join(
        f'def func_{i}(x, y={i}):\n    """Do number {i} of the things that {tag} can do."""\n\n'
        for i in range(functions)
    )
