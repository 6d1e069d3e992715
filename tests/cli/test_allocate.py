"""``rankprobe allocate``: from a run to configs that peft and rankprobe train with, and one line for every mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import peft
import pytest
import transformers
from safetensors.torch import load_file, save_file

from rankprobe.weights.pretrained import find_model, load_classifier
from tests.cli.lab import FILES, FINETUNE, furnish, rankprobe, refused
from tests.tiny_models import make_tiny

OUTPUT = {
    "plan.json", "losses", "sensitivity.csv", "allocation.csv", "allocation.json", "check.csv", "lora_config.json",
    "adapter_config.json", "rank_pattern.json", "rank_pattern_energy.json", "ranks.svg", "ranks.png",
    "sensitivity.svg", "sensitivity.png",
}  # fmt: skip
WHERE = ("--model", "base", *FILES, "--rows", "16", "--rows-of", "train")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A furnished folder with a run of LoRA on q,v, of full fine-tuning, of the head alone, and one without weights."""
    folder = tmp_path_factory.mktemp("allocate")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        furnish(folder)
        for more in (("--r", 4, "--lr", "2e-2"), ("--method", "full"), ("--method", "head")):
            assert rankprobe(*FINETUNE, *more).exit_code == 0
    runs = {path.name.split("-")[0]: path for path in (folder / "runs").iterdir()}
    bare = folder / "runs" / "bare"
    shutil.copytree(runs["lora"], bare)
    shutil.rmtree(bare / "adapter")
    record = json.loads((bare / "run.json").read_text()) | {"weights_kept": False}
    record["files"] = {name: size for name, size in record["files"].items() if not name.startswith("adapter")}
    (bare / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("base", "train.csv", "eval.csv", "runs"):
        Path(name).symlink_to(trained / name)
    return {path.name.split("-")[0]: path.name for path in Path("runs").iterdir()}


def test_what_is_written_and_peft_and_finetune_train_with_it(here):
    result = rankprobe("allocate", here["lora"], *WHERE, "--budget-r", 2, "--out", "out")
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in Path("out").iterdir()} == OUTPUT
    table, summary = pd.read_csv("out/allocation.csv"), json.loads(Path("out/allocation.json").read_text())
    assert len(table) == 4 and table["parameters"].sum() == summary["parameters"] == 2 * 4 * 64 == summary["budget"]
    assert summary["uniform_r"] == 2 and summary["rows_of"] == "train" and summary["rows_trained_on"] == 16
    assert "was trained on 16 of these rows" in result.stderr
    for words in ("512 of 512 parameters are spent, where one r for all would be 2", "With every dW cut at once",
                  "r by layer and", "--r 2 --targets 'q,v' --rank-pattern out/rank_pattern.json"):  # fmt: skip
        assert words in result.stdout
    check = pd.read_csv("out/check.csv")
    assert check["pattern"].tolist() == ["sensitivity", "energy", "one r", "nothing kept"]
    assert check["parameters"].tolist() == [512, 512, 512, 0]

    # peft: the file's content as arguments, and the folder.
    config = peft.LoraConfig(**json.loads(Path("out/lora_config.json").read_text()))
    assert peft.LoraConfig.from_pretrained("out").rank_pattern == config.rank_pattern
    base, _, _ = load_classifier(find_model("base"), 2, seed=0)
    model = peft.get_peft_model(base, config)
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            name = path.removeprefix("base_model.model.") + ".weight"
            found[name] = module.r["default"]
            assert module.scaling["default"] == summary["alpha_over_r"] == 2
            assert all(p.requires_grad for n, p in module.named_parameters() if "lora_" in n)
    assert found == {name: r for name, r in zip(table["name"], table["r"], strict=True) if r}

    # rankprobe: the same r for the same matrices.
    done = rankprobe(*FINETUNE, "--r", 2, "--rank-pattern", "out/rank_pattern.json", "--runs", "more")
    assert done.exit_code == 0, done.stderr
    folder = next(Path("more").iterdir())
    record = json.loads((folder / "run.json").read_text())
    assert record["params"]["method"] == 512 and record["spec"]["rank_pattern"] is not None
    ranks = pd.read_csv(folder / "ranks.csv").set_index("name")["numerical_rank"]
    assert (ranks <= pd.Series(found)).all() and set(ranks.index) == set(found)


