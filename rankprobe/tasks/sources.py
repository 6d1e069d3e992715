"""The documented functions of an installed package, read from its sources with ``ast``: nothing is imported."""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib
import importlib.util
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from rankprobe.errors import UsageError, must

# Part of every cache key: raise it with any change to what is extracted.
EXTRACTOR_VERSION = 1
MIN_CHARACTERS, MAX_CHARACTERS = 20, 160
MAX_ARGUMENTS = 5
# distutils: numpy ships its own only where Python is older than 3.12; without it all builds hold the same functions.
_SKIPPED_FOLDERS = frozenset({"test", "tests", "distutils", "__pycache__"})
_BLANK_LINE = re.compile(r"\n\s*\n")
# Between "fit" and "Intercept", and between "HTTP" and "Server".
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SEPARATORS = re.compile(r"[_.\s]+")

Progress = Callable[[str, int, int], None]
"""Called with the package, files done and files in all."""


class DocumentedFunction(NamedTuple):
    """A function or method, and what it says of itself.

    Attributes
    ----------
    module : str
        Dotted, ``scipy.stats._qmc``.
    qualname : str
        ``Class.method``.
    text : str
        The qualified name in words, then up to five argument names: ``Linear Model fit (X, y, sample weight)``.
    docstring : str
        First paragraph, white space folded, 20 to 160 characters.
    """

    module: str
    qualname: str
    text: str
    docstring: str

    @property
    def name(self) -> str:
        """Full dotted name."""
        return f"{self.module}.{self.qualname}"


class PackageFunctions(NamedTuple):
    """What one package holds: its functions sorted by full name, and how many files could not be parsed."""

    functions: tuple[DocumentedFunction, ...]
    n_skipped: int


class _File(NamedTuple):
    """A source file: path below site-packages with ``/``, size in bytes, modification time in ns."""

    path: str
    size: int
    mtime_ns: int


def documented_functions(
    package: str, *, cache_dir: Path | None = None, progress: Progress | None = None, pip_name: str | None = None
) -> PackageFunctions:
    """Every documented function and method of an installed package, from the cache where its files are unchanged.

    Folders called ``test``, ``tests`` or ``distutils`` inside the package are skipped; what lies above it does not
    matter. A file that does not parse is skipped and counted. Functions inside functions are left out. A name defined
    more than once in a module (a property and its setter, overloads) keeps its first fitting docstring.

    Parameters
    ----------
    package : str
        Top-level name.
    cache_dir : Path, optional
        Default :func:`cache_folder`. A cache that is corrupt is rebuilt; one that cannot be written gives a warning.
    progress : callable, optional
        Called with (package, files done, files in all) while files are parsed.
    pip_name : str, optional
        What ``pip install`` should be given, for the error; default ``package``.

    Returns
    -------
    PackageFunctions

    Raises
    ------
    UsageError
        If the package is not installed, or without sources.
    """
    root = _find(package, pip_name or package)
    files = _source_files(root)
    if not files:
        raise UsageError(must(package, "be installed with its .py files", f"none in {root}", f"Reinstall {package}"))
    folder = cache_folder() if cache_dir is None else cache_dir
    entry = folder / f"{package}-{_fingerprint(files)[:16]}.jsonl" if folder is not None else None
    cached = _read_cache(entry) if entry is not None else None
    if cached is not None:
        return cached
    found = _extract(package, root.parent, files, progress)
    if entry is not None:
        _write_cache(entry, found)
    return found


def cache_folder() -> Path | None:
    """``docmatch`` in $RANKPROBE_CACHE, $XDG_CACHE_HOME/rankprobe or ~/.cache/rankprobe; None without a home folder."""
    if own := os.environ.get("RANKPROBE_CACHE"):
        return Path(own).expanduser() / "docmatch"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # The XDG base directory specification: a relative path is to be ignored.
        return Path(xdg) / "rankprobe" / "docmatch"
    try:
        return Path.home() / ".cache" / "rankprobe" / "docmatch"
    except RuntimeError:
        return None


def name_text(qualname: str, arguments: Iterable[str]) -> str:
    """A qualified name in words, then up to five argument names; ``self`` and ``cls`` dropped.

    >>> name_text("BatchNorm2d.reset_running_stats", ["self"])
    'Batch Norm2d reset running stats'
    >>> name_text("HTTPServer.sendAll", ["self", "data", "max_bytes"])
    'HTTP Server send All (data, max bytes)'
    """
    words = [_words(name) for name in arguments if name not in ("self", "cls")]
    shown = [word for word in words if word][:MAX_ARGUMENTS]
    return f"{_words(qualname)} ({', '.join(shown)})" if shown else _words(qualname)


