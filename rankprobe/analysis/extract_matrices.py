"""An extraction's matrices one after the other, and the sums over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rankprobe.analysis.choose_ranks import Part, Rule, all_values, leading_part, share_budget
from rankprobe.analysis.extract_layout import Layout, Target
from rankprobe.analysis.extract_work import Work
from rankprobe.errors import UsageError, must
from rankprobe.linalg.factored import svdvals_factored
from rankprobe.weights.delta import Delta
from rankprobe.weights.pairing import Matrix

COLUMNS = (
    "name", "layer", "kind", "m", "n", "source", "fro_norm", "r", "parameters", "kept_energy", "residual",
    "relative_error", "storage_rank", "swallowed", "decomposition",
)  # fmt: skip


def decompose(
    layout: Layout, rule: Rule, work: Work | None, *, dtype: torch.dtype, device: str = "cpu",
    base_rounded: bool = False, progress: Callable[[Matrix], None] | None = None,
) -> tuple[dict[str, dict], float | None]:
    """Factors of every target, kept in ``work``.

    Parameters
    ----------
    layout : Layout
    rule : Rule
    work : Work or None
        Matrices that it has are not done again. None keeps no factors.
    dtype : torch.dtype
        Of the factors.
    device, base_rounded, progress
        As for :func:`rankprobe.analysis.extract.extract`.

    Returns
    -------
    rows : dict of str to dict
        By module, with :data:`COLUMNS`.
    slack : float or None
        Of :func:`rankprobe.analysis.choose_ranks.share_budget`, for the rule ``budget``.
    """
    progress = progress or (lambda matrix: None)
    bought, slack = {}, None
    if rule.budget is not None:
        bought, slack = _budget(layout, rule.budget, work, device, progress)
    rows = {}
    for target in layout.targets:
        progress(target.matrix)
        row = None if work is None else work.row(target.module)
        if row is None:
            delta = target.matrix.delta()
            part = leading_part(delta, rule, k=bought.get(target.module), device=device, base_rounded=base_rounded)
            root = part.S.sqrt()
            B, A = (_stored(X, dtype, delta.name) for X in (part.U * root, root[:, None] * part.Vh))
            row = _row(target, delta, part, B, A)
            del delta
            if work is not None:
                work.put(target.module, row, {"B": B, "A": A})
        rows[target.module] = row
    return rows, slack


def _budget(
    layout: Layout, budget: int, work: Work | None, device: str, progress: Callable[[Matrix], None]
) -> tuple[dict[str, int], float]:
    values, costs = {}, {}
    for target in layout.targets:
        key = f"values of {target.module}"
        progress(target.matrix)
        if work is not None and work.row(key) is not None:
            values[target.module] = work.read(key, "S")
        else:
            values[target.module] = all_values(target.matrix.delta(), device)
            if work is not None:
                work.put(key, {}, {"S": values[target.module]})
        costs[target.module] = target.cost
    return share_budget(values, costs, budget)


def nothing_kept(rows: dict[str, dict], tuned: str) -> UsageError:
    """Why no matrix has directions."""
    if any(row["swallowed"] for row in rows.values()):
        got = f"{tuned}, whose dtype swallowed them"
        next_step = "Pass --rank, --energy or --budget to keep what there is"
        return UsageError(must("TUNED", "have updates above the rounding of their storage", got, next_step))
    if any(row["fro_norm"] for row in rows.values()):
        got = "none in any matrix"
        return UsageError(must("--noise", "leave directions", got, "Pass --rank, --energy or --budget"))
    got = f"no change in {len(rows)} matrices of {tuned}"
    return UsageError(must("TUNED", "differ from BASE", got, "Pass the two sides of a fine-tuning"))


def _stored(factor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    cast = factor.to("cpu", dtype)
    if not bool(cast.isfinite().all()):
        got = f"values up to {float(factor.abs().max()):.3g}"
        rule = f"have factors that fit into {str(dtype).removeprefix('torch.')}"
        raise UsageError(must(name, rule, got, "Pass --dtype float32"))
    return cast


def _row(target: Target, delta: Delta, part: Part, B: Tensor, A: Tensor) -> dict:
    norm = math.sqrt(part.energy)
    residual = part.residual
    if B.dtype != torch.float32 and len(part.S):
        residual = _residual(delta, B, A)
    k, (m, n) = len(part.S), delta.shape
    return {
        "name": target.matrix.name, "layer": delta.layer, "kind": delta.kind, "m": m, "n": n, "source": delta.source,
        "fro_norm": norm, "r": k, "parameters": k * target.cost,
        "kept_energy": 1 - (part.residual / norm) ** 2 if norm else None, "residual": residual,
        "relative_error": residual / norm if norm else None, "storage_rank": part.storage_rank,
        "swallowed": part.swallowed, "decomposition": part.method,
    }  # fmt: skip


def _residual(delta: Delta, B: Tensor, A: Tensor) -> float:
    """||dW - B @ A||_F of factors that were rounded."""
    B, A = B.double(), A.double()
    if delta.dW is None:
        B = torch.cat([delta.scaling * delta.B.double(), -B], 1)
        return float(svdvals_factored(B, torch.cat([delta.A.double(), A]), name=delta.name).norm())
    step = max(1, 2**22 // delta.shape[1])
    parts = zip(delta.dW.split(step), B.split(step), strict=True)
    return math.hypot(*(float((rows.double() - b @ A).norm()) for rows, b in parts))


def why_none(row: dict, rule: Rule) -> str:
    """Why a matrix has no directions in the adapter."""
    if row["swallowed"]:
        return "the storage dtype swallowed most of its update: no rank can be told"
    if rule.noise:
        return "nothing of its update is above the rounding of its storage"
    return "the budget bought none of its directions" if rule.budget is not None else "no direction was kept"


def kept_shares(rows: list[dict], beside: list[dict], lost: list[dict]) -> dict[str, float]:
    """Kept shares of ||dW||², over the matrices that could have factors and over all that was measured."""
    total = math.fsum(row["fro_norm"] ** 2 for row in rows)
    kept = math.fsum((row["kept_energy"] or 0) * row["fro_norm"] ** 2 for row in rows)
    names = {row["name"] for row in rows}
    whole = math.fsum((one["change"] or 0) ** 2 for one in beside)
    gone = math.fsum((one["change"] or 0) ** 2 for one in lost if one["name"] not in names)
    return {"kept_energy": kept / total, "kept_of_all": (kept + whole) / (total + whole + gone)}
