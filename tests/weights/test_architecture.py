"""Kinds, Conv1D and fused matrices, against what transformers' own models compute with them."""

import collections

import pytest
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from rankprobe.weights.architecture import (
    beyond_matrices,
    kind_of,
    layer_of,
    max_positions,
    model_shapes,
    weight_sites,
    why_whole,
)
from rankprobe.weights.fused import FUSED_KINDS, Rows
from rankprobe.weights.targets import target_sites

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 32}
GPT2 = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
NO_SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "bigcode-mq": lambda: transformers.GPTBigCodeConfig(**GPT2, multi_query=True),
    "bigcode-mh": lambda: transformers.GPTBigCodeConfig(**GPT2, multi_query=False),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL),
    "bloom": lambda: transformers.BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4),
    "phi3": lambda: transformers.Phi3Config(**SMALL, **NO_SPECIAL, num_key_value_heads=2),
    "modernbert": lambda: transformers.ModernBertConfig(**SMALL, **NO_SPECIAL, cls_token_id=0, sep_token_id=1,
                                                        attn_implementation="eager"),
    "gpt_neo": lambda: transformers.GPTNeoConfig(vocab_size=50, hidden_size=32, num_layers=2, num_heads=4,
                                                 attention_types=[[["global"], 2]], max_position_embeddings=32),
    "starcoder2": lambda: transformers.Starcoder2Config(**SMALL, num_key_value_heads=2),
    "falcon": lambda: transformers.FalconConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2,
                                                num_attention_heads=4),
    "t5": lambda: transformers.T5Config(vocab_size=50, d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4,
                                        feed_forward_proj="gated-gelu"),
    "bart": lambda: transformers.BartConfig(vocab_size=50, d_model=32, encoder_layers=2, decoder_layers=2,
                                            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
                                            decoder_ffn_dim=48, max_position_embeddings=32),
    "opt": lambda: transformers.OPTConfig(vocab_size=50, hidden_size=32, ffn_dim=48, num_hidden_layers=2,
                                          num_attention_heads=4, max_position_embeddings=32, word_embed_proj_dim=32),
    "vit": lambda: transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                          intermediate_size=48, image_size=32, patch_size=16),
    "gemma": lambda: transformers.GemmaConfig(**SMALL, num_key_value_heads=2, head_dim=8),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, num_key_value_heads=2),
    "albert": lambda: transformers.AlbertConfig(**SMALL, embedding_size=16),
    "gptj": lambda: transformers.GPTJConfig(**GPT2, rotary_dim=4),
    "mpnet": lambda: transformers.MPNetConfig(**SMALL),
}
FUSED = ("gpt2", "bigcode-mq", "bigcode-mh", "gpt_neox", "bloom", "phi3", "modernbert")


def make(name):
    config = CONFIGS[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config).eval()
        for p in model.parameters():  # biases are zero at start, and small weights leave attention nearly uniform
            p.data.normal_(0, 0.5)
    return model, config.to_dict()


def sites_of(model, config, **options):
    return weight_sites(model_shapes(model), config=config, **options)


@pytest.mark.parametrize("name", ["gpt2", "bigcode-mq", "bigcode-mh", "gpt_neo", "starcoder2", "opt"])
@pytest.mark.parametrize("with_config", [True, False])
def test_transposed_means_that_the_module_is_a_conv1d(name, with_config):
    model, config = make(name)
    for site in sites_of(model, config if with_config else None, fused=True):
        module = model.get_submodule(site.module)
        assert site.transposed == isinstance(module, Conv1D), site.name
        if isinstance(module, torch.nn.Linear):
            assert site.shape == (module.out_features, module.in_features)
        if isinstance(module, Conv1D):
            assert site.shape == (module.nf, module.nx)


