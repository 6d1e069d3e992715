"""Which models a latency measurement times, how they differ from the base, and what a stopped one keeps."""

from __future__ import annotations

import copy
import functools
import gc
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers

from rankprobe.errors import UsageError
from rankprobe.experiment import latency as measurement
from rankprobe.experiment.latency import execute_latency, latency_done, plan_latency
from rankprobe.experiment.latency_variants import Architecture, as_callers, build_models, inputs_of, variant_names
from rankprobe.experiment.store import finished, read_latency
from rankprobe.experiment.unmeasured import Unmeasured, unmeasured
from rankprobe.methods.bottleneck import Bottleneck
from rankprobe.methods.lora import lora_layers, unload_lora
from rankprobe.methods.lora_layer import LoRALayer
from rankprobe.weights.source import DEFAULT_SHA256, ModelSource, find_model
from tests.tiny_models import make_tiny

PLACE = {"dtype": "float32", "device": "cpu", "threads": 1}
SHAPES, BOTTLENECKS = ((2, 8), (1, 8), (1, 4)), ((3, 2), (5, 4), (5, 4))
L, D = 2, 32
ALL = ("base", "base_copy", "lora_merged", "lora_unmerged", "adapter_l", "adapter_h")


@pytest.fixture(autouse=True)
def _short_timings(monkeypatch):
    """Nothing here asks how long anything takes."""
    quick = functools.partial(measurement.measure_latency, min_time_s=1e-5, warmup=1)
    monkeypatch.setattr(measurement, "measure_latency", quick)


def tiny(**sizes) -> Architecture:
    sizes = {"vocab_size": 50, "n_embd": D, "n_layer": L, "n_head": 4, "n_positions": 16, **sizes}
    return Architecture("tiny", transformers.GPT2Config(**sizes))


def planned(folder: Path, source=None, **settings):
    settings = {"shapes": SHAPES, "bottlenecks": BOTTLENECKS, "budget_s": 0.1, **PLACE, **settings}
    return plan_latency(source or tiny(), folder, r=3, targets="q,v", **settings)


@pytest.fixture(scope="module")
def models():
    plan = planned(Path("runs"))
    return build_models(plan.source, plan.spec, (5, 4))


def size(model) -> int:
    return sum(p.numel() for p in model.parameters())


def kinds(model) -> list[tuple[str, str]]:
    return [(name, type(module).__name__) for name, module in model.named_modules()]


# ------------------------------------------------------------------------------------------------------- variants


def test_the_copy_and_merged_lora_have_the_bases_very_modules(models):
    assert tuple(models) == ALL
    for name in ("base_copy", "lora_merged"):
        assert kinds(models[name]) == kinds(models["base"])
        shapes = [{n: (p.shape, p.dtype) for n, p in models[m].named_parameters()} for m in (name, "base")]
        assert shapes[0] == shapes[1]
        assert not any(module._forward_hooks for module in models[name].modules())


def test_every_variant_is_frozen(models):
    """Whether parameters ask for a gradient changes how fast a CPU is; methods freeze what they do not train."""
    assert not any(p.requires_grad for model in models.values() for p in model.parameters())


def test_every_variant_has_weights_of_its_own(models):
    addresses = [{p.data_ptr() for p in model.parameters()} for model in models.values()]
    assert len(set.union(*addresses)) == sum(map(len, addresses))


def test_adapters_have_what_the_closed_form_says_more(models):
    lin, houlsby = 5, 4
    one = D * lin + lin + lin * D + D + 2 * D  # down, up and a norm of its own
    assert size(models["adapter_l"]) - size(models["base"]) == L * one
    assert size(models["adapter_h"]) - size(models["base"]) == 2 * L * (2 * D * houlsby + houlsby + D)
    found = {name: sum(isinstance(m, Bottleneck) for m in model.modules()) for name, model in models.items()}
    assert found == dict.fromkeys(ALL, 0) | {"adapter_l": L, "adapter_h": 2 * L}


def test_unmerged_lora_is_what_merging_turns_into_the_bases_modules(models):
    found = {name: sum(isinstance(m, LoRALayer) for m in model.modules()) for name, model in models.items()}
    assert found == dict.fromkeys(ALL, 0) | {"lora_unmerged": L}
    model, ids = copy.deepcopy(models["lora_unmerged"]), torch.arange(8)[None]
    before = model(ids).logits
    for layer in lora_layers(model).values():
        layer.merge()
    unload_lora(model)
    assert kinds(model) == kinds(models["base"])
    torch.testing.assert_close(model(ids).logits, before)
    assert not torch.allclose(models["base"](ids).logits, before)


