"""A pack against its members trained one by one: twenty steps, mixed settings, divergence, padding, refusals."""

import copy
import math

import pytest
import torch
from torch import nn

from rankprobe.errors import UsageError
from rankprobe.methods.packed_lora import Pack
from rankprobe.training.batches import RowTable, collate
from rankprobe.training.loss import loss_of, member_losses_of
from tests.training.packs import (
    LM,
    MEMBERS,
    REGRESSION,
    Member,
    base,
    largest_difference,
    lone,
    pack_of,
    rows_of,
    tensors,
    train_alone,
    train_together,
)

MODELS = [("bert", "classification"), ("roberta", "classification"), ("gpt2", "classification"),
          ("llama", "classification"), ("electra", "classification"), ("bert", REGRESSION), ("gpt2", LM),
          ("llama", LM)]  # fmt: skip
# 76 rows: an epoch's ninth full batch and a short one of 4, which comes at another step for each seed.
ROWS, STEPS = 76, 20
SETTINGS = {"epochs": 2, "batch_size": 8, "weight_decay": 0.1, "clip_norm": 0.04}


def both(kind, problem, dtype, members=MEMBERS, autocast="float32", **settings):
    """Members trained alone, and the pack that they were trained in; results and models of each."""
    rows, labels = rows_of(ROWS, problem)
    settings = {**SETTINGS, "problem": problem, "dtype": autocast, **settings}
    alone, pack = [lone(kind, m, problem, dtype) for m in members], pack_of(kind, members, problem, dtype)
    apart = [train_alone(one, m, rows, labels, **settings) for one, m in zip(alone, members, strict=True)]
    return alone, apart, pack, train_together(pack, members, rows, labels, **settings)


@pytest.mark.parametrize(("kind", "problem"), MODELS)
def test_twenty_steps_equal_lone_runs_in_float64(kind, problem):
    starts = [lone(kind, m, problem).state for m in MEMBERS]
    alone, apart, pack, together = both(kind, problem, torch.float64)
    for i, (one, start) in enumerate(zip(alone, starts, strict=True)):
        assert largest_difference(one.state, pack.state(i)) < 1e-9
        assert largest_difference(one.state, start) > 1e-3, "a run that goes nowhere would show nothing"
    for theirs, ours in zip(apart, together, strict=True):
        assert (ours.status, ours.error, ours.tokens) == (theirs.status, theirs.error, theirs.tokens)
        assert len(ours.history) == STEPS
        for a, b in zip(theirs.history, ours.history, strict=True):
            assert (a["step"], a["epoch"]) == (b["step"], b["epoch"]) and a["lr"] == pytest.approx(b["lr"], rel=1e-12)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
    norms = [row["grad_norm"] for row in together[0].history]
    assert sum(norm > SETTINGS["clip_norm"] for norm in norms) > 3, "nothing was clipped"


@pytest.mark.parametrize(("kind", "problem"), MODELS)
def test_each_steps_loss_equals_the_lone_runs_in_float32(kind, problem):
    _, apart, _, together = both(kind, problem, torch.float32)
    for theirs, ours in zip(apart, together, strict=True):
        assert [row["loss"] for row in ours.history] == pytest.approx([r["loss"] for r in theirs.history], abs=1e-5)


def test_the_comparison_would_notice_another_rate_or_order():
    """Control: what the equality tests measure is far above their bounds where one setting differs."""
    rows, labels = rows_of(ROWS)
    pack = pack_of("bert", MEMBERS[:2])
    train_together(pack, MEMBERS[:2], rows, labels, **SETTINGS)
    for wrong in (Member(r=1, alpha=2.0, lr=1.01e-2, seed=0), Member(r=1, alpha=2.02, lr=1e-2, seed=0)):
        one = lone("bert", wrong)
        train_alone(one, wrong, rows, labels, **SETTINGS)
        assert largest_difference(one.state, pack.state(0)) > 1e-5


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_members_may_adapt_different_matrices(kind):
    whole = "c_attn$" if kind == "gpt2" else "query|dense$"
    members = [Member(targets="q,v"), Member(targets="v,o,down", r=2), Member(targets=whole, r=3, seed=1)]
    alone, _, pack, _ = both(kind, "classification", torch.float64, members)
    for i, one in enumerate(alone):
        assert largest_difference(one.state, pack.state(i)) < 1e-9


