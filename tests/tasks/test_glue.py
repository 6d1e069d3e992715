"""GLUE by name: official layouts in small, the real files where they are at hand, and the hub without a network."""

from __future__ import annotations

import sys
from collections import Counter
from types import ModuleType

import pytest

from rankprobe.errors import UsageError, WorkError
from rankprobe.tasks.glue import GLUE, load_glue
from rankprobe.tasks.load import GLUE_TASKS, load_task

# The header lines of GLUE's official TSV files with two rows each, texts shortened; the last field is never the text's.
OFFICIAL = {
    "SST-2": {"train.tsv": ["sentence\tlabel", "hide new secretions \t0", 'a "quoted thing \t1']},
    "MRPC": {
        "train.tsv": [
            "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
            '0\t7\t8\tHe said "a.\tShe said b.',
            "1\t9\t10\tOne.\tUno.",
        ]
    },
    "RTE": {"train.tsv": ["index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\tnot_entailment", "1\tC.\tD.\tentailment"]},
    "CoLA": {"train.tsv": ["gj04\t0\t*\tThem is bad.", "gj04\t1\t\tThey are good."]},
    "QNLI": {
        "train.tsv": ["index\tquestion\tsentence\tlabel", "0\tWho?\tShe.\tnot_entailment", "1\tWhy?\tSo.\tentailment"]
    },
    "QQP": {
        "train.tsv": [
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
            "1\t2\t3\tHow?\tWhy?\t0",
            "4\tbroken line",
            "5\t6\t7\tWhat?\tWhat?\t1",
        ]
    },
    "MNLI": {
        "train.tsv": [
            "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
            "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
            "0\t1\t1n\tfiction\t( a )\t( b )\t(A)\t(B)\tA.\tB.\tneutral\tneutral",
            "1\t2\t2c\tfiction\t( a )\t( b )\t(A)\t(B)\tC.\tD.\tcontradiction\tcontradiction",
        ],
        "dev_matched.tsv": [
            "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
            "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\t"
            "label5\tgold_label",
            "0\t1\t1e\tslate\t( a )\t( b )\t(A)\t(B)\tE.\tF.\tneutral\tentailment\tentailment\t"
            "entailment\tentailment\tentailment",
        ],
    },
    "STS-B": {
        "train.tsv": [
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
            "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\tA plane.\tAn air plane.\t5.000",
            '1\tmain-captions\tMSRvid\t2012test\t0004\tnone\tnone\tA man.\tA "man.\t0.800',
        ]
    },
}
LABELS = {
    "sst2": [0, 1],
    "mrpc": [0, 1],
    "rte": [1, 0],
    "cola": [0, 1],
    "qnli": [1, 0],
    "qqp": [0, 1],
    "mnli": [1, 2],
    "stsb": [5.0, 0.8],
}
TEXTS = {
    "sst2": ('a "quoted thing ', None),
    "mrpc": ("One.", "Uno."),
    "rte": ("C.", "D."),
    "cola": ("They are good.", None),
    "qnli": ("Why?", "So."),
    "qqp": ("What?", "What?"),
    "mnli": ("C.", "D."),
    "stsb": ("A man.", 'A "man.'),
}


@pytest.fixture
def glue(tmp_path):
    for folder, files in OFFICIAL.items():
        for name, lines in {"dev.tsv": files["train.tsv"], **files}.items():
            path = tmp_path / "GLUE" / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "GLUE"


def test_the_table_of_names_is_the_loaders():
    assert tuple(GLUE) == GLUE_TASKS


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_official_layouts(glue, name):
    loaded = load_glue(name, glue)
    assert [row.label for row in loaded.train] == LABELS[name]
    assert (loaded.train[1].text, loaded.train[1].text_b) == TEXTS[name]
    assert [row.row for row in loaded.train] == ["0", "1"]
    (own,) = [f for f in glue.iterdir() if f.name.lower().replace("-", "") == name]
    assert load_glue(name, own) == loaded


def test_metrics_are_glues():
    assert {name: task.metrics for name, task in GLUE.items()} == {
        "sst2": ("accuracy",),
        "mrpc": ("accuracy", "f1"),
        "rte": ("accuracy",),
        "cola": ("matthews",),
        "qnli": ("accuracy",),
        "qqp": ("accuracy", "f1"),
        "mnli": ("accuracy",),
        "stsb": ("pearson", "spearman"),
    }