def test_a_square_matrix_is_stored_as_its_siblings_are():
    linear = {"h.0.attn.c_proj.weight": (8, 8), "h.0.mlp.c_fc.weight": (32, 8)}
    conv1d = {"h.0.attn.c_proj.weight": (8, 8), "h.0.mlp.c_fc.weight": (8, 32)}
    assert [s.transposed for s in weight_sites(linear)] == [False, False]
    assert [s.transposed for s in weight_sites(conv1d)] == [True, True]
    narrowing = {"h.0.attn.c_proj.weight": (8, 8), "h.0.mlp.c_proj.weight": (8, 32)}
    assert [(s.transposed, s.shape) for s in weight_sites(narrowing)] == [(False, (8, 8)), (False, (8, 32))]
    narrowing["h.0.mlp.c_proj.weight"] = (32, 8)
    assert [(s.transposed, s.shape) for s in weight_sites(narrowing)] == [(True, (8, 8)), (True, (8, 32))]
    alone = {"h.0.attn.c_proj.weight": (8, 8)}
    assert [s.transposed for s in weight_sites(alone, config={"model_type": "gpt_bigcode"})] == [False]


@pytest.mark.parametrize("name", FUSED)
def test_changing_q_of_a_token_changes_that_token_and_k_and_v_the_others_too(name):
    """Attention's own definition as the oracle: a query is one token's business, keys and values are everyone's."""
    model, config = make(name)
    sites = {s.kind: s for s in sites_of(model, config) if s.layer == 0 and s.kind in "qkv"}
    assert sites.keys() == set("qkv"), why_whole(sites_of(model, config, fused=True)[2], config)
    fused = model.get_submodule(sites["q"].module)
    out = next(s.module for s in sites_of(model, config) if s.layer == 0 and s.kind == "o")
    ids = torch.tensor([[5, 6, 7, 8]])

    def attended(kind=None, zero=False):
        seen = {}

        def change(_, __, output):
            output = output.clone()
            part = sites[kind].rows.view(output if zero else output[:, 1], -1)
            part.mul_(0 if zero else -1)
            return output

        handles = [model.get_submodule(out).register_forward_pre_hook(lambda _, args: seen.update(o=args[0].detach()))]
        if kind is not None:
            handles.append(fused.register_forward_hook(change))
        with torch.no_grad():
            model(ids)
        for handle in handles:
            handle.remove()
        return seen["o"][0].clone()

    before = attended()
    changed = {kind: (attended(kind) - before).abs().amax(-1) > 1e-6 for kind in "qkv"}
    causal = name != "modernbert"
    assert changed["q"].tolist() == [False, True, False, False]
    for kind in "kv":
        assert changed[kind].tolist() == [not causal, True, True, True]
    assert before.abs().max() > 1e-3 and attended("v", zero=True).abs().max() == 0
    assert attended("k", zero=True).abs().max() > 0


@pytest.mark.parametrize("name", FUSED)
def test_parts_cover_the_fused_matrix_once(name):
    model, config = make(name)
    parameters = dict(model.named_parameters())
    whole = {s.parameter: s for s in sites_of(model, config, fused=True) if s.kind in FUSED_KINDS}
    assert whole
    for parameter, fused in whole.items():
        parts = [s for s in sites_of(model, config) if s.parameter == parameter]
        stored = torch.zeros_like(parameters[parameter])
        for i, site in enumerate(parts, start=1):
            value = torch.full(site.shape, float(i))
            assert torch.equal(site.get(stored), torch.zeros(site.shape))
            site.set_(stored, value)
            assert torch.equal(site.get(stored), value)
        counts = collections.Counter(fused.get(stored)[:, 0].tolist())
        assert counts == {float(i): site.shape[0] for i, site in enumerate(parts, start=1)}


