"""One weight matrix in two tunings: what their updates share, and what each does to W0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from rankprobe.linalg.against_base import amplification, base_cosines
from rankprobe.linalg.decompose import singular_values, svd_dense, svd_factored
from rankprobe.linalg.directions import leading_directions
from rankprobe.linalg.subspace import overlap, principal_angles, random_angles, random_overlap
from rankprobe.weights.delta import Delta
from rankprobe.weights.pair import Matrix

TOP = 64
# Directions of a dense dW below this share of the first are rounding of its decomposition, not of the weights.
_RESOLVED = 1e-7


@dataclass(frozen=True)
class Directions:
    """The leading part of one update.

    Attributes
    ----------
    U, S, Vh : Tensor, shapes (m, r), (r,) and (r, n), float64
        Its singular triplets.
    of : Tensor, shape (m or n, k), float64
        The directions that are compared, as columns.
    energy : float
        Share of ``||dW||_F²`` in the r triplets.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    of: Tensor
    energy: float


def directions(delta: Delta, *, of: str = "right", top: int | None = None, device: str = "cpu") -> Directions | None:
    """The directions of an update; None for a zero one, which has none.

    Parameters
    ----------
    delta : Delta
    of : str
        ``right`` or ``left``: dW's singular vectors; ``A``: the right singular vectors of the factor A.
    top : int, optional
        How many at most; by default all that factors have, and 64 of a dense dW.
    device : str
        Where it is decomposed; the result is on the CPU.
    """
    name = f"dW of {delta.name}"
    if delta.dW is None:
        B, A = delta.B.to(device), delta.A.to(device)
        U, S, Vh = svd_factored(B, A, delta.scaling, name=name)
        least = max(delta.shape) * torch.finfo(torch.float64).eps
        total = float(S.square().sum())
    else:
        found = leading_directions(delta.dW.to(device), top or TOP, name=name)
        U, S, Vh, total = found.U, found.S, found.Vh, found.energy
        least = _RESOLVED
    if float(S[0]) == 0:
        return None
    r = min(int((S / S[0] > least).sum()), top or len(S))
    U, S, Vh = U[:, :r].cpu(), S[:r].cpu(), Vh[:r].cpu()
    if of == "A":
        _, of_A, rows = svd_dense(A, name=f"A of {name}")
        kept = min(int((of_A / of_A[0] > least).sum()), top or len(of_A))
        chosen = rows[:kept].T.cpu()
    else:
        chosen = Vh.T if of == "right" else U
    return Directions(U, S, Vh, chosen, min(1.0, float(S.square().sum()) / total))


def measure(
    x: Matrix,
    y: Matrix,
    *,
    of: str = "right",
    top: int | None = None,
    intruder_k: int = 10,
    same: bool = False,
    one_base: bool = False,
    device: str = "cpu",
) -> tuple[dict, Directions | None, Directions | None]:
    """Compare one matrix of X with its partner in Y.

    Parameters
    ----------
    x, y : Matrix
        Read here, one after the other.
    of, top, device
        As for :func:`directions`.
    intruder_k : int
        How many left singular vectors of W1 to look at; 0 leaves intruder dimensions out.
    same : bool
        Y is X: it is read once.
    one_base : bool
        Both have the same W0: it is decomposed once.

    Returns
    -------
    part : dict
        Numbers and lists that JSON can hold: ``row`` (of compare.csv), ``phi``, ``angles_deg``, ``amplification``,
        ``cosines``; or a ``reason`` why there are none.
    X, Y : Directions or None

    Raises
    ------
    UsageError
        If a matrix holds NaN or infinity; it is named.
    """
    part = {"name": x.name, "layer": x.layer, "kind": x.kind, "reason": None}
    k = intruder_k if x.layer is not None and x.kind != "embed" else 0
    sides: list[Directions] = []
    bases: list[_Base] = []
    for role, matrix in (("X", x), ("Y", y)):
        if role == "Y" and same:
            sides.append(sides[0])
            break
        delta = matrix.delta()
        found = directions(delta, of=of, top=top, device=device)
        if found is None:
            return {**part, "reason": f"the update of {role} is zero: no directions"}, None, None
        sides.append(found)
        if delta.W0 is not None and bool(delta.W0.any()):
            W0 = delta.W0.to(device)
            row = _amplification(W0, found)
            W1 = _tuned(delta, device) if k else None
            del delta  # dW, the largest of all, is not needed any more
            U1 = leading_directions(W1, k, name=f"W1 of {matrix.name}").U if k else None
            del W1
            if role == "Y" and one_base and bases:
                bases[0].members.append((role, row, U1))
            else:
                bases.append(_Base(W0, [(role, row, U1)]))
    if same and bases:
        bases[0].members.append(("Y", *bases[0].members[0][1:]))
    X, Y = sides
    part["row"] = {**_row(X, Y, of), "source_x": x.source, "source_y": y.source, "m": x.shape[0], "n": x.shape[1]}
    part["phi"] = overlap(X.of, Y.of).tolist()
    part["angles_deg"] = (principal_angles(X.of, Y.of) * (180 / math.pi)).tolist()
    part["amplification"], part["cosines"] = [], []
    for base in bases:
        rows, cosines = _against(base, k, x.name, alone=len(bases) == 1)
        part["amplification"] += rows
        part["cosines"] += cosines
    return part, X, Y


