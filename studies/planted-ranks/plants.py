"""Updates of known rank: how they are made, stored and measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rankprobe.analysis.spectrum import measure
from rankprobe.linalg.decompose import svdvals_dense
from rankprobe.linalg.noise import storage_noise, ulp
from rankprobe.linalg.rounding import top_value
from rankprobe.weights.delta import Delta

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
GAUSSIAN, UNEVEN = "gaussian", "uneven"  # added noise: as mp_rank and gd_rank want it, and not
DETECTABLE, EDGE, BELOW, SWALLOWED, SPARSE = "detectable", "at the edge", "below it", "swallowed", "sparse"
SAME, FINER, BOTH = "on the grid", "finer", "rounded after"  # what W0 is to W1's dtype
_STEPS = {"float32": 1e-5, "bfloat16": 1e-3}  # of training noise, several spacings of W1


@dataclass(frozen=True)
class Setting:
    """What is not as in the textbook: the base, the factors' entries, the values, or the noise.

    Attributes
    ----------
    weights : str
        normal, heavy tails, rows (log-normal scales, sd 1.5) or tiny (subnormal in float16).
    factors : str
        normal, heavy tails, signs, sparse (30 % of the entries) or block (a quarter of the rows and of the columns).
    values : str
        equal or power law (1 / i).
    noise : str
        white, or rows (log-normal scales, sd 0.7): not what mp_rank and gd_rank are made for.
    """

    weights: str = "normal"
    factors: str = "normal"
    values: str = "equal"
    noise: str = "white"


SETTINGS = {
    "plain": Setting(),
    "power-law values": Setting(values="power law"),
    "heavy-tailed W0": Setting(weights="heavy tails"),
    "W0's rows differ": Setting(weights="rows"),
    "tiny W0": Setting(weights="tiny"),
    "heavy-tailed factors": Setting(factors="heavy tails"),
    "factors of signs": Setting(factors="signs"),
    "sparse factors": Setting(factors="sparse"),
    "one block": Setting(factors="block"),
    "noise's rows differ": Setting(noise="rows"),
}
STORED = [name for name, setting in SETTINGS.items() if setting.noise == "white"]
NOISY = [name for name, setting in SETTINGS.items() if setting.weights == "normal"]


def stored(choose: np.random.Generator, m: int, n: int, dtype: str, base: str, k: int, name: str, where: float) -> dict:
    """An update of rank k that is rounded to dtype with its weights, and what is found in it."""
    generator = torch.Generator().manual_seed(int(choose.integers(2**62)))
    setting = SETTINGS[name]
    # A checker in another language could do this in float32 as well; W0 holds no more digits than that.
    W0 = _weights(setting.weights, float(choose.uniform(0.02, 0.05)), m, n, generator)
    W0 = W0 if base == FINER and dtype == "float32" else W0.float().double()
    if base == SAME:
        W0 = W0.to(DTYPES[dtype]).double()
    edge = float(ulp(W0.to(DTYPES[dtype])).double().square().mean().sqrt()) / math.sqrt(12) * (m**0.5 + n**0.5)
    # In a base on the grid an update is swallowed up to about half a spacing an entry, far above that edge.
    most = 64 * math.sqrt(min(m, n)) if base == SAME else 64
    D = _planted(setting, m, n, k, 0.25 * edge * (4 * most) ** where, generator)
    W1 = (W0 + D).to(DTYPES[dtype])
    before = W0 if base == FINER else W0.to(DTYPES[dtype])
    dW = W1.double() - before.double()
    row, S = measure(_delta(dW, before, W1), base_rounded=base == BOTH)
    plain = storage_noise(S, dW, W1, W0=before, base_rounded=True) if base == BOTH else storage_noise(S, dW, W1)
    planted = D != 0
    return {
        **_row(dtype, base, name, m, n, k, D, dW - D, generator),
        "unchanged_fraction": row["unchanged_fraction"],
        "planted_unchanged": float((dW[planted] == 0).double().mean()) if k else math.nan,
        "storage_rank": row["storage_rank"], "plain_floor": plain.rank,
        "mp_rank": row["mp_rank"], "gd_rank": row["gd_rank"], "bulk_to_floor": row["bulk_to_floor"],
    }  # fmt: skip


def noisy(choose: np.random.Generator, m: int, n: int, dtype: str, k: int, name: str, where: float) -> dict:
    """An update of rank k in Gaussian noise, alone or added to weights that are then stored as dtype."""
    generator = torch.Generator().manual_seed(int(choose.integers(2**62)))
    setting = SETTINGS[name]
    E = torch.randn(m, n, dtype=torch.float64, generator=generator)
    if setting.noise == "rows":
        E *= (0.7 * torch.randn(m, 1, dtype=torch.float64, generator=generator)).exp()
    D = _planted(setting, m, n, k, 0.25 * 256**where * (math.sqrt(m) + math.sqrt(n)), generator)
    W0, W1, before = None, None, torch.zeros(m, n, dtype=torch.float64)
    dW = D + E
    if dtype:
        W0 = (0.03 * torch.randn(m, n, dtype=torch.float64, generator=generator)).to(DTYPES[dtype])
        before, D = W0.double(), D * _STEPS[dtype]
        W1 = (before + dW * _STEPS[dtype]).to(DTYPES[dtype])
        dW = W1.double() - before
    row, _ = measure(_delta(dW, W0, W1), noise=False)
    noise = GAUSSIAN if setting.noise == "white" else UNEVEN
    return {
        **_row(noise, dtype or "not stored", name, m, n, k, D, dW - D, generator),
        "unchanged_fraction": row["unchanged_fraction"], "mp_rank": row["mp_rank"], "gd_rank": row["gd_rank"],
    }  # fmt: skip


def regime(row: dict) -> str:
    """What may be asked of a case; for stored ones by the share of all entries that did not change."""
    unchanged = row["noise"] in DTYPES and row["unchanged_fraction"] >= 0.5
    if unchanged and row["planted_unchanged"] >= 0.5:
        return SWALLOWED
    if row["true_rank"] == 0 or row["scale"] >= 2:
        return SPARSE if unchanged else DETECTABLE
    return EDGE if row["scale"] >= 1 else BELOW


def _delta(dW: Tensor, W0: Tensor | None, W1: Tensor | None) -> Delta:
    dtypes = ("float64" if W is None else str(W.dtype).removeprefix("torch.") for W in (W0, W1))
    return Delta("planted", None, "other", tuple(dW.shape), *dtypes, dW=dW, W0=W0, W1=W1)


def _row(
    noise: str, base: str, setting: str, m: int, n: int, k: int, D: Tensor, E: Tensor, generator: torch.Generator
) -> dict:
    """What was planted; scale is the smallest planted singular value by the largest of the error that was made."""
    error = top_value(E, generator)
    smallest = float(svdvals_dense(D)[k - 1]) if k else 0.0
    return {"noise": noise, "base": base, "setting": setting, "m": m, "n": n, "true_rank": k,
            "scale": smallest / error if error else math.inf}  # fmt: skip


def _weights(kind: str, std: float, m: int, n: int, generator: torch.Generator) -> Tensor:
    W = std * torch.randn(m, n, dtype=torch.float64, generator=generator)
    if kind == "heavy tails":  # Student's t with 3 degrees of freedom
        return W / torch.randn(3, m, n, dtype=torch.float64, generator=generator).square().mean(0).sqrt()
    if kind == "rows":
        return W * (1.5 * torch.randn(m, 1, dtype=torch.float64, generator=generator)).exp()
    return W / 1000 if kind == "tiny" else W


def _planted(setting: Setting, m: int, n: int, k: int, least: float, generator: torch.Generator) -> Tensor:
    """An update of rank k whose smallest singular value is ``least``."""
    if k == 0:
        return torch.zeros(m, n, dtype=torch.float64)
    U, V = (_factor(setting.factors, size, k, generator) for size in (m, n))
    order = torch.arange(1, k + 1, dtype=torch.float64)
    spread = k / order if setting.values == "power law" else torch.ones(k, dtype=torch.float64)
    smallest = svdvals_dense(torch.linalg.qr(U)[1] * spread @ torch.linalg.qr(V)[1].T)[-1]
    return U * spread @ V.T * (least / float(smallest))


def _factor(kind: str, size: int, k: int, generator: torch.Generator) -> Tensor:
    X = torch.randn(size, k, dtype=torch.float64, generator=generator)
    if kind == "signs":
        return X.sign()
    if kind == "sparse":
        return X * (torch.rand(size, k, generator=generator) < 0.3)
    if kind == "heavy tails":
        return X / torch.randn(3, size, k, dtype=torch.float64, generator=generator).square().mean(0).sqrt()
    if kind == "block":
        X[torch.randperm(size, generator=generator)[size // 4 :]] = 0
    return X
