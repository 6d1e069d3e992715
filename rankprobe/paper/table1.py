"""Table 1 of the LoRA paper as a measurement: its model, its shapes and adapters of the sizes that it prints."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rankprobe.errors import UsageError, must
from rankprobe.experiment.latency import LatencyPlan, plan_latency
from rankprobe.experiment.latency_variants import ADAPTERS, Architecture
from rankprobe.experiment.parameters import Setting, count
from rankprobe.paper.architectures import paper_config
from rankprobe.paper.published import published

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MODEL = "gpt2-medium"
R, TARGETS = 4, "q,v"  # as the paper tunes GPT-2 medium (Table 11)
# A CPU times a model with a quarter of the depth, width and heads unless asked for more: a 64th of the blocks' work.
CPU_SHRINK = 4


def printed_sizes() -> dict[tuple[int, int], dict[str, int]]:
    """Parameters of the adapters that the paper timed, by (batch, length) in its order and by method.

    >>> printed_sizes()[(1, 128)]
    {'adapter_l': 11000000, 'adapter_h': 11000000}
    """
    rows = published()
    rows = rows[rows["source"].str.endswith("Table 1") & (rows["metric"] == "latency") & rows["method"].isin(ADAPTERS)]
    sizes: dict[tuple[int, int], dict[str, int]] = {}
    for row in rows.itertuples():
        batch, length = map(int, re.fullmatch(r"batch (\d+), length (\d+)", row.task).groups())
        sizes.setdefault((batch, length), {})[row.method] = int(row.trainable_params)
    return sizes


def plan_table1(
    runs: Path,
    *,
    budget_s: float,
    dtype: str,
    device: str,
    threads: int,
    shrink: int | None = None,
    shapes: tuple[tuple[int, int], ...] | None = None,
) -> LatencyPlan:
    """Plan the measurement; nothing is written.

    Parameters
    ----------
    runs : Path
        The run store.
    budget_s : float
        Seconds for all shapes together; each has 6 rounds at least, whatever they take.
    dtype : str
        That weights are held in and products run in. The paper's GPU, a Quadro RTX 8000, has no bfloat16.
    device : str
    threads : int
    shrink : int, optional
        Depth, width and heads of GPT-2 medium are divided by it: 1 is the paper's model. 1 on a GPU where it is left
        out, and :data:`CPU_SHRINK` on a CPU.
    shapes : tuple of (int, int), optional
        Some of the paper's shapes; all where it is left out.

    Raises
    ------
    UsageError
        If a shape is not one of the paper's.

    Notes
    -----
    The paper prints its adapters' parameters as 0.5M and 11M and no bottleneck. Taken here is the bottleneck whose
    count, layer norms included, comes nearest: 9 and 222 for Adapter-L, 4 and 110 for Adapter-H, which gives 516,312,
    10,990,800, 540,864 and 10,966,176 parameters. A smaller model's keep their ratio to its width.
    """
    if shrink is None:
        shrink = 1 if device.startswith("cuda") else CPU_SHRINK
    sizes = printed_sizes()
    shapes = tuple(sizes) if shapes is None else tuple(shapes)
    if unknown := [shape for shape in shapes if shape not in sizes]:
        rule = f"be of Table 1: {', '.join(map(_shape, sizes))}"
        raise UsageError(must("shapes", rule, ", ".join(map(_shape, unknown)), "Pass some of these"))
    full = paper_config(MODEL)
    bottlenecks = tuple(
        tuple(_scaled(bottleneck_for(full, method, sizes[shape][method]), shrink) for method in ADAPTERS)
        for shape in shapes
    )
    return plan_latency(
        table1_architecture(shrink),
        runs,
        r=R,
        targets=TARGETS,
        shapes=shapes,
        budget_s=budget_s,
        dtype=dtype,
        device=device,
        threads=threads,
        bottlenecks=bottlenecks,
    )


def table1_architecture(shrink: int = 1) -> Architecture:
    """GPT-2 medium, or what has its depth, width and heads divided by a number; the vocabulary stays.

    Raises
    ------
    UsageError
        If the number does not divide all three.
    """
    config = paper_config(MODEL)
    sizes = {name: getattr(config, name) for name in ("n_layer", "n_embd", "n_head")}
    if shrink < 1 or any(size % shrink for size in sizes.values()):
        rule = f"divide {', '.join(f'{name} = {size}' for name, size in sizes.items())}"
        raise UsageError(must("shrink", rule, shrink, "Pass 1, 2, 4 or 8"))
    if shrink == 1:
        return Architecture(MODEL, config)
    small = type(config)(**{name: size // shrink for name, size in sizes.items()})
    return Architecture(f"{MODEL}-div{shrink}", small)


def bottleneck_for(config: PretrainedConfig, method: str, parameters: int) -> int:
    """The bottleneck whose adapters have nearest to so many parameters, layer norms that are trained included.

    Parameters
    ----------
    config : PretrainedConfig
        Of a language model.
    method : str
        ``adapter_l`` or ``adapter_h``.
    parameters : int
    """
    one, two = (count(config, Setting(method, size=size), problem="language_modelling").method for size in (1, 2))
    step = two - one  # a count is a line in the bottleneck
    return max(1, math.floor((parameters - one) / step + 1.5))


def _scaled(bottleneck: int, shrink: int) -> int:
    return max(1, math.floor(bottleneck / shrink + 0.5))


def _shape(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"
