"""Bottleneck adapters against blocks computed by hand, and the norms trained with them against peft."""

import math

import peft
import pytest
import torch
import transformers
from torch import Tensor

from rankprobe.errors import UsageError
from rankprobe.methods.bottleneck import PLACEMENTS, apply_bottleneck, is_norm
from rankprobe.methods.head import freeze_all_but, head_parameters
from tests.methods.tiny import D, load_tiny, logits, perturb, trained
from tests.tiny_models import KINDS

HEADS = 4


class ByHand:
    """A tiny classifier's forward pass in plain tensor arithmetic, from its parameters by name."""

    def __init__(self, model, placement: str) -> None:
        self.p = {name: p.detach() for name, p in model.named_parameters()}
        self.placement = placement

    def linear(self, x: Tensor, name: str, transposed: bool = False) -> Tensor:
        W = self.p[f"{name}.weight"]
        return x @ (W if transposed else W.T) + self.p.get(f"{name}.bias", 0.0)

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
        return x * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def houlsby(self, x: Tensor, name: str) -> Tensor:
        """Behind an output projection: GELU, no norm."""
        if self.placement != "houlsby":
            return x
        return x + self.linear(gelu(self.linear(x, f"{name}.adapter.down")), f"{name}.adapter.up")

    def lin(self, x: Tensor, name: str) -> Tensor:
        """Behind a block: norm, ReLU."""
        if self.placement != "lin":
            return x
        inner = self.linear(self.norm(x, f"{name}.adapter.norm", 1e-5), f"{name}.adapter.down")
        return x + self.linear(inner.clamp(min=0), f"{name}.adapter.up")

    def attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        def heads(x):
            return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)

        scores = heads(q) @ heads(k).transpose(-1, -2) / math.sqrt(D / HEADS) + bias
        return (scores.softmax(-1) @ heads(v)).transpose(1, 2).reshape(q.shape)


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def bert(hand: ByHand, batch: dict) -> Tensor:
    p, tokens = hand.p, batch["input_ids"].shape[1]
    words, places, types = (p[f"bert.embeddings.{x}_embeddings.weight"] for x in ("word", "position", "token_type"))
    h = words[batch["input_ids"]] + places[:tokens] + types[0]
    h = hand.norm(h, "bert.embeddings.LayerNorm", 1e-12)
    bias = torch.where(batch["attention_mask"][:, None, None] == 1, 0.0, -torch.inf)
    for i in range(2):
        path = f"bert.encoder.layer.{i}"
        a = hand.attention(*(hand.linear(h, f"{path}.attention.self.{x}") for x in ("query", "key", "value")), bias)
        o = hand.houlsby(hand.linear(a, f"{path}.attention.output.dense"), f"{path}.attention.output.dense")
        h = hand.norm(h + o, f"{path}.attention.output.LayerNorm", 1e-12)
        m = hand.linear(gelu(hand.linear(h, f"{path}.intermediate.dense")), f"{path}.output.dense")
        h = hand.norm(h + hand.houlsby(m, f"{path}.output.dense"), f"{path}.output.LayerNorm", 1e-12)
        h = hand.lin(h, path)
    return hand.linear(torch.tanh(hand.linear(h[:, 0], "bert.pooler.dense")), "classifier")


def gpt2(hand: ByHand, batch: dict) -> Tensor:
    p, tokens = hand.p, batch["input_ids"].shape[1]
    h = p["transformer.wte.weight"][batch["input_ids"]] + p["transformer.wpe.weight"][:tokens]
    bias = torch.full((tokens, tokens), -torch.inf).triu(1)
    for i in range(2):
        path = f"transformer.h.{i}"
        q, k, v = hand.linear(hand.norm(h, f"{path}.ln_1", 1e-5), f"{path}.attn.c_attn", True).chunk(3, -1)
        o = hand.linear(hand.attention(q, k, v, bias), f"{path}.attn.c_proj", True)
        h = h + hand.houlsby(o, f"{path}.attn.c_proj")
        m = gelu_tanh(hand.linear(hand.norm(h, f"{path}.ln_2", 1e-5), f"{path}.mlp.c_fc", True))
        h = h + hand.houlsby(hand.linear(m, f"{path}.mlp.c_proj", True), f"{path}.mlp.c_proj")
        h = hand.lin(h, path)
    last = h[torch.arange(len(h)), batch["attention_mask"].sum(1) - 1]
    return hand.linear(hand.norm(last, "transformer.ln_f", 1e-5), "score")


@pytest.mark.parametrize("kind, oracle", [("bert", bert), ("gpt2", gpt2)])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_logits_are_those_computed_by_hand(kind, oracle, placement):
    tiny = load_tiny(kind)
    apply_bottleneck(tiny.model, 5, placement, seed=0)
    perturb(tiny.model)
    model = tiny.model.double()
    ours = logits(model, tiny.batch)
    torch.testing.assert_close(ours, oracle(ByHand(model, placement), tiny.batch), rtol=1e-10, atol=1e-10)
    without = oracle(ByHand(model, "none"), tiny.batch)
    assert (ours - without).abs().max() > 1e-2, "an oracle that cannot tell"


