"""reproduce-paper, params and spectrum where all goes well: plans, counts, what one claim needs."""

import re
from importlib import resources

import pytest
from click.testing import CliRunner

from rankprobe.cli.main import main
from rankprobe.paper.published import published
from rankprobe.paper.reproduce import NEEDS, load_scale, needs_of, only_what_is_needed
from rankprobe.report.claims import claims_table
from rankprobe.report.verdicts import MARGIN_POINTS, Evidence


def run(*words):
    return CliRunner().invoke(main, list(words))


def test_dry_run_of_smoke_names_every_run_with_its_parameters_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("reproduce-paper", "--scale", "smoke", "--dry-run", "--threads", "1", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    for count in ("22,713,986", "9,986", "74,498", "770"):  # full, LoRA r = 1 and 8, head only
        assert count in result.output
    assert "latency at" in result.output and "functional rank of full" in result.output
    assert not list(tmp_path.iterdir())


def test_dry_run_of_paper_needs_no_weights_and_counts_as_the_paper_does():
    result = run("reproduce-paper", "--scale", "paper", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "294,912" in result.output and "887,042" in result.output and "80 runs" in result.output


MEDIUM = ("reproduce-paper", "--scale", "medium", "--dry-run", "--threads", "1", "--dtype", "float32")


def test_medium_leaves_out_the_tasks_whose_files_it_was_not_given():
    result = run(*MEDIUM)
    assert result.exit_code == 0, result.output
    assert "without --data-dir sst2, mrpc, rte, cola are left out" in result.output
    assert "intrinsic dimension: did, said" in result.output and "68 runs" in result.output


def test_medium_reads_glue_from_a_folder_and_docmatch_from_none(shared):
    result = run(*MEDIUM, "--data-dir", str(shared / "data"))
    assert result.exit_code == 0, result.output
    assert "left out" not in result.output and "92 runs" in result.output
    assert all(f" {task} " in result.output for task in ("docmatch", "sst2", "mrpc", "rte", "cola"))


@pytest.mark.parametrize("name", ["smoke", "small", "medium", "paper"])
def test_scales_load_and_shift_their_seeds(name):
    scale = load_scale(name, seed=5)
    assert scale.shapes and all(study.seed == 5 for study in scale.studies)


@pytest.mark.parametrize("name", ["smoke", "small", "medium", "paper"])
def test_the_margin_stands_in_every_study_and_is_that_of_the_claims(name):
    text = (resources.files("rankprobe.paper") / f"{name}.toml").read_text(encoding="utf-8")
    assert text.count("\nmargin = ") == text.count("[[studies]]")
    assert {100 * study.margin for study in load_scale(name).studies} == {MARGIN_POINTS}


def test_small_has_the_seeds_that_its_verdicts_need():
    (study,) = load_scale("small").studies
    seeds = {(c.method, c.r): c.seeds for c in study.configurations}
    assert seeds == {
        ("full", None): 3,
        ("lora", 1): 3,
        ("lora", 8): 3,
        ("head", None): 1,
        ("lora", 2): 1,
        ("lora", 4): 1,
        ("lora", 64): 1,
    }


def test_every_claim_of_the_table_can_be_asked_for_alone():
    from rankprobe.report.tables import methods_table

    claims = claims_table(Evidence([], methods_table([], None), methods_table([], None), None, published()))
    assert len(claims) >= 8
    for claim in claims["claim_id"]:
        needs_of(claim)
    assert len(NEEDS) <= len(claims)


@pytest.mark.parametrize(
    "claim, expected",
    [
        ("small-r1-vs-r8", {("full", None), ("head", None), ("lora", 1), ("lora", 8)}),
        ("small-r2-vs-full", {("full", None), ("head", None), ("lora", 2)}),
        ("dw-low-rank-by-energy", {("full", None)}),
        ("merged-latency-b1-l32", set()),
    ],
)
def test_a_claim_needs_its_own_runs_only(tmp_path, claim, expected):
    from rankprobe.experiment.planned_run import plan_run
    from rankprobe.experiment.sweep import PlannedStudy
    from rankprobe.tasks.load import load_task
    from rankprobe.weights.source import find_model

    (study,) = load_scale("small").studies
    source, task = find_model(), load_task("docmatch-smoke", train_size=8, eval_size=8)
    specs = study.specs(dtype="float32", device="cpu", threads=1)
    runs = tuple(plan_run(spec, source, task, tmp_path) for spec in specs)
    planned = PlannedStudy(study, runs, runs[:1])
    found = only_what_is_needed(planned, needs_of(claim))
    assert {(r.spec.method, r.spec.r) for r in found.runs} == expected
    assert bool(found.truncate) is needs_of(claim).functional_rank


@pytest.mark.parametrize("claim", ["small-rubbish", "small", "everything", "merged-latency-"])
def test_an_unknown_claim_is_refused(claim):
    result = run("reproduce-paper", "--only", claim, "--dry-run")
    assert result.exit_code == 2 and "--only must be a claim such as" in result.output


@pytest.mark.parametrize(("claim", "near"), [
    ("lora-equal-full", "Did you mean lora-equals-full or "), ("table7-amplification", "table7-amplified"),
    ("table1-adapters-l", "Did you mean table1-adapter-l or table1-adapter-h or "), ("intruder-full", "intruders-full"),
    ("figure-4", "Did you mean figure4 or "), ("intrinsic-dimension-sad", "intrinsic-dimension-said-below-did"),
])  # fmt: skip
def test_an_unknown_claim_is_refused_with_the_near_ones(claim, near):
    hint = run("reproduce-paper", "--only", claim, "--dry-run").output.partition("Did you mean ")[2].rstrip("?\n")
    names = hint.split(" or ")
    assert near in f"Did you mean {hint}" and len(set(names)) == len(names)
    assert all(needs_of(name) for name in names), "what is named can be asked for"


def test_a_claim_on_an_r_that_is_not_trained_is_refused():
    result = run("reproduce-paper", "--scale", "smoke", "--only", "small-r999-vs-full", "--dry-run")
    assert result.exit_code == 2 and "ask for r that the scale smoke trains (1, 2, 4, 8, 64)" in result.output


@pytest.mark.parametrize(
    "given, message", [("two", "be METHOD=RATE"), ("bitfit=1e-3", "name one of lora, full, head")]
)
def test_a_rate_that_is_none_is_refused(given, message):
    result = run("sweep", "--lr", given, "--dry-run")
    assert result.exit_code == 2 and message in result.output


def test_rates_of_a_sweep_go_to_their_methods():
    result = run(
        "sweep",
        "--task",
        "docmatch-smoke",
        "--r",
        "2",
        "--lr",
        "7e-3",
        "--lr",
        "full=3e-5",
        "--train-size",
        "64",
        "--eval-size",
        "32",
        "--threads",
        "1",
        "--dry-run",
    )
    assert result.exit_code == 0, result.output
    rates = {line.split()[0].split("-")[0]: line for line in result.output.splitlines() if "-eval-s0-" in line}
    assert " 3e-05 " in rates["full"] and " 0.007 " in rates["lora"] and " 0.1 " in rates["head"]


def test_every_commands_examples_parse():
    import shlex

    import click

    for name in main.list_commands(None):
        command = main.get_command(None, name)
        examples = [
            line.strip() for line in (command.epilog or "").splitlines() if line.strip().startswith("rankprobe ")
        ]
        assert examples, name
        for example in examples:
            words = shlex.split(example)[2:]
            with click.Context(command) as context:
                command.parse_args(context, words)


@pytest.mark.parametrize(
    ("scale", "claim", "message"),
    [
        ("small", "table1", "ask for what the scale small measures. Got 'table1'"),
        ("small", "table7", "Got 'table7', which needs the pair r4-r64"),
        ("small", "intruders", "which needs the pair r1-full"),
        ("small", "figure4", "which needs the pair r64-seeds"),
        ("small", "intrinsic-dimension", "which needs a measurement of its own. Pass --scale medium"),
        ("small", "small-r8-vs-full", r"be of r that the paper calls small \(1, 2, 4\)"),
        ("small", "merged-latency-b99-l7", r"end with a shape that the scale small times \(-b1-l32, -b8-l64"),
        ("medium", "table1-merged-b1-l32", r"times \(-b32-l512, -b16-l256, -b1-l128\)"),
        ("paper", "lora-equals-full", "be left out with --scale paper and --dry-run"),
    ],
)
def test_a_claim_that_the_scale_does_not_measure_is_refused(scale, claim, message):
    result = run("reproduce-paper", "--scale", scale, "--only", claim, "--dry-run")
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr), result.stderr


@pytest.mark.parametrize(
    "claim",
    ["lora-equals-full", "small-r1-vs-r8", "trainable-parameters", "merged-latency-b8-l64", "dw-low-rank-by-function"],
)
def test_what_the_small_scale_measures_can_be_asked_for(claim):
    result = run("reproduce-paper", "--only", claim, "--dry-run")
    assert result.exit_code == 0, result.output