def first_paragraph(docstring: str) -> str | None:
    """A docstring's first paragraph with white space folded; None if not 20 to 160 characters of valid text.

    >>> first_paragraph('''Mean of the values, in
    ...     the units of x.
    ...
    ...     More.''')
    'Mean of the values, in the units of x.'
    """
    text = " ".join(_BLANK_LINE.split(docstring.strip(), maxsplit=1)[0].split())
    if not MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
        return None
    # A lone surrogate, "\ud800" in the source, is no text that a tokenizer or a file can hold.
    return None if any("\ud800" <= character <= "\udfff" for character in text) else text


def _words(name: str) -> str:
    return _SEPARATORS.sub(" ", _CAMEL.sub(" ", name)).strip()


def _find(package: str, pip_name: str) -> Path:
    """Folder (or single file) of a top-level package; finding a top-level name imports nothing."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # ValueError: a module in sys.modules without a spec.
        spec = None
    # origin is None for a namespace package: any folder of that name on sys.path, an unrelated one even.
    if spec is None or not spec.origin or not spec.has_location:
        raise UsageError(must("docmatch", f"find the package {package} installed", f"no {package} in {sys.prefix}",
                              f"Run: {sys.executable} -m pip install {pip_name}"))
    origin = Path(spec.origin)
    return origin.parent if spec.submodule_search_locations else origin


def _source_files(root: Path) -> list[_File]:
    """The .py files of a package, sorted by their path below the folder that holds it."""
    found: list[_File] = []

    def scan(folder: str, prefix: str) -> None:
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in _SKIPPED_FOLDERS:
                        scan(entry.path, f"{prefix}{entry.name}/")
                elif entry.name.endswith(".py"):
                    with suppress(OSError):
                        stat = entry.stat()
                        found.append(_File(prefix + entry.name, stat.st_size, stat.st_mtime_ns))

    if root.is_dir():
        scan(str(root), f"{root.name}/")
    else:
        stat = root.stat()
        found.append(_File(root.name, stat.st_size, stat.st_mtime_ns))
    return sorted(found)


def _fingerprint(files: list[_File]) -> str:
    """Of the extractor, the Python whose grammar parses the files, and every file's path, size and time."""
    key = json.dumps([EXTRACTOR_VERSION, *sys.version_info[:2], files])
    return hashlib.sha256(key.encode("ascii")).hexdigest()


def _extract(package: str, parent: Path, files: list[_File], progress: Progress | None) -> PackageFunctions:
    found: dict[str, DocumentedFunction] = {}
    n_skipped = 0
    with _quiet_parsing():
        for done, file in enumerate(files):
            if progress is not None and done % 20 == 0:
                progress(package, done, len(files))
            try:
                functions = list(_file_functions(file.path, (parent / file.path).read_bytes()))
            except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):  # MemoryError: nested too deeply.
                n_skipped += 1
                continue
            for function in functions:
                found.setdefault(function.name, function)
    if progress is not None:
        progress(package, len(files), len(files))
    return PackageFunctions(tuple(found[name] for name in sorted(found)), n_skipped)


@contextmanager
def _quiet_parsing() -> Iterator[None]:
    """No SyntaxWarning about others' escapes, nor an error where a user turned warnings into errors; no collector.

    A syntax tree has no cycles, so that reference counts free it; the collector would walk it again and again.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if collecting:
            gc.enable()


def _file_functions(path: str, source: bytes) -> Iterator[DocumentedFunction]:
    if b"def" not in source:
        return
    parts = path.removesuffix(".py").split("/")
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    for qualname, node in _definitions(ast.parse(source), ""):
        docstring = ast.get_docstring(node, clean=False)
        paragraph = first_paragraph(docstring) if docstring else None
        if paragraph is None or not _words(qualname):
            continue
        # *args and **kwargs are left out: they have the same names everywhere and tell nothing apart.
        arguments = (a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))
        yield DocumentedFunction(module, qualname, name_text(qualname, arguments), paragraph)


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions of a module and of its classes in source order, also those under if, try, with, for and while."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _definitions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _definitions(child, prefix)


def _read_cache(entry: Path) -> PackageFunctions | None:
    """A cache entry, or None if it is missing or not what was written (its sha256 is its first line)."""
    try:
        digest, _, body = entry.read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode("ascii") != digest:
            return None
        n_skipped, rows = json.loads(body)
    except (OSError, ValueError):
        return None
    return PackageFunctions(tuple(DocumentedFunction(*row) for row in rows), n_skipped)


def _write_cache(entry: Path, found: PackageFunctions) -> None:
    """Write atomically; several processes may do so at once, and each writes the same."""
    body = json.dumps([found.n_skipped, found.functions]).encode("ascii")
    temporary = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=entry.parent, prefix=f".{entry.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(body).hexdigest().encode("ascii") + b"\n" + body)
        os.replace(temporary, entry)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        warnings.warn(f"docmatch cannot be cached in {entry.parent} ({error.strerror}): the sources are parsed anew "
                      "each time. Set RANKPROBE_CACHE to a folder that can be written.", stacklevel=4)