@pytest.mark.parametrize("name", ["phi3", "modernbert"])
def test_the_gate_is_the_half_that_is_activated(name):
    model, config = make(name)
    gate, up = (next(s for s in sites_of(model, config) if s.layer == 0 and s.kind == k) for k in ("gate", "up"))
    down = next(s.module for s in sites_of(model, config) if s.layer == 0 and s.kind == "down")

    def product(site=None):
        seen = {}
        handles = [model.get_submodule(down).register_forward_pre_hook(lambda _, args: seen.update(x=args[0].detach()))]
        if site is not None:
            def double(_, __, output):
                output = output.clone()
                site.rows.view(output, -1).mul_(2)
                return output
            handles.append(model.get_submodule(site.module).register_forward_hook(double))
        with torch.no_grad():
            model(torch.tensor([[5, 6, 7]]))
        for handle in handles:
            handle.remove()
        return seen["x"].clone()

    torch.testing.assert_close(product(up), 2 * product())
    assert (product(gate) - 2 * product()).abs().max() > 1e-3


def test_fused_matrices_stay_whole_where_the_layout_is_not_known():
    shapes = {"layers.0.attention.query_key_value.weight": (96, 32)}
    for config, reason in (({}, "num_attention_heads"), ({"model_type": "falcon"}, "Falcon"),
                           ({"model_type": "gpt_neox", "num_attention_heads": 5}, "5 heads"),
                           ({"model_type": "chatglm"}, "not known")):
        (site,) = weight_sites(shapes, config=config)
        assert (site.kind, site.rows) == ("qkv", None) and reason.split()[0] in why_whole(site, config), config
    shapes = {"layers.0.self_attn.qkv_proj.weight": (64, 32)}
    (site,) = weight_sites(shapes)
    assert site.kind == "qkv" and "config.json" in why_whole(site)
    wrong = {"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 3}
    assert "4 + 2 x 3 heads" in why_whole(weight_sites(shapes, config=wrong)[0], wrong)


def test_chatglm_with_grouped_queries():
    config = {"model_type": "chatglm", "multi_query_attention": True, "num_attention_heads": 4, "kv_channels": 8,
              "multi_query_group_num": 2}
    sites = weight_sites({"encoder.layers.0.self_attention.query_key_value.weight": (64, 32)}, config=config)
    assert [(s.kind, s.shape, s.rows) for s in sites] == [
        ("q", (32, 32), Rows(0, 32)), ("k", (16, 32), Rows(32, 48)), ("v", (16, 32), Rows(48, 64))]


def test_cross_attention_of_gpt2_holds_k_and_v():
    config = transformers.GPT2Config(**GPT2, add_cross_attention=True)
    sites = sites_of(transformers.GPT2Model(config), config.to_dict())
    cross = [(s.kind, s.shape) for s in sites if s.layer == 0 and "crossattention" in s.name]
    assert cross == [("k", (32, 32)), ("v", (32, 32)), ("q", (32, 32)), ("o", (32, 32))]


@pytest.mark.parametrize("name, kinds", [
    ("t5", {"q": 3, "k": 3, "v": 3, "o": 3, "gate": 2, "up": 2, "down": 2, "embed": 2}),
    ("bart", {"q": 3, "k": 3, "v": 3, "o": 3, "up": 2, "down": 2}),
    ("opt", {"q": 1, "k": 1, "v": 1, "o": 1, "up": 1, "down": 1}),
    ("vit", {"q": 1, "k": 1, "v": 1, "o": 1, "up": 1, "down": 1}),
    ("gpt_neox", {"q": 1, "k": 1, "v": 1, "o": 1, "up": 1, "down": 1}),
    ("bloom", {"q": 1, "k": 1, "v": 1, "o": 1, "up": 1, "down": 1}),
    ("falcon", {"qkv": 1, "o": 1, "up": 1, "down": 1}),
    ("gemma", {"q": 1, "k": 1, "v": 1, "o": 1, "gate": 1, "up": 1, "down": 1}),
    ("qwen2", {"q": 1, "k": 1, "v": 1, "o": 1, "gate": 1, "up": 1, "down": 1}),
    ("modernbert", {"q": 1, "k": 1, "v": 1, "o": 1, "gate": 1, "up": 1, "down": 1}),
    ("albert", {"q": 1, "k": 1, "v": 1, "o": 1, "up": 1, "down": 1}),
    ("gptj", {"q": 1, "k": 1, "v": 1, "o": 1, "up": 1, "down": 1}),
    ("mpnet", {"q": 1, "k": 1, "v": 1, "o": 1, "up": 1, "down": 1}),
    ("starcoder2", {"q": 1, "k": 1, "v": 1, "o": 1, "up": 1, "down": 1}),
])
def test_every_matrix_of_a_block_has_its_kind(name, kinds):
    model, config = make(name)
    found = collections.Counter(s.kind for s in sites_of(model, config) if s.layer == 0)
    assert found == kinds
    outside = {s.kind for s in sites_of(model, config) if s.layer is None}
    assert outside <= {"embed", "other"}


@pytest.mark.parametrize("module, kind", [
    ("model.layers.0.block_sparse_moe.experts.3.w1", "gate"), ("model.layers.0.block_sparse_moe.experts.3.w2", "down"),
    ("model.layers.0.block_sparse_moe.experts.3.w3", "up"), ("model.layers.0.block_sparse_moe.gate", "other"),
    ("model.layers.0.mlp.gate", "other"), ("layers.0.attention.wo", "o"), ("layers.0.attention.wq", "q"),
    ("layers.0.feed_forward.w2", "down"), ("lm_head", "other"), ("embed_out", "other"), ("shared", "embed"),
    ("visual.blocks.0.attn.qkv", "qkv"), ("transformer.h.0.attn.c_proj", "o"), ("classifier", "other"),
    ("vit.encoder.layer.0.attention.attention.query", "q"), ("vit.encoder.layer.0.attention.output.dense", "o"),
])
def test_names_on_the_hub(module, kind):
    assert kind_of(module) == kind


def test_sentence_transformers_wrapping_does_not_hide_the_layer():
    assert layer_of("0.auto_model.encoder.layer.3.output.dense.weight") == 3


def test_targets_of_fused_gates_can_be_named():
    shapes = {"model.layers.0.mlp.gate_up_proj.weight": (96, 32), "model.layers.0.mlp.down_proj.weight": (32, 48)}
    assert [(s.kind, s.shape) for s in target_sites(shapes, "gate")] == [("gate", (48, 32))]


def test_rows_of_one_run_are_a_view_and_those_of_every_head_a_copy():
    M = torch.arange(24.0).reshape(12, 2)
    run, heads = Rows(3, 6), Rows(1, 2, 3)
    assert run.get(M).data_ptr() == M[3:].data_ptr() and torch.equal(run.get(M), M[3:6])
    assert torch.equal(heads.get(M), M[1::3])
    heads.view(M).copy_(heads.shaped(torch.zeros(4, 2)))
    assert M[1::3].abs().max() == 0 and torch.equal(M[::3, 0], torch.tensor([0.0, 6, 12, 18]))
    assert torch.equal(heads.view(M.T, -1).flatten(1), M.T[:, 1::3])


def test_what_is_beyond_matrices_is_named_with_its_share():
    shapes = {"model.embed_tokens.weight": (10, 4), "model.layers.0.self_attn.q_proj.weight": (4, 4),
              "model.layers.0.norm.weight": (4,), "model.layers.0.mlp.experts.down_proj": (2, 4, 5),
              "model.layers.1.mlp.experts.down_proj": (2, 4, 5), "conv.weight": (9, 9, 9)}  # fmt: skip
    assert beyond_matrices(shapes) == "model.layers.N.mlp.experts.down_proj (80 % of the weights in the blocks)"
    del shapes["model.layers.0.mlp.experts.down_proj"], shapes["model.layers.1.mlp.experts.down_proj"]
    assert beyond_matrices(shapes) is None


@pytest.mark.parametrize(("config", "expected"), [
    (transformers.OpenAIGPTConfig(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=48), 48),
    (transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=40), 40),
    (transformers.LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                              vocab_size=20), None),
], ids=["openai-gpt", "gpt2", "llama"])  # fmt: skip
def test_how_many_positions_a_model_has(config, expected):
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    assert max_positions(model) == expected
