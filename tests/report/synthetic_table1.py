"""A measurement of Table 1 whose ratios are given."""

from __future__ import annotations

import pandas as pd

SHAPES = ((32, 512), (16, 256), (1, 128))
# What a calm machine might show: the paper's own overheads, nearly.
RATIOS = {
    "base": (1.0, 1.0, 1.0),
    "base_copy": (1.0, 1.001, 0.998),
    "lora_merged": (0.999, 1.002, 1.004),
    "lora_unmerged": (1.012, 1.02, 1.14),
    "adapter_l": (1.021, 1.046, 1.19),
    "adapter_h": (1.031, 1.08, 1.33),
}


def make_table1(*, aa_half: float = 0.004, half: float = 0.006, shapes=SHAPES, **ratios: float) -> pd.DataFrame:
    """The table as execute_latency returns it; a ratio given by variant holds at every shape."""
    rows = []
    for i, (batch, length) in enumerate(shapes):
        for variant, usual in RATIOS.items():
            ratio = ratios.get(variant, usual[i])
            around = {"base": 0.0, "base_copy": aa_half}.get(variant, half)
            base_ms = (610.0, 150.0, 9.4)[i]
            rows.append(
                {
                    "model": "gpt2-medium",
                    "variant": variant,
                    "batch": batch,
                    "length": length,
                    "n": 60,
                    "latency_ms": base_ms * ratio,
                    "ci_low": base_ms * ratio * 0.99,
                    "ci_high": base_ms * ratio * 1.01,
                    "ratio": ratio,
                    "ratio_ci_low": ratio - around,
                    "ratio_ci_high": ratio + around,
                    "ci_method": "order statistics of the rounds, 95 %",
                    "dtype": "float32",
                    "device": "cuda",
                    "threads": 16,
                    "r": 4,
                    "targets": "q,v",
                    "bottleneck": {"adapter_l": (9, 222, 222), "adapter_h": (4, 110, 110)}.get(variant, [None] * 3)[i],
                    "method_params": {
                        "adapter_l": (516_312, 10_990_800, 10_990_800),
                        "adapter_h": (540_864, 10_966_176, 10_966_176),
                        "lora_merged": [393_216] * 3,
                        "lora_unmerged": [393_216] * 3,
                    }.get(variant, [354_823_168] * 3)[i],
                    "device_name": "NVIDIA H200",
                }
            )
    table = pd.DataFrame(rows)
    table["bottleneck"] = table["bottleneck"].astype("Int64")
    return table
