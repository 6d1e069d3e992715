"""What two tunings share: φ of their updates' directions, principal angles, and what each does to W0."""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from rankprobe.analysis.compare_inputs import Sides, open_sides
from rankprobe.analysis.compare_matrix import directions, measure
from rankprobe.analysis.compare_tables import Comparison, tabulate
from rankprobe.errors import UsageError, must
from rankprobe.linalg.subspace import overlap
from rankprobe.weights.pair import Matrix

_GRID = "layers of "  # keys of a store that are no matrix's name


def compare(
    x,
    y,
    base=None,
    *,
    of: str = "right",
    top: int | None = None,
    across_layers: bool = False,
    include: str | None = None,
    exclude: str | None = None,
    alpha_x: float | None = None,
    alpha_y: float | None = None,
    intruders: bool = True,
    intruder_k: int = 10,
    intruder_eps: float = 0.5,
    device: str = "cpu",
    runs: str | Path = "runs",
    progress: Callable[[Matrix], None] | None = None,
) -> Comparison:
    """Compare the weight updates of two tunings, one matrix at a time.

    Parameters
    ----------
    x, y
        Two adapters, two tuned models, or one of each: a folder, a file, a rankprobe run, a hub id, a module, or a
        mapping of names to tensors.
    base
        W0, likewise; needed for tuned models, and for amplification and intruder dimensions. A rankprobe run's own is
        found without.
    of : str
        ``right`` or ``left``: singular vectors of dW, which do not depend on how dW splits into B and A; ``A``: right
        singular vectors of the factor A (the paper's figure 3), of adapters only.
    top : int, optional
        How many directions at most; by default all that an adapter has, and 64 of a dense dW.
    across_layers : bool
        Also compare every layer of X with every layer of Y.
    include, exclude : str, optional
        Regular expressions on matrices' names.
    alpha_x, alpha_y : float, optional
        LoRA's alpha, where the file does not hold it.
    intruders : bool
        Count intruder dimensions of the blocks' matrices: by far the dearest part for large ones.
    intruder_k : int
        Among how many leading left singular vectors of W1.
    intruder_eps : float
        A vector counts if its largest |cosine| with any of W0's is below this.
    device : str
        ``cpu`` or ``cuda``; all is in float64.
    runs : Path
        The run store, for runs given by name.
    progress : callable, optional
        Called with each Matrix of X before it is read.

    Returns
    -------
    Comparison

    Raises
    ------
    UsageError
        If an input cannot be read or holds NaN, X and Y share no matrix, a full model comes without its base, or no
        matrix was changed.

    References
    ----------
    Hu et al. (2021), arXiv:2106.09685, sections 7.2 and 7.3; Shuttleworth et al. (2024), arXiv:2410.21228.

    Examples
    --------
    >>> import torch
    >>> W0 = {"layers.0.q_proj.weight": torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))}
    >>> W1, W2 = ({name: W.clone() for name, W in W0.items()} for _ in range(2))
    >>> W1["layers.0.q_proj.weight"][0, 0] += 0.5
    >>> W2["layers.0.q_proj.weight"][0, :2] += 0.5
    >>> found = compare(W1, W2, W0)
    >>> found.overlap[["name", "i", "j", "phi"]].round(3).values.tolist()
    [['layers.0.q_proj.weight', 1, 1, 0.5]]
    >>> found.angles["angle_deg"].round(1).tolist()
    [45.0]
    >>> found.amplification[["side", "update_norm", "on_update"]].round(2).values.tolist()
    [['X', 0.5, 4.0], ['Y', 0.71, 2.83]]
    """
    sides = open_sides(x, y, base, of=of, include=include, exclude=exclude, alpha_x=alpha_x, alpha_y=alpha_y, runs=runs)
    return compare_sides(
        sides,
        of=of,
        top=top,
        across_layers=across_layers,
        intruder_k=intruder_k if intruders else 0,
        intruder_eps=intruder_eps,
        device=device,
        progress=progress,
    )