@dataclass(frozen=True)
class _Base:
    """One W0 and the sides tuned from it: role, row of amplification, leading left vectors of W1."""

    W0: Tensor
    members: list[tuple[str, dict, Tensor | None]]


def _amplification(W0: Tensor, found: Directions) -> dict:
    """A row of table 7 but for W0's own directions: norms of dW's leading part and of W0 on dW's directions."""
    r = len(found.S)
    got = amplification(W0, found.U.to(W0.device), found.S, found.Vh.to(W0.device))
    norm = got.on_random * math.sqrt(W0.numel()) / r
    return {"r": r, "base_norm": norm, "update_norm": got.update, "on_update": got.on_update,
            "on_random": got.on_random, "factor": got.factor}


def _tuned(delta: Delta, device: str) -> Tensor:
    """W1, as stored where it is at hand, else W0 with the factors' update, in float64."""
    if delta.W1 is not None:
        return delta.W1.to(device)
    W0 = delta.W0.to(device)
    if delta.dW is not None:
        return delta.dW.to(device) + W0
    return torch.addmm(W0.double(), delta.B.double().to(device), delta.A.double().to(device), alpha=delta.scaling)


def _against(base: _Base, k: int, name: str, *, alone: bool) -> tuple[list[dict], list[dict]]:
    """Rows of amplification with W0's own directions, and cosines with its left singular vectors.

    The control is W0's own leading vectors, found as W1's are and compared with all of W0's, found in another way.
    """
    if not k:
        S, cosines = singular_values(base.W0, name=f"W0 of {name}").S, []
    else:
        own = leading_directions(base.W0, k, name=f"W0 of {name}").U
        control = ("W0" if alone else f"W0 of {base.members[0][0]}", {}, own)
        looked_at = [*base.members, control]
        found, index, S = base_cosines(torch.cat([U1 for *_, U1 in looked_at], dim=1), base.W0)
        each = found.reshape(len(looked_at), -1).tolist(), index.reshape(len(looked_at), -1).tolist()
        cosines = [{"side": role, "cosines": one, "index": at}
                   for (role, *_), one, at in zip(looked_at, *each, strict=True)]
    rows = [{"side": role, **row, "on_base": float(S[: row["r"]].square().sum().sqrt())}
            for role, row, _ in base.members]
    return rows, cosines


def _row(X: Directions, Y: Directions, of: str) -> dict:
    """The numbers of compare.csv that φ and the angles give."""
    dim, (i, j) = X.of.shape[0], (X.of.shape[1], Y.of.shape[1])
    phi = overlap(X.of, Y.of).numpy()
    mean, low, high = chance(dim, i, j)
    small = min(i, j)
    # φ grows with the number of directions by chance alone: the best place is where it exceeds chance the most.
    best = np.unravel_index(np.argmax(phi - mean), phi.shape)
    row = {"dim": dim, "r_x": i, "r_y": j, "energy_x": X.energy, "energy_y": Y.energy}
    places = {"phi_1_1": (0, 0), "phi_min_min": (small - 1, small - 1), "phi_rx_ry": (i - 1, j - 1), "best_phi": best}
    for label, at in places.items():
        row |= {label: float(phi[at]), f"{label}_random_mean": float(mean[at]),
                f"{label}_random_low": float(low[at]), f"{label}_random_high": float(high[at])}
    row |= {"best_i": int(best[0]) + 1, "best_j": int(best[1]) + 1}
    angles = (principal_angles(X.of, Y.of) * (180 / math.pi)).numpy()
    drawn = angle_chance(dim, i, j)
    for label, take in (("min", np.min), ("median", np.median), ("max", np.max)):
        draws = take(drawn, axis=1)
        row |= {f"angle_{label}_deg": float(take(angles)), f"angle_{label}_random_mean": float(draws.mean()),
                f"angle_{label}_random_low": float(np.quantile(draws, 0.025)),
                f"angle_{label}_random_high": float(np.quantile(draws, 0.975))}
    for one, other, own, span, k in (("x", "y", X, Y, j), ("y", "x", Y, X, i)):
        vectors = own.U if of == "left" else own.Vh.T
        inside = (vectors.T @ span.of).square().sum(dim=1)
        power = own.S.square()
        row |= {f"share_{one}_in_{other}": float((power * inside).sum() / power.sum()),
                f"share_{one}_in_{other}_random": k / dim}
    return row


@lru_cache(maxsize=16)
def chance(dim: int, i: int, j: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and 95 % interval of φ(a, b) between random subspaces, for all a ≤ i and b ≤ j."""
    return random_overlap(dim, np.arange(1, i + 1)[:, None], np.arange(1, j + 1)[None, :])


def angle_chance(dim: int, i: int, j: int) -> np.ndarray:
    """Principal angles between random subspaces in degrees, a row a draw; fewer draws of large ones."""
    draws = int(min(400, max(40, 400 * (64 / min(i, j)) ** 2)))
    return np.degrees(random_angles(dim, i, j, draws=draws).numpy())
