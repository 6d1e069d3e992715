"""The three questions as functions: what rank is this update, what do two tunings share, and where is the adapter?

They take what the commands take, and models in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankprobe.analysis.compare import compare
from rankprobe.analysis.extract import Extraction
from rankprobe.analysis.extract import extract as extract_pairing
from rankprobe.analysis.rank_columns import ENERGY_SHARES
from rankprobe.analysis.spectrum import spectrum_of
from rankprobe.errors import UsageError, must
from rankprobe.weights.inputs import base_of, open_input
from rankprobe.weights.pair import Matrix, Pairing, pair

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compare", "extract", "spectrum"]


def spectrum(
    base,
    tuned=None,
    *,
    alpha: float | None = None,
    include: str | None = None,
    exclude: str | None = None,
    energies: Sequence[float] = ENERGY_SHARES,
    base_rounded: bool = False,
    noise: bool = True,
    device: str = "cpu",
    runs: str | Path = "runs",
    offline: bool = False,
    return_spectra: bool = False,
) -> pd.DataFrame | tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the rank of every weight update, by every definition.

    Parameters
    ----------
    base, tuned : str, Path, nn.Module or mapping of str to Tensor
        A Hugging Face folder, a file of weights, a rankprobe run, a hub name, a model or a state dict in memory.
        ``tuned`` may be a LoRA adapter. With one argument it is the tuned one: an adapter needs no base, and a run's
        own is found.
    alpha : float, optional
        ``lora_alpha`` of an adapter whose file does not hold it.
    include, exclude : str, optional
        Regular expressions searched in the matrices' names.
    energies : sequence of float
        Shares of Σσ²; each gives a column ``energy_rank_<per cent>``.
    base_rounded : bool
        The base was rounded after training as the tuned model was: its rounding is noise, too.
    noise : bool
        Draw the rounding noise that ``storage_rank`` is held against: twice the time and more.
    device : str
        ``cpu`` or ``cuda``; all is in float64.
    runs : Path
        Where runs are looked for by name.
    offline : bool
        Never ask the hub.
    return_spectra : bool
        Return the singular values as well.

    Returns
    -------
    ranks : DataFrame
        A row a matrix: the columns of ranks.csv, as :func:`rankprobe.analysis.spectrum.spectrum` describes them.
    spectra : DataFrame
        With ``return_spectra``: name, index (from 1), sigma.

    Raises
    ------
    UsageError
        If an input cannot be read, the two are no pair, or a matrix holds NaN or infinity.
    WorkError
        If the hub does not answer.

    Examples
    --------
    >>> import torch, rankprobe
    >>> W0 = {"layers.0.q_proj.weight": torch.zeros(8, 8)}
    >>> W1 = {"layers.0.q_proj.weight": torch.diag(torch.tensor([3.0, 1.0, 0, 0, 0, 0, 0, 0]))}
    >>> ranks = rankprobe.spectrum(W0, W1)
    >>> ranks[["kind", "sigma_max", "energy_rank_90", "numerical_rank"]].values.tolist()
    [['q', 3.0, 1, 2]]
    """
    pairing = _open_pair(base, tuned, alpha=alpha, include=include, exclude=exclude, runs=runs, offline=offline)
    if not pairing.matrices:
        got = f"none in {pairing.tuned.label}"
        raise UsageError(must("base and tuned", "have a matrix to compare", got, "Change include and exclude"))
    ranks, spectra = spectrum_of(
        pairing, energies=energies, base_rounded=base_rounded, noise=noise, device=device
    )
    return (ranks, spectra) if return_spectra else ranks


def extract(
    base,
    tuned=None,
    out: str | Path | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    noise: bool = False,
    budget: int | None = None,
    alpha: float | None = None,
    embeddings: str = "lora",
    include: str | None = None,
    exclude: str | None = None,
    dtype: str = "float32",
    base_model: str = "",
    base_rounded: bool = False,
    device: str = "cpu",
    overwrite: bool = False,
    runs: str | Path = "runs",
    offline: bool = False,
    progress: Callable[[Matrix], None] | None = None,
) -> Extraction:
    """Make a LoRA adapter of a full fine-tuning, or resize an adapter.

    Parameters
    ----------
    base, tuned
        As for :func:`spectrum`. An adapter as ``tuned`` is resized.
    out : Path, optional
        A new or empty folder for the adapter, in PEFT's format. None computes all and writes nothing.
    rank : int, optional
        So many directions of every matrix.
    energy : float, optional
        The fewest directions that hold this share of each matrix's Σσ².
    noise : bool
        The directions above the rounding of the stored weights. One of the four has to be given.
    budget : int, optional
        Parameters of all factors together, spent where they hold most.
    alpha : float, optional
        ``lora_alpha`` of an adapter whose file does not hold it.
    embeddings, include, exclude, dtype, base_model, base_rounded, device, overwrite, progress
        As for :func:`rankprobe.analysis.extract.extract`.
    runs, offline
        As for :func:`spectrum`.

    Returns
    -------
    Extraction
        ``table`` (a row a matrix), ``summary``, ``beside``, ``lost``, ``notes``, ``folder``.

    Raises
    ------
    UsageError
        If an input cannot be read, the two are no pair, nothing changed, or the rule or ``out`` does not do.
    OSError
        If the disk is full or refuses.

    Examples
    --------
    >>> import torch, rankprobe
    >>> W0 = {"layers.0.q_proj.weight": torch.zeros(8, 8)}
    >>> W1 = {"layers.0.q_proj.weight": torch.diag(torch.tensor([3.0, 1.0, 0, 0, 0, 0, 0, 0]))}
    >>> done = rankprobe.extract(W0, W1, rank=1)
    >>> done.summary["parameters"], round(done.summary["kept_energy"], 3)
    (16, 0.9)
    """
    # Names are filtered by extract: what belongs together in the adapter has to be seen whole.
    pairing = _open_pair(base, tuned, alpha=alpha, runs=runs, offline=offline, fused=True)
    return extract_pairing(
        pairing, out, rank=rank, energy=energy, noise=noise, budget=budget, embeddings=embeddings, include=include,
        exclude=exclude, dtype=dtype, base_model=base_model, base_rounded=base_rounded, device=device,
        overwrite=overwrite, progress=progress,
    )  # fmt: skip


def _open_pair(base, tuned, *, alpha: float | None, runs: str | Path, offline: bool, **how) -> Pairing:
    """Open one input or two; what is alone is the tuned one."""
    if tuned is None:
        base, tuned = None, base
    opened = open_input(tuned, alpha=alpha, role="tuned", runs=runs, offline=offline)
    if base is None and isinstance(tuned, str | Path):
        base = base_of(tuned, runs, offline=offline)
    return pair(None if base is None else open_input(base, role="base", runs=runs, offline=offline), opened, **how)
