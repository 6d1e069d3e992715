"""Pair an adapter's modules with the base's matrices; without a base its factors stand alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from rankprobe.errors import UsageError, must
from rankprobe.weights.architecture import WeightSite, layer_of, weight_sites, why_whole
from rankprobe.weights.differences import added_vector, factored_delta
from rankprobe.weights.factors import AdapterModule, AdapterSource
from rankprobe.weights.fused import FUSED_KINDS
from rankprobe.weights.matching import Matching, match
from rankprobe.weights.pair_tensors import Found, pair_tensors
from rankprobe.weights.pairing import Matrix

if TYPE_CHECKING:
    from rankprobe.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class _Saved:
    """An adapter's whole tensors, as one side of a pair."""

    adapter: AdapterSource

    @property
    def label(self) -> str:
        return self.adapter.label

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self.adapter.saved)

    @property
    def dtypes(self) -> dict[str, str]:
        return {name: self.adapter.saved_dtype(name) for name in self.adapter.saved}

    def read(self, name: str) -> Tensor:
        return self.adapter.read_saved(name)


def pair_adapter(
    base: Checkpoint | None, adapter: AdapterSource, found: Found, *, fused: bool, keep: Callable[[str], bool]
) -> tuple[Matching, list[str]]:
    """Add an adapter's updates to what was found.

    Parameters
    ----------
    base : Checkpoint or None
    adapter : AdapterSource
    found : Found
        Added to, in place.
    fused : bool
        Whether fused matrices stay whole.
    keep : callable
        Whether a name is asked for.

    Returns
    -------
    matching : Matching
        Empty but for the prefixes; what an adapter does not touch is no news.
    saved : list of str
        Whole tensors that the base has no counterpart of.

    Raises
    ------
    UsageError
        If a module of a block is missing in the base or has another shape there.
    """
    found.skipped.update(adapter.skipped)
    modules = {f"{path}.weight": path for path in adapter.modules}
    # PEFT saves an adapted embedding whole, too, where it may have been resized: the base's own numbers.
    found.skipped.update({name: "saved whole beside its factors, which are what is measured"
                          for name in adapter.saved if name in modules})
    saved = {name: shape for name, shape in adapter.saved.items() if name not in modules}
    biases = {f"{path}.bias" for path, of in adapter.modules.items() if of.bias is not None}
    if base is None:
        for name, path in modules.items():
            _add(None, adapter, path, None, _alone(adapter, name, path, fused=fused), found, {}, fused=fused)
        for name in sorted(biases):
            found.vectors[name] = partial(added_vector, None, adapter, name.removesuffix(".bias"), None)
        return Matching([], [], [], ("", "")), list(saved)
    ours = {name: adapter.modules[path].shape for name, path in modules.items()}
    ours |= {name: adapter.modules[name.removesuffix(".bias")].shape[:1] for name in biases}
    matching = match(base.shapes, {**ours, **saved}, base_tied=base.tied)
    in_base = {tuned: name for name, tuned in matching.pairs}
    sites: dict[str, list[WeightSite]] = {}
    whole = {site.parameter: site for site in weight_sites(base.shapes, fused=True, config=base.config)}
    for site in weight_sites(base.shapes, fused=fused, config=base.config):
        sites.setdefault(site.parameter, []).append(site)
    for name, path in modules.items():
        b = in_base.get(name)
        of = sites[b] if b in sites else _alone(adapter, name, path, fused=fused)
        if not any(keep(_name(path, site)) for site in of):
            continue
        _check_fits(base, adapter, name, path, whole.get(b), found)
        if b is None:
            found.notes.append(f"{base.label} has no {path}: its update stands without W0")
        _add(base, adapter, path, b, of, found, base.config, fused=fused)
    for name in sorted(biases):
        read = partial(added_vector, base, adapter, name.removesuffix(".bias"), in_base.get(name))
        found.vectors[name] = read
    pairs = [(b, t) for b, t in matching.pairs if t in saved]
    pair_tensors(pairs, base, _Saved(adapter), base.config, found, fused=fused, keep=keep)
    return replace(matching, pairs=[], only_base=[], only_tuned=[]), [n for n in saved if n not in in_base]


def _alone(adapter: AdapterSource, name: str, path: str, *, fused: bool) -> list[WeightSite]:
    """Sites of a module whose base is not at hand, by its name and the factors' shape."""
    sites = weight_sites({name: adapter.modules[path].shape}, fused=fused)
    conv1d = bool(adapter.config.get("fan_in_fan_out"))
    return [replace(site, transposed=conv1d and site.layer is not None) for site in sites]


def _check_fits(
    base: Checkpoint, adapter: AdapterSource, name: str, path: str, site: WeightSite | None, found: Found
) -> None:
    of = adapter.modules[path]
    got = None
    if site is None and layer_of(name) is not None:
        got = f"no {path} in {base.label}"
    elif site is not None and site.shape != of.shape:
        if site.kind == "embed" and site.shape[1] == of.shape[1]:
            found.added_rows[name] = of.shape[0] - site.shape[0]
        else:
            got = f"{path} of shape {site.shape} in {base.label} and {of.shape} in the adapter"
    if got is not None:
        trained = f", {adapter.base_name}" if adapter.base_name else ""
        next_step = f"Pass the adapter's own base{trained}"
        raise UsageError(must("BASE", f"have the modules of the adapter {adapter.label}", got, next_step))


def _add(
    base: Checkpoint | None, adapter: AdapterSource, path: str, base_name: str | None, sites: list[WeightSite],
    found: Found, config: dict, *, fused: bool,
) -> None:
    """Add a module's matrices: one, or one for each part of a fused matrix that the adapter reaches."""
    of = adapter.modules[path]
    for site in _reached(adapter, path, of, sites):
        name = _name(path, site)
        if not fused and (why := why_whole(site, config)) is not None:
            found.whole[name] = why
        if site.kind not in FUSED_KINDS and site.rows is None:
            site = replace(site, shape=of.shape)  # an embedding's factors have rows for its added tokens, too
        read = partial(factored_delta, base, adapter, path, base_name, site, name)
        parameter = base_name or f"{path}.weight"
        found.matrices.append(
            Matrix(name, site.layer, site.kind, site.shape, parameter, site.transposed, "factored", read)
        )


def _name(path: str, site: WeightSite) -> str:
    return f"{path}.weight" + (f"[{site.kind}]" if site.rows is not None else "")


def _reached(adapter: AdapterSource, path: str, of: AdapterModule, sites: list[WeightSite]) -> list[WeightSite]:
    """Of a fused matrix's parts those with factors: zero rows of B are parts that were not adapted."""
    if of.groups and all(site.rows is not None for site in sites):
        return [site for site in sites if site.kind in of.groups]
    if len(sites) < 2:
        return sites
    B = adapter.factors(path).B
    reached = [site for site in sites if bool((site.rows.get(B) != 0).any())]
    return reached or sites
