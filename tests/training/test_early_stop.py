"""Early stopping: when a training ends, with which weights, and that a pack's members end as lone runs do."""

import math

import pytest
import torch

from rankprobe.errors import UsageError
from rankprobe.methods.apply import apply_method
from rankprobe.training import early_stop
from rankprobe.training.early_stop import EarlyStop, HeldOut
from rankprobe.training.train import train
from tests.training.packs import (
    LM,
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

# Rates so far apart that the members' losses turn at different epochs, the last one's at once.
MEMBERS = (
    Member(r=1, alpha=2.0, lr=1e-3, seed=0),
    Member(r=4, alpha=8.0, lr=2e-2, seed=1),
    Member(r=8, alpha=24.0, lr=8e-3, seed=0, rslora=True),
    Member(r=4, alpha=8.0, lr=5e-2, seed=2),
)
SETTINGS = {"epochs": 12, "batch_size": 8, "weight_decay": 0.1}
N_HELD_OUT, N_ROWS = 70, 40


def noise(problem="classification"):
    """Rows whose labels have nothing to do with them: what is learnt of them is of no use on others."""
    rows, labels = rows_of(N_ROWS, problem)
    generator = torch.Generator().manual_seed(3)
    return rows, [labels[i] for i in torch.randperm(N_ROWS, generator=generator).tolist()]


def held_out(model, problem="classification", patience=2):
    rows, labels = rows_of(N_HELD_OUT, problem, seed=1)
    return HeldOut(rows, labels, model.config.pad_token_id, patience, problem=problem)


def test_the_lowest_loss_counts_and_of_equal_ones_the_first():
    stop = EarlyStop(2)
    followed = [(stop.follow(loss), stop.over) for loss in (0.9, 0.5, 0.7, 0.4, 0.4, 0.6)]
    assert followed == [(True, False), (True, False), (False, False), (True, False), (False, False), (False, True)]
    assert stop.best == 4 and stop.losses == [0.9, 0.5, 0.7, 0.4, 0.4, 0.6] and stop.lost() is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_a_lost_training(loss):
    stop = EarlyStop(1)
    stop.follow(0.5)
    assert not stop.follow(loss) and stop.best == 1
    said = f"loss on the held-out rows must be finite. Got {loss} after epoch 2. Lower the learning rate."
    assert stop.lost() == said


@pytest.mark.parametrize("problem", ["classification", REGRESSION, LM])
def test_a_training_ends_with_its_best_epoch(problem):
    kind = "gpt2" if problem == LM else "bert"
    rows, labels = noise(problem)
    trained, member = lone(kind, MEMBERS[1], problem, torch.float32), MEMBERS[1]
    watched_by = held_out(trained.model, problem)
    result = train_alone(trained, member, rows, labels, **SETTINGS, problem=problem, held_out=watched_by)
    losses = result.held_out_losses
    assert result.status == "ok" and len(losses) < SETTINGS["epochs"], "nothing was stopped"
    assert losses[result.best_epoch - 1] == min(losses) and len(losses) - result.best_epoch == watched_by.patience
    assert len(result.history) == 5 * len(losses), "the steps of the epochs that were trained"
    assert watched_by.loss(trained.model) == min(losses) < losses[-1]


def test_watching_changes_no_step_not_even_with_dropout():
    rows, labels = noise()

    def history(**settings):
        model, head = base("bert", 0)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2
        apply_method(model, head, "lora", r=4, alpha=8.0, targets="q,v", seed=0)
        made = held_out(model, patience=12) if settings.pop("watched") else None
        return train(model, rows, labels, 0, lr=1e-3, seed=0, **SETTINGS, held_out=made).history

    assert history(watched=True) == history(watched=False)


def test_without_a_reason_to_stop_all_epochs_are_trained():
    rows, labels = noise()
    trained = lone("bert", MEMBERS[0], dtype=torch.float32)
    result = train_alone(trained, MEMBERS[0], rows, labels, **SETTINGS, held_out=held_out(trained.model, patience=12))
    assert len(result.held_out_losses) == 12
    assert held_out(trained.model).loss(trained.model) == min(result.held_out_losses)


@pytest.mark.parametrize(("method", "size"), [("full", None), ("bitfit", None), ("adapter_h", 4), ("prefix", 2),
                                              ("prompt", 2), ("did", 20), ("said", 20)])  # fmt: skip
def test_every_method_ends_with_its_best_epoch(method, size):
    model, head = base("bert", 0)
    trainee = apply_method(model, head, method, size=size, seed=0).trainee
    rows, labels = noise()
    made = held_out(model)
    result = train(trainee, rows, labels, model.config.pad_token_id, lr=3e-2, seed=0, **SETTINGS, held_out=made)
    assert result.status == "ok" and result.best_epoch < len(result.held_out_losses)
    assert made.loss(trainee) == min(result.held_out_losses)


@pytest.mark.parametrize(("kind", "problem"), [("bert", "classification"), ("bert", REGRESSION), ("llama", LM)])
def test_members_of_a_pack_stop_as_lone_runs_do(kind, problem):
    rows, labels = noise(problem)
    settings = {**SETTINGS, "problem": problem}
    alone, pack = [lone(kind, m, problem) for m in MEMBERS], pack_of(kind, MEMBERS, problem)
    made = held_out(pack.model, problem)
    apart = [train_alone(one, m, rows, labels, **settings, held_out=made)
             for one, m in zip(alone, MEMBERS, strict=True)]  # fmt: skip
    together = train_together(pack, MEMBERS, rows, labels, **settings, held_out=made)
    ends = {len(result.held_out_losses) for result in together}
    assert len(ends) > 1 and min(ends) < SETTINGS["epochs"], "members must leave at different epochs"
    for i, (one, theirs, ours) in enumerate(zip(alone, apart, together, strict=True)):
        assert (ours.status, ours.best_epoch, ours.tokens) == (theirs.status, theirs.best_epoch, theirs.tokens)
        assert ours.held_out_losses == pytest.approx(theirs.held_out_losses, rel=1e-5)
        assert len(ours.history) == len(theirs.history)
        assert largest_difference(one.state, pack.state(i)) < 1e-9
        assert ours.train_time_s > 0


def test_a_member_that_stops_leaves_the_others_as_they_are():
    rows, labels = noise()
    first, second = Member(r=4, lr=1e-3, seed=0), Member(r=4, lr=5e-2, seed=2)
    pack, other = pack_of("bert", [first, second]), pack_of("bert", [first, first])
    made = held_out(pack.model)
    stopped = train_together(pack, [first, second], rows, labels, **SETTINGS, held_out=made)
    train_together(other, [first, first], rows, labels, **SETTINGS, held_out=made)
    assert len(stopped[1].held_out_losses) < len(stopped[0].held_out_losses)
    assert largest_difference(pack.state(0), other.state(0)) < 1e-12


def test_a_loss_that_is_no_number_takes_a_member_out_and_ends_a_lone_run(monkeypatch):
    rows, labels = noise()
    members = [Member(lr=1e-3, seed=0), Member(lr=1e-3, seed=1)]
    pack = pack_of("bert", members)
    whole = HeldOut.member_losses
    monkeypatch.setattr(HeldOut, "member_losses", lambda self, of: [math.nan, *whole(self, of)[1:]]
                        if len(of.members) == 2 else whole(self, of))  # fmt: skip
    lost, kept = train_together(pack, members, rows, labels, **SETTINGS, held_out=held_out(pack.model))
    assert lost.status == "diverged" and "held-out rows must be finite. Got nan after epoch 1" in lost.error
    assert kept.status == "ok" and len(kept.held_out_losses) > 1 and tensors(pack.state(1))
    monkeypatch.setattr(early_stop, "predict", lambda *_, **__: type("Lost", (), {"loss": math.inf}))
    one = lone("bert", members[0])
    result = train_alone(one, members[0], rows, labels, **SETTINGS, held_out=held_out(one.model))
    assert result.status == "diverged" and "Got inf after epoch 1" in result.error


def test_a_remembered_member_is_what_it_was():
    pack = pack_of("bert", MEMBERS[:2])
    before = pack.state(0)
    pack.remember(0)
    with torch.no_grad():
        pack.matrix += 1.0
    pack.keep([1])
    assert largest_difference(pack.state(0), before) == 0.0
    with pytest.raises(KeyError):
        pack_of("bert", MEMBERS[:1]).state(1)


@pytest.mark.parametrize(("rows", "patience", "message"), [
    ([], 1, "held-out rows must be at least one. Got 0. Raise --tuning-size."),
    ([{"input_ids": [1], "attention_mask": [1]}], 0,
     "patience must be at least 1. Got 0. Leave it out to train all epochs."),
])  # fmt: skip
def test_refusals(rows, patience, message):
    with pytest.raises(UsageError) as error:
        HeldOut(rows, [0], 0, patience)
    assert str(error.value) == message
