"""Table 1 as a measurement: adapters of the printed sizes by the closed form, and the paper's own settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankprobe.errors import UsageError
from rankprobe.paper.architectures import paper_config
from rankprobe.paper.table1 import bottleneck_for, plan_table1, printed_sizes, table1_architecture

PLACE = {"budget_s": 60.0, "dtype": "float32", "threads": 2}
L, D = 24, 1024


def adapter_l(bottleneck: int) -> int:
    """L (2 d b + b + d) + 2 L_LN d, the closed form of section 5.1: an adapter a block, with a norm of its own."""
    return L * (2 * D * bottleneck + bottleneck + D) + 2 * L * D


def adapter_h(bottleneck: int) -> int:
    """Two adapters a block, with the block's two norms."""
    return 2 * L * (2 * D * bottleneck + bottleneck + D) + 2 * 2 * L * D


def test_the_papers_shapes_and_sizes():
    assert printed_sizes() == {
        (32, 512): {"adapter_l": 500_000, "adapter_h": 500_000},
        (16, 256): {"adapter_l": 11_000_000, "adapter_h": 11_000_000},
        (1, 128): {"adapter_l": 11_000_000, "adapter_h": 11_000_000},
    }


@pytest.mark.parametrize("method, closed_form", [("adapter_l", adapter_l), ("adapter_h", adapter_h)])
@pytest.mark.parametrize("printed", [500_000, 11_000_000])
def test_the_bottleneck_is_the_one_that_comes_nearest_to_the_print(method, closed_form, printed):
    found = bottleneck_for(paper_config("gpt2-medium"), method, printed)
    nearest = min(range(1, 400), key=lambda b: abs(closed_form(b) - printed))
    assert found == nearest
    unit = 100_000 if printed < 10**6 else 10**6
    assert round(closed_form(found) / unit) == printed / unit  # and it rounds to the print


def test_on_a_gpu_it_is_the_papers_model():
    plan = plan_table1(Path("runs"), device="cuda", **PLACE)
    assert plan.source.name == "gpt2-medium" and plan.run_id.startswith("latency-gpt2-medium-")
    config = plan.source.config
    assert (config.n_layer, config.n_embd, config.n_head, config.vocab_size) == (L, D, 16, 50257)
    assert plan.spec.shapes == ((32, 512), (16, 256), (1, 128))
    assert plan.spec.bottlenecks == ((9, 4), (222, 110), (222, 110))
    assert [adapter_l(9), adapter_l(222), adapter_h(4), adapter_h(110)] == [516_312, 10_990_800, 540_864, 10_966_176]
    assert (plan.spec.r, plan.spec.targets, plan.spec.dtype) == (4, "q,v", "float32")
    full = plan_table1(Path("runs"), device="cpu", shrink=1, **PLACE)
    assert full.source.sha256 == plan.source.sha256 and full.spec.bottlenecks == plan.spec.bottlenecks


def test_on_a_cpu_it_is_a_quarter_as_deep_and_wide_and_so_are_its_adapters():
    plan = plan_table1(Path("runs"), device="cpu", **PLACE)
    config = plan.source.config
    assert plan.source.name == "gpt2-medium-div4"
    assert (config.n_layer, config.n_embd, config.n_head, config.vocab_size) == (6, 256, 4, 50257)
    assert plan.spec.bottlenecks == ((2, 1), (56, 28), (56, 28))


def test_some_of_the_shapes():
    plan = plan_table1(Path("runs"), device="cuda", shapes=((1, 128),), **PLACE)
    assert plan.spec.shapes == ((1, 128),) and plan.spec.bottlenecks == ((222, 110),)
    with pytest.raises(UsageError, match="shapes must be of Table 1: 32x512, 16x256, 1x128. Got 8x64"):
        plan_table1(Path("runs"), device="cpu", shapes=((1, 128), (8, 64)), **PLACE)


@pytest.mark.parametrize("shrink", [0, 3, 16])
def test_what_does_not_divide_the_model_is_refused(shrink):
    with pytest.raises(UsageError, match=f"shrink must divide n_layer = 24, n_embd = 1024, n_head = 16. Got {shrink}"):
        table1_architecture(shrink)
