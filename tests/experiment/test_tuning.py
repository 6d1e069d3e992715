"""Rates that a study chooses: equal budgets, tuning rows only, the lowest loss, ends of grids, what trains nowhere."""

import json
import math
from dataclasses import asdict, replace

import pytest

from rankprobe.errors import UsageError, WorkError
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.study import Study
from rankprobe.experiment.study_file import load_study
from rankprobe.experiment.tuning import choose_rates, rates_to_try, tuning_study, tuning_table

PLACE = {"dtype": "float32", "device": "cpu", "threads": 1}
STUDY = Study(
    "s",
    (Configuration("full", lr=1e-4, seeds=3), Configuration("lora", r=8, seeds=3, lr_grid=(4e-3, 1e-3, 2e-3))),
    tune=(0.5, 1.0, 2.0),
    tuning_size=500,
    eval_size=4000,
    truncate=("full",),
)


def record(spec, loss, status="ok", task="sst2"):
    metrics = {"accuracy": 1 - loss / 2, "loss": loss} if status == "ok" else {}
    return {"run_id": f"{spec.method}-{spec.lr:g}", "spec": asdict(spec), "status": status, "metrics": metrics,
            "task": {"name": task, "sha256": task, "metrics": ["accuracy"], "n_eval": 500},
            "model": {"name": "base", "sha256": "m"}}  # fmt: skip


def tried(losses):
    """Records of STUDY's tuning runs, with a loss by (method, lr), or None for one that diverged."""
    specs = tuning_study(STUDY).specs(**PLACE)
    found = [losses[s.method, s.lr] for s in specs]
    return [record(s, x, "diverged" if x is None else "ok") for s, x in zip(specs, found, strict=True)]


FULL_BEST_AT_END = {("full", 5e-5): 0.5, ("full", 1e-4): 0.4, ("full", 2e-4): 0.3}
LORA_BEST_INSIDE = {("lora", 1e-3): 0.6, ("lora", 2e-3): 0.2, ("lora", 4e-3): None}
LOSSES = FULL_BEST_AT_END | LORA_BEST_INSIDE


def test_every_configuration_is_tried_at_as_many_rates_on_the_tuning_rows_alone():
    specs = tuning_study(STUDY).specs(**PLACE)
    assert [(s.method, s.lr) for s in specs] == list(LOSSES)
    assert {s.split for s in specs} == {"tuning"} and {s.seed for s in specs} == {0}
    assert {s.eval_size for s in specs} == {500}
    assert not tuning_study(STUDY).tuned and not tuning_study(STUDY).truncate


def test_factors_are_of_the_rate_that_the_configuration_would_have_had():
    study = Study("s", (Configuration("lora", r=1), Configuration("lora", r=64)), tune=(0.1, 1))
    got = [rates_to_try(study, c) for c in study.configurations]
    assert got == [(4e-4, 4e-3), (1e-4, 1e-3)], "and rounded, so that 0.1 of 2e-3 is the 2e-4 of another grid"


def test_the_lowest_loss_wins_and_the_study_keeps_all_else():
    chosen = choose_rates(STUDY, tried(LOSSES))
    assert [c.lr for c in chosen.configurations] == [2e-4, 2e-3]
    assert not chosen.tuned
    back = replace(chosen, configurations=STUDY.configurations, tune=STUDY.tune, tuning_size=500)
    assert back == STUDY
    assert [s.seed for s in chosen.specs(**PLACE)] == [0, 0, 1, 1, 2, 2]


def test_of_equal_losses_the_smaller_rate_wins():
    chosen = choose_rates(STUDY, tried(dict.fromkeys(LOSSES, 0.5)))
    assert [c.lr for c in chosen.configurations] == [5e-5, 1e-3]


def test_table_says_what_was_chosen_and_whether_it_lay_at_an_end():
    table = tuning_table([*tried(LOSSES), record(_evaluated(), 0.1)])
    assert len(table) == 6, "runs on evaluation rows are none of it"
    best = table[table["chosen"]].set_index("method")
    assert best["lr"].to_dict() == {"full": 2e-4, "lora": 2e-3}
    assert best["at_end"].to_dict() == {"full": True, "lora": False}
    assert table.loc[table["lr"] == 4e-3, "status"].item() == "diverged"
    assert table["r"].astype(object).where(table["r"].notna(), None).tolist() == [None] * 3 + [8] * 3


def _evaluated():
    return Study("s", (Configuration("full", lr=1e-4),)).specs(**PLACE)[0]


def test_each_task_chooses_from_its_own_runs():
    specs = tuning_study(STUDY).specs(**PLACE)
    losses = {"sst2": [LOSSES[s.method, s.lr] or 9.0 for s in specs]}
    losses["mrpc"] = losses["sst2"][::-1]
    runs = [record(s, x, task=task) for task, of in losses.items() for s, x in zip(specs, of, strict=True)]
    table = tuning_table(runs)
    assert table.groupby(["task", "method"])["chosen"].sum().tolist() == [1] * 4
    assert table.loc[table["chosen"], "loss"].tolist() == [
        min(of[at : at + 3]) for of in losses.values() for at in (0, 3)
    ]