def test_another_budget_takes_what_is_measured(here):
    arguments = ("allocate", here["lora"], *WHERE, "--out", "out")
    rankprobe(*arguments, "--budget-r", 2)
    first = {path: path.stat().st_mtime_ns for path in Path("out/losses").iterdir()}
    before = pd.read_csv("out/sensitivity.csv")
    result = rankprobe(*arguments, "--budget", 200)
    assert result.exit_code == 0 and "all measured already" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in Path("out/losses").iterdir()} == first
    assert pd.read_csv("out/sensitivity.csv").equals(before)
    assert pd.read_csv("out/allocation.csv")["parameters"].sum() == 192, "three ranks of 64"


def test_a_run_is_called_as_its_record_does_wherever_it_lies(here, monkeypatch):
    shutil.copytree(Path("runs", here["lora"]), "best")
    for name in ("base", "train.csv", "eval.csv"):
        Path("best", name).symlink_to(Path(name).resolve())
    monkeypatch.chdir("best")
    done = rankprobe("allocate", ".", *WHERE, "--budget-r", 1)
    assert done.exit_code == 0, done.stderr
    out = Path("results", f"allocate-{here['lora']}")
    assert json.loads((out / "allocation.json").read_text())["run"] == here["lora"]
    assert json.loads((out / "plan.json").read_text())["name"] == f"allocate {here['lora']}"


