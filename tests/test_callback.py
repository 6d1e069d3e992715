"""RankCallback in a real transformers.Trainer, on tiny models: what it logs, when, where to, and what it refuses."""

import csv
import itertools
import math
from types import SimpleNamespace

import pandas as pd
import peft
import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy

import rankprobe.callback
from rankprobe import RankCallback
from rankprobe.errors import UsageError
from rankprobe.methods.lora import apply_lora
from rankprobe.training import watched
from rankprobe.weights.architecture import model_shapes
from rankprobe.weights.pretrained import find_model, load_classifier
from rankprobe.weights.targets import target_sites
from tests.tiny_models import make_tiny

Q = "bert.encoder.layer.{}.attention.self.query.weight"
V = "bert.encoder.layer.{}.attention.self.value.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {kind: make_tiny(kind, root / kind) for kind in ("bert", "gpt2")}


def classifier(folder):
    return load_classifier(find_model(folder), 2, seed=1)[0]


def rows(n=64, tokens=8):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (n, tokens), generator=generator)
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": int(row[0]) % 2} for row in ids]


def trainer_of(model, folder, callbacks=(), **settings):
    usual = {
        "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 2, "use_cpu": True,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "seed": 0,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(folder), **(usual | settings))
    return Trainer(model=model, args=arguments, train_dataset=rows(), callbacks=list(callbacks))


def always(**settings):
    """A callback that measures at every step: no test hangs on the clock."""
    return RankCallback(**{"every": 1, "budget": None, **settings})


def by_step(trainer):
    """Logged rows with ranks, by step."""
    return {row["step"]: row for row in trainer.state.log_history if "rank/stable_rank_mean" in row}


def oracle(dW):
    """Stable rank and energy rank (90 %) straight from torch's SVD."""
    energy = torch.linalg.svd(dW.double())[1].square()
    return float(energy.sum() / energy[0]), int((energy.cumsum(0) < 0.9 * energy.sum()).sum()) + 1


def copies(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Recorder(TrainerCallback):
    """Stands where trackers stand: what it is given to log, by step."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append((state.global_step, dict(logs)))


def test_full_fine_tuning_has_torchs_values(folders, tmp_path):
    model = classifier(folders["bert"])
    W0 = copies(model)
    trainer = trainer_of(model, tmp_path, [always()])
    trainer.train()
    found, W1 = by_step(trainer), copies(model)
    assert list(found) == [1, 2, 3, 4, 5, 6]
    ranks = {}
    for (kind, name), layer in itertools.product((("q", Q), ("v", V)), (0, 1)):
        stable, energy = ranks[f"layer{layer}.{kind}"] = oracle(W1[name.format(layer)] - W0[name.format(layer)])
        assert found[6][f"rank/layer{layer}.{kind}/stable"] == pytest.approx(stable, rel=1e-6)
        assert found[6][f"rank/layer{layer}.{kind}/energy_90"] == energy
    assert found[6]["rank/stable_rank_mean"] == pytest.approx(sum(s for s, _ in ranks.values()) / 4, rel=1e-6)
    assert found[6]["rank/energy_rank_90_mean"] == sum(e for _, e in ranks.values()) / 4
    assert sum(key.endswith("/stable") for key in found[6]) == 4
    # A control: the update has a rank of its own, which W1 has not.
    assert found[6]["rank/layer0.q/stable"] != pytest.approx(oracle(W1[Q.format(0)])[0], rel=0.01)


def test_training_itself_is_left_alone(folders, tmp_path):
    weights = []
    for callbacks in ([], [always()]):
        model = classifier(folders["bert"])
        trainer_of(model, tmp_path, callbacks).train()
        weights.append(copies(model))
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))


def test_a_part_of_a_fused_matrix_is_measured_alone(folders, tmp_path):
    model = classifier(folders["gpt2"])
    model.config.pad_token_id = 0
    W0 = copies(model)
    trainer = trainer_of(model, tmp_path, [always(targets="v", layers=[1])])
    trainer.train()
    name = "transformer.h.1.attn.c_attn.weight"
    dW = (model.get_parameter(name) - W0[name]).T[64:]  # stored (in, out); q, k and v have 32 outputs each
    assert by_step(trainer)[6]["rank/layer1.v/stable"] == pytest.approx(oracle(dW.detach())[0], rel=1e-6)
    assert "rank/layer1.q/stable" not in by_step(trainer)[6]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_pefts_lora_is_measured_by_its_factors(folders, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(watched, "singular_values", None)  # the dense way: it would raise
    targets = ["query", "value"] if kind == "bert" else ["c_attn"]
    base = classifier(folders[kind])
    base.config.pad_token_id = 0
    model = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=12, target_modules=targets, task_type="SEQ_CLS"))
    trainer = trainer_of(model, tmp_path, [always()])
    trainer.train()
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    products = [4.0 * m.lora_B["default"].weight.detach() @ m.lora_A["default"].weight.detach() for m in layers]
    if kind == "gpt2":
        products = [part for dW in products for part in (dW[:32], dW[64:])]
    found = by_step(trainer)[6]
    for label, dW in zip(["layer0.q", "layer0.v", "layer1.q", "layer1.v"], products, strict=True):
        stable, energy = oracle(dW)
        assert found[f"rank/{label}/stable"] == pytest.approx(stable, rel=1e-5)
        assert found[f"rank/{label}/energy_90"] == energy


@pytest.mark.parametrize("targets", ["q,v", "c_attn"])
@pytest.mark.parametrize("rslora", [False, True])
def test_our_own_lora_too(folders, tmp_path, monkeypatch, targets, rslora):
    monkeypatch.setattr(watched, "singular_values", None)
    model = classifier(folders["gpt2"])
    model.config.pad_token_id = 0
    sites = target_sites(model_shapes(model), "q,v")
    ranks = {site.name: 1 if site.kind == "v" else 3 for site in sites}  # with rsLoRA its scaling is not q's
    layers = apply_lora(model, sites, 3, 12.0, rslora=rslora, ranks=ranks)
    trainer = trainer_of(model, tmp_path, [always(targets=targets, path=tmp_path / "ranks.csv")])
    trainer.train()
    found = by_step(trainer)[6]
    table = pd.read_csv(tmp_path / "ranks.csv").query("step == 6")
    for number, layer in enumerate(layers.values()):
        for kind, A, B, scaling in zip("qv", layer.A, layer.B, layer.scalings, strict=True):
            stable, energy = oracle((B @ A).detach())
            assert found[f"rank/layer{number}.{kind}/stable"] == pytest.approx(stable, rel=1e-5)
            assert found[f"rank/layer{number}.{kind}/energy_90"] == energy
            sigma = scaling * float(torch.linalg.matrix_norm((B @ A).detach().double(), 2))
            assert (table["sigma_max"] / sigma - 1).abs().min() < 1e-5


def test_adapters_that_are_active_together_add_up(folders):
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["query"], init_lora_weights=False)
    model = peft.get_peft_model(classifier(folders["bert"]), config)
    model.add_adapter("other", peft.LoraConfig(r=3, lora_alpha=3, target_modules=["query"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])
    updates, _ = watched.factored_updates(model, watched.watched_sites(model, "q"))
    layer = updates[0].layer
    dW = sum(layer.get_delta_weight(name) for name in ("default", "other"))
    expected = torch.linalg.svdvals(dW.detach().double())[:5]
    assert torch.allclose(updates[0].singular_values(), expected, rtol=1e-5)


def test_bfloat16_weights_are_upcast_before_they_are_subtracted(folders, tmp_path):
    model = classifier(folders["bert"]).to(torch.bfloat16)
    W0 = copies(model)
    callback = always(targets="q")
    trainer = trainer_of(model, tmp_path, [callback])
    trainer.train()
    dW = model.get_parameter(Q.format(0)).detach().double() - W0[Q.format(0)].double()
    assert by_step(trainer)[6]["rank/layer0.q/stable"] == pytest.approx(oracle(dW)[0], rel=1e-9)


def test_only_the_chosen_matrices_are_kept(folders, tmp_path):
    callback = always(targets="q", layers=[1])
    model = classifier(folders["bert"]).to(torch.bfloat16)
    trainer = trainer_of(model, tmp_path, [callback])
    (W0,) = callback._at_start[trainer.callback_handler][1]
    assert W0.dtype == torch.bfloat16 and W0.shape == (32, 32)
    assert W0.data_ptr() != model.get_parameter(Q.format(1)).data_ptr()


def test_one_callback_may_serve_one_trainer_after_the_other(folders, tmp_path):
    callback, recorders = always(), [Recorder(), Recorder()]
    for recorder in recorders:  # as in cross-validation
        trainer_of(classifier(folders["bert"]), tmp_path, [callback, recorder]).train()
    first, second = ([step for step, logs in r.seen if "rank/stable_rank_mean" in logs] for r in recorders)
    assert first == second and 6 in first


def test_trackers_get_the_figures_wherever_they_stand(folders, tmp_path):
    before, after = Recorder(), Recorder()
    trainer = trainer_of(classifier(folders["bert"]), tmp_path, [before, RankCallback(budget=None), after])
    trainer.train()
    for recorder in (before, after):
        got = {step: logs for step, logs in recorder.seen if "rank/stable_rank_mean" in logs}
        assert list(got) == [2, 4, 6]  # every is the Trainer's logging_steps
        assert all({"rank/layer1.v/stable", "rank/cost_share", "epoch"} <= set(logs) for logs in got.values())
    assert list(by_step(trainer)) == [2, 4, 6]


@pytest.mark.parametrize("every", [2, 3])
def test_the_trainers_own_rows_stay_as_they_are(folders, tmp_path, every):
    """That they do, and when, matters beyond looks: the Trainer gathers losses from all processes for them."""
    rows = []
    for callbacks in ([], [always(every=every)]):
        trainer = trainer_of(classifier(folders["bert"]), tmp_path, callbacks)
        trainer.train()
        rows.append([(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row])
    assert rows[0] == rows[1] and [step for step, _ in rows[0]] == [2, 4, 6]
    assert list(by_step(trainer)) == list(range(every, 7, every))


@pytest.mark.parametrize("how", ["attach", "add_callback"])
def test_it_may_come_after_the_trainer_is_made(folders, tmp_path, how):
    recorder, callback = Recorder(), always()
    trainer = trainer_of(classifier(folders["bert"]), tmp_path, [recorder])
    if how == "attach":
        assert callback.attach(trainer) is callback
    else:
        trainer.add_callback(callback)
    trainer.train()
    assert sum("rank/stable_rank_mean" in logs for _, logs in recorder.seen) == 6
    assert trainer.callback_handler.callbacks.count(callback) == 1


def test_steps_are_the_optimisers_under_gradient_accumulation(folders, tmp_path):
    settings = {"gradient_accumulation_steps": 2, "max_steps": 4}
    trainer = trainer_of(classifier(folders["bert"]), tmp_path, [always(every=2)], **settings)
    trainer.train()
    assert list(by_step(trainer)) == [2, 4]


def test_a_measured_step_is_logged_where_the_trainer_logs_none(folders, tmp_path):
    trainer = trainer_of(classifier(folders["bert"]), tmp_path, [always(every=3)], logging_strategy="no")
    trainer.train()
    assert list(by_step(trainer)) == [3, 6]
    assert not any("loss" in row for row in trainer.state.log_history)


def test_means_alone(folders, tmp_path):
    trainer = trainer_of(classifier(folders["bert"]), tmp_path, [always(each=False)])
    trainer.train()
    ranks = {key for key in by_step(trainer)[6] if key.startswith("rank/")}
    assert ranks == {"rank/stable_rank_mean", "rank/energy_rank_90_mean", "rank/cost_share"}


def resumed(folders, tmp_path, make, add=False, model=None):
    """A training cut at step 3 and resumed with the callback, to be held against one that was not."""
    trainer_of(classifier(folders["bert"]), tmp_path, max_steps=6, save_strategy="steps", save_steps=3).train()
    model = model or classifier(folders["bert"])
    callback = make()
    trainer = trainer_of(model, tmp_path, [] if add else [callback])
    if add:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    return by_step(trainer)


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    trainer = trainer_of(classifier(folders["bert"]), tmp_path_factory.mktemp("whole"), [always()])
    trainer.train()
    return by_step(trainer)


def same(found, whole):
    keys = [key for key in whole[6] if key.startswith("rank/layer")]
    return all(found[6][key] == pytest.approx(whole[6][key], rel=1e-4) for key in keys)


def test_a_resumed_training_counts_from_the_base(folders, tmp_path, whole, caplog):
    found = resumed(folders, tmp_path, always)
    assert list(found) == [4, 5, 6] and same(found, whole)
    assert "resumed" not in caplog.text


def test_a_resumed_training_that_cannot_know_the_base_says_so(folders, tmp_path, whole, caplog):
    found = resumed(folders, tmp_path, always, add=True)
    assert not same(found, whole)  # the control of the test above
    assert caplog.text.count("the weights that it first began from are not known") == 1


def test_a_model_loaded_from_the_checkpoint_is_no_base(folders, tmp_path, caplog):
    trainer_of(classifier(folders["bert"]), tmp_path, max_steps=3, save_strategy="steps", save_steps=3).train()
    model = type(classifier(folders["bert"])).from_pretrained(tmp_path / "checkpoint-3")
    trainer = trainer_of(model, tmp_path, [always()])
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert caplog.text.count("Pass W0=") == 1


@pytest.mark.parametrize("what", ["folder", "state dict", "model"])
def test_a_given_W0_is_counted_from(folders, tmp_path, whole, what):
    base = classifier(folders["bert"])
    W0 = {"folder": folders["bert"], "state dict": base.state_dict(), "model": base}[what]
    assert same(resumed(folders, tmp_path, lambda: always(W0=W0), add=True), whole)


def test_a_W0_of_another_model_is_refused(folders, tmp_path):
    trainer = trainer_of(classifier(folders["bert"]), tmp_path, [always(W0=folders["gpt2"])])
    with pytest.raises(UsageError, match=r"W0 must have bert\.encoder\.layer\.0\..*query\.weight of shape \(32, 32\)"):
        trainer.train()


def test_the_other_processes_do_nothing(folders):
    callback, model = always(), classifier(folders["bert"])
    state = TrainerState(is_world_process_zero=False, global_step=1, max_steps=6, logging_steps=1)
    control = TrainerControl()
    callback.on_init_end(None, state, control, model=model)
    callback.on_train_begin(None, state, control, model=model)
    callback.on_step_end(None, state, control, model=model)
    assert not callback._updates and not state.log_history


def test_frozen_matrices_are_left_out_in_one_line(folders, tmp_path, caplog):
    model = classifier(folders["bert"])
    for parameter in model.bert.encoder.layer[0].parameters():
        parameter.requires_grad_(False)
    trainer = trainer_of(model, tmp_path, [always()])
    trainer.train()
    assert caplog.messages == [f"RankCallback: {Q.format(0)} and 1 others are frozen and not measured."]
    assert "rank/layer0.q/stable" not in by_step(trainer)[6] and "rank/layer1.q/stable" in by_step(trainer)[6]


def test_nothing_but_frozen_matrices_is_refused(folders, tmp_path):
    model = classifier(folders["bert"])
    model.bert.requires_grad_(False)
    trainer = trainer_of(model, tmp_path, [always()])
    with pytest.raises(UsageError, match="targets must name matrices that are trained. Got .* that are frozen"):
        trainer.train()


def test_a_tied_matrix_is_measured_once(folders, tmp_path, caplog):
    model = classifier(folders["bert"])
    layers = model.bert.encoder.layer
    layers[1].attention.self.query.weight = layers[0].attention.self.query.weight
    trainer = trainer_of(model, tmp_path, [always(targets="q")])
    trainer.train()
    assert caplog.messages == [f"RankCallback: {Q.format(1)} is tied to a matrix that is measured."]
    assert sum(key.endswith("/stable") for key in by_step(trainer)[6]) == 1


def test_mistakes_name_what_is_there(folders, tmp_path):
    model = classifier(folders["bert"])
    with pytest.raises(UsageError, match=r"targets must name matrices that the model has \(q, k, v, o, up, down\)"):
        trainer_of(model, tmp_path, [always(targets="q,gate")])
    with pytest.raises(UsageError, match="targets must match a linear weight.*Got 'querry'. Did you mean 'query'"):
        trainer_of(model, tmp_path, [always(targets="querry")])
    with pytest.raises(UsageError, match=r"layers must be blocks that have q,v \(0, 1\). Got 2."):
        trainer_of(model, tmp_path, [always(layers=[1, 2])])
    for wrong in (0, 1.5):
        with pytest.raises(UsageError, match="every must be a whole number of steps, at least 1"):
            RankCallback(every=wrong)
    for wrong in (0.0, 3):
        with pytest.raises(UsageError, match="budget must be above 0 and at most 1"):
            RankCallback(budget=wrong)
    with pytest.raises(UsageError, match=r"be called by a Trainer.*RankCallback\(\).attach\(trainer\)"):
        always().on_train_begin(None, TrainerState(is_world_process_zero=True), TrainerControl(), model=model)


def test_targets_that_lora_leaves_alone_are_refused(folders, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["key"], task_type="SEQ_CLS")
    with pytest.raises(UsageError, match=r"targets must name matrices that the model has \(k\). Got q,v"):
        trainer_of(peft.get_peft_model(classifier(folders["bert"]), config), tmp_path, [always()])


def test_an_adapter_that_is_more_than_two_factors_is_refused(folders, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], use_dora=True, task_type="SEQ_CLS")
    with pytest.raises(UsageError, match="adapter must be plain LoRA.*Got Dora"):
        trainer_of(peft.get_peft_model(classifier(folders["bert"]), config), tmp_path, [always()])


@pytest.mark.parametrize("start", ["pissa", "OLoRA"])
def test_a_start_that_splits_W0_is_said(folders, tmp_path, caplog, start):
    settings = {"r": 2, "target_modules": ["query", "value"], "task_type": "SEQ_CLS", "init_lora_weights": start}
    model = peft.get_peft_model(classifier(folders["bert"]), peft.LoraConfig(**settings))
    trainer_of(model, tmp_path, [always()], max_steps=1).train()
    assert f"init_lora_weights={start} put a part of W0 into B A" in caplog.text


@pytest.mark.parametrize("lora", [False, True])
def test_a_weight_that_is_no_number_stops_with_its_name(folders, tmp_path, lora):
    model = classifier(folders["bert"])
    if lora:
        config = peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
        model = peft.get_peft_model(model, config)
    broken = next(p for name, p in model.named_parameters() if p.requires_grad and "layer.1.attention.self.val" in name)
    with torch.no_grad():
        broken[0, 0] = math.nan
    trainer = trainer_of(model, tmp_path, [always(targets="v", layers=[1])])
    with pytest.raises(UsageError, match=r"dW of bert\.encoder\.layer\.1\.attention\.self\.value\.weight must be fin"):
        trainer.train()


def test_the_table(folders, tmp_path):
    path, model = tmp_path / "ranks.csv", classifier(folders["bert"])
    W0 = copies(model)
    trainer_of(model, tmp_path, [always(every=3, path=path)]).train()
    with open(path, newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["step"], row["name"]) for row in table] == [
        (step, name.format(layer)) for step in "36" for layer in (0, 1) for name in (Q, V)
    ]
    dW = model.get_parameter(V.format(1)).detach().double() - W0[V.format(1)].double()
    stable, energy = oracle(dW)
    expected = (stable, energy, float(torch.linalg.matrix_norm(dW, 2)), float(dW.norm()))
    got = (float(table[-1][column]) for column in ("stable_rank", "energy_rank_90", "sigma_max", "fro_norm"))
    assert tuple(got) == pytest.approx(expected, rel=1e-9)


def test_each_training_of_one_callback_has_its_table(folders, tmp_path):
    callback = always(every=3, path=tmp_path / "ranks.csv")

    def steps():
        return {path.name: sorted(set(pd.read_csv(path)["step"])) for path in tmp_path.glob("*.csv")}

    saved = {"save_strategy": "steps", "save_steps": 3}
    first = trainer_of(classifier(folders["bert"]), tmp_path / "0", [callback], **saved)
    first.train()
    trainer_of(classifier(folders["bert"]), tmp_path / "1", [callback], max_steps=3).train()
    assert steps() == {"ranks.csv": [3, 6], "ranks-2.csv": [3]}
    first.train(resume_from_checkpoint=str(tmp_path / "0" / "checkpoint-3"))
    assert steps() == {"ranks.csv": [3, 6], "ranks-2.csv": [3]}, "a resumed one goes on with its own"
    first.train()
    assert set(steps()) == {"ranks.csv", "ranks-2.csv", "ranks-3.csv"}


def test_a_training_that_is_begun_again_before_it_ended_has_one_table(folders, tmp_path):
    """As a Trainer with ``auto_find_batch_size`` does it."""

    class FailsOnce(TrainerCallback):
        failed = False

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4 and not self.failed:
                self.failed = True
                raise RuntimeError("CUDA out of memory.")

    callback = always(every=3, path=tmp_path / "ranks.csv")
    trainer = trainer_of(classifier(folders["bert"]), tmp_path, [callback, FailsOnce()])
    with pytest.raises(RuntimeError):
        trainer.train()
    trainer.train()
    assert [path.name for path in tmp_path.glob("*.csv")] == ["ranks.csv"]


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Works(TrainerCallback):
    """Each optimiser step takes so long; comes before RankCallback's on_step_end."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.clock.now += self.seconds


def clocked(monkeypatch, step_s, matrix_s):
    """A clock that steps and decompositions alone move, and the callback for the steps."""
    clock, exact = Clock(), watched.singular_values
    monkeypatch.setattr(rankprobe.callback, "perf_counter", clock)

    def slow(dW, *, name):
        clock.now += matrix_s
        return exact(dW, name=name)

    monkeypatch.setattr(watched, "singular_values", slow)
    return Works(clock, step_s)


def test_the_budget_is_kept_by_the_clock(folders, tmp_path, monkeypatch):
    # Four matrices take 0.04 s and a step of 0.1 s earns 0.002 s: 20 steps, so that 32 is the interval.
    works = clocked(monkeypatch, 0.1, 0.01)
    trainer = trainer_of(classifier(folders["bert"]), tmp_path, [works, RankCallback(every=2)], max_steps=112)
    trainer.train()
    found = by_step(trainer)
    # The last step is one beside the grid, and paid for by then.
    assert list(found) == [32, 64, 96, 112]
    assert all(row["rank/cost_share"] <= 0.02 for row in found.values())
    assert found[112]["rank/cost_share"] == pytest.approx((0.02 + 4 * 0.04) / 11.2)


def test_the_trackers_time_is_in_the_budget(folders, tmp_path, monkeypatch):
    works = clocked(monkeypatch, 1.0, 0.0)

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            works.clock.now += 0.45 * ("rank/cost_share" in logs)

    callbacks = [works, RankCallback(every=10), Tracker()]
    trainer = trainer_of(classifier(folders["bert"]), tmp_path, callbacks, max_steps=120)
    trainer.train()
    # A row of 0.45 s, which nobody knows before the first, is paid for by 22.5 steps: 40 is the interval then, and at
    # 40 two of them are not paid for yet.
    found = by_step(trainer)
    assert list(found) == [10, 80, 120]
    # A row knows its measurement and what the rows before it took to send.
    assert [found[step]["rank/cost_share"] for step in found] == pytest.approx([0.0, 0.45 / 80, 0.9 / 120])


def test_the_last_step_is_measured_where_the_budget_allows(folders, tmp_path, monkeypatch):
    works = clocked(monkeypatch, 1.0, 0.001)
    trainer = trainer_of(classifier(folders["bert"]), tmp_path, [works, RankCallback(every=4)], max_steps=6)
    trainer.train()
    assert list(by_step(trainer)) == [4, 6]


def test_evaluating_and_saving_are_no_training(folders, tmp_path, monkeypatch):
    works = clocked(monkeypatch, 1.0, 0.001)

    class Slow(TrainerCallback):
        def on_evaluate(self, *args, **kwargs):
            works.clock.now += 1000.0

    callback = RankCallback(every=6)
    trainer = trainer_of(classifier(folders["bert"]), tmp_path, [works, Slow(), callback])
    trainer.args.eval_strategy, trainer.args.eval_steps = IntervalStrategy.STEPS, 2
    trainer.eval_dataset = rows(4)
    trainer.train()
    assert by_step(trainer)[6]["rank/cost_share"] == pytest.approx((0.002 + 0.004) / 6.0)


@pytest.mark.parametrize("every", [2, 50])
def test_a_training_that_was_never_measured_says_why(folders, tmp_path, monkeypatch, caplog, every):
    works = clocked(monkeypatch, 0.1, 10.0)
    trainer = trainer_of(classifier(folders["bert"]), tmp_path, [works, RankCallback(every=every)])
    trainer.train()
    assert not by_step(trainer)
    assert caplog.messages == [
        "RankCallback: measured nothing: one measurement takes about 40 s, and 2 % of the 0.6 s of training do not pay "
        "for it. Raise budget, or name fewer layers."
    ]


def test_one_callback_of_two_trainers_made_before_either_trains(folders, tmp_path, whole):
    """Each training is counted from its own Trainer's start: the last one made must not stand for both."""
    trainer_of(classifier(folders["bert"]), tmp_path, max_steps=6, save_strategy="steps", save_steps=3).train()
    callback, other = always(), classifier(folders["bert"])
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    first = trainer_of(classifier(folders["bert"]), tmp_path, [callback])
    second = trainer_of(other, tmp_path / "other", [callback])
    first.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert same(by_step(first), whole)
    second.train()
    assert list(by_step(second)) == [1, 2, 3, 4, 5, 6]


def test_a_trainer_that_trained_and_resumes_still_knows_its_start(folders, tmp_path, whole, caplog):
    settings = {"save_strategy": "steps", "save_steps": 3}
    trainer = trainer_of(classifier(folders["bert"]), tmp_path, [always()], **settings)
    trainer.train()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert same(by_step(trainer), whole) and "not known" not in caplog.text


def test_experts_that_peft_adapts_as_one_parameter_are_left_out_and_named(caplog):
    config = MixtralConfig(vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                           num_attention_heads=2, num_key_value_heads=2, num_local_experts=2)  # fmt: skip
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], target_parameters=["mlp.experts.gate_up_proj"])
    model = peft.get_peft_model(MixtralForCausalLM(config), lora)
    sites = watched.watched_sites(model, "q,v")
    updates, notes = watched.factored_updates(model, sites)
    assert [u.site.kind for u in updates] == ["q", "v"] and any("3-d parameters" in note for note in notes)


def test_a_model_with_a_config_of_its_own_can_be_watched():
    """nanoGPT's is a dataclass."""
    model = torch.nn.Sequential()
    model.config = SimpleNamespace(n_layer=1)
    model.add_module("layers", torch.nn.ModuleList([torch.nn.ModuleDict({"q_proj": torch.nn.Linear(4, 4)})]))
    assert [site.kind for site in watched.watched_sites(model, "q")] == ["q"]
