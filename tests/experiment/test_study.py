"""study.toml → dataclasses → specs: what is checked, what is defaulted, in which order runs come."""

import hashlib
import json
import math
from dataclasses import asdict, replace

import pytest

from rankprobe.errors import UsageError
from rankprobe.experiment.configuration import Configuration
from rankprobe.experiment.learning_rates import default_lr
from rankprobe.experiment.spec import SIZES
from rankprobe.experiment.store import run_id
from rankprobe.experiment.study import Study, parse_configuration
from rankprobe.experiment.study_file import load_studies, load_study, study_toml

HASHES = {"model_sha256": "m", "tokenizer_sha256": "t", "task_sha256": "d"}
PLACE = {"dtype": "float32", "device": "cpu", "threads": 1}


def write(folder, text):
    path = folder / "study.toml"
    path.write_text(text)
    return path


def test_lists_mean_all_combinations_and_alpha_is_2r(tmp_path):
    study = load_study(
        write(tmp_path, 'task = "sst2"\nconfigurations = [{ method = "lora", r = [1, 4], lr = [1e-3, 2e-3] }]')
    )
    assert [(c.r, c.lr, c.alpha, c.targets) for c in study.configurations] == [
        (1, 1e-3, 2.0, "q,v"),
        (1, 2e-3, 2.0, "q,v"),
        (4, 1e-3, 8.0, "q,v"),
        (4, 2e-3, 8.0, "q,v"),
    ]
    assert study.name == tmp_path.name


def test_runs_come_round_by_round():
    study = Study(
        "s", (Configuration("full", seeds=3), Configuration("lora", r=1), Configuration("lora", r=8, seeds=2)), seed=5
    )
    got = [(s.method, s.r, s.seed) for s in study.specs(**PLACE)]
    assert got == [
        ("full", None, 5),
        ("lora", 1, 5),
        ("lora", 8, 5),
        ("full", None, 6),
        ("lora", 8, 6),
        ("full", None, 7),
    ]


def test_rates_come_from_the_tuning_study_unless_given():
    study = Study("s", (Configuration("full"), Configuration("lora", r=8, lr=0.5)))
    assert [s.lr for s in study.specs(**PLACE)] == [default_lr("full"), 0.5]
    assert default_lr("lora", 8) == default_lr("lora", 9) and default_lr("lora", 10_000) == default_lr("lora", 64)
    assert default_lr("lora", 1, "up") == default_lr("lora", 1), "targets that were not tuned"


def test_rates_in_subspaces_lie_between_the_tuned_ones_and_go_with_the_root_of_d_beyond():
    at = {d: default_lr("did", d) for d in (250, 1000, 3162, 10_000, 40_000)}
    assert at[1000] == 1.0 and at[10_000] == 0.1 and default_lr("said", 1000) == 0.3, "as tuned, to the last bit"
    assert at[3162] == pytest.approx(math.sqrt(at[1000] * at[10_000]), rel=1e-3)
    assert at[250] == 2 * at[1000] and at[40_000] == at[10_000] / 2
    assert default_lr("said", 4000) == pytest.approx(default_lr("said", 1000) / 2), "one tuned d alone"


def test_a_run_has_the_id_that_it_had_before_other_methods_came():
    # Of the committed record runs/lora-r8-qv-eval-s0-*, whose hash was made when a spec had no sizes.
    spec = Study("s", (Configuration("lora", r=8),)).specs(**PLACE)[0]
    later = (*SIZES, "rank_pattern", "patience", "tuning_size")
    before = {k: v for k, v in asdict(spec).items() if k not in (*later, "model", "task")}
    before |= HASHES | {"semantics": 1}
    digest = hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()[:10]
    assert run_id(spec, **HASHES) == f"lora-r8-qv-eval-s0-{digest}"


def test_a_size_is_part_of_a_runs_name_and_id():
    study = Study("s", tuple(Configuration("did", d=d, lr=1e-2) for d in (100, 1000)))
    ids = [run_id(spec, **HASHES) for spec in study.specs(**PLACE)]
    assert ids[0].startswith("did-100-eval-s0-") and ids[1].startswith("did-1000-eval-s0-")
    assert ids[0].rsplit("-", 1)[1] != ids[1].rsplit("-", 1)[1]


