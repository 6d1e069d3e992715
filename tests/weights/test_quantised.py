"""8-bit weights: each format's closed form is what is read, and every other format is refused by name."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from rankprobe.errors import UsageError
from rankprobe.weights.checkpoint import checkpoint_in_memory, open_checkpoint
from rankprobe.weights.pair import pair
from tests.weights.memory import random

NAME = "layers.0.mlp.up_proj.weight"
STEM = NAME.removesuffix("weight")


def fp8(*shape, seed=0, dtype=torch.float8_e4m3fn):
    return random(*shape, seed=seed).mul(50).to(dtype)


def scales(*shape, seed=9, dtype=torch.float32):
    return random(math.prod(shape), seed=seed).abs().add(0.1).to(dtype).reshape(shape)


class Model:
    """A checkpoint of given tensors with a quantization_config."""

    def __init__(self, tensors, **settings):
        self.config = {"quantization_config": settings} if settings else {}
        self.tensors = tensors

    def open(self, folder):
        save_file({name: t.clone() for name, t in self.tensors.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.config))
        return open_checkpoint([folder / "model.safetensors"], label="m", path=folder,
                               config_file=folder / "config.json")


def read(tmp_path, tensors, **settings):
    opened = Model(tensors, **settings).open(tmp_path)
    assert list(opened.shapes) == [NAME] and opened.shapes[NAME] == tuple(tensors[NAME].shape)
    W = opened.read(NAME)
    assert W.dtype == torch.float32 and opened.dtypes[NAME] == str(tensors[NAME].dtype).removeprefix("torch.")
    return W


def blocks(scale, rows, columns, shape):
    """Scales spread over the matrix: a Kronecker product, cut where the last blocks are narrower."""
    return torch.kron(scale.float(), torch.ones(rows, columns))[: shape[0], : shape[1]]


@pytest.mark.parametrize("shape, of, settings, block", [
    ((256, 384), (2, 3), {"quant_method": "fp8", "weight_block_size": [128, 128]}, (128, 128)),
    ((200, 300), (2, 3), {"quant_method": "fp8", "weight_block_size": [128, 128]}, (128, 128)),
    ((192, 128), (2, 1), {}, (128, 128)),  # DeepSeek's, where nothing says: not two halves of 96 rows
    ((64, 96), (4, 2), {"quant_method": "fp8", "weight_block_size": [16, 48]}, (16, 48)),
    ((64, 96), (4, 2), {"quant_method": "fp8"}, (16, 48)),
    ((10, 9), (3, 5), {"quant_method": "fp8", "weight_block_size": [4, 2]}, (4, 2)),
])
def test_fp8_in_blocks_is_the_kronecker_product(tmp_path, shape, of, settings, block):
    q, scale = fp8(*shape), scales(*of)
    W = read(tmp_path, {NAME: q, f"{NAME}_scale_inv": scale}, **settings)
    torch.testing.assert_close(W, q.float() * blocks(scale, *block, shape), rtol=1e-6, atol=0)


def test_fp8_in_blocks_is_what_transformers_makes_of_it(tmp_path):
    q, scale = fp8(256, 384), scales(2, 3)
    theirs = Fp8Dequantize(None)._dequantize_one(q, scale, torch.float32)
    W = read(tmp_path, {NAME: q, f"{NAME}_scale_inv": scale}, quant_method="fp8", weight_block_size=[128, 128])
    torch.testing.assert_close(W, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_scales_may_have_a_dtype_of_their_own(tmp_path, dtype):
    q, scale = fp8(8, 8), torch.tensor([[2.0, 0.5]]).to(dtype)
    W = read(tmp_path, {NAME: q, f"{NAME}_scale_inv": scale})
    assert torch.equal(W, q.float() * torch.tensor([2.0] * 4 + [0.5] * 4))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
@pytest.mark.parametrize("of", [(), (1,), (6,), (6, 1), (1, 1)])
@pytest.mark.parametrize("method", ["compressed-tensors", "fbgemm_fp8", "modelopt"])
def test_one_scale_or_one_a_row(tmp_path, dtype, of, method):
    q, scale = fp8(6, 4, dtype=torch.float32).clamp(-127, 127).to(dtype), scales(*of)
    tensors = {NAME: q, f"{NAME}_scale": scale, f"{STEM}input_scale": torch.tensor(0.3)}
    W = read(tmp_path, tensors, quant_method=method)
    expected = q.float() * (scale.reshape(-1, 1) if scale.numel() > 1 else float(scale))
    torch.testing.assert_close(W, expected, rtol=1e-6, atol=0)


def test_groups_of_columns_with_zero_points(tmp_path):
    q, scale, zero = random(6, 8).mul(20).to(torch.int8), scales(6, 2), random(6, 2, seed=3).mul(9).to(torch.int8)
    W = read(tmp_path, {NAME: q, f"{NAME}_scale": scale, f"{NAME}_zero_point": zero}, quant_method="compressed-tensors")
    expected = (q.float() - zero.float().repeat_interleave(4, 1)) * scale.repeat_interleave(4, 1)
    torch.testing.assert_close(W, expected, rtol=1e-6, atol=1e-6)
    zero = zero[:, :1].contiguous()
    tensors = {NAME: q, f"{NAME}_scale": scale[:, :1].contiguous(), f"{NAME}_zero_point": zero}
    W = read(tmp_path, tensors, quant_method="compressed-tensors")
    torch.testing.assert_close(W, (q.float() - zero.float()) * scale[:, :1], rtol=1e-6, atol=1e-6)


def test_bitsandbytes_int8_is_a_row_scaled_to_127(tmp_path):
    """LLM.int8: absmax quantisation, undone here, is within half a step of what was quantised."""
    W0 = random(6, 10)
    scb = W0.abs().amax(1)
    q = (W0 / scb[:, None] * 127).round().to(torch.int8)
    layout = torch.tensor(0, dtype=torch.uint8)
    W = read(tmp_path, {NAME: q, f"{STEM}SCB": scb, f"{STEM}weight_format": layout}, quant_method="bitsandbytes",
             load_in_8bit=True)
    assert bool(((W - W0).abs() <= scb[:, None] / 127 / 2 * 1.0001).all())
    opened = Model({NAME: q, f"{STEM}SCB": scb, f"{STEM}weight_format": layout + 1}).open(tmp_path)
    with pytest.raises(UsageError, match="be stored row by row. Got a layout for one kind of GPU"):
        opened.read(NAME)


def test_plain_float8_is_its_own_numbers(tmp_path):
    q = fp8(4, 4, dtype=torch.float8_e5m2)
    assert torch.equal(read(tmp_path, {NAME: q}), q.float())


def test_a_dequantised_side_is_paired_with_a_plain_one(tmp_path):
    q, scale, W0 = fp8(8, 8), scales(1), random(8, 8, seed=1)
    tuned = Model({NAME: q, f"{NAME}_scale": scale}).open(tmp_path)
    (matrix,) = pair(checkpoint_in_memory({NAME: W0}), tuned).matrices
    d = matrix.delta()
    torch.testing.assert_close(d.dW, q.double() * float(scale) - W0.double())
    assert (d.dtype_base, d.dtype_tuned) == ("float32", "float8_e4m3fn") and math.isfinite(d.base_norm)


def test_masks_and_counters_are_no_weights():
    tensors = {NAME: torch.ones(4, 4), "h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
               "embeddings.position_ids": torch.arange(4), "turns": torch.ones(4, 2, dtype=torch.complex64)}
    opened = checkpoint_in_memory(tensors)
    assert list(opened.shapes) == [NAME]
    assert opened.skipped == {"h.0.attn.bias": "whole numbers (uint8)", "turns": "complex numbers (complex64)",
                              "embeddings.position_ids": "whole numbers (int64)"}


PACKED = torch.ones(4, 4, dtype=torch.int32)
BYTES = torch.ones(4, 4, dtype=torch.uint8)
HALF = torch.ones(4, 1, dtype=torch.float16)


@pytest.mark.parametrize("settings, tensors, whose", [
    ({"quant_method": "gptq", "bits": 4}, {"qweight": PACKED, "qzeros": PACKED, "scales": HALF, "g_idx": PACKED[0]},
     r"qweight \(gptq\)"),
    ({"quant_method": "awq", "bits": 4}, {"qweight": PACKED, "qzeros": PACKED, "scales": HALF}, r"qweight \(awq\)"),
    ({}, {"qweight": PACKED, "qzeros": PACKED, "scales": HALF}, r"qweight \(GPTQ or AWQ\)"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True},
     {"weight": BYTES.reshape(-1, 1), "weight.absmax": HALF, "weight.quant_map": HALF,
      "weight.quant_state.bitsandbytes__nf4": BYTES[0]}, r"weight.absmax \(bitsandbytes 4-bit\)"),
    ({"quant_method": "bitsandbytes"}, {"weight": BYTES.reshape(-1, 1)}, r"weight in uint8 and no scale beside it"),
    ({"quant_method": "compressed-tensors"}, {"weight_packed": PACKED, "weight_scale": HALF, "weight_shape": PACKED[0]},
     "weight_packed"),
    ({"quant_method": "mxfp4"}, {"gate_up_proj_blocks": BYTES, "gate_up_proj_scales": BYTES}, "mxfp4"),
    ({"quant_method": "hqq"}, {"W_q": BYTES}, "hqq"),
    ({"quant_method": "aqlm"}, {"codes": torch.ones(2, 2, 1, dtype=torch.int8), "codebooks": HALF}, "aqlm"),
    ({"quant_method": "quanto"}, {"weight._data": BYTES, "weight._scale": HALF}, "quanto"),
    ({"quant_method": "torchao"}, {"weight": torch.ones(4, 4, dtype=torch.int8)}, "torchao"),
    ({"quant_method": "modelopt"}, {"weight": BYTES, "weight_scale": fp8(4, 1), "weight_scale_2": torch.tensor(1.0)},
     "modelopt"),
    ({"quant_method": "fp8"}, {"weight": torch.ones(4, 4, dtype=torch.int8), "weight_scale_inv": torch.ones(4, 2)},
     "as packed float4 has"),
    ({"quant_method": "some-new-one"}, {"weight": torch.ones(4, 4, dtype=torch.int8)}, "some-new-one"),
    ({}, {"weight": torch.ones(4, 4, dtype=torch.int8)}, "weight in int8 and no scale beside it"),
    ({"quant_method": "fp8"}, {"weight": fp8(4, 4)}, "weight in float8_e4m3fn and no scale beside it"),
    ({}, {"weight": fp8(4, 4), "w_scale": HALF}, "weight in float8_e4m3fn with .*w_scale"),
    ({}, {"weight": fp8(4, 4), "weight_scale": PACKED}, "weight_scale in int32"),
    ({"quant_method": "compressed-tensors"},
     {"weight": fp8(4, 4), "weight_scale": HALF, "weight_g_idx": PACKED[0]}, "columns in another order"),
])
def test_other_formats_are_refused_by_name(tmp_path, settings, tensors, whose):
    model = Model({STEM + name: tensor for name, tensor in tensors.items()}, **settings)
    message = rf"m must be stored in a format that says how to dequantise .*{whose}.* Dequantise the model and save it"
    with pytest.raises(UsageError, match=message) as error:
        model.open(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tensors", [
    {NAME: fp8(6, 4), f"{NAME}_scale": scales(5, 1)}, {NAME: fp8(6, 4), f"{NAME}_scale_inv": scales(4, 4)},
    {NAME: fp8(6, 4), f"{NAME}_scale": scales(2, 3, 1)}, {NAME: fp8(6), f"{NAME}_scale": scales(2)},
    {NAME: random(6, 4).to(torch.int8), f"{STEM}SCB": scales(5)},
    {NAME: random(6, 4).to(torch.int8), f"{NAME}_scale": scales(6, 1), f"{NAME}_zero_point": scales(6, 2)},
    {NAME: fp8(6, 4), f"{NAME}_scale": torch.ones(0, 2)},
])
def test_scales_that_do_not_fit_are_refused(tmp_path, tensors):
    with pytest.raises(UsageError, match=rf"{NAME} and .* in m must have shapes that fit. Got \["):
        Model(tensors).open(tmp_path)


@pytest.mark.parametrize("settings", [
    "fp8", [], {"weight_block_size": "128"}, {"weight_block_size": [0, 128]},
    {"config_groups": {"a": [1], "b": {"weights": 3}}}, {"config_groups": []},
])
def test_odd_settings_do_not_matter_where_the_tensors_say_how(tmp_path, settings):
    q, scale = fp8(8, 4), scales(2, 2)
    model = Model({NAME: q, f"{NAME}_scale": scale})
    model.config = {"quantization_config": settings}
    W = model.open(tmp_path).read(NAME)
    torch.testing.assert_close(W, q.float() * blocks(scale, 4, 2, (8, 4)), rtol=1e-6, atol=0)
