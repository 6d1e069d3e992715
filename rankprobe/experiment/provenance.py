"""Where a result comes from: code, versions and machine."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

_PACKAGES = ("rankprobe", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "pandas")


@cache
def git_state() -> dict:
    """Commit and dirty flag of rankprobe's own checkout; both None where it is installed without one."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return {"commit": None, "dirty": None}

    def git(*words: str) -> str:
        # Without optional locks: Ctrl-C kills git, and its index.lock would stay and stop every later commit.
        command = ["git", "--no-optional-locks", "-C", str(here), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

    try:
        # Only code counts: a run that writes into results/ must not make the next one dirty.
        changed = git("status", "--porcelain", "--", "rankprobe", "pyproject.toml", "studies")
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(changed.strip())}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def device_record(device: str, threads: int) -> dict:
    """Type and name of the device, and CPU threads."""
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    return {"type": device, "name": name, "threads": threads}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
