"""Texts for a language model from files: E2E's restaurants, said in words, and molecules as SMILES."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rankprobe.errors import UsageError, must
from rankprobe.tasks.docstrings import SPLITS, split_of
from rankprobe.tasks.records import read_records
from rankprobe.tasks.task import Example

E2E_FILES: Mapping[str, str] = {"train": "trainset.csv", "tuning": "devset.csv", "eval": "testset_w_refs.csv"}
# The slots that microsoft/LoRA, after Li & Liang (2021), calls otherwise.
_SLOTS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
_SLOT = re.compile(r"([^\[\],]+)\[([^\[\]]*)\]")
# The letters of SMILES and of reactions in it (Weininger 1988; opensmiles.org): a comma is of a CSV, a "_" of a name.
_SMILES = re.compile(r"[A-Za-z0-9@+\-\[\]()=#$:/\\.%*~>&]+")


def load_texts(name: str, data_dir: Path | str | None) -> dict[str, tuple[Example, ...]]:
    """Read a task's rows.

    Parameters
    ----------
    name : str
        ``e2e``: see :func:`e2e_prompt`; rows in file order. ``smiles``: an empty prompt and a molecule; the split is of
        its sha256, 70 % train, 10 % tuning and 20 % eval, and rows are ordered by it.
    data_dir : Path or str
        For ``e2e`` the folder of the official trainset.csv, devset.csv and testset_w_refs.csv with the columns mr and
        ref; for ``smiles`` a file of a molecule a line, or the folder of one such file ending in .smi. Also the folder
        above, in which it is called after the task.

    Returns
    -------
    dict of str to tuple of Example
        ``train``, ``tuning`` and ``eval``; of E2E these are trainset, devset and testset_w_refs, a row a reference. A
        row's id is its place in its file, from 0.

    Raises
    ------
    UsageError
        If the files are not there, or not as they should be.

    Notes
    -----
    A molecule that a file has twice is two rows, of one split.

    References
    ----------
    Novikova, Dušek & Rieser (2017), arXiv:1706.09254 (E2E).
    """
    if name == "e2e":
        folder = _folder(name, data_dir, tuple(E2E_FILES.values()))
        return {split: _e2e_rows(folder / file) for split, file in E2E_FILES.items()}
    path = Path(data_dir).expanduser() if data_dir is not None else None
    return _smiles_rows(path if path is not None and path.is_file() else _smiles_file(data_dir))


def e2e_prompt(meaning: str) -> str:
    """A meaning representation as microsoft/LoRA writes it, and its ``||`` before the text.

    Raises
    ------
    ValueError
        If it is not of the form ``name[value], name[value]``.

    Examples
    --------
    >>> e2e_prompt("name[Blue Spice], eatType[coffee shop], area[city centre]")
    'name : Blue Spice | Type : coffee shop | area : city centre ||'
    """
    slots = [(name.strip(), value) for name, value in _SLOT.findall(meaning)]
    if not slots or ", ".join(f"{name}[{value}]" for name, value in slots) != meaning.strip():
        raise ValueError(meaning)
    return " | ".join(f"{_SLOTS.get(name, name)} : {value}" for name, value in slots) + " ||"


def _e2e_rows(path: Path) -> tuple[Example, ...]:
    rows = []
    for record in read_records(path, ("mr", "ref")):
        meaning, text = record.values[0], " ".join(record.values[1].split())
        try:
            rows.append(Example(str(len(rows)), e2e_prompt(meaning), f" {text}", 0))
        except ValueError:
            rule = "be slots such as name[Blue Spice], area[riverside]"
            got = repr(meaning[:80])
            raise UsageError(must(f"The mr on line {record.line} of {path}", rule, got, "Correct the row")) from None
        if not text:
            raise UsageError(must(f"The ref on line {record.line} of {path}", "not be empty", "nothing",
                                  "Fill it in, or remove the row"))
    return tuple(rows)


def _smiles_rows(path: Path) -> dict[str, tuple[Example, ...]]:
    # In a .smi file a name may follow the molecule.
    records = read_records(path, (0,), file_format="tsv", header=False, skip_short=True)
    lines = [record.values[0].split() for record in records]
    for record, fields in zip(records, lines, strict=True):
        if fields and (_SMILES.fullmatch(fields[0]) is None or fields[0].isdigit() or fields[0].lower() == "smiles"):
            rule, next_step = "begin with a molecule's SMILES", "Leave headers out, and put the molecules first"
            raise UsageError(must(f"Line {record.line} of {path}", rule, repr(fields[0][:80]), next_step))
    molecules = [(str(row), fields[0]) for row, fields in enumerate(lines) if fields]
    rows: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for row, molecule in sorted(molecules, key=lambda pair: hashlib.sha256(pair[1].encode("utf-8")).digest()):
        rows[split_of(molecule)].append(Example(row, "", molecule, 0))
    if empty := [split for split, found in rows.items() if not found]:
        got = f"{len(molecules)}, none of them for {empty[0]}"
        raise UsageError(must(f"{path}", "hold enough molecules for three splits", got, "Add molecules"))
    return {split: tuple(found) for split, found in rows.items()}


def _smiles_file(data_dir: Path | str | None) -> Path:
    folder = _folder("smiles", data_dir, ())
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".smi" and path.is_file())
    if len(files) != 1:
        got = ", ".join(path.name for path in files[:5]) or f"none in {folder}"
        raise UsageError(must(f"--data-dir {data_dir}", "hold one file ending in .smi", got, "Pass the file itself"))
    return files[0]


def _folder(name: str, data_dir: Path | str | None, files: Sequence[str]) -> Path:
    """The folder that holds a task's files: a child called after it, else ``data_dir`` itself."""
    wanted = f"the folder of {', '.join(files)}" if files else "a file of a molecule a line"
    if data_dir is None:
        raise UsageError(must(f"The task {name}", "have a source", "no --data-dir", f"Pass --data-dir, {wanted}"))
    parent = Path(data_dir).expanduser()
    if not parent.is_dir():
        raise UsageError(must("--data-dir", "be a folder" if files else "be a file or a folder", data_dir,
                              f"Pass {wanted}"))
    folder = parent / name if (parent / name).is_dir() else parent
    if missing := [file for file in files if not (folder / file).is_file()]:
        got = ", ".join(child.name for child in sorted(folder.iterdir())[:10]) or "an empty folder"
        rule = f"hold {name}'s {', '.join(missing)}, in it or in a folder called {name}"
        raise UsageError(must(f"--data-dir {data_dir}", rule, got, "Pass the folder of the official files"))
    return folder