def test_nothing_that_a_trained_model_would_have_is_zero(models):
    """A GPU multiplies zeros with less power, and so at a higher clock."""
    for name in ("adapter_l", "adapter_h"):
        added = {n: p for n, p in models[name].named_parameters() if ".adapter." in n}
        assert added and all((p != 0).all() for n, p in added.items())
    factors = [B for m in models["lora_unmerged"].modules() if isinstance(m, LoRALayer) for B in m.B]
    assert len(factors) == 2 * L and all((B != 0).all() for B in factors)
    changed = {
        n for (n, p), q in zip(models["base"].named_parameters(), models["lora_merged"].parameters(), strict=True)
        if not torch.equal(p, q)
    }  # fmt: skip
    assert changed == {f"transformer.h.{i}.attn.c_attn.weight" for i in range(L)}


def test_a_call_gives_the_last_positions_logits_and_keeps_nothing(models):
    plan = planned(Path("runs"))
    callers = as_callers(models, plan.source, plan.spec)
    inputs = inputs_of(plan.source.config, plan.spec, mask=False)(2, 8)
    assert set(inputs) == {"input_ids"} and inputs["input_ids"].shape == (2, 8)
    with torch.inference_mode():
        for name, call in callers.items():
            out = call(inputs)
            assert out.logits.shape == (2, 1, 50) and out.past_key_values is None
            whole = models[name](**inputs).logits[:, -1:]
            torch.testing.assert_close(out.logits, whole)
    different = [callers[name](inputs).logits for name in ALL]
    assert torch.equal(different[0], different[1])
    assert all(not torch.equal(different[0], other) for other in different[2:])


def test_calls_leave_no_cycles_behind(models):
    """The garbage collector is off while models are timed: what it alone could free would fill the memory."""
    plan = planned(Path("runs"))
    callers = as_callers(models, plan.source, plan.spec)
    inputs = inputs_of(plan.source.config, plan.spec, mask=False)(2, 8)
    with torch.inference_mode():
        for call in callers.values():
            call(inputs)
        gc.collect()
        gc.disable()
        try:
            before = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
            for call in callers.values():
                for _ in range(5):
                    call(inputs)
            after = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
        finally:
            gc.enable()
    assert after <= before


def test_weights_of_an_architecture_are_held_in_the_dtype_asked_for():
    plan = planned(Path("runs"), dtype="bfloat16")
    models = build_models(plan.source, plan.spec, (5, 4))
    assert {p.dtype for model in models.values() for p in model.parameters()} == {torch.bfloat16}
    inputs = inputs_of(plan.source.config, plan.spec, mask=False)(1, 8)
    with torch.inference_mode():
        outs = [call(inputs).logits for call in as_callers(models, plan.source, plan.spec).values()]
    assert {out.dtype for out in outs} == {torch.bfloat16} and all(out.isfinite().all() for out in outs)


def test_a_classifier_is_timed_with_its_tuned_copy_and_with_adapters_where_asked(tmp_path):
    source = find_model(make_tiny("bert", tmp_path / "base"))
    assert variant_names(source, None) == ("base", "base_copy", "full", "lora_merged", "lora_unmerged")
    plan = planned(tmp_path, source, shapes=((1, 4),), bottlenecks=((5, 4),))
    table = execute_latency(plan).set_index("variant")
    assert list(table.index) == ["base", "base_copy", "full", "lora_merged", "lora_unmerged", "adapter_l", "adapter_h"]
    assert table.loc["adapter_h", "method_params"] == 2 * L * (2 * D * 4 + 4 + D) + 2 * 2 * L * D
    assert table.loc["lora_merged", "method_params"] == table.loc["lora_unmerged", "method_params"] == L * 2 * 3 * 2 * D


