"""The config to paste, against peft itself and what the run has trained."""

import json

import pandas as pd
import pytest

from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.models import load_base
from rankprobe.experiment.runs import execute
from rankprobe.paper.published import published
from rankprobe.report.findings import find
from rankprobe.report.lora_config import answered_config, as_python, fused_note, lora_config
from rankprobe.report.report import build_report
from rankprobe.report.stats import Estimate
from tests.experiment.test_runs import planned, task  # noqa: F401  (the fixture)
from tests.report.test_rank_cells import sweep


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "llama", "deberta-v2"])
@pytest.mark.parametrize("targets", ["q,v", "q,k,v,o", r"layers?\.1\..*(query|q_proj|q_lin)"])
def test_peft_trains_just_what_the_run_did(tmp_path, task, kind, targets):  # noqa: F811
    peft = pytest.importorskip("peft")
    run = planned(tmp_path, task, Configuration("lora", r=4, alpha=6, targets=targets, lr=1e-2), kind=kind).runs[0]
    record = execute(run) | {"path": str(run.folder)}
    config = lora_config(record)
    model = peft.get_peft_model(load_base(run.spec, run.source, run.task)[0], peft.LoraConfig(**config))
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert sum(count for n, count in trained.items() if "lora_" in n) == record["params"]["method"]
    assert sum(trained.values()) == record["params"]["trainable"], "the head too, all of it"
    assert model.peft_config["default"].lora_alpha == 6 and config["r"] == 4
    saved = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == saved["task_type"]


@pytest.mark.parametrize("targets", ["o", "down", "q,k,v,o"])
def test_kinds_that_share_a_name_are_told_apart(tmp_path, task, targets):  # noqa: F811
    """GPT-2's attention and feed-forward part both end in a c_proj; its q, k and v are one matrix for peft."""
    peft = pytest.importorskip("peft")
    run = planned(tmp_path, task, Configuration("lora", r=4, targets=targets, lr=1e-2), kind="gpt2").runs[0]
    config = lora_config(execute(run) | {"path": str(run.folder)})
    model = peft.get_peft_model(load_base(run.spec, run.source, run.task)[0], peft.LoraConfig(**config))
    adapted = {n.split(".lora_A")[0].split("h.")[1][2:] for n, _ in model.named_parameters() if "lora_A" in n}
    expected = {"o": {"attn.c_proj"}, "down": {"mlp.c_proj"}, "q,k,v,o": {"attn.c_attn", "attn.c_proj"}}
    assert adapted == expected[targets]


def test_the_answers_r_is_what_the_page_and_the_file_say(tmp_path):
    runs = sweep(tmp_path / "runs", {1: 0.7, 8: 0.797})
    found = find(runs, None, published())
    for run in runs:
        name = "bert.encoder.layer.0.attention.self.query.weight"
        pd.DataFrame({"name": [name]}).to_csv(f"{run['path']}/ranks.csv", index=False)
    config, lr, _ = answered_config(runs, "q,v", found.answers["q,v"], found.gain)
    small = Estimate(0.03, 0.01, 0.05, "", 3)
    assert answered_config(runs, "q,v", found.answers["q,v"], small) is None, "a trained head may do as well"
    assert config["r"] == 8 and config["target_modules"] == ["query"] and lr == runs[-1]["spec"]["lr"]
    assert as_python(config).startswith('LoraConfig(r=8, lora_alpha=16, target_modules=["query"], lora_dropout=0.0')


def test_no_file_where_no_r_is_shown(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lora_config.json").write_text("{}")
    runs = sweep(tmp_path / "runs", {1: 0.7})
    build_report(runs, None, published(), tmp_path / "out", title="t", settings={}, figures=False)
    assert not (tmp_path / "out" / "lora_config.json").exists(), "an earlier answer no longer holds"


@pytest.mark.parametrize(("targets", "parts"), [("q,v", 2), ("q,k,v", 3), ("q", 1), ("c_attn$", 1), ("q,v,o", 2)])
@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_makes_of_fused_parts_holds_what_the_run_trained(tmp_path, task, targets, parts, rslora):  # noqa: F811
    """GPT-2's q and v have r each; c_attn then has theirs together, at the same scaling."""
    peft = pytest.importorskip("peft")
    settings = {"r": 4, "alpha": 6, "targets": targets, "lr": 1e-2, "rslora": rslora}
    run = planned(tmp_path, task, Configuration("lora", **settings), kind="gpt2").runs[0]
    record = execute(run) | {"path": str(run.folder)}
    model = peft.get_peft_model(load_base(run.spec, run.source, run.task)[0], peft.LoraConfig(**lora_config(record)))
    saved = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            r = 4 * parts if name.endswith("c_attn") else 4
            assert module.r["default"] == r, name
            assert module.scaling["default"] == pytest.approx(6 / (2 if rslora else 4)), name
            path = name.removeprefix("base_model.model.")
            kept = saved["rank_pattern"].get(path.replace(".", r"\."), saved["r"])
            assert kept == r, "as the adapter that the run left"
    assert bool(fused_note(record)) == (targets != "c_attn$"), "of q alone too: peft trains k and v beside it"