def test_losses_of_another_run_in_the_same_place_are_not_taken(here):
    shutil.copytree(Path("runs", here["lora"]), "best")
    arguments = ("allocate", "best", *WHERE, "--budget-r", 1, "--out", "out")
    assert "about 1 min" in rankprobe(*arguments).stderr
    assert "all measured already" in rankprobe(*arguments, "--dry-run").stderr
    file = Path("best/adapter/adapter_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    assert "about 1 min" in rankprobe(*arguments, "--dry-run").stderr


def test_a_dry_run_writes_nothing_and_says_how_long(here):
    result = rankprobe("allocate", here["full"], *WHERE, "--budget-r", 2, "--dry-run", "--out", "out")
    assert result.exit_code == 0 and not Path("out").exists()
    assert "72 cuts of 12 matrices on 16 train rows, about 1 min" in result.stderr


@pytest.mark.parametrize(("gain", "warned"), [((-0.003, 0.002), True), ((0.003, 0.002), True), ((0.3, 0.002), False)])
def test_a_run_that_learned_nothing_is_warned_of_before_anything_is_measured(here, monkeypatch, gain, warned):
    monkeypatch.setattr("rankprobe.experiment.sensitivity.worth", lambda cut, work: gain)
    said = rankprobe("allocate", here["lora"], *WHERE, "--budget-r", 1, "--dry-run").stderr
    assert ("no more than noise" in said) == warned and (f"grows by {gain[0]:.2g} ± 0.002" in said) == warned


def test_full_fine_tuning_shares_among_all_matrices_or_some(here):
    done = rankprobe("allocate", here["full"], *WHERE, "--budget-r", 1, "--targets", "up,down", "--out", "a")
    assert done.exit_code == 0, done.stderr
    table = pd.read_csv("a/allocation.csv")
    assert set(table["kind"]) == {"up", "down"} and table["parameters"].sum() <= 256 < table["parameters"].sum() + 96
    pattern = json.loads(Path("a/rank_pattern.json").read_text())
    assert len(pattern) == 4 and sum(pattern.values()) == table["r"].sum()


@pytest.mark.parametrize(("run", "more", "message"), [
    ("head", (), "The run head-.* must have changed the model's matrices. Got a head alone, on a frozen base"),
    ("bare", (), "must have its weights beside its record. Got a run whose weights were dropped"),
    ("lora", ("--budget", 63), "--budget must hold a rank of a matrix, 64 parameters at least. Got 63"),
    ("lora", ("--budget", 0), "--budget must be at least 1. Got 0"),
    ("lora", ("--budget", 64, "--budget-r", 1), "allocate must get --budget or --budget-r. Got both"),
    ("lora", ("--neither",), "allocate must get --budget or --budget-r. Got neither"),
    ("lora", ("--targets", "k"), "must have changed matrices of its blocks. Got no change in k"),
    ("lora", ("--targets", "zzz"), "must match a linear weight of the model"),
    ("lora", ("--model", "other"), "--model must be the model that the run .* started from. Got other with other w"),
    ("lora", ("--text", "label", "--label", "text"), "must hold classes|must have rows of at least two labels"),
    ("lora", ("--train", "eval2.csv"), "the task's data must be the rows of the run"),
    ("nothing", (), "RUN must be a run's folder, or a name in the run store runs. Got nothing"),
])  # fmt: skip
def test_mistakes_get_one_line(here, run, more, message):
    if "other" in more:
        from tests.tiny_models import make_tiny

        make_tiny("bert", "other", seed=5)
    if "eval2.csv" in more:
        rows = Path("train.csv").read_text().splitlines()
        Path("eval2.csv").write_text("\n".join([rows[0], *rows[2:], rows[1]]) + "\n")
    budget = () if {"--budget", "--neither"} & set(more) else ("--budget-r", 1)
    more = tuple(word for word in more if word != "--neither")
    refused(rankprobe("allocate", here.get(run, run), *WHERE, *budget, *more, "--out", "out"), 2, message)
    assert not Path("out").exists()


def test_own_files_are_asked_for(here):
    refused(rankprobe("allocate", here["lora"], "--model", "base", "--budget-r", 1), 2,
            "The task files must come with files. Got none. Pass --train, --eval, --text and --label")  # fmt: skip


def test_a_folder_of_another_run_is_not_overwritten(here):
    rankprobe("allocate", here["lora"], *WHERE, "--budget-r", 1, "--out", "out")
    refused(rankprobe("allocate", here["full"], *WHERE, "--budget-r", 1, "--targets", "q", "--out", "out"), 2,
            "output folder must be of 'allocate full-")  # fmt: skip


def test_what_peft_trains_of_fused_matrices_is_said(tmp_path, monkeypatch):
    """GPT-2's q and v are one matrix of PEFT's, which then has both ranks, over q, k and v together."""
    monkeypatch.chdir(tmp_path)
    furnish(Path())
    make_tiny("gpt2", "gpt2")
    at = FINETUNE.index("--model") + 1
    command = (*FINETUNE[:at], "gpt2", *FINETUNE[at + 1 :], "--r", 4, "--lr", "2e-2")
    assert rankprobe(*command).exit_code == 0
    run = next(path.name for path in Path("runs").iterdir() if path.name.startswith("lora"))
    done = rankprobe("allocate", run, "--model", "gpt2", *WHERE[2:], "--budget-r", 2, "--out", "a")
    assert done.exit_code == 0, done.stderr
    summary, config = (json.loads(Path("a", name).read_text()) for name in ("allocation.json", "lora_config.json"))
    base = transformers.AutoModelForSequenceClassification.from_pretrained("gpt2", num_labels=2)
    model = peft.get_peft_model(base, peft.LoraConfig(**config))
    trained = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert summary["parameters"] <= summary["budget"] < summary["parameters_in_peft"] == trained
    assert f"that config trains {trained:,} parameters, not {summary['parameters']:,}" in done.stdout
