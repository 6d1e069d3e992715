"""loralib's files: the authors' own multiplication is the oracle, and their adapter the real input."""

import pytest
import torch

from rankprobe.errors import UsageError
from rankprobe.weights.adapter import open_loralib


def product(source, path):
    factors = source.factors(path)
    return factors.scaling * factors.B.double() @ factors.A.double()


def test_loralib_without_alpha_is_refused_with_the_option(tmp_path):
    file = tmp_path / "lora.bin"
    torch.save({"layer.0.query.lora_A": torch.ones(2, 6), "layer.0.query.lora_B": torch.ones(4, 2)}, file)
    with pytest.raises(UsageError, match=r"does not store it. Got none in lora.bin. Pass --alpha"):
        open_loralib(file, None)
    with pytest.raises(UsageError, match="alpha must be a finite number"):
        open_loralib(file, float("nan"))
    source = open_loralib(file, 4)
    assert source.modules["layer.0.query"].scaling == 2 and torch.equal(product(source, "layer.0.query"),
                                                                        torch.full((4, 6), 4.0, dtype=torch.float64))


@pytest.mark.parametrize("groups", [2, 3])
def test_loralibs_stacked_factors_are_a_grouped_convolution(tmp_path, groups):
    """The oracle is how loralib multiplies them: F.conv1d with groups, its rows put where enable_lora says."""
    d, r = 6, 2
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(groups * r, d, generator=generator)
    B = torch.randn(groups * d, r, generator=generator)
    torch.save({"h.0.attn.c_attn.lora_A": A, "h.0.attn.c_attn.lora_B": B, "head.weight": torch.ones(2, 2)},
               tmp_path / "l.pt")
    source = open_loralib(tmp_path / "l.pt", 4)
    of = source.modules["h.0.attn.c_attn"]
    rows = torch.nn.functional.conv1d(A.unsqueeze(0), B.unsqueeze(-1), groups=groups).squeeze(0)
    enabled = torch.tensor([True, groups == 3, True]).repeat_interleave(d)
    whole = torch.zeros(3 * d, d)
    whole[enabled] = rows
    torch.testing.assert_close(product(source, "h.0.attn.c_attn").float(), of.scaling * whole)
    assert of.groups == (("q", "v") if groups == 2 else ("q", "k", "v")) and of.shape == (3 * d, d)
    assert source.saved == {"head.weight": (2, 2)}
    for part in of.groups:
        f, first = source.factors("h.0.attn.c_attn", part), {"q": 0, "k": d, "v": 2 * d}[part]
        torch.testing.assert_close(f.B @ f.A, whole[first : first + d])


@pytest.mark.parametrize("tensors, message", [
    ({"a.lora_A": torch.ones(2, 6)}, "a.lora_B must be there"),
    ({"a.lora_A": torch.ones(3, 6), "a.lora_B": torch.ones(4, 2)}, r"shapes \(groups \* r, in\)"),
    ({"a.query.lora_A": torch.ones(4, 6), "a.query.lora_B": torch.ones(8, 2)}, "of a fused matrix"),
    ({"a.weight": torch.ones(3, 6)}, "hold lora_A and lora_B. Got l.pt with none"),
    ({"a.lora_A.weight": torch.ones(3, 6)}, "adapter_config.json beside it. Got l.pt alone"),
])
def test_loralib_files_that_are_refused(tmp_path, tensors, message):
    torch.save(tensors, tmp_path / "l.pt")
    with pytest.raises(UsageError, match=message):
        open_loralib(tmp_path / "l.pt", 4)


def test_the_paper_authors_adapter(shared):
    source = open_loralib(shared / "adapters" / "roberta_base_lora_mnli" / "roberta_base_lora_mnli.bin", 16)
    assert len(source.modules) == 24 and {of.r for of in source.modules.values()} == {8}
    assert {of.scaling for of in source.modules.values()} == {2.0}
    assert {of.shape for of in source.modules.values()} == {(768, 768)}
    assert set(source.saved) == {f"classifier.{m}.{p}" for m in ("dense", "out_proj") for p in ("weight", "bias")}
