"""Which size of packs a sweep takes: the fastest that was measured, and then always that one."""

import pytest

from rankprobe.errors import UsageError, WorkError
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.pack_choice import choose_pack, parse_pack, settled_pack
from rankprobe.experiment.pack_timing import PackTiming
from tests.experiment.test_pack import planned as planned_of
from tests.experiment.test_runs import planned, task  # noqa: F401  (the fixture)


@pytest.fixture
def runs(tmp_path, task):  # noqa: F811
    """Twelve LoRA runs that go together and one that goes with none."""
    loras = (Configuration("lora", r=r, lr=1e-2, seeds=3) for r in (1, 2, 4, 8))
    return planned(tmp_path, task, *loras, Configuration("full", lr=1e-3)).runs


def by(speedups):
    """A stand-in for measuring, with the speed-up of each size; an error where a size has none."""
    asked = []

    def measure(group):
        asked.append(len(group))
        if len(group) not in speedups:
            raise WorkError("no memory")
        gain = speedups[len(group)]
        return PackTiming(len(group), 1.0, 1 / gain, [gain * 0.99, gain * 1.01])

    return measure, asked


@pytest.mark.parametrize(
    "speedups, chosen, asked",
    [
        ({2: 1.8, 4: 3.2, 6: 4.0, 12: 5.0}, 16, [2, 4, 6, 12]),  # 8 of 12 are two packs of 6
        ({2: 1.8, 4: 3.2, 6: 3.25}, 4, [2, 4, 6]),  # hardly more: the smaller
        ({2: 0.9}, 1, [2]),
        ({2: 1.5, 4: 2.5}, 4, [2, 4, 6]),  # 8 do not fit into memory
        ({}, 1, [2]),
    ],
)
def test_the_fastest_size_wins_and_larger_ones_are_not_tried_after_one_that_is_not(runs, speedups, chosen, asked):
    measure, seen = by(speedups)
    lines = []
    assert min(choose_pack(runs, measure=measure, say=lines.append), 12) == min(chosen, 12)
    assert seen == asked and len(lines) == len(asked)


def test_runs_that_cannot_be_packed_are_not_measured(tmp_path, task):  # noqa: F811
    measure, seen = by({})
    assert choose_pack(planned(tmp_path, task, Configuration("full", lr=1e-3)).runs, measure=measure) == 1
    assert seen == []


LORA = Configuration("lora", r=2, lr=1e-2, seeds=12)


@pytest.mark.parametrize(
    "first, second, size, chosen, asked",
    [
        ({2: 1.8, 4: 3.2, 6: 4.0, 12: 5.0}, {2: 1.8, 4: 3.2, 6: 3.2}, 12, 4, [2, 4, 6]),
        ({2: 1.8, 4: 1.7}, {2: 1.8, 4: 3.2}, 12, 2, [2]),  # larger ones would not be taken
        ({2: 1.8, 4: 3.2, 6: 4.0, 12: 5.0}, {2: 1.8, 3: 2.5}, 3, 12, [2, 3]),  # three are one pack at any size
        ({2: 0.9}, {2: 1.8}, 12, 1, []),
    ],
)
def test_of_several_tasks_models_or_targets_the_smallest_size_that_pays_for_all(
    tmp_path, task, first, second, size, chosen, asked  # noqa: F811
):  # fmt: skip
    others = Configuration("lora", r=2, lr=1e-2, targets="v", seeds=size)
    measures, lines = (by(first), by(second)), []

    def measure(group):
        return measures[group[0].spec.targets == "v"][0](group)

    runs = planned(tmp_path, task, LORA, others).runs
    assert choose_pack(runs, measure=measure, say=lines.append) == chosen
    assert measures[1][1] == asked and lines[0].startswith("base on toy, q,v: packs of 2: a step of a run takes")


def test_a_model_that_cannot_be_packed_makes_all_runs_lone_ones_and_it_is_said(tmp_path, task):  # noqa: F811
    deberta, bert = (planned_of(tmp_path / kind, task, LORA, kind=kind) for kind in ("deberta-v2", "bert"))
    lines = []
    assert choose_pack([*bert[:2], *deberta[:3]], say=lines.append) == 1
    assert lines[-1].startswith("base on toy, q,v: all runs are done one by one. A model whose runs are packed must")


def test_it_is_measured_for_real(runs):
    lines = []
    choose_pack(runs, say=lines.append)
    assert "times as fast" in lines[0]


def test_a_sweep_that_is_gone_on_with_keeps_its_size():
    def never():
        raise AssertionError("measured again")

    def settled(asked, earlier, default="off", choose=never):
        return settled_pack(asked, earlier, default=default, choose=choose)

    assert settled(None, None) == 1 and settled(None, None, "auto", lambda: 4) == 4
    assert settled("auto", None, choose=lambda: 4) == 4 and settled("8", None) == 8
    assert settled(None, 4) == 4 and settled("auto", 4) == 4 and settled("4", 4) == 4
    with pytest.raises(UsageError, match="--pack must stay what the sweep was begun with, 4. Got off. Leave it out"):
        settled("off", 4)
    with pytest.raises(UsageError, match="begun with, off. Got 2"):
        settled("2", 1)


@pytest.mark.parametrize("asked, earlier, packed, found", [
    ("off", 4, False, 1), ("2", 4, False, 2), (None, 4, False, 4), ("auto", 4, False, 4), ("off", 4, True, None),
    ("2", 1, False, None),
])  # fmt: skip
def test_until_a_run_has_ended_in_a_pack_another_size_may_be_asked_for(asked, earlier, packed, found):
    def settled():
        return settled_pack(asked, earlier, default="auto", choose=None, packed=lambda: packed)

    if found is None:
        with pytest.raises(UsageError, match=f"Leave it out, or pass --pack {asked} with another --out"):
            settled()
    else:
        assert settled() == found


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", ""])
def test_what_it_may_not_be(text):
    with pytest.raises(UsageError, match="--pack must be auto, off or a number of runs"):
        parse_pack(text)