@pytest.mark.parametrize(
    "text, message",
    [
        ("epoch = 2", "must be one of .* Got epoch. Did you mean 'epochs'"),
        ('epochs = "two"', "epochs .* must be int. Got 'two'"),
        ("epochs = true", "epochs .* must be int"),
        ("epochs = 0", "epochs must be at least 1"),
        ("configurations = []", "at least one configuration"),
        (
            'configurations = [{ method = "loar" }]',
            "method must be one of full, head, lora, .*, said. Got loar. Did you mean 'lora'",
        ),
        ('configurations = [{ method = "lora" }]', "r must be at least 1. Got None"),
        ('configurations = [{ method = "lora", r = 0 }]', "r must be at least 1. Got 0"),
        ('configurations = [{ method = "lora", r = 4, rank = 2 }]', "Got rank"),
        ('configurations = [{ method = "full", r = 4 }]', "unless the method is lora"),
        ('configurations = [{ method = "full", lr = -1.0 }]', "lr must be above 0"),
        ('configurations = [{ method = "adapter_h" }]', "bottleneck of adapter_h must be at least 1. Got None."),
        ('configurations = [{ method = "did", d = 0 }]', "d of did must be at least 1. Got 0."),
        ('configurations = [{ method = "prefix", d = 8 }]', "d must be given for did, said only"),
        ('configurations = [{ method = "lora", r = 4, layers = 2 }]', "layers must be given for top_layers only"),
        ('configurations = [{ method = "lora", r = 4, dropout = 1.0 }]', r"dropout must be in \[0, 1\)"),
        ('configurations = [{ method = "full", seeds = [11, 12] }]', r"be how many seeds, not which\. Got \[11, 12\]"),
        ("seeds = 3", "must be one of .* Got seeds. Put seeds into configurations"),
        ("lr = 1e-3", "Got lr. Put lr into configurations"),
        ("epochs = = 2", "must be TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    if "configurations" not in text:
        text += '\nconfigurations = [{ method = "full" }]'
    with pytest.raises(UsageError, match=message):
        load_study(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="study must be a TOML file"):
        load_study(tmp_path / "none.toml")


def spec(**change):
    import dataclasses

    base = Study("s", (Configuration("lora", r=8),)).specs(**PLACE)[0]
    return dataclasses.replace(base, **change)


def test_run_id_hashes_what_decides_the_result_and_nothing_else():
    one = run_id(spec(), **HASHES)
    assert one == run_id(spec(), **HASHES) and one.startswith("lora-r8-qv-eval-s0-")
    assert one == run_id(spec(model="another name", task="another name"), **HASHES)
    changes = [
        {"lr": 1e-9},
        {"seed": 1},
        {"dtype": "bfloat16"},
        {"threads": 2},
        {"r": 4},
        {"alpha": 1.0},
        {"rslora": True},
        {"targets": "q"},
        {"train_size": 7},
        {"model_dropout": 0.1},
    ]
    ids = {run_id(spec(**change), **HASHES) for change in changes} | {
        run_id(spec(), **{**HASHES, k: "x"}) for k in HASHES
    }
    assert len(ids | {one}) == len(changes) + 3 + 1


@pytest.mark.parametrize("text", ["lora", "full-r8", "head", "lora-rx", ""])
def test_truncate_names_are_checked(text):
    with pytest.raises(UsageError, match="truncate must name"):
        parse_configuration(text)


@pytest.mark.parametrize("path", ["learning-rates", "sst2"])
def test_the_studies_that_ship_load(path):
    from pathlib import Path

    study = load_study(Path(__file__).parents[2] / "studies" / path / "study.toml")
    assert study.name == path and study.specs(**PLACE)


@pytest.mark.parametrize(
    "study",
    [
        Study("s", (Configuration("full"),)),
        Study(
            "s",
            (
                Configuration("full", lr=1e-5, seeds=3),
                Configuration("lora", r=4, targets="layer\\.[01]\\..*\"query\"", lr_grid=(1e-3, 2e-3, 1.0)),
                Configuration("lora", r=4, alpha="r", rslora=True, lr_grid=(1e-3, 2e-3, 0.5), dropout=0.1),
                Configuration("lora", r=2, rank_pattern={"a.query": 1, "value": 0}),
                Configuration("adapter_h", bottleneck=6),
            ),
            question='How "long" is a – study?',
            task="sst2",
            tune=(0.5, 1.0, 2.0),
            truncate=(),
            clip_norm=0.0,
            seed=7,
        ),
    ],
)
def test_a_study_is_read_back_from_its_own_text(tmp_path, study):
    text = study_toml(study)
    assert replace(load_study(write(tmp_path, text)), name="s") == study, text


def test_a_studys_text_leaves_defaults_out():
    assert study_toml(Study("s", (Configuration("lora", r=8), Configuration("head", seeds=2)))) == (
        'configurations = [\n  { method = "lora", r = 8, targets = "q,v" },\n  { method = "head", seeds = 2 },\n]\n'
    )


def test_several_tasks_and_models_are_a_study_each(tmp_path):
    text = 'task = ["sst2", "mrpc"]\nmodel = ["a", "b"]\nconfigurations = [{ method = "head", lr = [1e-2, 1e-3] }]'
    studies = load_studies(write(tmp_path, text))
    assert [(s.model, s.task) for s in studies] == [("a", "sst2"), ("a", "mrpc"), ("b", "sst2"), ("b", "mrpc")]
    assert all(len(s.configurations) == 2 and s.name == tmp_path.name for s in studies)
    with pytest.raises(UsageError, match="must have one model and one task. Got 4 combinations"):
        load_study(tmp_path / "study.toml")
    with pytest.raises(UsageError, match="task in .* must have a value. Got an empty list"):
        load_studies(write(tmp_path, 'task = []\nconfigurations = [{ method = "head" }]'))
    with pytest.raises(UsageError, match="task in .* must be str. Got 3"):
        load_studies(write(tmp_path, 'task = ["sst2", 3]\nconfigurations = [{ method = "head" }]'))


def test_models_that_train_otherwise_now_have_other_ids():
    """Dropout was left on in OPT; a finished run of then must not be averaged with one of now."""
    ids = {name: run_id(spec(), **HASHES, architecture=name) for name in ("bert", "gpt2", "opt", "gpt_neox")}
    assert ids["bert"] == ids["gpt2"] == run_id(spec(), **HASHES) and ids["opt"] == ids["gpt_neox"] != ids["bert"]
