"""docgen: a row a function, splits that share nothing, and the pinned sets."""

from __future__ import annotations

import hashlib
import sys
import warnings

import pytest

from rankprobe.errors import UsageError
from rankprobe.tasks import docgen as module
from rankprobe.tasks.docgen import PACKAGES, PINNED_SHA256, docgen, make_rows
from rankprobe.tasks.docstrings import PINNED_VERSIONS, docmatch, split_of
from rankprobe.tasks.load import load_splits, load_task
from rankprobe.tasks.sources import DocumentedFunction
from tests.tasks.fake_packages import module_source, write_package
from tests.tasks.test_docstrings import functions, need_pinned


def test_every_function_is_one_row_with_its_own_docstring_behind_its_signature():
    made = [row for rows in make_rows(functions(300)).values() for row in rows]
    own = {function.name: function for function in functions(300)}
    assert len(made) == len({row.row for row in made}) == 2100
    for row in made:
        assert row.text == f"{own[row.row].text}:" and row.text_b == f" {own[row.row].docstring}" and row.label == 0


def test_splits_are_those_of_the_modules_and_share_no_docstring():
    rows = make_rows(functions(300))
    for split, examples in rows.items():
        assert {split_of(row.row.rpartition(".")[0]) for row in examples} == {split}
        digests = [hashlib.sha256(row.row.encode()).hexdigest() for row in examples]
        assert digests == sorted(digests)
    texts = [row.text_b for examples in rows.values() for row in examples]
    assert len(texts) == len(set(texts))


def test_the_first_keeps_a_text_and_the_only_function_of_a_module_is_a_row():
    shared = "The docstring that two of them have."
    rows = make_rows([DocumentedFunction("a.m", "f", "f", shared), DocumentedFunction("b.m", "f", "f (x)", shared)])
    assert [row.row for examples in rows.values() for row in examples] == ["a.m.f"]


def test_another_module_leaves_all_other_rows_alone(site):
    write_package(site, "pkg_g", {f"m{i}": module_source(f"g {i}") for i in range(12)})
    before = docgen(packages=("pkg_g",))
    write_package(site, "pkg_g", {"sub/new": module_source("pkg_g new")})
    after = docgen(packages=("pkg_g",))
    assert before.name == f"docgen@{before.sha256[:8]}" != after.name
    assert sum(map(len, before.splits.values())) == 72
    for split, rows in before.splits.items():
        assert tuple(row for row in after.splits[split] if not row.row.startswith("pkg_g.sub.new")) == rows


def test_rows_of_docmatch_are_among_them_in_the_same_split():
    pairs = docmatch(packages=("click",)).splits
    generated = docgen(packages=("click",)).splits
    assert sum(map(len, pairs.values())) > 100
    for split, rows in pairs.items():
        own = {row.row: row for row in generated[split]}
        for row in rows:
            assert own[row.row].text == f"{row.text}:"
            assert (own[row.row].text_b == f" {row.text_b}") == bool(row.label)


def test_other_rows_than_the_pinned_ones_warn_in_one_line_and_change_the_name(monkeypatch):
    monkeypatch.setitem(PINNED_VERSIONS, "networkx", "0.0.1")
    monkeypatch.setitem(module.PINNED_SHA256, "docgen-smoke", "0" * 64)
    with pytest.warns(UserWarning) as caught:
        made = docgen("docgen-smoke")
    assert made.name == f"docgen-smoke@{made.sha256[:8]}"
    (message,) = [str(w.message) for w in caught]
    assert made.name in message and "networkx" in message and "(pinned: 0.0.1)" in message and "\n" not in message
    assert caught[0].filename == __file__


def test_missing_package_names_the_pinned_version(monkeypatch):
    monkeypatch.setitem(sys.modules, "seaborn", None)
    with pytest.raises(UsageError, match=r"find the package seaborn installed.*pip install seaborn==0\.13\.2"):
        docgen("docgen-smoke")


@pytest.mark.parametrize("name", ["docgen-smoke", pytest.param("docgen", marks=pytest.mark.slow)])
def test_pinned_sets(name):
    need_pinned(name.replace("docgen", "docmatch"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = docgen(name)
    assert made.name == name and made.sha256 == PINNED_SHA256[name]
    assert {split: len(rows) for split, rows in made.splits.items()} == {
        "docgen-smoke": {"train": 1324, "tuning": 172, "eval": 371},
        "docgen": {"train": 21945, "tuning": 2956, "eval": 6151},
    }[name]


@pytest.mark.filterwarnings("ignore:docgen-smoke is made of other rows")
def test_as_a_task():
    whole, tuning = load_task("docgen-smoke"), load_task("docgen-smoke", split="tuning", train_size=50)
    assert whole.is_language_modelling and whole.problem == "language_modelling" and not whole.is_regression
    assert whole.metrics == ("perplexity", "token_accuracy") and whole.labels == ()
    assert tuning.train == whole.train[:50] and tuning.eval == load_splits("docgen-smoke").rows["tuning"]
    assert set(PACKAGES) == {"docgen", "docgen-smoke"}