@pytest.mark.parametrize("kind", KINDS)
def test_houlsbys_norms_are_those_of_pefts_norm_tuning_inside_the_blocks(kind):
    tiny = load_tiny(kind)
    apply_bottleneck(tiny.model, 2, "houlsby", seed=0)
    ours = {n for n in trained(tiny.model).keys() - tiny.head if ".adapter." not in n}
    # peft knows the norms of decoders; of encoders it has to be told.
    targets = {"gpt2": None, "llama": None, "distilbert": ["sa_layer_norm", "output_layer_norm"]}
    config = peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=targets.get(kind, ["LayerNorm"]))
    theirs = trained(peft.get_peft_model(load_tiny(kind).model, config))
    names = {n.removeprefix("base_model.model.").replace(".ln_tuning_layers.default", "") for n in theirs if "ln_" in n}
    in_blocks = {n for n in names if any(part in n for part in (".layer.", ".h.", ".layers."))}
    assert ours == in_blocks and len(ours) == (4 if kind == "llama" else 8)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", ["deberta-v2", "llama"])
def test_at_the_start_only_the_second_layer_learns_and_after_a_step_both(placement, kind):
    """What a zero second layer does: the first one's gradient goes through it."""
    tiny = load_tiny(kind)
    apply_bottleneck(tiny.model, 5, placement, seed=0)
    parameters = {n: p for n, p in trained(tiny.model).items() if ".adapter." in n}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    learning = []
    for _ in range(2):
        optimizer.zero_grad()
        tiny.model(**tiny.batch).logits.square().sum().backward()
        learning.append({n.split(".adapter.")[1] for n, p in parameters.items() if p.grad.abs().max() > 0})
        optimizer.step()
    first = {"up.weight", "up.bias"}
    assert learning[0] == first
    norm = {"norm.weight", "norm.bias"} if placement == "lin" else set()
    assert learning[1] == first | {"down.weight", "down.bias"} | norm


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_first_layer_is_drawn_within_two_standard_deviations(placement):
    tiny = load_tiny("bert")
    apply_bottleneck(tiny.model, 200, placement, seed=0)
    weights = [p for n, p in trained(tiny.model).items() if n.endswith("adapter.down.weight")]
    drawn = torch.cat([p.detach().flatten() for p in weights])
    # A normal distribution cut at 2 sigma has a standard deviation of 0.880 sigma; 12,800 draws are within 2 % of it.
    assert drawn.abs().max() <= 0.02 and abs(drawn.std() / (0.880 * 0.01) - 1) < 0.02
    assert len({w.detach().numpy().tobytes() for w in weights}) == len(weights), "each adapter has draws of its own"


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("bottleneck", [0, -3])
def test_a_bottleneck_below_1_is_refused(placement, bottleneck):
    tiny = load_tiny("bert")
    with pytest.raises(UsageError, match=rf"bottleneck must be at least 1\. Got {bottleneck}\. Pass 16, say\."):
        apply_bottleneck(tiny.model, bottleneck, placement, seed=0)
    assert trained(tiny.model).keys() == tiny.head


def test_an_unknown_placement_is_refused():
    with pytest.raises(UsageError, match="placement must be houlsby or lin. Got parallel."):
        apply_bottleneck(load_tiny("bert").model, 4, "parallel", seed=0)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_second_adapter_is_refused(placement):
    tiny = load_tiny("gpt2")
    apply_bottleneck(tiny.model, 4, placement, seed=0)
    with pytest.raises(UsageError, match="must have no adapter yet. Got a second one. Apply one method at a time."):
        apply_bottleneck(tiny.model, 4, placement, seed=0)


def test_a_block_of_experts_has_no_one_projection_for_houlsby_and_an_output_for_lin():
    config = transformers.MixtralConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=20,
                                        num_key_value_heads=2, intermediate_size=16, num_local_experts=2)  # fmt: skip
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    freeze_all_but(model, head_parameters(model))
    rule = "Block model.layers.0 must have one output projection of attention and one of the MLP"
    with pytest.raises(UsageError, match=f"{rule}. Got o. Choose adapter_l."):
        apply_bottleneck(model, 4, "houlsby", seed=0)
    assert not trained(model)
    apply_bottleneck(model, 4, "lin", seed=0)
    assert sum(p.numel() for p in trained(model).values()) == 2 * (2 * 16 * 4 + 4 + 16 + 2 * 16)


def test_a_bottleneck_far_wider_than_the_model_is_refused_before_it_is_made():
    tiny = load_tiny("bert")
    with pytest.raises(UsageError, match=r"bottleneck must be at most 3200, .* Got 99999999999\."):
        apply_bottleneck(tiny.model, 99_999_999_999, "lin", seed=0)


def test_norms_are_known_by_their_name_and_their_vectors():
    class NemotronLayerNorm1P(torch.nn.LayerNorm):
        pass

    assert is_norm(NemotronLayerNorm1P(4)) and is_norm(torch.nn.LayerNorm(4)) and is_norm(torch.nn.RMSNorm(4))
    assert not is_norm(torch.nn.Linear(2, 2)) and not is_norm(torch.nn.LayerNorm(4, elementwise_affine=False))


def test_a_block_that_gives_a_list():
    """OpenAI GPT's."""
    config = transformers.OpenAIGPTConfig(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16, pad_token_id=0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    freeze_all_but(model, head_parameters(model))
    apply_bottleneck(model, 2, "lin", seed=0)
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-5, atol=1e-6)
    model(input_ids=ids).logits.sum().backward()
    adapters = [p.grad for name, p in model.named_parameters() if ".adapter." in name]
    assert adapters and all(grad is not None for grad in adapters)