def compare_sides(
    sides: Sides,
    *,
    of: str = "right",
    top: int | None = None,
    across_layers: bool = False,
    intruder_k: int = 10,
    intruder_eps: float = 0.5,
    device: str = "cpu",
    progress: Callable[[Matrix], None] | None = None,
    store: MutableMapping[str, dict] | None = None,
) -> Comparison:
    """Compare inputs that are open already; see :func:`compare`.

    Parameters
    ----------
    sides : Sides
    intruder_k : int
        0 leaves intruder dimensions out.
    store : mutable mapping, optional
        What was measured, by name, as JSON can hold it. What is in it is not measured again; after an interrupt it
        holds all that was finished (:func:`collect`).

    Raises
    ------
    UsageError
        As :func:`compare`.
    """
    if top is not None and top < 1:
        raise UsageError(must("top", "be at least 1", top, "Pass a number of directions"))
    if intruder_k < 0:
        raise UsageError(must("intruder_k", "be at least 0", intruder_k, "Pass 10, the source's"))
    if not 0 < intruder_eps <= 1:
        raise UsageError(must("intruder_eps", "be above 0 and at most 1", intruder_eps, "Pass 0.5, the source's"))
    store = {} if store is None else store
    options = {"of": of, "top": top, "device": device}
    for group, pairs in _groups(sides, across_layers).items():
        key = _GRID + group
        open_grid = bool(group) and key not in store
        kept: list[tuple[int, Tensor, Tensor]] = []
        for x, y in pairs:
            if x.name in store and not (open_grid and store[x.name]["reason"] is None):
                continue
            if progress is not None:
                progress(x)
            if x.name in store:
                X = directions(x.delta(), **options)
                Y = X if sides.same else directions(y.delta(), **options)
            else:
                part, X, Y = measure(x, y, intruder_k=intruder_k, same=sides.same, one_base=sides.one_base, **options)
                store[x.name] = part
            if open_grid and X is not None and Y is not None:
                kept.append((x.layer, X.of, Y.of))
        if open_grid and len(kept) > 1:
            store[key] = {"matrix": group, "kind": pairs[0][0].kind, **_grid(kept)}
    found = collect(sides, store, of=of, intruder_eps=intruder_eps)
    if across_layers and found.layers.empty:
        found = replace(found, notes=(*found.notes, "No kind of matrix is there in two layers: none are compared"))
    return found


def collect(sides: Sides, store: MutableMapping[str, dict], *, of: str, intruder_eps: float = 0.5) -> Comparison:
    """The tables of what is measured so far.

    Raises
    ------
    UsageError
        If every matrix was measured and none has directions to compare.
    """
    parts = [store[x.name] for x, _ in sides.pairs if x.name in store]
    if parts and len(parts) == len(sides.pairs) and all(part["reason"] is not None for part in parts):
        got = f"{len(parts)} updates without a direction ({parts[0]['name']}: {parts[0]['reason']})"
        raise UsageError(must("X and Y", "have changed a matrix that both have", got, "Pass tuned weights"))
    groups = _groups(sides, True)
    return tabulate(
        parts,
        [store[_GRID + group] for group in groups if _GRID + group in store],
        skipped=sides.skipped,
        notes=sides.notes,
        labels=sides.labels,
        of=of,
        same=sides.same,
        intruder_eps=intruder_eps,
    )


def _groups(sides: Sides, across_layers: bool) -> dict[str, list[tuple[Matrix, Matrix]]]:
    """The pairs whose names differ in the layer alone, under that name; all else, in its order, under the empty one.

    Group after group, so that the directions of one kind of matrix are in memory and not those of the whole network.
    """
    groups: dict[str, list[tuple[Matrix, Matrix]]] = {}
    for x, y in sides.pairs:
        name = re.sub(r"\.\d+\.", ".N.", x.name, count=1) if across_layers and x.layer is not None else ""
        if name in groups and name and groups[name][0][0].shape != x.shape:
            name += f" ({x.shape[0]} x {x.shape[1]})"
        groups.setdefault(name, []).append((x, y))
    return groups


def _grid(kept: list[tuple[int, Tensor, Tensor]]) -> dict:
    """φ(r, r) of all pairs of layers, r the least number of directions among them."""
    r = min(min(X.shape[1], Y.shape[1]) for _, X, Y in kept)
    phi = [[float(overlap(X[:, :r], Y[:, :r])[-1, -1]) for _, _, Y in kept] for _, X, _ in kept]
    return {"layers": [layer for layer, _, _ in kept], "dim": kept[0][1].shape[0], "r": r, "phi": phi}
