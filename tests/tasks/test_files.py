"""Own files: formats, quotes, encodings, labels, and every bad input in one clear line."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pandas as pd
import pytest

from rankprobe.errors import UsageError
from rankprobe.tasks.files import FileSpec, load_files
from rankprobe.tasks.load import load_task
from rankprobe.tasks.records import read_records

ROWS = [("good", "it was fine"), ("bad", 'he said "no" and left'), ("good", "one, two"), ("bad", "")]


def tsv(rows, header="label\ttext") -> str:
    return "\n".join([header, *("\t".join(row) for row in rows)]) + "\n"


@pytest.fixture
def spec(tmp_path) -> FileSpec:
    (tmp_path / "train.tsv").write_text(tsv(ROWS))
    (tmp_path / "eval.tsv").write_text(tsv(ROWS[:2]))
    return FileSpec(tmp_path / "train.tsv", tmp_path / "eval.tsv", "text", "label")


def expect(message: str, call, *arguments) -> None:
    with pytest.raises(UsageError, match=message) as error:
        call(*arguments)
    assert "\n" not in str(error.value)


def test_tsv_rows_labels_and_ids(spec):
    loaded = load_files(spec)
    assert loaded.labels == ("bad", "good") and loaded.metrics == ("accuracy", "matthews")
    assert [(r.row, r.text, r.text_b, r.label) for r in loaded.train] == [
        ("0", "it was fine", None, 1),
        ("1", 'he said "no" and left', None, 0),
        ("2", "one, two", None, 1),
        ("3", "", None, 0),
    ]
    assert len(loaded.eval) == 2


def test_all_formats_hold_the_same_rows(spec, tmp_path):
    (tmp_path / "train.csv").write_text(
        'text,label\nit was fine,good\n"he said ""no"" and left",bad\n"one, two",good\n"",bad\n'
    )
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({"text": t, "label": la, "x": [1]}) + "\n\n" for la, t in ROWS)
    )
    rows = load_files(spec).train
    for name in ("train.csv", "train.jsonl"):
        assert load_files(replace(spec, train=tmp_path / name)).train == rows
    (tmp_path / "plain.tsv").write_text("\n".join(f"{t}\t{la}" for la, t in ROWS) + "\n")
    (tmp_path / "plain_eval.tsv").write_text("b\tbad\ng\tgood\n")
    bare = FileSpec(tmp_path / "plain.tsv", tmp_path / "plain_eval.tsv", "0", 1, header=False)
    assert load_files(bare).train == rows


def test_csv_fields_hold_line_breaks_and_lines_are_counted_right(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\r\n"two\r\nlines",x\r\nnext,y\r\n', newline="")
    assert [(r.line, r.values) for r in read_records(tmp_path / "a.csv", ["text"])] == [
        (2, ("two\r\nlines",)),
        (4, ("next",)),
    ]


def test_a_quote_in_tsv_is_a_character(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"open\tx\n5" disc\ty\n')
    assert [r.values for r in read_records(tmp_path / "a.tsv", ["text"])] == [('"open',), ('5" disc',)]


def test_only_line_feeds_end_a_tsv_line(tmp_path):
    (tmp_path / "a.tsv").write_bytes("text\tlabel\r\na\u2028b\x0cc\x85d\tx\r\n".encode())
    assert [r.values for r in read_records(tmp_path / "a.tsv", ["text", "label"])] == [("a\u2028b\x0cc\x85d", "x")]


def test_a_long_field_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "x" * 200_000 + ",y\n")
    assert len(read_records(tmp_path / "a.csv", ["text"])[0].values[0]) == 200_000


def test_byte_order_mark_is_dropped(spec, tmp_path):
    (tmp_path / "bom.tsv").write_text(tsv(ROWS), encoding="utf-8-sig")
    assert load_files(replace(spec, train=tmp_path / "bom.tsv")) == load_files(spec)


def test_latin_1_by_option(spec, tmp_path):
    (tmp_path / "l.tsv").write_bytes(tsv([("good", "schön"), ("bad", "übel")]).encode("latin-1"))
    (tmp_path / "e.tsv").write_bytes(tsv([("good", "größer"), ("bad", "übel")]).encode("latin-1"))
    latin = replace(spec, train=tmp_path / "l.tsv", eval=tmp_path / "e.tsv")
    expect(r"l\.tsv must be text in utf-8\. Got byte 0xf6 on line 2 .*--encoding latin-1", load_files, latin)
    assert load_files(replace(latin, encoding="latin-1")).train[0].text == "schön"
    expect("--encoding must be a text encoding.*Got 'latin-one'", load_files, replace(latin, encoding="latin-one"))
    expect("--encoding must be a text encoding.*Got 'hex'", load_files, replace(latin, encoding="hex"))


def test_pairs(tmp_path, spec):
    for name in ("p.tsv", "q.tsv"):
        (tmp_path / name).write_text("a\tb\tlabel\none\ttwo\t1\nthree\tfour\t0\n")
    loaded = load_files(FileSpec(tmp_path / "p.tsv", tmp_path / "q.tsv", "a", "label", text_b="b"))
    assert [(r.text, r.text_b, r.label) for r in loaded.train] == [("one", "two", 1), ("three", "four", 0)]


def test_whole_number_classes_are_sorted_as_numbers(spec, tmp_path):
    (tmp_path / "n.tsv").write_text(tsv([(str(i), "text") for i in (10, 9, 2, 10, 0)]))
    (tmp_path / "m.tsv").write_text(tsv([("9", "text"), ("10", "text")]))
    loaded = load_files(replace(spec, train=tmp_path / "n.tsv", eval=tmp_path / "m.tsv"))
    assert loaded.labels == ("0", "2", "9", "10") and [r.label for r in loaded.eval] == [2, 3]


def test_json_labels_of_any_scalar_kind(spec, tmp_path):
    (tmp_path / "j.jsonl").write_text('{"text": "a", "label": true}\n{"text": "b", "label": false}\n')
    (tmp_path / "k.jsonl").write_text('{"text": "a", "label": false}\n{"text": "b", "label": true}\n')
    loaded = load_files(replace(spec, train=tmp_path / "j.jsonl", eval=tmp_path / "k.jsonl"))
    assert loaded.labels == ("false", "true") and [r.label for r in loaded.eval] == [0, 1]


def test_regression(spec, tmp_path):
    (tmp_path / "s.tsv").write_text(tsv([("0.5", "a"), ("-1e1", "b")]))
    (tmp_path / "t.tsv").write_text(tsv([("2", "a"), ("3", "b")]))
    scores = replace(spec, train=tmp_path / "s.tsv", eval=tmp_path / "t.tsv", regression=True)
    loaded = load_files(scores)
    assert loaded.labels == () and loaded.metrics == ("pearson", "spearman")
    assert [r.label for r in loaded.train] == [0.5, -10.0]
    expect(
        r"label on line 2 of .*train\.tsv must be a finite number\. Got 'good'",
        load_files,
        replace(spec, regression=True),
    )
    for bad in ("nan", "inf"):
        (tmp_path / "s.tsv").write_text(tsv([("1", "a"), (bad, "b")]))
        expect(rf"label on line 3 .* finite number\. Got '{bad}'", load_files, scores)


def test_scores_without_the_option_are_caught(spec, tmp_path):
    (tmp_path / "s.tsv").write_text(tsv([(f"{i}.5", "a") for i in range(40)]))
    expect(
        "must hold classes. Got 40 different labels in 40 rows.*--regression",
        load_files,
        replace(spec, train=tmp_path / "s.tsv"),
    )


def test_tuning_rows_are_the_last_tenth(spec, tmp_path):
    rows = [(("good", "bad")[i % 2], f"text {i}") for i in range(45)]
    (tmp_path / "big.tsv").write_text(tsv(rows))
    loaded = load_files(replace(spec, train=tmp_path / "big.tsv"), "tuning")
    assert [r.text for r in loaded.eval] == [t for _, t in rows[-4:]] and len(loaded.train) == 41
    expect("must have 10 rows to tune on", load_files, spec, "tuning")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"train\.tsv must have rows\. Got an empty file"),
        (" \n\n", "must have rows. Got an empty file"),
        ("label\ttext\n", "must have a row below its header. Got none"),
        ("label\ttexts\ngood\ta\n", "must have a column 'text'. Got the columns label, texts. Did you mean texts?"),
        ("label\tText\ngood\ta\n", "must have a column 'text'.*Did you mean Text?"),
        ("label\ttext\ttext\ngood\ta\tb\n", "must have one column 'text'. Got 2"),
        ("label\ttext\ngood\ta\nbad\tb\tc\n", r"train\.tsv line 3 must have 2 columns as the first line has\. Got 3"),
        ("label\ttext\ngood\n", "line 2 must have 2 columns as the first line has. Got 1"),
        ("label\ttext\ngood\ta\ngood\tb\n", "must have rows of at least two labels. Got one label in 2 rows"),
        ("label\ttext\ngood\ta\n \tb\n", "label on line 3 of .* must not be empty"),
        (
            "label\ttext\ngood\ta\nfine\tb\n",
            r"label on line 3 of .*eval\.tsv must be one of the classes to train on, fine, good",
        ),
    ],
)
def test_bad_training_files(spec, content, message):
    spec.train.write_text(content)
    expect(message, load_files, spec)


def test_bad_paths(spec, tmp_path):
    expect(
        "nothing.tsv must be a file. Got nothing of that name",
        load_files,
        replace(spec, train=tmp_path / "nothing.tsv"),
    )
    expect("must be a file. Got a folder", load_files, replace(spec, train=tmp_path, file_format="tsv"))
    (tmp_path / "a.xlsx").write_text("x")
    expect(r"must end in \.tsv, \.csv or \.jsonl\. Got '\.xlsx'", load_files, replace(spec, train=tmp_path / "a.xlsx"))
    expect("format must be tsv, csv or jsonl. Got 'xml'", load_files, replace(spec, file_format="xml"))
    expect("--train and --eval must be two files", load_files, replace(spec, eval=spec.train))


def test_bad_csv(spec, tmp_path):
    (tmp_path / "a.csv").write_text('text,label\nfine,x\n"open "quote" here",y\n')
    expect(
        "must be CSV with fields quoted as in RFC 4180. Got .* on line 3",
        load_files,
        replace(spec, train=tmp_path / "a.csv"),
    )
    (tmp_path / "a.csv").write_text('text,label\nfine,x\n"never closed,y\n')
    expect("RFC 4180. Got .* on line 3", load_files, replace(spec, train=tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "label"', "line 2 must be one JSON object. Got an error: Expecting"),
        ('["a", "good"]', "line 2 must be one JSON object. Got a JSON list"),
        (
            '{"text": "a", "lable": "good"}',
            "line 2 must have a column 'label'. Got the columns text, lable. Did you mean lable?",
        ),
        ('{"text": null, "label": "good"}', "line 2, text must be a text, number or boolean. Got null"),
        ('{"text": ["a"], "label": "good"}', "line 2, text must be a text, number or boolean. Got a JSON list"),
        ('{"text": "\\ud800", "label": "good"}', "line 2, text must be valid Unicode"),
    ],
)
def test_bad_json_lines(spec, tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "bad"}\n' + line + "\n")
    expect(message, load_files, replace(spec, train=tmp_path / "a.jsonl"))


def test_first_rows_of_a_sorted_file_have_one_label(spec, tmp_path):
    (tmp_path / "sorted.tsv").write_text(tsv([("bad", "x")] * 20 + [("good", "y")] * 20))
    files = replace(spec, train=tmp_path / "sorted.tsv")
    assert len(load_task("files", files=files).train) == 40
    with pytest.raises(UsageError, match="The first 10 rows of .* at least two labels.*shuffle"):
        load_task("files", files=files, train_size=10)


def test_texts_that_pandas_quoted_in_a_tsv_are_told(spec, tmp_path):
    texts = ['said "so"', 'plain', '"all of it"', 'a "b" c']
    table = pd.DataFrame({"label": ["good", "bad"] * 2, "text": texts})
    for name, options in (("pandas.tsv", {"sep": "\t"}), ("pandas.csv", {})):
        table.to_csv(tmp_path / name, index=False, **options)
    with pytest.warns(UserWarning, match=r"3 of the 4 rows of .*pandas.tsv have a text in quotes.*Write it as .csv"):
        load_files(replace(spec, train=tmp_path / "pandas.tsv"))
    # What people write themselves: quotes around a text or within it, or around nothing.
    own = ['"all of it"', '""', '"a" and "b"', 'he said ""']
    (tmp_path / "own.tsv").write_text(tsv([("good", "new"), *(("bad", text) for text in own)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [row.text for row in load_files(replace(spec, train=tmp_path / "pandas.csv")).train] == texts
        assert [row.text for row in load_files(replace(spec, train=tmp_path / "own.tsv")).train] == ["new", *own]


def many(n, start=0, label=lambda i: ("good", "bad")[i % 2]):
    return [(label(i), f"text {i}") for i in range(start, start + n)]


def test_rates_are_not_chosen_on_rows_that_are_trained_on_or_reported(spec, tmp_path):
    rows = [*many(89), ("good", "new"), *many(5, 84), ("good", "reported 1"), ("bad", "reported 2"), *many(3, 97)]
    (tmp_path / "big.tsv").write_text(tsv(rows))
    (tmp_path / "eval.tsv").write_text(tsv([("bad", "reported 1"), ("bad", "reported 2"), ("good", "new")]))
    big = replace(spec, train=tmp_path / "big.tsv")
    with pytest.warns(UserWarning, match="3 of the 3 rows of .*eval.tsv are in .*big.tsv too"):
        tuning = load_files(big, "tuning")
    splits = (tuning.train, tuning.eval, load_files(big).eval)
    trained, chosen, reported = ({row.text for row in rows} for rows in splits)
    assert not trained & chosen and not chosen & reported and not trained & reported
    assert len(chosen) == 8 and len(tuning.train) == 84, "the five that are twice tune"


def test_a_last_tenth_of_duplicates_is_refused(spec, tmp_path):
    (tmp_path / "big.tsv").write_text(tsv(many(10) * 2 + many(2)))
    (tmp_path / "eval.tsv").write_text(tsv(many(4)))
    big = replace(spec, train=tmp_path / "big.tsv")
    with pytest.warns(UserWarning, match="4 of the 4"):
        expect("last tenth.*all in the evaluation file", load_files, big, "tuning")


@pytest.mark.parametrize("missing", ["nan", "NaN", "<NA>", "inf"])
def test_what_pandas_writes_for_a_missing_label_is_no_class(spec, missing):
    spec.train.write_text(tsv([("0", "a"), ("1", "b"), (missing, "c")]))
    expect(f"label on line 4 .* must be a class. Got '{missing}'. Fill it in", load_files, spec)


def test_a_nan_in_json_is_no_class(spec, tmp_path):
    (tmp_path / "j.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b", "label": NaN}\n')
    expect("label on line 2 .* must be a class. Got 'NaN'", load_files, replace(spec, train=tmp_path / "j.jsonl"))


def test_whole_numbers_are_one_class_however_they_are_written(spec):
    spec.train.write_text(tsv([("0.0", "a"), ("1.0", "b"), ("1", "c"), ("10.", "d")]))
    spec.eval.write_text(tsv([("0", "e"), ("1.0", "f")]))
    loaded = load_files(spec)
    assert loaded.labels == ("0", "1", "10") and [r.label for r in loaded.train] == [0, 1, 1, 2]
    assert [r.label for r in loaded.eval] == [0, 1]


def test_scores_of_few_steps_are_caught_too(spec):
    spec.train.write_text(tsv([(f"{i % 25 / 5}", f"text {i}") for i in range(500)]))
    expect(r"must hold classes\. Got numbers such as 0\.2\. Pass --regression", load_files, spec)
    spec.train.write_text(tsv([(("v1.0", "1.5")[i % 2], f"text {i}") for i in range(6)]))
    spec.eval.write_text(tsv([("v1.0", "new")]))
    with pytest.raises(UsageError, match="at least two labels"):  # of the evaluation file: the classes are names
        load_files(spec)


def test_a_class_that_the_rows_in_use_lack_is_warned_of(spec, tmp_path):
    (tmp_path / "sorted.tsv").write_text(tsv([(str(i // 10), f"text {i}") for i in range(30)]))
    spec.eval.write_text(tsv([("0", "a"), ("2", "b")]))
    files = replace(spec, train=tmp_path / "sorted.tsv")
    with pytest.warns(UserWarning, match="the 20 training rows that are used have no row of 2, 1 of 3 classes"):
        load_task("files", files=files, train_size=20)


def test_hints_for_what_spreadsheets_write(tmp_path):
    (tmp_path / "a.csv").write_bytes("text,label\ngood,x\n".encode("utf-16"))
    expect("must be text in utf-8.*--encoding utf-16", read_records, tmp_path / "a.csv", ["text"])
    assert read_records(tmp_path / "a.csv", ["text"], encoding="utf-16")[0].values == ("good",)
    (tmp_path / "b.csv").write_text("text;label\ngood;x\n")
    expect("Save it with commas: its columns have ';' between them", read_records, tmp_path / "b.csv", ["text"])
    (tmp_path / "c.csv").write_text("text\tlabel\ngood\tx\n")
    expect(r"Got the columns text\\tlabel\. Rename it to \.tsv", read_records, tmp_path / "c.csv", ["text"])


@pytest.mark.parametrize("missing", ["NA", "n/a", "None", "null", "#N/A", "-", "?"])
def test_what_stands_for_a_missing_number_is_no_class(spec, missing):
    spec.train.write_text(tsv([("0", "a"), ("1", "b"), (missing, "c"), ("1", "d")]))
    expect("The label on line 4 of .* must be a number, as all others are. Got", load_files, spec)


def test_none_is_a_class_beside_words(spec):
    """As in stance detection."""
    for path in (spec.train, spec.eval):
        path.write_text(tsv([(stance, f"{path.stem} {stance}") for stance in ("favor", "against", "none")]))
    assert load_files(spec).labels == ("against", "favor", "none")
