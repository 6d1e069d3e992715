"""docmatch: pairs, splits, stability against other versions, and the pinned sets."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from rankprobe.errors import UsageError
from rankprobe.tasks import docstrings
from rankprobe.tasks.docstrings import PACKAGES, PINNED_SHA256, PINNED_VERSIONS, docmatch, make_pairs, split_of
from rankprobe.tasks.sources import DocumentedFunction
from tests.tasks.fake_packages import module_source, write_package

ROOT = Path(__file__).resolve().parents[2]


def functions(modules: int, each: int = 7, package: str = "pkg") -> list[DocumentedFunction]:
    return [
        DocumentedFunction(f"{package}.m{i}", f"f{j}", f"f{j} (x)", f"What function {j} of {package}.m{i} does.")
        for i in range(modules)
        for j in range(each)
    ]


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(functions(400))


def module_of(row: str) -> str:
    return row.rpartition(".")[0]


def test_every_function_is_one_row(pairs):
    rows = [row.row for split in pairs.values() for row in split]
    assert len(rows) == len(set(rows)) == 2800


def test_splits_share_no_module(pairs):
    modules = {split: {module_of(row.row) for row in rows} for split, rows in pairs.items()}
    assert not modules["train"] & modules["eval"]
    assert not modules["train"] & modules["tuning"]
    assert not modules["tuning"] & modules["eval"]


def test_split_shares_are_70_10_20():
    counts = dict.fromkeys(("train", "tuning", "eval"), 0)
    for i in range(4000):
        counts[split_of(f"some.module_{i}")] += 1
    # Within four standard deviations of a binomial of 4,000.
    assert abs(counts["train"] - 2800) < 116 and abs(counts["tuning"] - 400) < 76 and abs(counts["eval"] - 800) < 101


def test_labels_are_balanced_also_in_the_first_rows(pairs):
    for rows in (pairs["train"], pairs["eval"], pairs["train"][:500]):
        assert 0.45 < sum(row.label for row in rows) / len(rows) < 0.55


def test_label_one_has_its_own_docstring_and_label_zero_another_of_the_same_module(pairs):
    own = {f.name: f.docstring for f in functions(400)}
    for row in (row for rows in pairs.values() for row in rows):
        assert (row.text_b == own[row.row]) == bool(row.label)
        assert f" of {module_of(row.row)} does" in row.text_b


def test_partner_minimises_the_sha256_of_the_pair(pairs):
    row = next(row for row in pairs["train"] if not row.label)
    others = [f for f in functions(400) if f.module == module_of(row.row) and f.name != row.row]
    best = min(others, key=lambda f: hashlib.sha256(f"{row.row}\0{f.name}".encode()).hexdigest())
    assert row.text_b == best.docstring


def test_rows_are_in_the_order_of_their_sha256(pairs):
    digests = [hashlib.sha256(row.row.encode()).hexdigest() for row in pairs["train"]]
    assert digests == sorted(digests)


def test_another_module_leaves_all_other_rows_alone(pairs):
    more = make_pairs(functions(400) + functions(1, package="other"))
    for split, rows in pairs.items():
        assert tuple(row for row in more[split] if not row.row.startswith("other.")) == rows


def test_a_text_is_used_once_and_the_first_keeps_it():
    shared = "The docstring that two of them have."
    rows = make_pairs(
        [
            DocumentedFunction("a.m", "f", "f", shared),
            DocumentedFunction("a.m", "g", "g", "Another one of a dot m here."),
            DocumentedFunction("b.m", "f", "f", shared),
            DocumentedFunction("b.m", "g", "g", "Another one of b dot m here."),
            DocumentedFunction("b.m", "h", "h", "The third docstring of b dot m."),
        ]
    )
    assert {row.row for split in rows.values() for row in split} == {"a.m.f", "a.m.g", "b.m.g", "b.m.h"}


def test_the_only_function_of_a_module_is_left_out():
    assert sum(map(len, make_pairs(functions(50, each=1)).values())) == 0


def test_packages_from_files_and_a_new_module_in_one_of_them(site):
    for name in ("pkg_a", "pkg_b"):
        write_package(site, name, {f"sub/m{i}": module_source(f"{name} m{i}") for i in range(12)})
    before = docmatch(packages=("pkg_a", "pkg_b"))
    write_package(site, "pkg_a", {"sub/new": module_source("pkg_a new")})
    after = docmatch(packages=("pkg_a", "pkg_b"))
    assert before.n_functions == 144 and after.n_functions == 150
    assert before.name == f"docmatch@{before.sha256[:8]}" != after.name
    for split, rows in before.splits.items():
        assert tuple(row for row in after.splits[split] if not row.row.startswith("pkg_a.sub.new")) == rows


def test_same_rows_under_any_hash_seed_and_locale(site, tmp_path):
    write_package(site, "pkg_s", {f"m{i}": module_source(f"größe {i}") for i in range(20)})
    script = "from rankprobe.tasks.docstrings import docmatch; print(docmatch(packages=('pkg_s',)).sha256)"
    found = set()
    for seed, locale in (("0", "C"), ("1", "C.UTF-8"), ("random", "tr_TR.UTF-8")):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "LC_ALL": locale,
            "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
            "RANKPROBE_CACHE": str(tmp_path / seed),
        }
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout.strip())
    assert found == {docmatch(packages=("pkg_s",)).sha256}


def test_cached_set_is_the_same(site):
    write_package(site, "pkg_k", {f"m{i}": module_source(f"k {i}") for i in range(5)})
    assert docmatch(packages=("pkg_k",)) == docmatch(packages=("pkg_k",))


def test_other_rows_than_the_pinned_ones_warn_in_one_line_and_change_the_name(monkeypatch):
    monkeypatch.setitem(docstrings.PINNED_VERSIONS, "networkx", "0.0.1")
    monkeypatch.setitem(docstrings.PINNED_SHA256, "docmatch-smoke", "0" * 64)
    with pytest.warns(UserWarning) as caught:
        made = docmatch("docmatch-smoke")
    assert made.name == f"docmatch-smoke@{made.sha256[:8]}"
    (message,) = [str(w.message) for w in caught]
    assert made.name in message and "networkx" in message and "(pinned: 0.0.1)" in message and "\n" not in message


def test_missing_package_names_the_pinned_version(monkeypatch):
    monkeypatch.setitem(sys.modules, "seaborn", None)
    with pytest.raises(UsageError, match=r"find the package seaborn installed.*pip install seaborn==0\.13\.2"):
        docmatch("docmatch-smoke")


def test_pinned_versions_are_those_of_the_constraints():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert {name: pins[name] for name in PINNED_VERSIONS} == dict(PINNED_VERSIONS)


def need_pinned(name: str) -> None:
    other = [
        package
        for package in PACKAGES[name]
        if importlib.metadata.version(package).partition("+")[0] != PINNED_VERSIONS[package]
    ]
    if other:
        pytest.skip(f"the set is pinned for other versions of {', '.join(other)} than are installed")


@pytest.mark.parametrize("name", ["docmatch-smoke", pytest.param("docmatch", marks=pytest.mark.slow)])
def test_pinned_sets(name):
    need_pinned(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = docmatch(name)
    assert made.name == name and made.sha256 == PINNED_SHA256[name]
    assert {split: len(rows) for split, rows in made.splits.items()} == {
        "docmatch-smoke": {"train": 1284, "tuning": 168, "eval": 354},
        "docmatch": {"train": 21294, "tuning": 2878, "eval": 5961},
    }[name]
    for rows in made.splits.values():
        assert 0.45 < sum(row.label for row in rows) / len(rows) < 0.55