def test_mnli_is_evaluated_on_the_matched_rows(glue):
    assert [(row.text, row.label) for row in load_glue("mnli", glue).eval] == [("E.", 0)]


def test_columns_are_found_by_name_in_any_order(glue):
    (glue / "SST-2" / "train.tsv").write_text("label\tsentence\n1\tfine\n0\tpoor\n")
    assert [(row.text, row.label) for row in load_glue("sst2", glue).train] == [("fine", 1), ("poor", 0)]


def test_tuning_rows_are_the_last_tenth_and_need_no_dev_file(glue):
    lines = [f"text {i}\t{i % 2}" for i in range(30)]
    (glue / "SST-2" / "train.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    (glue / "SST-2" / "dev.tsv").unlink()
    loaded = load_glue("sst2", glue, "tuning")
    assert [row.text for row in loaded.eval] == ["text 27", "text 28", "text 29"]
    assert [row.row for row in loaded.train] == [str(i) for i in range(27)]


def test_errors(glue, tmp_path):
    with pytest.raises(UsageError, match=r"--data-dir must be a folder\. Got .*nowhere"):
        load_glue("rte", tmp_path / "nowhere")
    with pytest.raises(UsageError, match="must hold rte's train.tsv and dev.tsv, .* Got GLUE"):
        load_glue("rte", tmp_path)
    with pytest.raises(UsageError, match=r"train\.tsv must have a column 'Quality'\. Got the columns index, sentence1"):
        load_glue("mrpc", glue / "RTE")
    (glue / "RTE" / "dev.tsv").unlink()
    with pytest.raises(UsageError, match=r"dev\.tsv must be a file"):
        load_glue("rte", glue)
    (glue / "RTE" / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\tA\tB\tentails\n")
    with pytest.raises(UsageError, match="label on line 2 .* must be one of .*entailment.*Got 'entails'"):
        load_glue("rte", glue)


@pytest.mark.parametrize(
    ("name", "train", "dev"),
    [
        ("sst2", {0: 29780, 1: 37569}, {0: 428, 1: 444}),
        ("mrpc", {0: 1194, 1: 2474}, {0: 129, 1: 279}),
        ("rte", {0: 1249, 1: 1241}, {0: 146, 1: 131}),
        ("cola", {0: 2528, 1: 6023}, {0: 322, 1: 721}),
    ],
)
def test_real_files_have_the_official_counts(shared, name, train, dev):
    task = load_task(name, data_dir=shared / "data")
    assert Counter(row.label for row in task.train) == train and Counter(row.label for row in task.eval) == dev
    texts = [text for row in task.train for text in (row.text, row.text_b) if text is not None]
    assert all(text.strip() and "\t" not in text and "\ufeff" not in text for text in texts)


class FakeHub(ModuleType):
    """Stands in for ``datasets``: two splits with the hub's column names, or no network."""

    def __init__(self, down: bool = False) -> None:
        super().__init__("datasets")
        self.down, self.asked = down, None

    def load_dataset(self, *name):
        self.asked = name
        if self.down:
            raise ConnectionError("Couldn't reach the hub\nafter 5 tries")
        rows = {"premise": ["A.", "C."], "hypothesis": ["B.", "D."], "label": [2, 0], "idx": [0, 1]}
        return {"train": rows, "validation_matched": {k: v[:1] for k, v in rows.items()}}


def test_hub(monkeypatch):
    hub = FakeHub()
    monkeypatch.setitem(sys.modules, "datasets", hub)
    loaded = load_glue("mnli")
    assert hub.asked == ("nyu-mll/glue", "mnli")
    assert [(r.row, r.text, r.text_b, r.label) for r in loaded.train] == [("0", "A.", "B.", 2), ("1", "C.", "D.", 0)]
    assert len(loaded.eval) == 1


def test_hub_without_network_is_failed_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", FakeHub(down=True))
    with pytest.raises(WorkError, match="must be reachable.*Couldn't reach the hub after 5 tries.*--data-dir") as error:
        load_glue("mnli")
    assert "\n" not in str(error.value) and error.value.exit_code == 1


def test_hub_without_the_extra_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"--data-dir, or run: pip install 'rankprobe\[hub\]'"):
        load_glue("mnli")