def test_a_pack_of_one_is_the_lone_run():
    alone, _, pack, _ = both("bert", "classification", torch.float64, MEMBERS[2:3])
    assert largest_difference(alone[0].state, pack.state(0)) < 1e-9


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_what_pads_a_rank_is_exactly_zero_after_training(kind):
    _, _, pack, _ = both(kind, "classification", torch.float32)
    padding = 0
    for (factor, name), slot in pack._slots.items():
        if factor == "head":
            continue
        for place, member in enumerate(MEMBERS):
            value = slot.value[place]
            pad = value[member.r :] if factor == "A" else value[:, member.r :]
            assert not pad.any(), (factor, name, member)
            padding += pad.numel()
            assert (value[: member.r] if factor == "A" else value[:, : member.r]).any()
    assert padding


# Divergence

HOPELESS = Member(r=2, alpha=4.0, lr=1e30, seed=3)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_member_that_diverges_leaves_the_others_as_without_it(place):
    rows, labels = rows_of(ROWS)
    without = pack_of("bert", MEMBERS)
    quiet = train_together(without, MEMBERS, rows, labels, **SETTINGS)
    members = [*MEMBERS[:place], HOPELESS, *MEMBERS[place:]]
    pack = pack_of("bert", members)
    results = train_together(pack, members, rows, labels, **SETTINGS)
    lost, others = results.pop(place), [i for i in range(5) if i != place]
    theirs = train_alone(lone("bert", HOPELESS), HOPELESS, rows, labels, **SETTINGS)
    assert lost.status == theirs.status == "diverged" and len(lost.history) == len(theirs.history)
    # Whether what overflowed is inf or inf - inf depends on the order of sums, which is the processor's.
    assert lost.error.replace("nan", "inf") == theirs.error.replace("nan", "inf")
    assert lost.tokens == theirs.tokens
    assert pack.members == others and [r.status for r in results] == ["ok"] * 4
    for i, j in enumerate(others):
        assert largest_difference(without.state(i), pack.state(j)) < 1e-9
        assert [h["loss"] for h in results[i].history] == pytest.approx([h["loss"] for h in quiet[i].history], abs=1e-6)
    with pytest.raises(KeyError):
        pack.state(place)


def test_a_loss_that_blows_up_ends_a_member_at_the_lone_runs_step(monkeypatch):
    monkeypatch.setattr("rankprobe.training.divergence._SMOOTHING_STEPS", 1)  # or it would take hundreds of steps
    members = [MEMBERS[0], Member(r=2, alpha=4.0, lr=10.0, seed=1), MEMBERS[1]]
    alone, apart, pack, together = both("bert", REGRESSION, torch.float64, members, clip_norm=0.0, warmup_ratio=0.5)
    assert apart[1].status == "diverged" and "times its start" in apart[1].error
    assert 1 < len(apart[1].history) < STEPS
    assert together[1].error == apart[1].error and len(together[1].history) == len(apart[1].history)
    for i in (0, 2):
        assert largest_difference(alone[i].state, pack.state(i)) < 1e-9


def test_a_pack_whose_members_all_diverge_ends():
    rows, labels = rows_of(ROWS)
    pack = pack_of("bert", [HOPELESS, HOPELESS])
    results = train_together(pack, [HOPELESS, HOPELESS], rows, labels, **SETTINGS)
    assert [r.status for r in results] == ["diverged"] * 2 and pack.members == []


def test_a_nan_of_one_member_reaches_no_other():
    rows, labels = rows_of(ROWS)
    states = [lone("bert", m).state for m in MEMBERS[:3]]
    states[1].head["classifier.weight"][0, 0] = math.nan
    pack = Pack(base("bert", 0)[0].double(), states)
    results = train_together(pack, MEMBERS[:3], rows, labels, **SETTINGS)
    assert results[1].error == "loss must be finite. Got nan at step 1. Lower the learning rate."
    one = lone("bert", MEMBERS[2])
    train_alone(one, MEMBERS[2], rows, labels, **SETTINGS)
    assert pack.members == [0, 2] and largest_difference(one.state, pack.state(2)) < 1e-9


