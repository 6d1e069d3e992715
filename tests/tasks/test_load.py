"""Tasks by name: sizes, splits, fingerprints, and writing rows to read them again."""

from __future__ import annotations

import hashlib

import pytest

from rankprobe.errors import UsageError
from rankprobe.tasks.export import write_tsv
from rankprobe.tasks.files import FileSpec
from rankprobe.tasks.fingerprint import rows_sha256
from rankprobe.tasks.load import TASKS, load_splits, load_task, make_task
from rankprobe.tasks.task import Example


@pytest.fixture(scope="module")
def _cached(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _one_cache(_cached, _own_cache, monkeypatch):
    monkeypatch.setenv("RANKPROBE_CACHE", str(_cached))


pytestmark = pytest.mark.filterwarnings("ignore:docmatch-smoke is made of other rows")


def test_train_size_takes_the_first_rows():
    whole, part = load_task("docmatch-smoke"), load_task("docmatch-smoke", train_size=100, eval_size=50)
    assert part.train == whole.train[:100] and part.eval == whole.eval[:50]
    assert part.sha256 != whole.sha256 and part.eval_sha256 != whole.eval_sha256
    assert load_task("docmatch-smoke", train_size=200, eval_size=50).eval_sha256 == part.eval_sha256


def test_tuning_rows_overlap_neither_split():
    task, tuning = load_task("docmatch-smoke"), load_task("docmatch-smoke", split="tuning")
    assert tuning.split == "tuning" and tuning.train == task.train
    assert not {row.row for row in tuning.eval} & {row.row for row in (*task.train, *task.eval)}


def test_fingerprint_is_of_the_rows_and_their_meaning():
    row = Example("0", "a\tü", None, 1)
    expected = hashlib.sha256(b'["no","yes"]\n["0","a\\t\\u00fc",null,1]\n').hexdigest()
    assert rows_sha256([row], ("no", "yes")) == expected
    changed = [
        Example("1", "a\tü", None, 1),
        Example("0", "a ü", None, 1),
        Example("0", "a\tü", "", 1),
        Example("0", "a\tü", None, 0),
    ]
    assert len({rows_sha256([r], ("no", "yes")) for r in (row, *changed)} | {rows_sha256([row], ("yes", "no"))}) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "docmach"}, "The task must be one of docmatch, .*Got 'docmach'. Did you mean docmatch?"),
        ({"name": "SST-2"}, "Did you mean sst2?"),
        ({"name": "zzz"}, "Got 'zzz'. Pass one of them."),
        ({"name": "docmatch-smoke", "split": "test"}, "split must be eval or tuning. Got 'test'"),
        (
            {"name": "docmatch-smoke", "train_size": 10**6},
            r"--train-size must be between 1 and the train rows there are, \d+\. Got 1000000",
        ),
        ({"name": "docmatch-smoke", "eval_size": 10**6}, "--eval-size must be between 2 and the eval rows"),
        ({"name": "docmatch-smoke", "eval_size": 0}, "--eval-size must be between 2 and .* Got 0"),
        ({"name": "docmatch-smoke", "eval_size": 1}, "--eval-size must be between 2 and .* Got 1"),
        ({"name": "docmatch-smoke", "data_dir": "x"}, "--data-dir must be given for a GLUE task only"),
        ({"name": "docgen", "data_dir": "x"}, "a GLUE task only, or for e2e and smiles. Got the task docgen"),
        ({"name": "files"}, "The task files must come with files"),
        (
            {"name": "sst2", "files": FileSpec("a", "b", "t", "l")},
            "Own files must be used with the task files. Got the task sst2",
        ),
    ],
)
def test_bad_requests_are_one_line(arguments, message):
    with pytest.raises(UsageError, match=message) as error:
        load_task(**arguments)
    assert "\n" not in str(error.value)


def test_one_row_is_enough_to_choose_a_rate_on_and_too_few_to_report():
    rows = [Example(str(i), "", "CCO", 0) for i in range(3)]
    assert len(make_task("mine", "tuning", rows, rows[:1], (), ("perplexity",)).eval) == 1
    with pytest.raises(UsageError, match="mine's evaluation rows must be at least 2. Got 1. Add rows"):
        make_task("mine", "eval", rows, rows[:1], (), ("perplexity",))


def test_names():
    assert TASKS == (
        "docmatch",
        "docmatch-smoke",
        "docgen",
        "docgen-smoke",
        "sst2",
        "mrpc",
        "rte",
        "cola",
        "qnli",
        "qqp",
        "mnli",
        "stsb",
        "e2e",
        "smiles",
        "files",
    )


def test_written_rows_are_read_back(tmp_path):
    splits = load_splits("docmatch-smoke")
    paths = write_tsv(tmp_path / "out", splits.rows, splits.labels)
    assert [path.name for path in paths] == ["train.tsv", "tuning.tsv", "eval.tsv"]
    spec = FileSpec(tmp_path / "out" / "train.tsv", tmp_path / "out" / "eval.tsv", "text", "label", text_b="text_b")
    task = load_task("files", files=spec)
    assert task.labels == ("no", "yes")
    for split, rows in (("train", task.train), ("eval", task.eval)):
        assert [(r.text, r.text_b, r.label) for r in rows] == [(r.text, r.text_b, r.label) for r in splits.rows[split]]


def test_writing_again_replaces_what_was_written(tmp_path):
    row = Example("0", 'say "hi"', None, 0.5)
    write_tsv(tmp_path, {"train": [row], "tuning": [row], "eval": [row]}, ())
    write_tsv(tmp_path, {"train": [row, row], "eval": [row]}, ())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.tsv", "train.tsv"]
    assert (tmp_path / "train.tsv").read_bytes() == b'row\tlabel\ttext\n0\t0.5\tsay "hi"\n0\t0.5\tsay "hi"\n'


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.doc").write_text("precious")
    with pytest.raises(UsageError, match=r"--out must be a new folder.*thesis\.doc"):
        write_tsv(tmp_path, {"train": [Example("0", "a", None, 0)]}, ("x", "y"))
    with pytest.raises(UsageError, match=r"--out must be a folder"):
        write_tsv(tmp_path / "thesis.doc", {"train": [Example("0", "a", None, 0)]}, ("x", "y"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_a_text_that_tsv_cannot_hold_is_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="no tab and no line break .* row 7 of train"):
        write_tsv(tmp_path / "out", {"train": [Example("7", "two\nlines", None, 0)]}, ("x", "y"))
    assert not (tmp_path / "out").exists()
