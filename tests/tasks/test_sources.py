"""Documented functions found with ast: what counts, what is skipped, and the cache."""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
import warnings

import pytest

from rankprobe.errors import UsageError
from rankprobe.tasks.sources import cache_folder, documented_functions, first_paragraph, name_text
from tests.tasks.fake_packages import module_source, write_package

SOURCE = (
    '''
import os

def plain_name(self, first_arg, /, second, *args, third_one=1, **kwargs):
    """A summary over
    two lines.

    More that is not wanted.
    """
    def inner():
        """An inner function that must not be found."""

async def fetchAll(a, b, c, d, e, f):
    """Fetch everything there is to fetch."""

class Outer:
    """A class docstring, no function's."""

    def __init__(self, size):
        """Make one of the given size."""

    @property
    def _hidden(self):
        """The first docstring of a property."""

    @_hidden.setter
    def _hidden(self, value):
        """The docstring of its setter, not wanted."""

    class Inner:
        @classmethod
        def build(cls, x):
            """Build one from the thing that x is."""

if os.name:
    def conditional(x):
        """Defined under an if statement here."""
else:
    def conditional(x, y):
        """Defined under the else branch instead."""

try:
    pass
except ImportError:
    def fallback():
        """Defined in an except clause as fallback."""

def short():
    """Too short."""

def long():
    """'''
    + "x" * 161
    + '''"""

def none(): pass

def _():
    """A function without a word in its name."""

def surrogate():
    """Half of a pair \\ud800 that no file can hold."""
'''
)


@pytest.fixture
def found(site):
    write_package(site, "pkg_one", {"mod": SOURCE})
    return {f.qualname: f for f in documented_functions("pkg_one").functions}


def test_functions_and_methods_are_found_and_nested_ones_are_not(found):
    assert set(found) == {
        "plain_name",
        "fetchAll",
        "Outer.__init__",
        "Outer._hidden",
        "Outer.Inner.build",
        "conditional",
        "fallback",
    }


def test_text_is_the_name_in_words_and_five_arguments(found):
    assert found["plain_name"].text == "plain name (first arg, second, third one)"
    assert found["fetchAll"].text == "fetch All (a, b, c, d, e)"
    assert found["Outer.__init__"].text == "Outer init (size)"
    assert found["Outer.Inner.build"].text == "Outer Inner build (x)"
    assert found["fallback"].text == "fallback"


def test_docstring_is_the_first_paragraph_folded(found):
    assert found["plain_name"].docstring == "A summary over two lines."


def test_a_name_defined_twice_keeps_its_first_docstring(found):
    assert found["Outer._hidden"].docstring == "The first docstring of a property."
    assert found["conditional"].docstring == "Defined under an if statement here."


def test_full_name_has_the_module(found):
    assert found["Outer.Inner.build"].name == "pkg_one.mod.Outer.Inner.build"


@pytest.mark.parametrize(("length", "kept"), [(19, False), (20, True), (160, True), (161, False)])
def test_lengths_at_the_edges(length, kept):
    assert (first_paragraph("x" * length) is not None) == kept


def test_acronyms_digits_and_underscores_in_names():
    assert name_text("HTTPServer.do_GET2x__y", []) == "HTTP Server do GET2x y"
    assert name_text("f", ["_", "self", "cls", "nValues"]) == "f (n Values)"


def test_test_folders_below_the_package_are_skipped_and_above_it_are_not(site):
    assert "tests" in site.parts and "test" in site.parts
    write_package(
        site,
        "pkg_two",
        {
            "mod": module_source("mod"),
            "tests/helper": module_source("tests"),
            "sub/test/more": module_source("test"),
            "distutils/old": module_source("old"),
            "testing/tool": module_source("testing"),
        },
    )
    assert {f.module for f in documented_functions("pkg_two").functions} == {"pkg_two.mod", "pkg_two.testing.tool"}


def test_unparseable_files_are_skipped_and_counted(site):
    write_package(
        site,
        "pkg_bad",
        {
            "good": module_source("good"),
            "syntax": "def f(:\n",
            "null": "def f(): pass\0",
            "coding": "# -*- coding: no-such-codec -*-\ndef f(): pass\n",
            "deep": "def f(): return " + "(" * 5000 + ")" * 5000 + "\n",
        },
    )
    found = documented_functions("pkg_bad")
    assert found.n_skipped == 4
    assert {f.module for f in found.functions} == {"pkg_bad.good"}


