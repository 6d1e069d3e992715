"""What two finished runs share, as it is kept: read without what compares them (torch)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from rankprobe.experiment.store import finished

# Attributes of a Comparison by the file that each is kept in.
TABLES = {
    "compare": "matrices",
    "overlap": "overlap",
    "amplification": "amplification",
    "intruders": "intruders",
}


def read_pair(folder: Path) -> dict[str, pd.DataFrame] | None:
    """A finished comparison's tables; None where there is none."""
    if not finished(folder):
        return None
    return {key: pd.read_csv(Path(folder) / f"{key}.csv") for key in TABLES}


def read_pairs(folders: Mapping[str, Path]) -> dict[str, dict[str, pd.DataFrame]]:
    """Those of some comparisons that are finished, by their names."""
    return {name: found for name, folder in folders.items() if (found := read_pair(folder)) is not None}
