"""Folders as transformers and peft write them, from end to end: opened, paired and measured, or refused in one line."""

import json
import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rankprobe.analysis.spectrum import measure
from rankprobe.errors import UsageError
from rankprobe.weights.inputs import open_input
from rankprobe.weights.pair import pair
from tests.tiny_models import make_tiny
from tests.weights.memory import adapter_of, by_name, random

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "max_position_embeddings": 64}  # fmt: skip
KINDS = ("bert", "roberta", "llama", "gpt2", "gpt_neox", "phi3")
HEADS = {"bert": "SequenceClassification", "roberta": "SequenceClassification", "gpt2": "SequenceClassification"}
PREFIX = {"bert": "bert.", "roberta": "roberta.", "llama": "model.", "gpt2": "transformer.", "gpt_neox": "gpt_neox.",
          "phi3": "model."}  # fmt: skip


def make(kind, folder, seed=0):
    if kind not in ("gpt_neox", "phi3"):
        return make_tiny(kind, folder, seed=seed)
    config = (transformers.GPTNeoXConfig(**SIZES) if kind == "gpt_neox"
              else transformers.Phi3Config(**SIZES, num_key_value_heads=2, pad_token_id=0))
    torch.manual_seed(seed)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


def with_head(kind, folder):
    return getattr(transformers, f"AutoModelFor{HEADS.get(kind, 'CausalLM')}").from_pretrained(folder)


def nudge(model, by=0.01):
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data.add_(by * torch.randn(p.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {kind: make(kind, tmp_path_factory.mktemp(kind) / "base") for kind in KINDS}


@pytest.fixture(scope="module")
def tuned(bases, tmp_path_factory):
    """A base with a head, each parameter nudged, and saved as transformers saves it."""
    made = {}
    for kind, base in bases.items():
        made[kind] = tmp_path_factory.mktemp(kind) / "tuned"
        nudge(with_head(kind, base)).save_pretrained(made[kind])
    return made


def parts_by_hand(name, dW):
    """The update of one parameter, split as the model's own code splits it; written without our tables."""
    if "c_attn" in name or "c_fc" in name or "c_proj" in name:
        dW = dW.T  # Conv1D
    if "c_attn" in name:
        return dict(zip("qkv", dW.split(32), strict=True))
    if "query_key_value" in name:  # of each head its q, k and v
        return dict(zip("qkv", (dW.view(4, 3, 8, 32)[:, i].reshape(32, 32) for i in range(3)), strict=True))
    if "qkv_proj" in name:  # 4 heads of q, 2 of k, 2 of v
        return dict(zip("qkv", dW.split((32, 16, 16)), strict=True))
    if "gate_up_proj" in name:
        return dict(zip(("gate", "up"), dW.split(64), strict=True))
    return {"": dW}


@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_of_a_folder_is_the_difference_of_the_saved_numbers(bases, tuned, kind):
    pairing = pair(open_input(bases[kind]), open_input(tuned[kind]))
    before, after = (load_file(folder / "model.safetensors") for folder in (bases[kind], tuned[kind]))
    expected, vectors = {}, {}
    for name, W1 in after.items():
        W0 = before.get(name.removeprefix(PREFIX[kind]))
        if W0 is None:
            continue
        dW = W1.double() - W0.double()
        if dW.dim() == 1:
            vectors[name] = float(dW.norm())
            continue
        expected |= {name + (f"[{part}]" if part else ""): of for part, of in parts_by_hand(name, dW).items()}
    found = by_name(pairing)
    assert found.keys() == expected.keys()
    for name, matrix in found.items():
        d = matrix.delta()
        assert torch.equal(d.dW, expected[name]) and d.shape == tuple(expected[name].shape)
        row, S = measure(d, noise=False)
        torch.testing.assert_close(S, torch.linalg.svdvals(expected[name]), rtol=1e-6, atol=1e-9)
        assert row["fro_norm"] == pytest.approx(float(expected[name].norm()))
    assert {v.name: pytest.approx(v.change_norm) for v in pairing.vectors()} == vectors
    assert pairing.renamed == ("", PREFIX[kind]) and pairing.skipped == {} and pairing.added_rows == {}
    assert all(name.split(".")[0] in ("classifier", "score", "lm_head") for name in pairing.only_tuned)
    assert all(name.startswith("pooler") for name in pairing.only_base)


@pytest.mark.parametrize("kind", KINDS)
def test_a_side_in_memory_is_the_same_as_on_disk(bases, tuned, kind):
    base, model = bases[kind], with_head(kind, tuned[kind])
    disk, memory = by_name(pair(open_input(base), open_input(tuned[kind]))), by_name(pair(open_input(base),
                                                                                         open_input(model)))
    assert disk.keys() == memory.keys()
    assert all(torch.equal(disk[name].delta().dW, memory[name].delta().dW) for name in disk)


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "gpt2"])
def test_swapped_sides_are_refused(bases, tuned, kind):
    if kind == "llama":  # an output embedding is no task head: which came first cannot be seen
        assert pair(open_input(tuned[kind]), open_input(bases[kind])).only_base == ["lm_head.weight"]
        return
    with pytest.raises(UsageError, match="BASE must have no task head that TUNED lacks.*Swap the two"):
        pair(open_input(tuned[kind]), open_input(bases[kind]))


