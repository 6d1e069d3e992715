"""Updates taken apart by SVD, and a model whose updates keep only their best rank-k part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.linalg.decompose import svd_dense, svd_factored
from rankprobe.weights.architecture import WeightSite
from rankprobe.weights.delta import Delta

RULES = ("rest_tuned", "rest_base")


@dataclass(frozen=True)
class UpdateSVD:
    """The SVD of one update beside the place that it belongs to; every rank-k part comes from it.

    Attributes
    ----------
    site : WeightSite
    U, S, Vh : Tensor, shapes (m, p), (p,) and (p, n)
        p is min(m, n), for factors min(r, m, n). Float32 unless the weight is float64: half the memory, and no more
        error than the weight's own storage.
    """

    site: WeightSite
    U: Tensor
    S: Tensor
    Vh: Tensor

    def best(self, k: int) -> Tensor:
        """The best rank-k part of dW, shape (m, n); all of dW where k is p or more."""
        return (self.U[:, :k] * self.S[:k]) @ self.Vh[:k]


def most_directions(updates: Iterable[UpdateSVD]) -> int:
    """Largest number of directions that an update has: the k from which on nothing is cut."""
    return max(len(update.S) for update in updates)


def decompose_updates(
    W0: Mapping[str, Tensor], W1: Mapping[str, Tensor], deltas: Iterable[Delta], sites: Sequence[WeightSite]
) -> list[UpdateSVD]:
    """One SVD for each update inside the blocks.

    Parameters
    ----------
    W0, W1 : mapping of str to Tensor
        Parameters before and after (LoRA: merged), of the same names and shapes.
    deltas : iterable of Delta
        Read once. Those at no site (embeddings) are passed over, they are part of the rest.
    sites : sequence of WeightSite
        The blocks' linear weights, :func:`rankprobe.weights.architecture.block_sites`.

    Returns
    -------
    list of UpdateSVD
        In the order of the deltas.

    Raises
    ------
    UsageError
        If no delta is at a site, a delta is not what W1 - W0 is there, or a weight changed at a site without a delta.
    """
    by_name = {site.name: site for site in sites}
    updates: dict[str, UpdateSVD] = {}
    for delta in deltas:
        site = by_name.get(delta.name)
        if site is None:
            continue
        name = f"dW of {delta.name}"
        if tuple(delta.shape) != tuple(site.shape):
            rule = f"have its site's shape {tuple(site.shape)}"
            raise UsageError(must(name, rule, tuple(delta.shape), "Pass deltas of this model"))
        if delta.dW is not None:
            U, S, Vh = svd_dense(delta.dW, name=name)
        else:
            U, S, Vh = svd_factored(delta.B, delta.A, delta.scaling, name=name)
        stored = W1[site.parameter]
        before, after = site.get(W0[site.parameter]).double(), site.get(stored).double()
        missing = float((after - before - ((U * S) @ Vh).to(after.device)).norm())
        # W1 may have been rounded to its dtype when the update was merged, and more than once.
        if missing > 4 * torch.finfo(stored.dtype).eps * float(before.norm() + after.norm()):
            got = f"a difference of {missing:.3g} in Frobenius norm, the update's own being {float(S.norm()):.3g}"
            raise UsageError(must(name, "be W1 - W0", got, "Pass deltas, W0 and merged W1 of one run"))
        dtype = torch.promote_types(stored.dtype, torch.float32)
        updates[site.name] = UpdateSVD(site, *(t.to(stored.device, dtype).contiguous() for t in (U, S, Vh)))
    if not updates:
        raise UsageError(must("deltas", "hold a linear weight of the blocks", f"none of {len(by_name)} sites",
                              "Check that names agree (a model's prefix, bert., is part of them)"))
    for site in sites:
        if site.name not in updates and not torch.equal(site.get(W0[site.parameter]), site.get(W1[site.parameter])):
            rule = "have a delta, since W1 differs from W0 there"
            raise UsageError(must(site.name, rule, "none", "Pass the deltas of the whole run"))
    return list(updates.values())


def truncated_state(
    W0: Mapping[str, Tensor], W1: Mapping[str, Tensor], updates: Iterable[UpdateSVD], k: int, rule: str,
    head: AbstractSet[str],
) -> dict[str, Tensor]:
    """Parameters with ``W0 + [dW]_k`` in every updated block weight.

    Parameters
    ----------
    W0, W1 : mapping of str to Tensor
        Neither is changed. Tensors that truncation leaves alone are shared with the result, not copied.
    updates : iterable of UpdateSVD
    k : int
        At least 0. At 0 the weights are W0's own and from p on W1's own, bit for bit, not sums that nearly are.
    rule : str
        ``rest_tuned``: all the rest (head, embeddings, norms, biases) as in W1. ``rest_base``: the head as in W1, all
        the rest as in W0.
    head : set of str
        Parameter names of the head.

    Returns
    -------
    dict of str to Tensor
    """
    state = {name: W1[name] if rule == "rest_tuned" or name in head else W0[name] for name in W1}
    updates = list(updates)
    for name in {update.site.parameter for update in updates}:
        state[name] = state[name].detach().clone()
    for update in updates:
        site = update.site
        before, after = site.get(W0[site.parameter]).detach(), site.get(W1[site.parameter]).detach()
        if k == 0:
            kept = before
        elif k < len(update.S):
            kept = before.to(update.S.dtype) + update.best(k)
        else:
            kept = after
        site.set_(state[site.parameter], kept)
    return state