# Precision, gradients, the base


def test_bfloat16_runs_stay_near_the_lone_ones_and_parameters_stay_float32():
    _, apart, pack, together = both("bert", "classification", torch.float32, autocast="bfloat16")
    for theirs, ours in zip(apart, together, strict=True):
        assert ours.status == "ok"
        # bfloat16 has 8 bits: a loss near 1 is known to some 1e-2.
        assert [r["loss"] for r in ours.history] == pytest.approx([r["loss"] for r in theirs.history], abs=3e-2)
    assert pack.matrix.dtype == torch.float32


def test_only_factors_and_heads_get_a_gradient_and_the_base_keeps_its_bits():
    pack = pack_of("bert", MEMBERS)
    before = {name: p.detach().clone() for name, p in pack.model.named_parameters()}
    rows, labels = rows_of(32)
    pack(RowTable(rows, 0, "cpu").batch(range(32))).square().sum().backward()
    assert all(p.grad is None for p in pack.model.parameters())
    assert all(slot.value.grad is not None for slot in pack.slots)
    assert sum(slot.value.numel() for slot in pack.slots) == pack.matrix.numel()
    train_together(pack, MEMBERS, rows, labels, **SETTINGS)
    assert all(torch.equal(p, before[name]) for name, p in pack.model.named_parameters())


def test_a_member_sees_its_own_rows_only():
    pack = pack_of("bert", MEMBERS)
    for slot in pack.slots:
        slot.value.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(slot.first))
    rows, _ = rows_of(8)
    logits = pack(RowTable(rows, 0, "cpu").batch(range(8))).view(4, 2, -1)
    for i in range(4):
        gradients = torch.autograd.grad(logits[i].sum(), [s.value for s in pack.slots], retain_graph=True)
        for gradient in gradients:
            assert not gradient[[j for j in range(4) if j != i]].any()
        assert any(gradient[i].any() for gradient in gradients)


def test_a_parameter_without_a_gradient_is_left_alone_as_torchs_adamw_does():
    model, one = base("bert", 0)[0], lone("bert", MEMBERS[0])
    model.unused = nn.Linear(4, 4)
    one.model.unused = copy.deepcopy(model.unused).double()
    one.head |= {"unused.weight", "unused.bias"}
    start = one.state
    pack = Pack(model.double(), [start, start])
    rows, labels = rows_of(16)
    train_together(pack, [MEMBERS[0]] * 2, rows, labels, **SETTINGS)
    after = pack.state(1)
    for name in ("unused.weight", "unused.bias"):
        assert torch.equal(after.head[name], start.head[name])
    assert not torch.equal(after.head["classifier.weight"], start.head["classifier.weight"])


def test_unpacking_gives_the_model_its_plain_layers_back():
    model, _ = base("bert", 0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    modules = [type(m) for m in model.modules()]
    pack = Pack(model, [lone("bert", m, dtype=torch.float32).state for m in MEMBERS])
    assert [type(m) for m in model.modules()] != modules
    rows, labels = rows_of(16)
    train_together(pack, MEMBERS, rows, labels, **SETTINGS)
    pack.unpack()
    assert [type(m) for m in model.modules()] == modules
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(after[n], before[n]) for n in before)


# Parts


@pytest.mark.parametrize("problem", ["classification", LM])
def test_a_row_table_gives_what_collate_gives(problem):
    rows, _ = rows_of(50, problem)
    table = RowTable(rows, 7, "cpu")
    for seed in range(5):
        index = torch.randperm(50, generator=torch.Generator().manual_seed(seed))[: 3 + seed].tolist()
        ours, theirs = table.batch(index), collate([rows[i] for i in index], 7)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in theirs)


