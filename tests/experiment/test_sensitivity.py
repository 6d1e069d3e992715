"""Sensitivity of real (tiny) runs: the same losses with early blocks skipped, W1 back after, and resumed as it was."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from rankprobe.analysis.cut_updates import truncated_state
from rankprobe.errors import UsageError
from rankprobe.experiment import sensitivity
from rankprobe.experiment.allocation import allocate_ranks, uniform_size
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.cut_model import CutModel
from rankprobe.experiment.reopen import spec_of, task_name
from rankprobe.experiment.runs import execute
from rankprobe.experiment.sensitivity import (
    batches_left,
    estimate_s,
    measure,
    pattern_losses,
    pick_rows,
    plan_work,
    worth,
)
from rankprobe.experiment.store import read_record
from rankprobe.tasks.load import make_task
from tests.experiment.test_runs import examples, planned, task  # noqa: F401
from tests.tiny_models import KINDS

FULL, LORA = Configuration("full", lr=3e-3), Configuration("lora", r=4, targets="all", lr=2e-2)


@pytest.fixture
def tuning():
    return make_task("toy", "tuning", examples(96), examples(40, 5000), ("no", "yes"), ("accuracy",))


def opened(tmp_path, task, configuration, kind="bert"):  # noqa: F811
    run = planned(tmp_path, task, configuration, kind=kind).runs[0]
    assert execute(run)["status"] == "ok"
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_from_kept_outputs_gives_the_very_losses(tmp_path, task, kind):  # noqa: F811
    cut = CutModel(opened(tmp_path, task, Configuration("lora", r=4, targets="q,v,down", lr=2e-2), kind))
    rows, labels = cut.encode(task.eval[:20]), [e.label for e in task.eval[:20]]
    cuts = [(update.site.name, k) for update in cut.updates for k in (0, 1, 2)]
    whole, losses = cut.ladder_losses(rows, labels, cuts)
    assert cut._outputs is not None and cut.share_computed(cuts[-1][0]) == 0.5, "late blocks alone are computed again"
    cut._outputs = None
    again, plain = cut.ladder_losses(rows, labels, cuts)
    np.testing.assert_array_equal(whole, again)
    np.testing.assert_array_equal(losses, plain)
    assert len(np.unique(losses[:, 0])) > len(cuts) / 2, "cuts do change the loss"


@pytest.mark.parametrize("configuration", [FULL, LORA])
def test_cuts_are_those_of_truncation_and_W1_comes_back_bit_for_bit(tmp_path, task, configuration):  # noqa: F811
    cut = CutModel(opened(tmp_path, task, configuration))
    rows, labels = cut.encode(task.eval), [e.label for e in task.eval]
    before = {name: p.detach().clone() for name, p in cut.model.named_parameters()}
    for k in (0, 1, 3):
        with cut.cut({update.site.name: k for update in cut.updates}):
            found = cut.losses(rows, labels)
            state = truncated_state(cut._W0, cut._W1, cut.updates, k, "rest_tuned", cut.head)
            for name, p in cut.model.named_parameters():
                assert torch.equal(p, state[name]), name
        assert all(torch.equal(p, before[name]) for name, p in cut.model.named_parameters())
    assert not np.array_equal(found, cut.losses(rows, labels))
    one = cut.updates[0].site.name
    with pytest.raises(ZeroDivisionError), cut.cut({one: 0}):
        raise ZeroDivisionError
    assert all(torch.equal(p, before[name]) for name, p in cut.model.named_parameters()), "after an error too"


def test_stopped_and_resumed_it_is_the_same_table(tmp_path, task, tuning, monkeypatch):  # noqa: F811
    monkeypatch.setattr(sensitivity, "CHUNK", 16)
    cut = CutModel(opened(tmp_path, task, LORA), "q,v")
    rows = pick_rows(cut.run, tuning, 40)
    work = plan_work(cut, rows, tmp_path / "a")
    assert [len(chunk) for chunk in work.chunks] == [16, 16, 8] and batches_left(work) == 3
    assert estimate_s(cut, work) > 0 and not work.folder.exists()
    renewed = []
    straight = measure(cut, work, renewed=renewed.append)
    assert [table["rows"].iloc[0] for table in renewed] == [16, 32] and straight["rows"].eq(40).all()
    other, calls = plan_work(cut, rows, tmp_path / "b"), []
    real = cut.ladder_losses

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(cut, "ladder_losses", dies)
    with pytest.raises(KeyboardInterrupt):
        measure(cut, other)
    assert other.left == [1, 2]
    resumed = measure(cut, other)
    assert len(calls) == 4, "the finished chunk is not measured again"
    pd.testing.assert_frame_equal(resumed, straight, check_exact=True)
    assert estimate_s(cut, other) == 0 and batches_left(other) == 0


def test_other_rows_or_another_run_take_no_earlier_chunks(tmp_path, task, tuning):  # noqa: F811
    cut = CutModel(opened(tmp_path, task, LORA), "q,v")
    rows = [pick_rows(cut.run, tuning, n, seed=seed) for n, seed in ((40, 0), (40, 1), (30, 0))]
    marks = {plan_work(cut, of, tmp_path).mark for of in rows}
    assert len(marks) == 3
    assert plan_work(cut, pick_rows(cut.run, tuning, 40), tmp_path).mark in marks


def test_rows_are_never_those_of_the_score(tmp_path, task, tuning):  # noqa: F811
    run = opened(tmp_path, task, LORA)
    of = pick_rows(run, tuning, 1000)
    assert of.origin == "tuning" and len(of.examples) == 40 and of.trained_on == 0
    mixed = replace(tuning, eval=(*task.eval[:20], *tuning.eval[:5], *task.train[:4]))
    kept = pick_rows(run, mixed, 1000)
    assert {e.text for e in kept.examples} == {e.text for e in (*tuning.eval[:5], *task.train[:4])}
    assert kept.trained_on == 4
    assert pick_rows(run, None, 30).origin == "train" and pick_rows(run, None, 30).trained_on == 30
    with pytest.raises(UsageError, match="rows of the sensitivity must be other rows than those of the run's score"):
        pick_rows(replace(run, task=replace(task, split="tuning")), tuning, 30)
    with pytest.raises(UsageError, match="must be at least two. Got 0"):
        pick_rows(run, replace(tuning, eval=task.eval), 30)


def test_a_matrix_that_alone_matters_gets_the_ranks(tmp_path, task, tuning):  # noqa: F811
    run = opened(tmp_path, task, Configuration("lora", r=4, targets="q,v", lr=2e-2))
    file = run.folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    chosen = "layer.1.attention.self.value"
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.mul_(5.0 if chosen in name else 1e-5)
    save_file(tensors, file, metadata={"format": "pt"})
    cut = CutModel(run)
    rows = pick_rows(run, tuning, 40)
    work = plan_work(cut, rows, tmp_path / "out")
    table = measure(cut, work)
    first = table[table["k"] == 0].set_index("name")
    assert first["sensitivity"].idxmax().endswith(f"{chosen}.weight")
    assert uniform_size(cut, 3, "v") == 3 * 2 * 64
    found = allocate_ranks(cut, work, rows, table, 64 + 63)
    got = found.table.set_index("name")["r"]
    assert got[f"bert.encoder.{chosen}.weight"] == 1 and got.sum() == 1
    check = found.check.set_index("pattern")
    assert check.loc["sensitivity", "increase"] < check.loc["nothing kept", "increase"]
    assert check.loc["nothing kept", "increase"] == pytest.approx(check.loc["nothing kept", "additive"], rel=1e-2)


def test_the_check_is_the_loss_with_all_cut_at_once(tmp_path, task, tuning):  # noqa: F811
    cut = CutModel(opened(tmp_path, task, LORA), "q,v")
    rows = pick_rows(cut.run, tuning, 40)
    work = plan_work(cut, rows, tmp_path / "out")
    table = measure(cut, work)
    names = [update.site.name for update in cut.updates]
    found = pattern_losses(cut, work, {"whole": dict.fromkeys(names, 4), "one": {names[0]: 1}})
    assert found["increase"].iloc[0] == found["se"].iloc[0] == 0
    single = table[(table["name"] == names[0]) & (table["k"] == 1)].iloc[0]
    assert found["increase"].iloc[1] == pytest.approx(single["increase"], abs=1e-6)
    assert found["se"].iloc[1] == pytest.approx(single["se"], rel=1e-3, abs=1e-6)


def test_what_all_updates_are_worth_is_the_check_without_any_and_W1_comes_back(tmp_path, task, tuning):  # noqa: F811
    cut = CutModel(opened(tmp_path, task, LORA), "q,v")
    work = plan_work(cut, pick_rows(cut.run, tuning, 40), tmp_path / "out")
    before = {name: p.clone() for name, p in cut.model.named_parameters()}
    growth, se = worth(cut, work)
    assert all(torch.equal(p, before[name]) for name, p in cut.model.named_parameters())
    measure(cut, work)
    check = pattern_losses(cut, work, {"nothing": {update.site.name: 0 for update in cut.updates}}).iloc[0]
    assert (growth, se) == pytest.approx((check["increase"], check["se"]), rel=1e-5)


def test_targets_that_the_run_did_not_change_are_refused(tmp_path, task):  # noqa: F811
    run = opened(tmp_path, task, Configuration("lora", r=2, lr=2e-2))
    assert {u.site.kind for u in CutModel(run, "all").updates} == {"q", "v"}
    with pytest.raises(UsageError, match=r"have changed matrices of its blocks. Got no change in k. Pass --targets"):
        CutModel(run, "k")


def test_a_head_alone_is_refused_before_anything_is_loaded(tmp_path, task, monkeypatch):  # noqa: F811
    run = opened(tmp_path, task, Configuration("head", lr=1e-2))
    monkeypatch.setattr("rankprobe.experiment.cut_model.load_base", None)
    with pytest.raises(UsageError, match="have changed the model's matrices. Got a head alone"):
        CutModel(run)


def test_a_record_gives_its_spec_back(tmp_path, task):  # noqa: F811
    pattern = {"layer.0.attention.self.query": 0}
    for configuration in (FULL, Configuration("lora", r=2, lr=1e-2, rank_pattern=pattern)):
        run = opened(tmp_path, task, configuration)
        record = read_record(run.folder)
        assert spec_of(record) == run.spec and spec_of(record, threads=7).threads == 7
    record["spec"]["novelty"] = 1
    with pytest.raises(UsageError, match="be of a version that this one can read. Got a spec with novelty"):
        spec_of(record)
    assert task_name("docmatch@ab12cd34") == "docmatch"