def test_byte_order_mark_and_coding_cookie_are_honoured(site):
    write_package(site, "pkg_enc", {"mod": module_source("mod")})
    doc = 'def f(x):\n    """Größe und Länge der Straße."""\n'
    (site / "pkg_enc" / "bom.py").write_bytes(b"\xef\xbb\xbf" + doc.encode())
    (site / "pkg_enc" / "latin.py").write_bytes(b"# coding: latin-1\r\n" + doc.replace("\n", "\r\n").encode("latin-1"))
    texts = {f.module: f.docstring for f in documented_functions("pkg_enc").functions}
    assert texts["pkg_enc.bom"] == texts["pkg_enc.latin"] == "Größe und Länge der Straße."


def test_warnings_as_errors_do_not_change_what_is_found(site):
    write_package(site, "pkg_esc", {"mod": 'def f(x):\n    """A pattern like \\d+ in a docstring."""\n'})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = documented_functions("pkg_esc")
    assert [f.qualname for f in found.functions] == ["f"] and found.n_skipped == 0


def test_missing_package_names_it_and_the_command():
    with pytest.raises(UsageError, match=r"no_such_pkg installed.*pip install no_such_pkg==1\.0") as error:
        documented_functions("no_such_pkg", pip_name="no_such_pkg==1.0")
    assert "\n" not in str(error.value)


def test_an_unrelated_folder_of_the_name_is_no_package(site):
    (site / "pkg_folder").mkdir()
    with pytest.raises(UsageError, match="find the package pkg_folder installed"):
        documented_functions("pkg_folder")


def test_a_package_without_sources_is_an_error(site):
    write_package(site, "pkg_bare", {"__init__": module_source("bare")})
    source = site / "pkg_bare" / "__init__.py"
    py_compile.compile(str(source), cfile=f"{source}c")
    source.unlink()
    with pytest.raises(UsageError, match=r"pkg_bare must be installed with its \.py files"):
        documented_functions("pkg_bare")


def test_a_package_may_be_one_file(site):
    (site / "pkg_file.py").write_text(module_source("single"))
    assert [f.name for f in documented_functions("pkg_file").functions] == [f"pkg_file.func_{i}" for i in range(6)]


def test_second_call_reads_the_cache_and_a_change_rebuilds(site):
    write_package(site, "pkg_c", {"mod": module_source("before")})
    calls = []
    first = documented_functions("pkg_c", progress=lambda *a: calls.append(a))
    assert calls[-1] == ("pkg_c", 2, 2)
    calls.clear()
    assert documented_functions("pkg_c", progress=lambda *a: calls.append(a)) == first
    assert calls == []
    write_package(site, "pkg_c", {"mod": module_source("after")})
    os.utime(site / "pkg_c" / "mod.py", ns=(1, 1))
    assert "after" in documented_functions("pkg_c").functions[0].docstring


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-5], lambda b: b"", lambda b: b.replace(b"number 1", b"number 9"), lambda b: b"not json"]
)
def test_corrupt_cache_is_rebuilt(site, damage):
    write_package(site, "pkg_d", {"mod": module_source("mod")})
    first = documented_functions("pkg_d")
    (entry,) = cache_folder().iterdir()
    entry.write_bytes(damage(entry.read_bytes()))
    assert documented_functions("pkg_d") == first
    again = []
    documented_functions("pkg_d", progress=lambda *a: again.append(a))
    assert again == []


def test_unwritable_cache_warns_and_works(site, tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("RANKPROBE_CACHE", str(tmp_path / "a_file"))
    write_package(site, "pkg_e", {"mod": module_source("mod")})
    with pytest.warns(UserWarning, match="cannot be cached"):
        assert len(documented_functions("pkg_e").functions) == 6


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache" / "docmatch"
    monkeypatch.delenv("RANKPROBE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "rankprobe" / "docmatch"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rankprobe" / "docmatch"


def test_nothing_is_imported():
    script = (
        "import sys; from rankprobe.tasks.docstrings import docmatch; docmatch('docmatch-smoke'); "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'click', 'networkx', 'seaborn', 'numpy', 'torch'}))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
