"""The last blocks: exactly those, and the paper's count for GPT-2 medium."""

import re

import pytest
import torch
import transformers

from rankprobe.errors import UsageError
from rankprobe.methods.head import freeze_all_but
from rankprobe.methods.top_layers import apply_top_layers
from tests.methods.tiny import MODELS, load_tiny, trained, with_names


@pytest.mark.parametrize("layers", [1, 2, 24])
def test_gpt2_medium_has_12_d2_and_13_d_a_block(layers):
    """FT-Top2 in Hu et al. 2021, Table 3: 25.19M."""
    d = 1024
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=d, n_layer=24, n_head=16))
    freeze_all_but(model, set())
    apply_top_layers(model, layers)
    count = sum(p.numel() for p in trained(model).values())
    assert count == layers * (12 * d**2 + 13 * d)
    assert layers != 2 or f"{count / 1e6:.2f}M" == "25.19M"


@pytest.mark.parametrize("kind, task", with_names(MODELS))
@pytest.mark.parametrize("layers", [1, 2])
def test_all_of_the_last_blocks_and_nothing_before_or_around_them(kind, task, layers):
    tiny = load_tiny(kind, task)
    apply_top_layers(tiny.model, layers)
    block = re.compile(r"\.(?:layer|layers|h)\.(\d)\.")
    names = {name: block.search(name) for name, _ in tiny.model.named_parameters()}
    expected = {n for n, found in names.items() if found and int(found[1]) >= 2 - layers}
    assert trained(tiny.model).keys() == expected | tiny.head


@pytest.mark.parametrize("layers", [0, -1, 3])
def test_layers_out_of_range_are_refused(layers):
    tiny = load_tiny("bert")
    message = rf"layers must be from 1 to the model's 2 blocks\. Got {layers}\. Pass another --layers\."
    with pytest.raises(UsageError, match=message):
        apply_top_layers(tiny.model, layers)
    assert trained(tiny.model).keys() == tiny.head