def test_prefixes_are_timed_where_asked_and_longer_texts_are_what_they_cost(tmp_path):
    source = find_model(make_tiny("bert", tmp_path / "base"))
    plan = planned(tmp_path, source, shapes=((1, 4),), bottlenecks=((5, 4),), prefix_length=3)
    table = execute_latency(plan).set_index("variant")
    assert list(table.index)[-4:] == ["adapter_l", "adapter_h", "prefix", "prompt"]
    assert table.loc["prompt", "method_params"] == 3 * D and table.loc["prefix", "method_params"] > 3 * D
    assert table["prefix_length"].dropna().to_dict() == {"prefix": 3, "prompt": 3}
    assert table["bottleneck"].dropna().to_dict() == {"adapter_l": 5, "adapter_h": 4}
    models = build_models(plan.source, plan.spec, (5, 4))
    inputs = inputs_of(models["base"].config, plan.spec, mask=True)(2, 4)
    seen = {}
    for name in ("base", "prefix", "prompt"):
        block = next(m for m in models[name].modules() if type(m).__name__ == "BertLayer")
        block.register_forward_hook(lambda _, args, __, name=name: seen.update({name: args[0].shape[1]}))
    outs = {name: call(inputs).logits for name, call in as_callers(models, plan.source, plan.spec).items()}
    assert seen == {"base": 4, "prefix": 7, "prompt": 7}
    assert all(not torch.equal(outs[name], outs["base"]) for name in ("prefix", "prompt"))


# ----------------------------------------------------------------------------------------------------- run store


def test_measurements_without_adapters_keep_the_run_id_that_they_had():
    """Of the stored main job: the model's sha256 and these settings gave this id before adapters were timed."""
    source = ModelSource("all-MiniLM-L6-v2", Path("nowhere"), "package", None, DEFAULT_SHA256, "", "bert")
    plan = plan_latency(source, Path("runs"), r=8, targets="q,v", shapes=((1, 32), (8, 64), (32, 64)), budget_s=120.0,
                        dtype="bfloat16", device="cpu", threads=2)  # fmt: skip
    assert plan.run_id == "latency-r8-9bf7205fb5"
    assert not {"bottlenecks", "prefix_length"} & plan.spec.content().keys()


def test_all_that_decides_the_result_is_in_the_run_id():
    base = planned(Path("runs"))
    assert base.run_id.startswith("latency-tiny-") and base.run_id == planned(Path("elsewhere")).run_id
    others = [
        planned(Path("runs"), tiny(n_layer=3)),
        planned(Path("runs"), bottlenecks=((3, 2), (5, 4), (5, 3))),
        planned(Path("runs"), dtype="bfloat16"),
        planned(Path("runs"), budget_s=0.2),
        planned(Path("runs"), device="cuda"),
    ]
    assert len({base.run_id, *(plan.run_id for plan in others)}) == 6


def test_the_table_has_every_shape_in_the_plans_order_with_sizes_and_device(tmp_path):
    plan = planned(tmp_path)
    table = execute_latency(plan)
    assert list(table.columns) == [
        "model", "variant", "batch", "length", "n", "latency_ms", "ci_low", "ci_high", "ratio", "ratio_ci_low",
        "ratio_ci_high", "ci_method", "dtype", "device", "threads", "r", "targets", "bottleneck", "method_params",
        "device_name",
    ]  # fmt: skip
    assert list(zip(table["batch"], table["length"], table["variant"], strict=True)) == [
        (*shape, variant) for shape in SHAPES for variant in ALL
    ]
    adapters = table[table["variant"].isin(["adapter_l", "adapter_h"])]
    assert adapters["bottleneck"].tolist() == [3, 2, 5, 4, 5, 4]
    assert adapters["method_params"].tolist() == [
        n * (2 * D * b + b + D) + n * 2 * D for b, n in ((3, L), (2, 2 * L), (5, L), (4, 2 * L), (5, L), (4, 2 * L))
    ]
    assert (table["n"] >= 6).all() and set(table["model"]) == {"tiny"} and table["device_name"].notna().all()
    record = finished(plan.folder)
    assert record["files"] == {"latency.csv": (plan.folder / "latency.csv").stat().st_size}
    assert record["model"] == {"name": "tiny", "sha256": plan.source.sha256, "architecture": "gpt2"}
    assert record["float32_matmul_precision"] == "highest"
    assert record["spec"]["bottlenecks"] == [[3, 2], [5, 4], [5, 4]]
    pd.testing.assert_frame_equal(read_latency(plan.folder), table)
    assert not [p.name for p in plan.folder.iterdir() if p.name.startswith(".parts")]


class Spy:
    """Stands before the real measurement: notes the shapes, and fails at one of them."""

    def __init__(self, monkeypatch, fail_at=None):
        self.shapes, self.budgets, self.fail_at = [], [], fail_at
        real = measurement.measure_latency

        def measured(callers, make_inputs, shapes, **settings):
            if shapes == [self.fail_at]:
                raise KeyboardInterrupt
            self.shapes += shapes
            self.budgets.append(settings["budget_s"])
            return real(callers, make_inputs, shapes, **settings)

        monkeypatch.setattr(measurement, "measure_latency", measured)


