"""The loop: its schedule, batches that cover every row, a task that is learnt, divergence that is noticed."""

import math
import warnings

import pytest
import torch
import transformers

from rankprobe.errors import UsageError
from rankprobe.experiment.models import set_dropout
from rankprobe.methods.head import freeze_all_but, head_parameters
from rankprobe.training.batches import collate, epoch_batches, sorted_batches
from rankprobe.training.divergence import Watch
from rankprobe.training.evaluate import logits, predict
from rankprobe.training.precision import pick_device, pick_dtype
from rankprobe.training.train import lr_factor, make_optimizer, train
from rankprobe.weights.pretrained import find_model, load_classifier
from tests.tiny_models import make_tiny


def toy(rows=64, seed=0):
    """Rows whose class is whether token 7 is in them: learnable by attention alone."""
    generator = torch.Generator().manual_seed(seed)
    data, labels = [], []
    for i in range(rows):
        length = int(torch.randint(4, 12, (1,), generator=generator))
        ids = torch.randint(10, 40, (length,), generator=generator).tolist()
        label = i % 2
        if label:
            ids[length // 2] = 7
        data.append({"input_ids": ids, "attention_mask": [1] * length})
        labels.append(label)
    return data, labels


@pytest.fixture
def model(tmp_path):
    return load_classifier(find_model(make_tiny("bert", tmp_path / "m")), 2, seed=0)[0]


SETTINGS = {"lr": 5e-3, "epochs": 6, "batch_size": 8, "seed": 0}


def test_schedule_closed_form():
    total, warmup = 100, 6
    factors = [lr_factor(s, total, 0.06) for s in range(total)]
    assert factors[:warmup] == pytest.approx([(s + 1) / warmup for s in range(warmup)])
    assert factors[warmup:] == pytest.approx([(total - s) / (total - warmup) for s in range(warmup, total)])
    assert lr_factor(0, 10, 0.0) == 1.0


def test_schedule_is_transformers_own_one_step_on():
    """Theirs starts at rate 0 and wastes the first step; ours takes the rates from its second step on."""
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 5, 50)
    theirs = []
    for _ in range(6):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [lr_factor(s, 50, 0.1) for s in range(5)] == pytest.approx(theirs[1:])


def test_every_row_once_an_epoch_and_the_order_depends_on_seed_and_epoch():
    lengths = [i % 13 + 1 for i in range(1000)]
    seen = {}
    for key in ((0, 0), (0, 1), (1, 0)):
        batches = epoch_batches(lengths, 16, *key)
        assert sorted(i for b in batches for i in b) == list(range(1000))
        assert sum(len(b) == 16 for b in batches) == 62
        seen[key] = batches
    assert epoch_batches(lengths, 16, 0, 0) == seen[0, 0]
    assert seen[0, 0] != seen[0, 1] != seen[1, 0]


def test_batches_of_like_length_pad_little():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 60, (3200,), generator=generator).tolist()
    padded = sum(max(lengths[i] for i in b) * len(b) for b in epoch_batches(lengths, 32, 0, 0))
    assert padded < 1.05 * sum(lengths)
    assert sorted(i for b in sorted_batches(lengths, 32) for i in b) == list(range(3200))


def test_collate_pads_on_the_right():
    batch = collate([{"input_ids": [5, 6], "attention_mask": [1, 1]}, {"input_ids": [7], "attention_mask": [1]}], 9)
    assert batch["input_ids"].tolist() == [[5, 6], [7, 9]] and batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_learns_a_task_and_unseen_rows_of_it(model):
    rows, labels = toy(256)
    unseen, truth = toy(128, seed=5)
    before = predict(model, unseen, truth, 0)
    result = train(model, rows, labels, 0, **SETTINGS)
    after = predict(model, unseen, truth, 0)
    assert (
        result.status == "ok"
        and len(result.history) == 6 * 32
        and result.tokens == 6 * sum(len(r["input_ids"]) for r in rows)
    )
    assert (after.predictions == after.labels).mean() > 0.95 > (before.predictions == before.labels).mean()
    assert result.peak_memory_bytes > 2**20 and result.train_time_s > 0


def test_two_trainings_of_one_seed_agree_bit_for_bit_and_seeds_differ(tmp_path):
    rows, labels = toy()
    outs = []
    for seed in (3, 3, 4):
        m = load_classifier(find_model(make_tiny("bert", tmp_path / "m")), 2, seed=0)[0]
        train(m, rows, labels, 0, **{**SETTINGS, "seed": seed, "epochs": 2})
        outs.append(logits(m, rows, 0))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def test_frozen_parameters_stay_bit_for_bit(model):
    head = head_parameters(model)
    freeze_all_but(model, head)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    rows, labels = toy()
    train(model, rows, labels, 0, **{**SETTINGS, "epochs": 1})
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == head