@pytest.mark.parametrize("one, other", [("bert", "gpt2"), ("llama", "bert"), ("gpt2", "gpt_neox"), ("llama", "phi3")])
def test_other_architectures_are_refused(bases, tuned, one, other):
    """Also Llama and Phi-3, which have o_proj and down_proj in common and nothing else of a block."""
    with pytest.raises(UsageError, match=r"must be of one architecture. Got base \(\w+\) and tuned \(\w+\) with"):
        pair(open_input(bases[one]), open_input(tuned[other]))


def test_another_size_of_the_same_architecture_is_refused(bases, tmp_path):
    config = transformers.AutoConfig.from_pretrained(bases["bert"])
    config.hidden_size, config.intermediate_size = 64, 128
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"must have one shape on both sides. Got \(32, 32\) in base, \(64, 64\)"):
        pair(open_input(bases["bert"]), open_input(tmp_path))


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_added_tokens_leave_the_common_rows(bases, tmp_path, kind):
    model = transformers.AutoModelForCausalLM.from_pretrained(bases["llama"]) if kind == "llama" else (
        transformers.AutoModel.from_pretrained(bases[kind]))
    tokens = model.get_input_embeddings().weight.shape[0]
    nudge(model).resize_token_embeddings(tokens + 3)
    model.save_pretrained(tmp_path)
    pairing = pair(open_input(bases[kind]), open_input(tmp_path))
    (name,) = [m.name for m in pairing.matrices if m.kind == "embed" and m.shape[0] == tokens]
    assert pairing.added_rows == {name: 3} and pairing.matrices
    before = load_file(bases[kind] / "model.safetensors")
    E0 = before[name.removeprefix("model.")]
    E1 = load_file(tmp_path / "model.safetensors")[name]
    assert torch.equal(by_name(pairing)[name].delta().dW, E1[:tokens].double() - E0.double())


def test_a_tied_output_is_measured_once(bases, tmp_path):
    base = transformers.AutoModelForCausalLM.from_pretrained(bases["gpt2"])
    base.save_pretrained(tmp_path / "base")
    nudge(base).save_pretrained(tmp_path / "tuned")
    assert base.lm_head.weight is base.transformer.wte.weight
    pairing = pair(open_input(tmp_path / "base"), open_input(tmp_path / "tuned"))
    rows = base.lm_head.weight.shape[0]
    assert [m.name for m in pairing.matrices if m.shape[0] == rows] == ["transformer.wte.weight"]
    assert pairing.only_base == pairing.only_tuned == []


def test_the_same_folder_twice_is_a_zero_update(bases):
    pairing = pair(open_input(bases["bert"]), open_input(bases["bert"]))
    assert pairing.notes == ["BASE and TUNED are the same files (base)"]
    row, S = measure(pairing.matrices[0].delta())
    assert not S.any() and (row["numerical_rank"], row["unchanged_fraction"], row["fro_norm"]) == (0, 1, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_bad_number_names_its_matrix_and_leaves_the_others(bases, tmp_path, value):
    tensors = load_file(bases["bert"] / "model.safetensors")
    bad = "encoder.layer.1.attention.self.key.weight"
    tensors[bad][3, 4] = value
    save_file(tensors, tmp_path / "model.safetensors")
    found = by_name(pair(open_input(bases["bert"]), open_input(tmp_path)))
    with pytest.raises(UsageError, match=f"{bad} must be finite on both sides. Got NaN or infinity in {tmp_path.name}"):
        found.pop(bad).delta()
    assert all(not measure(m.delta())[1].any() for m in found.values())


@pytest.fixture(scope="module")
def adapters(bases, tmp_path_factory):
    """Adapters that peft wrote."""
    made = {}
    for kind, targets in (("bert", ["query", "value"]), ("gpt2", ["c_attn"]), ("llama", ["q_proj"])):
        made[kind] = tmp_path_factory.mktemp(kind) / "adapter"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, rank_pattern={r"0\..*": 2})
            model = peft.get_peft_model(transformers.AutoModel.from_pretrained(bases[kind]), config)
        nudge(model, 0.1).save_pretrained(made[kind])
    return made


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_an_adapter_has_its_rank_alone_and_on_its_base(bases, adapters, kind):
    alone = pair(None, open_input(adapters[kind]))
    paired = pair(open_input(bases[kind]), open_input(adapters[kind]))
    for matrix in paired.matrices:
        row, S = measure(matrix.delta())
        assert row["numerical_rank"] == len(S) == (2 if matrix.layer == 0 else 3) and row["relative_change"] > 0
    assert len(alone.matrices) == len(paired.matrices) == {"bert": 4, "gpt2": 6, "llama": 2}[kind]


