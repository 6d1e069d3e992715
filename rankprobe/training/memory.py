"""Peak memory of a stretch of work."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys

import torch


def reset_peak(device: str) -> None:
    """Start measuring: the peak so far is forgotten, where the system can (Linux, CUDA)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        _return_free_memory()
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        except OSError:  # containers may forbid it; the figure is then the process's peak so far
            pass


def _return_free_memory() -> None:
    """Let the allocator give free memory back, or an earlier run's would count as this one's."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_bytes(device: str) -> int:
    """Peak since :func:`reset_peak`, in bytes: of CUDA's allocator, else of the process's resident memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