@pytest.mark.parametrize("problem", ["classification", REGRESSION, LM])
def test_a_members_loss_is_that_of_its_counted_rows_alone(problem):
    generator = torch.Generator().manual_seed(0)
    members, rows, length, classes = 3, 4, 5, 6
    counted = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    shape = {LM: (members * rows, length, classes), REGRESSION: (members * rows, 1)}.get(
        problem, (members * rows, classes)
    )
    logits = torch.randn(shape, generator=generator)
    if problem == REGRESSION:
        truth = torch.randn(members * rows, generator=generator)
    else:
        size = (members * rows, length) if problem == LM else (members * rows,)
        truth = torch.randint(0, classes, size, generator=generator)
    if problem == LM:
        truth[:, :2] = -100
    found = member_losses_of(problem)(logits, truth, counted)
    for i in range(members):
        own = slice(i * rows, i * rows + int(counted[i].sum()))
        assert float(found[i]) == pytest.approx(float(loss_of(problem)(logits[own], truth[own])), rel=1e-6)


def test_states_are_copies_without_padding():
    pack = pack_of("bert", MEMBERS)
    for i, member in enumerate(MEMBERS):
        state, start = pack.state(i), lone("bert", member).state
        assert largest_difference(state, start) == 0
        assert all(t.shape == tensors(start)[name].shape for name, t in tensors(state).items())
        state.head["classifier.weight"].fill_(9)
        assert not (pack.state(i).head["classifier.weight"] == 9).any()


# Refusals


def test_a_model_whose_layers_get_other_things_than_the_batch_is_refused():
    rows, labels = rows_of(16)
    pack = pack_of("deberta-v2", MEMBERS)
    message = r"layers get the batch's 32 rows first\. Got .* input of shape \(1, .*pack off"
    with pytest.raises(UsageError, match=message):
        train_together(pack, MEMBERS, rows, labels, **SETTINGS)


def test_deberta_can_be_packed_where_its_positions_are_not_projected():
    members = [Member(targets="v,down"), Member(targets="v,down", r=2, seed=1)]
    alone, _, pack, _ = both("deberta-v2", "classification", torch.float64, members)
    for i, one in enumerate(alone):
        assert largest_difference(one.state, pack.state(i)) < 1e-9


def test_what_does_not_belong_together_is_refused():
    states = [lone("bert", m).state for m in MEMBERS[:2]]
    rows, labels = rows_of(16)
    with pytest.raises(UsageError, match="a pack must have at least one member"):
        Pack(base("bert", 0)[0], [])
    other = lone("bert", MEMBERS[0], REGRESSION).state
    with pytest.raises(UsageError, match="heads in a pack must all be .* Pack runs of one task"):
        Pack(base("bert", 0)[0].double(), [states[0], other])
    single = lone("bert", MEMBERS[0], dtype=torch.float32).state
    with pytest.raises(UsageError, match="parameters in a pack must be of one dtype. Got torch.float32, torch.float64"):
        Pack(base("bert", 0)[0], [states[0], single])
    pack = Pack(base("bert", 0)[0].double(), states)
    with pytest.raises(UsageError, match="one for each of 2 members. Got 4 rates and 4 seeds"):
        train_together(pack, MEMBERS, rows, labels, **SETTINGS)
    with pytest.raises(UsageError, match="training rows must be at least one"):
        train_together(pack, MEMBERS[:2], [], [], **SETTINGS)


def test_a_head_of_another_kind_is_refused_and_the_model_left_as_it_was():
    model, _ = base("bert", 0)
    model.extra = nn.Conv1d(2, 2, 1)
    modules = [type(m) for m in model.modules()]
    one = lone("bert", MEMBERS[0], dtype=torch.float32)
    one.model.extra = nn.Conv1d(2, 2, 1)
    one.head |= {"extra.weight", "extra.bias"}
    with pytest.raises(UsageError, match="head of linear layers and layer norms, whole ones. Got extra, a Conv1d"):
        Pack(model, [one.state])
    assert [type(m) for m in model.modules()] == modules


def test_dropout_on_an_adapter_is_refused():
    one = lone("bert", MEMBERS[0])
    next(iter(one.layers.values())).dropout = 0.1
    with pytest.raises(UsageError, match=r"dropout of packed runs must be 0\. Got 0.1"):
        _ = one.state