def test_a_killed_measurement_goes_on_with_the_shapes_that_are_missing(tmp_path, monkeypatch):
    plan = planned(tmp_path)
    spy = Spy(monkeypatch, fail_at=(2, 8))
    with pytest.raises(KeyboardInterrupt):
        execute_latency(plan)
    assert spy.shapes == [(1, 4), (1, 8)]  # the small ones first
    assert finished(plan.folder) is None and read_latency(plan.folder) is None
    partial = pd.read_csv(plan.folder / "latency.csv")
    assert list(dict.fromkeys(zip(partial["batch"], partial["length"], strict=True))) == [(1, 8), (1, 4)]
    spy.fail_at = None
    table = execute_latency(plan)
    assert spy.shapes == [(1, 4), (1, 8), (2, 8)]
    pd.testing.assert_frame_equal(table[table["batch"] == 1].reset_index(drop=True), partial)
    assert finished(plan.folder) and len(table) == 3 * len(ALL)


def test_a_measurement_that_failed_is_whole_and_without_its_error_when_it_is_done_again(tmp_path, monkeypatch):
    plan = planned(tmp_path)
    with pytest.raises(Unmeasured), monkeypatch.context() as patch, unmeasured("latency", plan.folder / "error.txt"):
        patch.setattr(measurement, "measure_latency", lambda *args, **settings: [][0])
        execute_latency(plan)
    assert "IndexError" in (plan.folder / "error.txt").read_text()
    execute_latency(plan)
    assert latency_done(plan) and not (plan.folder / "error.txt").exists()


def test_what_is_kept_of_other_settings_is_not_taken_up(tmp_path, monkeypatch):
    plan = planned(tmp_path)
    spy = Spy(monkeypatch, fail_at=(2, 8))
    with pytest.raises(KeyboardInterrupt):
        execute_latency(plan)
    monkeypatch.setattr(measurement, "device_record", lambda *_: {"type": "cpu", "name": "another", "threads": 1})
    spy.fail_at = None
    table = execute_latency(plan)
    assert spy.shapes == [(1, 4), (1, 8), (1, 4), (1, 8), (2, 8)] and set(table["device_name"]) == {"another"}


def test_another_devices_latency_is_not_served_as_this_ones(tmp_path, monkeypatch):
    """A store that machines share, or one that was unpacked here."""
    plan = planned(tmp_path)
    execute_latency(plan)
    spy = Spy(monkeypatch)
    execute_latency(plan)
    assert spy.shapes == []
    monkeypatch.setattr(measurement, "device_record", lambda *_: {"type": "cpu", "name": "another", "threads": 1})
    table = execute_latency(plan)
    assert spy.shapes == [(1, 4), (1, 8), (2, 8)] and set(table["device_name"]) == {"another"}


def test_measured_anew_the_old_table_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    plan = planned(tmp_path)
    old = execute_latency(plan)
    spy = Spy(monkeypatch, fail_at=(2, 8))
    with pytest.raises(KeyboardInterrupt):
        execute_latency(plan, again=True)
    pd.testing.assert_frame_equal(read_latency(plan.folder), old)
    spy.fail_at = None
    new = execute_latency(plan, again=True)
    assert spy.shapes == [(1, 4), (1, 8), (2, 8)]
    assert not new["latency_ms"].equals(old["latency_ms"])
    pd.testing.assert_frame_equal(execute_latency(plan), new)


def test_a_stop_begins_no_other_shape_and_leaves_the_rest_for_later(tmp_path, monkeypatch):
    plan = planned(tmp_path)
    spy = Spy(monkeypatch)
    table = execute_latency(plan, stop=lambda: len(spy.shapes) == 1)
    assert spy.shapes == [(1, 4)] and len(table) == len(ALL) and finished(plan.folder) is None
    assert execute_latency(plan, stop=lambda: True)["latency_ms"].tolist() == table["latency_ms"].tolist()
    assert len(execute_latency(plan)) == 3 * len(ALL) and spy.shapes == [(1, 4), (1, 8), (2, 8)]


