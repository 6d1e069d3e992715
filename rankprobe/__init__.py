"""rankprobe: what rank does your fine-tuning need, and is LoRA really as good here?

``rankprobe.spectrum``, ``rankprobe.compare`` and ``rankprobe.extract`` measure weight updates from Python, and
``rankprobe.RankCallback`` logs ranks while transformers.Trainer trains; the command ``rankprobe --help`` lists what
there is beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rankprobe.api import compare, extract, spectrum
    from rankprobe.callback import RankCallback

__version__ = "0.1.0"
__all__ = ["RankCallback", "__version__", "compare", "extract", "spectrum"]


def __getattr__(name: str):
    """Import the functions when they are first asked for: torch takes seconds, and --help has no need of it."""
    if name in ("compare", "extract", "spectrum"):
        from rankprobe import api

        return getattr(api, name)
    if name == "RankCallback":
        from rankprobe.callback import RankCallback

        return RankCallback
    raise AttributeError(f"module 'rankprobe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
