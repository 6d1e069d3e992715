"""ranks.csv and spectra.csv, written matrix by matrix: readable at any moment, taken up again after a kill.

Beside them lies a journal with a line a finished matrix: how long both tables were when it was done. What stands beyond
the last line of it is the work of a matrix that was not finished, and is cut off. Nothing here imports pandas.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from rankprobe.analysis.rank_columns import ENERGY_SHARES, columns
from rankprobe.analysis.spectrum import measure
from rankprobe.errors import WorkError, must
from rankprobe.weights.pairing import Matrix, Pairing, Vector

RANKS_FILE, SPECTRA_FILE, VECTORS_FILE, LEFT_OUT_FILE = "ranks.csv", "spectra.csv", "vectors.csv", "not_compared.csv"
TABLES = (RANKS_FILE, SPECTRA_FILE, VECTORS_FILE, LEFT_OUT_FILE)
_JOURNAL = ".done"
_SPECTRA_COLUMNS = ("name", "index", "sigma")
_VECTOR_COLUMNS = ("name", "shape", "norm", "change_norm", "relative_change", "unchanged_fraction")


class SpectrumFiles:
    """The two tables of a folder, open for the matrices that they lack.

    Parameters
    ----------
    folder : Path
        Held by this process alone (:func:`rankprobe.experiment.store.lock`). What is in it belongs to the same inputs
        and options: the matrices come in the same order.
    ranks_columns : sequence of str

    Attributes
    ----------
    done : int
        Matrices that the tables hold, the first ones.
    """

    def __init__(self, folder: Path, ranks_columns: Sequence[str]) -> None:
        self._columns = tuple(ranks_columns)
        self._paths = (folder / RANKS_FILE, folder / SPECTRA_FILE, folder / _JOURNAL)
        heads = (_line(self._columns), _line(_SPECTRA_COLUMNS), b"")
        self.done, lengths = _finished(self._paths, heads)
        self._files = []
        try:
            for path, head, length in zip(self._paths, heads, lengths, strict=True):
                file = path.open("ab", buffering=0)  # one call to the system a matrix: a kill hardly ever cuts it
                self._files.append(file)
                file.truncate(length)
                if not length:
                    _write(file, head, path)
        except BaseException:
            self.close()
            raise

    def append(self, row: dict, S: Tensor) -> None:
        """Add a matrix; where that fails or is interrupted, the tables stay without it.

        Raises
        ------
        OSError
            If the disk is full; it names the file.
        """
        name = _line([row["name"]]).decode().rstrip("\n")
        values = "".join(f"{name},{i},{sigma!r}\n" for i, sigma in enumerate(S.tolist(), 1))
        before = [os.fstat(file.fileno()).st_size for file in self._files]
        try:
            _write(self._files[1], values.encode(), self._paths[1])
            _write(self._files[0], _line([row[c] for c in self._columns]), self._paths[0])
            ends = [os.fstat(file.fileno()).st_size for file in self._files[:2]]
            _write(self._files[2], f"{ends[0]} {ends[1]}\n".encode(), self._paths[2])
        except BaseException:
            for file, length in zip(self._files, before, strict=True):
                with contextlib.suppress(OSError):
                    file.truncate(length)
            raise
        self.done += 1

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def measure_into(
    folder: Path,
    pairing: Pairing,
    *,
    energies: Sequence[float] = ENERGY_SHARES,
    base_rounded: bool = False,
    device: str = "cpu",
    noise: bool = True,
    left: Callable[[list[Matrix]], None] | None = None,
    begin: Callable[[int, Matrix], None] | None = None,
) -> None:
    """Measure the matrices and vectors of a pair that a folder's tables lack, one in memory at a time.

    Parameters
    ----------
    folder : Path
        Held by this process alone.
    pairing : Pairing
        With the order of its matrices as in earlier calls on this folder.
    energies, base_rounded, device, noise
        As for :func:`rankprobe.analysis.spectrum.measure`; as in earlier calls on this folder.
    left : callable, optional
        Called once, with the matrices that are left to do.
    begin : callable, optional
        Called with a matrix's place among all (from 1) and the matrix, before it is read.

    Raises
    ------
    UsageError
        If a matrix or vector holds NaN or infinity; the tables then have all before it.
    """
    with contextlib.closing(SpectrumFiles(folder, columns(energies))) as files:
        todo = pairing.matrices[files.done :]
        if left is not None:
            left(todo)
        for matrix in todo:
            if begin is not None:
                begin(files.done + 1, matrix)
            files.append(
                *measure(
                    matrix.delta(), energies=energies, base_rounded=base_rounded, device=device, noise=noise
                )
            )  # fmt: skip
    _write_whole(folder / VECTORS_FILE, _VECTOR_COLUMNS, (_vector_row(v) for v in pairing.vectors()))
    _write_whole(folder / LEFT_OUT_FILE, ("name", "reason"), left_out(pairing))


def left_out(pairing: Pairing) -> Iterator[tuple[str, str]]:
    """What was not compared: name and reason."""
    yield from pairing.skipped.items()
    for side in (pairing.base, pairing.tuned):
        yield from ((name, why) for name, why in getattr(side, "skipped", {}).items() if name not in pairing.skipped)
    base = pairing.base.label if pairing.base is not None else "the base"
    for name in pairing.only_base:
        yield name, f"only in {base}"
    for name in pairing.only_tuned:
        yield name, f"only in {pairing.tuned.label}"
    for name in pairing.saved:
        yield name, "saved whole, and no base to compare it with"
    for name, added in pairing.added_rows.items():
        side, many = (pairing.tuned.label, added) if added > 0 else (base, -added)
        yield name, f"{many} rows only in {side}; the others are compared"


def _vector_row(vector: Vector) -> list:
    relative = vector.change_norm / vector.norm if vector.norm != 0 else math.nan
    shape = "x".join(map(str, vector.shape))
    return [vector.name, shape, vector.norm, vector.change_norm, relative, vector.unchanged_fraction]


def _write_whole(path: Path, heads: Sequence[str], rows) -> None:
    """A small table, whole or not at all; none where it has no row."""
    text = b"".join(_line(row) for row in rows)
    if not text:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(_line(heads) + text)
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _finished(paths: Sequence[Path], heads: Sequence[bytes]) -> tuple[int, tuple[int, int, int]]:
    """How many matrices are done, and how long each of the three files is up to there."""
    ranks, spectra, journal = paths
    try:
        for path, head in zip((ranks, spectra), heads, strict=False):
            with path.open("rb") as file:
                if file.read(len(head)) != head:
                    return 0, (0, 0, 0)
        sizes, text = (ranks.stat().st_size, spectra.stat().st_size), journal.read_bytes()
    except FileNotFoundError:
        return 0, (0, 0, 0)
    except IsADirectoryError as error:
        raise WorkError(must(str(error.filename), "be a table", "a folder", "Pass another --out")) from None
    done, lengths, at = 0, (len(heads[0]), len(heads[1]), 0), 0
    for line in text.splitlines(keepends=True):
        at += len(line)
        words = line.split()
        if not line.endswith(b"\n") or len(words) != 2 or not all(word.isdigit() for word in words):
            break
        ends = int(words[0]), int(words[1])
        if ends[0] > sizes[0] or ends[1] > sizes[1]:  # a power cut kept the journal and lost a table's end
            break
        done, lengths = done + 1, (*ends, at)
    return done, lengths


def _line(values: Sequence[object]) -> bytes:
    """A line of CSV; numbers in full, nothing for None and NaN."""
    out = io.StringIO()
    cells = ["" if v is None or v != v else repr(v) if isinstance(v, float) else v for v in values]
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue().encode("utf-8", errors="surrogateescape")


def _write(file, data: bytes, path: Path) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