def test_a_rank_pattern_is_part_of_what_is_compared():
    """In a record it is a list of lists, in a configuration a tuple of tuples."""
    study = replace(STUDY, truncate=(), configurations=tuple(
        Configuration("lora", r=8, lr_grid=(1e-3, 2e-3), rank_pattern=pattern) for pattern in (None, {"query": 2})
    ))  # fmt: skip
    specs = tuning_study(study).specs(**PLACE)
    losses = [0.5, 0.1, 0.1, 0.5]  # the first is best at its second rate, the second at its first
    records = [json.loads(json.dumps(record(s, loss))) for s, loss in zip(specs, losses, strict=True)]
    assert [c.lr for c in choose_rates(study, records).configurations] == [2e-3, 1e-3]
    assert tuning_table(records)["chosen"].tolist() == [False, True, True, False]


def test_nothing_that_trains_is_an_error_that_names_the_rates():
    with pytest.raises(WorkError, match=r"A rate of lora r=8 q,v must train.*none of 0.001, 0.002, 0.004"):
        choose_rates(STUDY, tried(FULL_BEST_AT_END | dict.fromkeys(LORA_BEST_INSIDE)))
    with pytest.raises(WorkError, match=r"Every tuning run of lora r=8 q,v must end.*none at 0.001, 0.002, 0.004"):
        choose_rates(STUDY, tried(LOSSES)[:3])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("tune = [0.5, 1]\nsplit = 'tuning'", "split must be eval where rates are tuned"),
        ("tune = [0.0, 1]", "tune must hold numbers above 0. Got 0"),
        ("tune = [1, 1.0]", "tune must hold each number once. Got 1, 1"),
        ("tune = ['a']", "tune in .* must be a list of numbers"),
        ("tune = 2", "tune in .* must be a list of numbers"),
        ("tuneing = [1]", "Did you mean 'tune'?"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, text, expected):
    path = tmp_path / "study.toml"
    path.write_text(f'{text}\nconfigurations = [{{ method = "full" }}, {{ method = "lora", r = [1, 8] }}]')
    with pytest.raises(UsageError, match=expected):
        load_study(path)


@pytest.mark.parametrize(
    "grids, expected",
    [
        (((1e-3,), (1e-3, 2e-3)), "have as many rates for every configuration.* Got 1 and 2"),
        (((1e-3,), ()), "Got 0 and 1"),
        (((1e-3,), (math.inf,)), "hold numbers above 0. Got inf"),
    ],
)
def test_a_larger_grid_for_one_is_refused(grids, expected):
    with pytest.raises(UsageError, match=expected):
        Study("s", tuple(Configuration("lora", r=r, lr_grid=grid) for r, grid in zip((1, 8), grids, strict=True)))


def test_a_grid_in_a_file_is_one_configuration(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('truncate = []\nconfigurations = [{ method = "lora", r = [1, 8], lr_grid = [1e-3, 2] }]')
    study = load_study(path)
    assert [(c.r, c.lr_grid) for c in study.configurations] == [(1, (1e-3, 2.0)), (8, (1e-3, 2.0))]
    with pytest.raises(UsageError, match="lr must be left out where lr_grid is given"):
        Configuration("full", lr=1.0, lr_grid=(1e-3,))


@pytest.mark.parametrize("crashed", [True, False])
def test_a_grid_with_a_hole_chooses_nothing(crashed):
    """A tuning run that crashed, or is not there: the rate may be the best once it is done."""
    records = tried(LOSSES)
    if crashed:
        records[1] = records[1] | {"status": "failed", "metrics": {}}
    else:
        del records[1]
    message = "Every tuning run of full must end before a rate is chosen. Got none at 0.0001. The same command"
    with pytest.raises(WorkError, match=message):
        choose_rates(STUDY, records)


@pytest.mark.parametrize("rates", [{"lr": 1e-3}, {"lr_grid": (1e-3, 2e-3, 8e-3)}])
def test_a_configuration_is_tuned_once_whatever_its_rates(rates):
    """Twice, with other rates, it would have a budget that the others have not."""
    twice = (*STUDY.configurations, Configuration("lora", r=8, **rates))
    with pytest.raises(UsageError, match=r"\(lora r=8 q,v\) must be listed once where rates are tuned"):
        replace(STUDY, configurations=twice)
    same = Configuration("lora", r=8, seeds=5, lr_grid=(4e-3, 1e-3, 2e-3))
    replace(STUDY, configurations=(*STUDY.configurations, same))


def test_one_grid_in_another_order_is_one_grid():
    grids = [Configuration("lora", r=8, lr_grid=grid, seeds=n) for n, grid in ((1, (1e-3, 2e-3)), (2, (2e-3, 1e-3)))]
    assert replace(STUDY, configurations=tuple(grids), tune=()).tuned
