"""What ``rankprobe spectrum`` left in a folder, read for tables and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rankprobe.analysis.spectrum_tables import read_ranks
from rankprobe.experiment.spectrum_files import LEFT_OUT_FILE, RANKS_FILE, SPECTRA_FILE, VECTORS_FILE

_CHUNK = 200_000  # rows of spectra.csv in memory at once: a 7B model has a million
_POINTS = 20_000  # of all lines of a picture together: an SVG of about half a megabyte


@dataclass(frozen=True)
class SpectrumResult:
    """Tables of one pair, and what they are of.

    Attributes
    ----------
    ranks, vectors, left_out : DataFrame
        ranks.csv, vectors.csv and not_compared.csv; the last two may have no row.
    spectra : DataFrame
        spectra.csv thinned for a log axis: name, index, sigma.
    base : str or None
        Label of the base.
    tuned : str
    energy : float
        Share of Σσ² whose energy rank is shown.
    notes : list of str
    """

    ranks: pd.DataFrame
    vectors: pd.DataFrame
    left_out: pd.DataFrame
    spectra: pd.DataFrame
    base: str | None
    tuned: str
    energy: float
    notes: list[str]


def read_result(
    folder: Path, *, base: str | None, tuned: str, energy: float, notes: list[str], spectra: bool = True
) -> SpectrumResult:
    """Read the tables of a folder; without spectra.csv where ``spectra`` is False."""
    ranks = read_ranks(folder / RANKS_FILE)
    lines = thinned(folder / SPECTRA_FILE, ranks) if spectra else pd.DataFrame(columns=["name", "index", "sigma"])
    vectors, left_out = (_read(folder / name) for name in (VECTORS_FILE, LEFT_OUT_FILE))
    return SpectrumResult(ranks, vectors, left_out, lines, base, tuned, energy, notes)


def thinned(path: Path, ranks: pd.DataFrame) -> pd.DataFrame:
    """spectra.csv with no more values of a matrix than a line on a log axis shows.

    All of the first values are kept, then ever fewer, and the last ones, where a square matrix falls off.

    Parameters
    ----------
    path : Path
    ranks : DataFrame
        ranks.csv beside it: how long each spectrum is.

    Returns
    -------
    DataFrame
        name, index, sigma.
    """
    p = ranks[["m", "n"]].min(axis=1)
    longest = int(p.max()) if len(p) else 1
    each = max(24, min(100, _POINTS // max(1, len(ranks))))
    places = set(np.unique(np.geomspace(1, longest, each).round().astype(int)).tolist())
    lengths = pd.Series(p.to_numpy(), index=ranks["name"])
    parts = []
    for chunk in pd.read_csv(path, chunksize=_CHUNK, keep_default_na=False):
        left = chunk["name"].map(lengths) - chunk["index"]
        parts.append(chunk[chunk["index"].isin(places) | left.isin((0, 1, 3, 7, 15, 31))])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["name", "index", "sigma"])


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, na_values=[""]) if path.is_file() else pd.DataFrame()
