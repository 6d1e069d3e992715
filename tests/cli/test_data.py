"""``rankprobe data``: what it prints and writes, and its errors as one line with exit code 2."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from rankprobe.cli.main import main


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("RANKPROBE_CACHE", str(tmp_path / "cache"))
    return lambda *arguments: CliRunner().invoke(main, ["data", *map(str, arguments)])


@pytest.fixture
def files(tmp_path):
    for name in ("train", "eval"):
        (tmp_path / f"{name}.csv").write_text('review,stars\n"good, really",5\nbad,1\nmixed,3\nworse,1\n')
    return (
        "files",
        "--train",
        tmp_path / "train.csv",
        "--eval",
        tmp_path / "eval.csv",
        "--text",
        "review",
        "--label",
        "stars",
    )


def test_shows_sizes_balance_sha256_and_three_rows(run, files):
    done = run(*files)
    assert done.exit_code == 0
    assert "files: 3 classes (1, 3, 5), measured by accuracy and matthews" in done.output
    assert "train        4 rows   1 50.0%   3 25.0%   5 25.0%" in done.output
    assert "good, really" in done.output and "mixed" in done.output and "worse" not in done.output


def test_writes_rows_and_says_how_to_use_them(run, files, tmp_path):
    done = run(*files, "--out", tmp_path / "out")
    assert done.exit_code == 0 and "--text text --label label" in done.output
    assert (tmp_path / "out" / "train.tsv").read_text().splitlines()[:2] == ["row\tlabel\ttext", "0\t5\tgood, really"]


@pytest.mark.filterwarnings("ignore:docmatch-smoke is made of other rows")
def test_docmatch_has_three_splits(run, tmp_path):
    done = run("docmatch-smoke", "--out", tmp_path / "out")
    assert done.exit_code == 0 and "--text-b text_b" in done.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["eval.tsv", "train.tsv", "tuning.tsv"]


def test_help_has_an_example(run):
    assert "rankprobe data docmatch --out" in run("--help").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("docmach",), "Did you mean docmatch?"),
        (("files",), "--train, --eval, --text and --label"),
        (("rte", "--data-dir", "no-such-folder"), "--data-dir must be a folder"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(run, arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2 and message in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_missing_column_through_the_command(run, files):
    done = run(*files[:-1], "star")
    assert (
        done.exit_code == 2
        and "must have a column 'star'. Got the columns review, stars. Did you mean stars?" in done.stderr
    )


@pytest.mark.filterwarnings("ignore:docgen-smoke is made of other rows")
def test_a_language_models_rows_are_prompts_and_completions(run, tmp_path):
    done = run("docgen-smoke", "--out", tmp_path / "out")
    assert done.exit_code == 0 and "texts to go on with, measured by perplexity and token_accuracy" in done.output
    assert "characters on average" in done.output and "--task files" not in done.output
    shown = run("docgen-smoke").output.splitlines()
    written = (tmp_path / "out" / "train.tsv").read_text(encoding="utf-8").splitlines()
    row, text, text_b = written[1].split("\t")
    assert shown[shown.index(f"  {row}") + 1 :][:2] == [f"    {text}", f"    {text_b.strip()}"]


def test_a_molecule_is_shown_without_its_empty_prompt(run, tmp_path):
    (tmp_path / "chains.smi").write_text("".join("C" * n + "\n" for n in range(1, 61)))
    done = run("smiles", "--data-dir", tmp_path / "chains.smi")
    assert done.exit_code == 0 and "a prompt of 0 and a completion of" in done.output
    lines = done.output.splitlines()
    first = next(i for i, line in enumerate(lines) if line.strip() and set(line.strip()) == {"C"})
    assert lines[first - 1].strip().isdigit()
