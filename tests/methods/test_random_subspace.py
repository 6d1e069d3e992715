"""DID and SAID against gradients and weights worked out apart from them, with P built in full."""

import re

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from rankprobe.errors import UsageError
from rankprobe.methods.head import freeze_all_but, head_parameters
from rankprobe.methods.random_subspace import RandomSubspace
from rankprobe.training.evaluate import predict
from rankprobe.training.train import train
from rankprobe.weights.pretrained import find_model, load_classifier
from tests.tiny_models import KINDS, make_tiny

TEXTS = ["the cat sat", "a dog ran over the hill", "one"]
LABELS = torch.tensor([0, 1, 2])
METHODS = pytest.mark.parametrize("layerwise", [False, True], ids=["did", "said"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: make_tiny(kind, tmp_path_factory.mktemp(kind)) for kind in ("bert", "gpt2", "llama")}


def load(folder):
    """A tiny classifier, its head's names and a padded batch."""
    model, tokenizer, missing = load_classifier(find_model(folder), 3, seed=1)
    head = head_parameters(model, missing)
    freeze_all_but(model, head)
    return model, head, tokenizer(TEXTS, padding=True, return_tensors="pt")


def subspace_of(model, head, layerwise, d=20, seed=5, moved=True):
    """A subspace at a point away from its start, which would hide mistakes."""
    subspace = RandomSubspace(model, head, d, layerwise=layerwise, seed=seed)
    if moved:
        generator = torch.Generator().manual_seed(seed)
        subspace.theta_d.data.normal_(0, 1, generator=generator)
        if layerwise:
            subspace.scales.data.uniform_(0.5, 2, generator=generator)
    return subspace


def layer_of(name):
    """0 outside the blocks, from 1 on inside."""
    found = re.search(r"\.(?:layer|layers|h)\.(\d+)\.", name)
    return int(found[1]) + 1 if found else 0


def base_names(model, head, layerwise):
    """The base's weights in the order in which P's rows go through them."""
    names = [n for n, _ in model.named_parameters() if n not in head]
    return sorted(names, key=layer_of) if layerwise else names


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def dense(subspace):
    """P as a matrix, a column at a time."""
    return torch.stack([subspace.P(e) for e in torch.eye(subspace.P.d, dtype=subspace.theta_d.dtype)], dim=1)


def rows_of(model, names):
    """The layer of each row of P."""
    parameters = dict(model.named_parameters())
    return torch.cat([torch.full((parameters[n].numel(),), layer_of(n)) for n in names])


def expected_weights(subspace, names, theta0):
    """theta0 + lambda * P theta_d, from the matrix."""
    offsets = dense(subspace) @ subspace.theta_d.detach()
    if subspace.scales is not None:
        offsets = offsets * subspace.scales.detach()[rows_of(subspace.model, names)]
    return theta0 + offsets


def set_flat(model, names, values):
    parameters, at = dict(model.named_parameters()), 0
    for name in names:
        p = parameters[name]
        p.data.copy_(values[at : at + p.numel()].view(p.shape))
        at += p.numel()


def weights(model, names):
    parameters = dict(model.named_parameters())
    return flat(parameters[n] for n in names)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def loss_of(module, batch):
    return nn.functional.cross_entropy(module(**batch).logits, LABELS)


@METHODS
@pytest.mark.parametrize("kind", KINDS)
def test_counts_and_starts_as_the_base(kind, layerwise, tmp_path):
    model, head, batch = load(make_tiny(kind, tmp_path))
    with torch.no_grad():
        before = model(**batch).logits
    total = sum(p.numel() for p in model.parameters())
    of_head = sum(p.numel() for n, p in model.named_parameters() if n in head)
    subspace = RandomSubspace(model, head, 50, layerwise=layerwise, seed=0)
    assert (subspace.d, total - of_head) == (50, subspace.D)
    trainable = {n: p.numel() for n, p in subspace.named_parameters() if p.requires_grad}
    own = {"theta_d": 47, "scales": 3} if layerwise else {"theta_d": 50}
    assert {n: c for n, c in trainable.items() if not n.startswith("model.")} == own
    assert {n.removeprefix("model.") for n in trainable if n.startswith("model.")} == head
    assert sum(trainable.values()) == 50 + of_head
    torch.testing.assert_close(subspace(**batch).logits, before, rtol=0, atol=0)


@METHODS
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_forward_runs_at_theta0_plus_P_theta(kind, layerwise, folders):
    model, head, batch = load(folders[kind])
    model.double()
    names = base_names(model, head, layerwise)
    theta0 = weights(model, names)
    subspace = subspace_of(model, head, layerwise)
    out = subspace(**batch).logits.detach()
    assert torch.equal(weights(model, names), theta0)
    set_flat(model, names, expected_weights(subspace, names, theta0))
    torch.testing.assert_close(out, model(**batch).logits.detach(), rtol=1e-11, atol=1e-12)


@METHODS
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_gradients_are_the_transpose_of_the_full_gradient(kind, layerwise, folders):
    model, head, batch = load(folders[kind])
    model.double()
    names = base_names(model, head, layerwise)
    theta0 = weights(model, names)
    subspace = subspace_of(model, head, layerwise)
    loss_of(subspace, batch).backward()
    assert all(p.grad is None for n, p in model.named_parameters() if n not in head)
    ours = {n: p.grad.clone() for n, p in subspace.named_parameters() if p.requires_grad}

    other, _, _ = load(folders[kind])
    other.double().requires_grad_()
    set_flat(other, names, expected_weights(subspace, names, theta0))
    loss_of(other, batch).backward()
    full = {n: p.grad for n, p in other.named_parameters()}
    g, P = flat(full[n] for n in names), dense(subspace)
    if layerwise:
        layers = rows_of(other, names)
        offsets = P @ subspace.theta_d.detach()
        by_layer = torch.stack([(g * offsets)[layers == i].sum() for i in range(3)])
        torch.testing.assert_close(ours["scales"], by_layer, rtol=1e-9, atol=1e-13)
        g = g * subspace.scales.detach()[layers]
    torch.testing.assert_close(ours["theta_d"], P.T @ g, rtol=1e-9, atol=1e-13)
    for name in head:
        torch.testing.assert_close(ours[f"model.{name}"], full[name], rtol=1e-9, atol=1e-13)


def test_gradients_at_the_start(folders):
    """The scales have none while theta_d is zero; theta_d has DID's."""
    gradients = {}
    for layerwise in (False, True):
        model, head, batch = load(folders["bert"])
        subspace = subspace_of(model, head, layerwise, d=23 if layerwise else 20, moved=False)
        loss_of(subspace, batch).backward()
        gradients[layerwise] = subspace
    assert not gradients[True].scales.grad.any()
    assert gradients[True].theta_d.grad.abs().min() > 0
    # BERT's order has the pooler last where SAID's has it first, so P's rows meet other weights: only sizes agree.
    assert gradients[True].theta_d.grad.shape == gradients[False].theta_d.grad.shape


def test_a_step_moves_the_weights_inside_the_span_of_P(folders):
    model, head, batch = load(folders["bert"])
    model.double()
    names = base_names(model, head, False)
    subspace = subspace_of(model, head, False)
    subspace.write()
    before = weights(model, names)
    subspace.train()
    model.eval()  # without dropout
    optimizer = torch.optim.SGD([subspace.theta_d], lr=0.5)
    loss_of(subspace, batch).backward()
    gradient = subspace.theta_d.grad.clone()
    optimizer.step()
    subspace.write()
    moved, P = weights(model, names) - before, dense(subspace)
    assert moved.norm() > 1e-4
    outside = moved - P @ torch.linalg.lstsq(P, moved[:, None]).solution[:, 0]
    assert outside.norm() < 1e-11 * moved.norm()
    torch.testing.assert_close(moved, -0.5 * P @ gradient, rtol=0, atol=1e-13)


@METHODS
def test_training_reaches_a_lower_loss(layerwise, folders):
    """Labels without rhyme, learnt by heart with the head held fixed: many dimensions can, a handful cannot."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (24, 6), generator=generator).tolist()
    rows = [{"input_ids": row, "attention_mask": [1] * 6} for row in ids]
    labels = [i % 3 for i in range(24)]
    ends = {}
    for d in (5, None):
        model, head, _ = load(folders["bert"])
        freeze_all_but(model, set())
        without_dropout(model)
        model.classifier.weight.data *= 20  # as it is drawn, its logits could not part the classes
        D = sum(p.numel() for n, p in model.named_parameters() if n not in head)
        subspace = RandomSubspace(model, head, d or D, layerwise=layerwise, seed=0)
        # A step of each of d coordinates is one of about lr √d in the weights.
        result = train(subspace, rows, labels, 0, lr=0.5 / (d or D) ** 0.5, epochs=60, batch_size=24, seed=0)
        losses = [step["loss"] for step in result.history]
        assert result.status == "ok"
        ends[d] = losses[-1] / losses[0]
        subspace.eval()
        assert predict(model, rows, labels, 0).loss == pytest.approx(losses[-1], rel=0.2)
    assert ends[None] < 0.1 and ends[5] > 0.5


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@METHODS
def test_a_tied_weight_is_one_weight(kind, layerwise, folders):
    def language_model():
        return AutoModelForCausalLM.from_pretrained(folders[kind], tie_word_embeddings=True).double().eval()

    model = language_model()
    embedding = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embedding
    freeze_all_but(model, set())
    names = base_names(model, set(), layerwise)
    theta0 = weights(model, names)
    assert sum("lm_head" in n for n in names) == 0
    subspace = subspace_of(model, set(), layerwise)
    assert len(theta0) == subspace.D == sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    ids = torch.tensor([[3, 8, 5, 9], [4, 4, 7, 2]])
    subspace(input_ids=ids).logits.pow(2).mean().backward()
    other = language_model().requires_grad_()
    set_flat(other, names, expected_weights(subspace, names, theta0))
    other(input_ids=ids).logits.pow(2).mean().backward()
    g = flat(dict(other.named_parameters())[n].grad for n in names)
    if layerwise:
        g = g * subspace.scales.detach()[rows_of(other, names)]
    torch.testing.assert_close(subspace.theta_d.grad, dense(subspace).T @ g, rtol=1e-9, atol=1e-13)
    subspace.eval()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight is embedding
    torch.testing.assert_close(model(input_ids=ids).logits, other(input_ids=ids).logits, rtol=1e-10, atol=1e-11)


@METHODS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_eval_writes_the_weights_and_train_takes_them_back_bit_for_bit(layerwise, dtype, folders):
    model, head, batch = load(folders["bert"])
    model.to(dtype)
    names = base_names(model, head, layerwise)
    theta0, of_head = weights(model, names), weights(model, sorted(head))
    subspace = subspace_of(model, head, layerwise)
    moving = subspace(**batch).logits.detach()
    assert subspace.eval() is subspace
    assert not subspace.training and not model.training
    written = weights(model, names)
    assert written.dtype == dtype and (written != theta0).float().mean() > 0.5
    torch.testing.assert_close(subspace(**batch).logits.detach(), moving, rtol=0, atol=0)
    torch.testing.assert_close(model(**batch).logits.detach(), moving, rtol=0, atol=0)
    assert torch.equal(weights(subspace.eval().model, names), written)  # a second time changes nothing
    subspace.train()
    assert subspace.training and model.training
    assert torch.equal(weights(model, names), theta0)
    assert torch.equal(weights(model, sorted(head)), of_head)


def test_written_weights_do_not_share_memory_and_follow_theta(folders):
    model, head, _ = load(folders["bert"])
    subspace = subspace_of(model, head, False)
    subspace.write()
    storages = [p.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(storages)) == len(storages)  # safetensors refuses to save what shares memory
    before = weights(model, base_names(model, head, False))
    subspace.theta_d.data.add_(1)
    subspace.write()
    assert not torch.equal(weights(model, base_names(model, head, False)), before)


@METHODS
def test_predicting_between_steps_disturbs_nothing(layerwise, folders):
    """Predictions switch to evaluation inside inference mode; what that leaves must be fit for autograd."""
    rows = [{"input_ids": [3, 4, 5], "attention_mask": [1, 1, 1]}] * 3

    def gradient(predicting):
        model, head, batch = load(folders["bert"])
        subspace = subspace_of(model, head, layerwise)
        without_dropout(model)
        for _ in range(2):
            if predicting:
                predict(subspace, rows, [0, 1, 2], 0)
                subspace.train()
            subspace.zero_grad()
            loss_of(subspace, batch).backward()
            with torch.no_grad():
                subspace.theta_d -= 0.1 * subspace.theta_d.grad
        return subspace.theta_d.grad

    assert torch.equal(gradient(True), gradient(False))


@METHODS
def test_a_saved_state_loads_by_name(layerwise, folders):
    model, head, batch = load(folders["bert"])
    subspace = subspace_of(model, head, layerwise)
    for name in head:
        dict(model.named_parameters())[name].data.add_(0.3)
    saved = {n: p.detach().clone() for n, p in subspace.named_parameters() if p.requires_grad}
    assert len(saved["theta_d"]) + len(saved.get("scales", ())) == 20

    fresh_model, head, _ = load(folders["bert"])
    fresh = RandomSubspace(fresh_model, head, 20, layerwise=layerwise, seed=5)
    parameters = dict(fresh.named_parameters())
    for name, tensor in saved.items():
        parameters[name].data.copy_(tensor)
    expected = subspace.eval()(**batch).logits
    assert torch.equal(fresh.eval()(**batch).logits, expected)
    other = RandomSubspace(load(folders["bert"])[0], head, 20, layerwise=layerwise, seed=6)
    for name, tensor in saved.items():
        dict(other.named_parameters())[name].data.copy_(tensor)
    assert not torch.equal(other.eval()(**batch).logits, expected)


@METHODS
def test_autocast_keeps_theta_and_P_in_float32(layerwise, folders):
    """The gradient is the transpose of the full one under autocast, to float32's rounding and not bfloat16's."""

    def loss(module):
        with torch.autocast("cpu", torch.bfloat16):
            out = module(**batch).logits
        return nn.functional.cross_entropy(out.float(), LABELS)

    model, head, batch = load(folders["bert"])
    names = base_names(model, head, layerwise)
    subspace = subspace_of(model, head, layerwise)
    value = loss(subspace)
    value.backward()
    assert subspace.theta_d.dtype == subspace.theta_d.grad.dtype == subspace.P.gaussian.dtype == torch.float32
    subspace.write()
    model.requires_grad_()
    assert torch.equal(loss(model), value)
    loss(model).backward()
    g = flat(dict(model.named_parameters())[n].grad for n in names)
    if layerwise:
        g = g * subspace.scales.detach()[rows_of(model, names)]
    torch.testing.assert_close(subspace.theta_d.grad, dense(subspace).T @ g, rtol=1e-4, atol=1e-6)


def test_a_half_precision_base_keeps_theta_in_float32(folders):
    model, head, batch = load(folders["bert"])
    model.to(torch.bfloat16)
    subspace = subspace_of(model, head, True)
    loss_of(subspace, batch).backward()
    assert subspace.theta_d.dtype == subspace.theta_d.grad.dtype == subspace.scales.grad.dtype == torch.float32
    assert subspace.theta_d.grad.isfinite().all() and subspace.theta_d.grad.any()


@METHODS
def test_passes_before_one_backward_add_up(layerwise, folders):
    model, head, batch = load(folders["bert"])
    subspace = subspace_of(model, head, layerwise)
    loss_of(subspace, batch).backward()
    once = subspace.theta_d.grad.clone()
    subspace.zero_grad()
    (loss_of(subspace, batch) + loss_of(subspace, batch)).backward()
    torch.testing.assert_close(subspace.theta_d.grad, 2 * once, rtol=1e-5, atol=1e-7)


@METHODS
def test_steps_reuse_the_memory_of_size_D(layerwise, folders):
    model, head, batch = load(folders["bert"])
    subspace = subspace_of(model, head, layerwise)
    seen = set()
    for _ in range(4):
        loss_of(subspace, batch).backward()
        seen.add(frozenset(t.data_ptr() for t in subspace._room))
    assert len(seen) == 1 and len(subspace._room) == 1 + layerwise


@METHODS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_pass_through_a_graph_fails_aloud(layerwise, dtype, folders):
    model, head, batch = load(folders["bert"])
    model.to(dtype)
    subspace = subspace_of(model, head, layerwise)
    loss = loss_of(subspace, batch)
    loss.backward(retain_graph=True)
    with pytest.raises((RuntimeError, AttributeError)):
        loss.backward()
    assert len(subspace._room) == 1 + layerwise


class Toy(nn.Module):
    """Not of transformers, with a weight that is not used."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.head = nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.used(x))


def test_an_unused_weight_has_a_zero_gradient():
    torch.manual_seed(0)
    model = Toy().double()
    subspace = RandomSubspace(model, {"head.weight", "head.bias"}, 3, layerwise=False, seed=0)
    assert subspace.D == 14
    x = torch.randn(5, 3, dtype=torch.float64)
    subspace(x=x).sum().backward()
    model.used.requires_grad_()
    model(x).sum().backward()
    g = torch.cat([model.used.weight.grad.reshape(-1), model.used.bias.grad, torch.zeros(6, dtype=torch.float64)])
    torch.testing.assert_close(subspace.theta_d.grad, dense(subspace).T @ g, rtol=1e-12, atol=1e-13)


@METHODS
def test_counting_on_the_meta_device_draws_nothing(layerwise, folders):
    model, head, _ = load(folders["bert"])
    model.to("meta")
    subspace = RandomSubspace(model, head, 30, layerwise=layerwise, seed=0).eval().train()
    assert subspace.P is None
    trainable = {n: p for n, p in subspace.named_parameters() if p.requires_grad}
    assert {p.device.type for p in trainable.values()} == {"meta"}
    of_head = sum(p.numel() for n, p in model.named_parameters() if n in head)
    assert sum(p.numel() for p in trainable.values()) == 30 + of_head


@pytest.mark.parametrize(
    ("d", "layerwise", "message"),
    [
        (0, False, "d must be from 1 to D = {D}, the number of weights. Got 0. Pass another d."),
        (10**9, False, "d must be from 1 to D = {D}, the number of weights. Got 1000000000. Pass another d."),
        (10**9, True, "d must be from 1 to D = {D}, the number of weights. Got 1000000000. Pass another d."),
        (3, True, "d must be above the number of layers, 3: SAID takes one for each. Got 3. Raise d, or use DID."),
    ],
)
def test_d_out_of_range(d, layerwise, message, folders):
    model, head, _ = load(folders["bert"])
    D = sum(p.numel() for n, p in model.named_parameters() if n not in head)
    with pytest.raises(UsageError) as error:
        RandomSubspace(model, head, d, layerwise=layerwise, seed=0)
    assert str(error.value) == message.format(D=D)
    if layerwise and d == 3:
        assert RandomSubspace(model, head, 4, layerwise=True, seed=0).theta_d.shape == (1,)