def test_an_adapter_for_another_base_is_refused(bases, adapters):
    for kind, other in (("bert", "gpt2"), ("llama", "bert"), ("gpt2", "llama")):
        with pytest.raises(UsageError, match="BASE must have the modules of the adapter adapter. Got no .* in base"):
            pair(open_input(bases[other]), open_input(adapters[kind]))


def test_a_rank_pattern_that_matches_nothing_and_a_zero_update(tmp_path):
    shape = {"encoder.layer.0.attention.self.query": (8, 8)}
    with pytest.raises(UsageError, match="rank_pattern's keys must match a module of the adapter. Got 'nothing'"):
        open_input(adapter_of(tmp_path, shape, rank_pattern={"nothing": 2}))
    folder = adapter_of(tmp_path, shape, r=2)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({n: t * ("lora_A" in n) for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    (matrix,) = pair(None, open_input(folder)).matrices
    row, S = measure(matrix.delta())
    assert S.shape == (2,) and not S.any() and row["numerical_rank"] == 0 and row["stable_rank"] == 0


def test_stacks_and_numbers_of_no_dimension_are_listed(tmp_path):
    for name, seed in (("base", 0), ("tuned", 1)):
        (tmp_path / name).mkdir()
        save_file({"layers.0.q_proj.weight": random(4, 4, seed=seed), "temperature": torch.tensor(1.0 + seed),
                   "layers.0.conv.weight": random(4, 2, 3, seed=seed)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({}))
    pairing = pair(open_input(tmp_path / "base"), open_input(tmp_path / "tuned"))
    assert [m.name for m in pairing.matrices] == ["layers.0.q_proj.weight"]
    assert pairing.skipped == {"temperature": "a single number (0-d)",
                               "layers.0.conv.weight": "a stack of matrices or a convolution (3-d)"}


def test_the_real_adapter_of_the_papers_authors(shared):
    file = shared / "adapters" / "roberta_base_lora_mnli" / "roberta_base_lora_mnli.bin"
    with pytest.raises(UsageError, match="lora_alpha must be known"):
        open_input(file)
    pairing = pair(None, open_input(file, alpha=16))
    rows = [measure(m.delta())[0] for m in pairing.matrices]
    assert len(rows) == 24 and {row["numerical_rank"] for row in rows} == {8}
    assert {row["kind"] for row in rows} == {"q", "v"} and {row["layer"] for row in rows} == set(range(12))


@pytest.mark.parametrize("name, kinds", [
    ("stories260k-llama", {"q", "k", "v", "o", "gate", "up", "down", "embed"}),
    ("chemtsv3-gpt2-smiles-0.5m", {"q", "k", "v", "o", "up", "down", "embed"}),
])
def test_real_models_are_read_as_transformers_reads_them(shared, tmp_path, name, kinds):
    folder = shared / "models" / name
    opened, model = open_input(folder), transformers.AutoModelForCausalLM.from_pretrained(folder)
    parameters = dict(model.named_parameters())
    assert opened.label == name and opened.shapes.keys() == parameters.keys()
    assert all(torch.equal(opened.read(n).float(), p.float()) for n, p in parameters.items())
    before = {n: p.detach().clone() for n, p in parameters.items()}
    nudge(model).save_pretrained(tmp_path)
    pairing = pair(opened, open_input(tmp_path))
    assert {m.kind for m in pairing.matrices} == kinds and pairing.only_base == pairing.only_tuned == []
    squares = sum(float((m.delta().dW ** 2).sum()) for m in pairing.matrices)
    squares += sum(v.change_norm**2 for v in pairing.vectors())
    expected = sum(float((p.detach().double() - before[n].double()).square().sum()) for n, p in parameters.items())
    assert squares == pytest.approx(expected, rel=1e-9)