def test_each_shape_has_an_equal_share_of_the_budget_that_is_left(tmp_path, monkeypatch):
    plan = planned(tmp_path, budget_s=30.0)
    spent = iter((4.0, 8.0, 1.0))
    clock = [0.0]

    def instant(callers, make_inputs, shapes, **settings):
        budgets.append(settings["budget_s"])
        clock[0] += next(spent)
        rows = [{"variant": name, "batch": shapes[0][0], "length": shapes[0][1]} for name in callers]
        return pd.DataFrame(rows)

    budgets = []
    monkeypatch.setattr(measurement, "measure_latency", instant)
    monkeypatch.setattr(measurement.time, "perf_counter", lambda: clock[0])
    execute_latency(plan)
    assert budgets == [pytest.approx(30 / 3), pytest.approx(26 / 2), pytest.approx(18)]


def test_models_are_made_once_for_shapes_of_the_same_adapters(tmp_path, monkeypatch):
    made = []
    real = measurement.build_models

    def build(source, spec, bottlenecks):
        made.append(bottlenecks)
        return real(source, spec, bottlenecks)

    monkeypatch.setattr(measurement, "build_models", build)
    execute_latency(planned(tmp_path))
    assert made == [(5, 4), (3, 2)]


def test_the_observer_is_told_shape_round_and_variant(tmp_path):
    said = []

    class Observer:
        def stage(self, name, done, total, note=""):
            said.append((name, done, total, note))

    execute_latency(planned(tmp_path), observer=Observer())
    assert ("latency", 0, 3, "building models for batch 1, length 4") in said
    assert ("latency", 2, 3, "batch 2, length 8, round 6, adapter_h") in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shapes": ((1, 17),), "bottlenecks": ((1, 1),)}, "a shape's length must be at most 16"),
        ({"bottlenecks": ((1, 1),)}, "bottlenecks must be a pair for each shape. Got 1 for 3 shapes"),
        ({"shapes": ((1, 4),), "bottlenecks": ((0, 1),)}, "bottleneck must be at least 1"),
        ({"bottlenecks": None, "prefix_length": 3}, "prefix_length must come with bottlenecks. Got 3"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, settings, message):
    with pytest.raises(UsageError) as caught:
        execute_latency(planned(tmp_path, **settings))
    assert str(caught.value).startswith(message)
    assert not list(tmp_path.rglob("run.json"))


def test_run_json_is_valid(tmp_path):
    plan = planned(tmp_path, shapes=((1, 4),), bottlenecks=((1, 1),))
    execute_latency(plan)
    record = json.loads((plan.folder / "run.json").read_text())
    assert record["kind"] == "latency" and record["status"] == "ok" and record["timings"]["total_s"] > 0


def test_tokens_are_no_ends_and_no_padding_but_for_the_end_that_an_encoder_decoder_needs():
    config = transformers.T5Config(vocab_size=12, eos_token_id=7, pad_token_id=0, num_layers=1, d_model=8, num_heads=1)
    ids = inputs_of(config, planned(Path("runs")).spec, mask=False)(4, 50)["input_ids"]
    assert (ids[:, -1] == 7).all() and not (ids[:, :-1] == 7).any() and ids.min() >= 5
    gpt2 = tiny(vocab_size=12, eos_token_id=11, pad_token_id=6).config
    ids = inputs_of(gpt2, planned(Path("runs")).spec, mask=False)(4, 50)["input_ids"]
    assert set(ids.unique().tolist()) == {5, 7, 8, 9, 10}


@pytest.mark.parametrize("kind", ["MobileBertConfig", "PerceiverConfig"])
def test_a_config_without_ends_or_padding_gives_any_tokens(kind):
    config = getattr(transformers, kind)(vocab_size=12)
    ids = inputs_of(config, planned(Path("runs")).spec, mask=True)(4, 50)
    assert set(ids["input_ids"].unique().tolist()) == set(range(5, 12)) and ids["attention_mask"].all()


def test_an_encoder_decoder_is_timed(tmp_path):
    config = transformers.T5Config(num_layers=1, d_model=16, d_ff=24, d_kv=8, num_heads=2, vocab_size=300,
                                   decoder_start_token_id=0)  # fmt: skip
    transformers.T5Model(config).save_pretrained(tmp_path / "base")
    for file in make_tiny("bert", tmp_path / "bert").glob("tokenizer*"):
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    plan = planned(tmp_path, find_model(tmp_path / "base"), shapes=((2, 6),), bottlenecks=None)
    assert len(execute_latency(plan)) == 5