def test_optimizer_decays_matrices_only(model):
    decayed, kept = make_optimizer(model, 1e-3, 0.1).param_groups
    assert {p.dim() for p in decayed["params"]} == {2} and {p.dim() for p in kept["params"]} == {1}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_a_step_equals_torchs_plain_adamw_on_the_clipped_gradient(model):
    import copy

    set_dropout(model, 0.0)
    reference = copy.deepcopy(model).train()
    rows, labels = toy(8)
    train(
        model,
        rows,
        labels,
        0,
        lr=1e-2,
        epochs=1,
        batch_size=8,
        seed=0,
        warmup_ratio=0.0,
        weight_decay=0.1,
        clip_norm=0.05,
    )
    order = epoch_batches([len(r["input_ids"]) for r in rows], 8, 0, 0)[0]
    truth = torch.tensor([labels[i] for i in order])
    torch.nn.functional.cross_entropy(reference(**collate([rows[i] for i in order], 0)).logits, truth).backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in reference.parameters() if p.grad is not None))
    assert norm > 0.05
    for p in reference.parameters():
        if p.grad is None:
            continue
        # AdamW's first step, Loshchilov & Hutter 2019: decay, then lr * g / (|g| + eps).
        g = p.grad * (0.05 / norm)
        p.data.mul_(1 - 1e-2 * (0.1 if p.dim() > 1 else 0.0)).sub_(1e-2 * g / (g.abs() + 1e-8))
    for (name, ours), (_, theirs) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        # A key's bias has no gradient but rounding: softmax does not see it, and the step is that rounding's sign.
        clear = theirs.grad.abs() > 1e-6 if theirs.grad is not None else slice(None)
        torch.testing.assert_close(ours[clear], theirs[clear], rtol=1e-3, atol=1e-5, msg=name)


def test_nan_is_noticed_at_its_step(model):
    model.classifier.weight.data[0, 0] = math.nan
    rows, labels = toy()
    result = train(model, rows, labels, 0, **SETTINGS)
    assert result.status == "diverged"
    assert result.error == "loss must be finite. Got nan at step 1. Lower the learning rate."


def test_a_blow_up_is_noticed(model):
    rows, labels = toy(256)
    result = train(model, rows, labels, 0, **{**SETTINGS, "lr": 300.0, "clip_norm": 0.0, "epochs": 20})
    assert (result.status == "diverged" and "times its start" in result.error) or "finite" in result.error


def test_regression_learns_a_score(tmp_path):
    m = load_classifier(find_model(make_tiny("bert", tmp_path / "m")), 1, seed=0, problem="regression")[0]
    rows, labels = toy(128)
    targets = [2.5 * y - 1 for y in labels]
    before = predict(m, rows, targets, 0, problem="regression").loss
    train(m, rows, targets, 0, **SETTINGS, problem="regression")
    after = predict(m, rows, targets, 0, problem="regression")
    assert after.loss < 0.1 * before and after.predictions.dtype == float


def test_no_rows_is_refused(model):
    with pytest.raises(UsageError, match="training rows must be at least one"):
        train(model, [], [], 0, **SETTINGS)


def test_dtype_is_a_fact_of_the_hardware():
    assert pick_dtype("cpu") == pick_dtype("cpu") and pick_dtype("cpu") in ("float32", "bfloat16")
    assert pick_dtype("cpu", "float32") == "float32"
    with pytest.raises(UsageError, match="dtype must be auto"):
        pick_dtype("cpu", "int8")
    if not torch.cuda.is_available():
        assert pick_device() == "cpu"
        with pytest.raises(UsageError, match="device must be"):
            pick_device("cuda")


def test_bfloat16_by_name_is_taken_and_warned_of_where_it_is_emulated(monkeypatch):
    monkeypatch.setattr("rankprobe.training.precision._cpu_has_bfloat16", lambda: False)
    assert pick_dtype("cpu") == "float32"
    with pytest.warns(UserWarning, match="this CPU has no bfloat16 instructions and emulates them"):
        assert pick_dtype("cpu", "bfloat16") == "bfloat16"
    monkeypatch.setattr("rankprobe.training.precision._cpu_has_bfloat16", lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pick_dtype("cpu") == pick_dtype("cpu", "bfloat16") == "bfloat16"


@pytest.mark.parametrize("config", [
    transformers.OPTConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4,
                           word_embed_proj_dim=32, dropout=0.5, layerdrop=0.5),
    transformers.BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.5,
                             attention_dropout=0.5),
    transformers.FalconConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                              hidden_dropout=0.5, attention_dropout=0.5),
    transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4),
], ids=lambda config: config.model_type)  # fmt: skip
def test_no_dropout_is_left_in_any_architecture(config):
    """Some keep it in attributes, some read it from the config at every pass."""
    before = {key: value for key, value in config.to_dict().items() if "drop" in key}
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    ids = torch.arange(5, 13).view(2, 4)
    set_dropout(model, 0.0)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert {key: value for key, value in model.config.to_dict().items() if "drop" in key} == before, "as it is saved"
    set_dropout(model, 0.5)
    with torch.no_grad():
        assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("total", [8, 100])
def test_a_blow_up_in_the_first_steps_is_none_to_start_from(total):
    watch = Watch(total, "classification")
    said = [watch.follow(loss, step, 2) for step, loss in enumerate((0.7, 0.7, 30.0, 80.0, 90.0), 1)]
    assert said[:4] == [None] * 4 and "must stay under 5 times its start 0.7" in said[4]
    odd = Watch(total, "classification")
    assert not any(odd.follow(loss, step, 2) for step, loss in enumerate((0.01, 9.0, 0.01, 0.01, 0.01, 0.01), 1))
    calm = Watch(total, "classification")
    assert not any(calm.follow(0.7 + 0.1 * step, step, 2) for step in range(1, total + 1) if step < 20)


def test_a_gpu_that_emulates_bfloat16_is_given_float32(monkeypatch):
    """torch says that a T4 supports it, by its own emulation."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert pick_dtype("cuda") == "float32"
    with pytest.warns(UserWarning, match="this GPU has no bfloat16 instructions"):
        assert pick_dtype("cuda", "bfloat16") == "bfloat16"
