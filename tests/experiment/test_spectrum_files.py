"""The tables of a spectrum on disk: the same bytes wherever the work was cut off, and never a line of half a matrix."""

import csv
import errno
import math
import random
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch

from rankprobe.analysis.spectrum import spectrum_of
from rankprobe.analysis.spectrum_tables import read_ranks
from rankprobe.errors import UsageError, WorkError
from rankprobe.experiment import spectrum_files
from rankprobe.experiment.spectrum_files import measure_into
from rankprobe.weights.pair import pair
from tests.weights.memory import Memory, adapter_of, bert_like, nudged
from tests.weights.memory import random as gaussian

TABLES = ("ranks.csv", "spectra.csv", "vectors.csv")


def make_pairing(**more):
    W0 = bert_like()
    return pair(Memory(W0, "base"), Memory(nudged(W0) | more, "tuned"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tables of an undisturbed call."""
    folder = tmp_path_factory.mktemp("whole")
    measure_into(folder, make_pairing())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_tables_are_those_in_memory(tmp_path, whole):
    pairing = make_pairing()
    measure_into(tmp_path, pairing)
    ranks, spectra = spectrum_of(pairing)
    pd.testing.assert_frame_equal(read_ranks(tmp_path / "ranks.csv"), ranks, check_exact=True)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "spectra.csv"), spectra, check_exact=True)
    vectors = pd.read_csv(tmp_path / "vectors.csv").set_index("name")
    assert len(vectors) == 3 and (vectors["shape"] == 8).all()
    for name, row in vectors.iterrows():
        w0, dw = bert_like()[name].double(), nudged(bert_like())[name].double() - bert_like()[name].double()
        assert row["norm"] == pytest.approx(float(w0.norm())) and row["change_norm"] == pytest.approx(float(dw.norm()))
        assert row["relative_change"] == pytest.approx(float(dw.norm() / w0.norm())) and row["unchanged_fraction"] == 0
    assert not (tmp_path / "not_compared.csv").exists() and contents(tmp_path) == whole


def kept(journal, name, length):
    """How many matrices are left whole where a file is cut at a length."""
    if name == ".done":
        return journal[:length].count(b"\n")
    return sum(int(line.split()[TABLES.index(name)]) <= length for line in journal.splitlines())


@pytest.mark.parametrize("name", ["ranks.csv", "spectra.csv", ".done"])
def test_cut_off_anywhere_the_same_bytes_come_out(tmp_path, whole, name):
    """A kill leaves a prefix of what was written, and a power cut shorter prefixes of some files than of others."""
    size, draw = len(whole[name]), random.Random(name)
    for length in (0, 1, size - 1, *draw.sample(range(size), 12)):
        for other, content in whole.items():
            (tmp_path / other).write_bytes(content[:length] if other == name else content)
        (tmp_path / "vectors.csv").unlink()
        done = []
        measure_into(tmp_path, make_pairing(), left=lambda todo, done=done: done.append(len(todo)))
        assert contents(tmp_path) == whole, f"{name} cut at {length} of {size}"
        assert done == [9 - kept(whole[".done"], name, length)], "finished matrices are not redone"


def test_damage_in_the_journal_means_to_measure_again(tmp_path, whole):
    good = whole[".done"]
    for journal in (b"x y\n", good.replace(b"\n", b"\r", 1), b"999999 999999\n", good[:-1] + b" 1\n"):
        for name, content in whole.items():
            (tmp_path / name).write_bytes(journal if name == ".done" else content)
        measure_into(tmp_path, make_pairing())
        assert contents(tmp_path) == whole


def test_other_columns_start_anew(tmp_path, whole):
    measure_into(tmp_path, make_pairing(), energies=(0.6, 0.9))
    assert "energy_rank_60" in read_ranks(tmp_path / "ranks.csv")
    measure_into(tmp_path, make_pairing())
    assert contents(tmp_path) == whole


def test_interrupted_in_a_matrix_the_tables_end_before_it(tmp_path, whole, monkeypatch):
    measure, calls = spectrum_files.measure, []

    def interrupted(delta, **options):
        calls.append(delta.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(delta, **options)

    monkeypatch.setattr(spectrum_files, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_into(tmp_path, make_pairing())
    ranks, spectra = read_ranks(tmp_path / "ranks.csv"), pd.read_csv(tmp_path / "spectra.csv")
    assert ranks.name.tolist() == calls[:3] == spectra.name.drop_duplicates().tolist()
    begun = []
    measure_into(tmp_path, make_pairing(), begin=lambda number, matrix: begun.append((number, matrix.name)))
    assert begun[0] == (4, calls[3]) and len(begun) == 6 and contents(tmp_path) == whole


def test_a_full_disk_leaves_whole_matrices_and_names_the_file(tmp_path, whole):
    """A limit on a file's size ends writes in the middle, as a full disk does."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (len(whole["ranks.csv"]) - 100, len(whole["ranks.csv"]) // 2):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(OSError) as caught:
                measure_into(tmp_path, make_pairing())
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert caught.value.errno == errno.EFBIG and caught.value.filename.endswith(".csv")
            ranks, spectra = (list(csv.reader((tmp_path / name).open())) for name in TABLES[:2])
            assert {len(row) for row in ranks} == {len(ranks[0])} and 1 < len(ranks) < 10
            assert list(dict.fromkeys(row[0] for row in spectra[1:])) == [row[0] for row in ranks[1:]]
            assert whole["ranks.csv"].startswith((tmp_path / "ranks.csv").read_bytes())
            for name in ("ranks.csv", "spectra.csv", ".done"):
                (tmp_path / name).unlink()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_nan_ends_the_work_with_all_before_it_on_disk(tmp_path):
    bad = nudged(bert_like())["encoder.layer.1.attention.self.key.weight"].clone()
    bad[0, 0] = math.nan
    name = "encoder.layer.1.attention.self.key.weight"
    with pytest.raises(UsageError, match=f"{name} must be finite"):
        measure_into(tmp_path, make_pairing(**{name: bad}))
    ranks = read_ranks(tmp_path / "ranks.csv")
    assert len(ranks) > 0 and name not in set(ranks.name) and ranks.sigma_max.notna().all()


def test_what_is_not_compared_is_listed_with_its_reason(tmp_path):
    W0 = bert_like()
    grown = torch.cat([W0["embeddings.word_embeddings.weight"], gaussian(3, 8)])
    more = {"classifier.weight": gaussian(2, 8), "conv.weight": gaussian(2, 3, 4),
            "embeddings.word_embeddings.weight": grown}  # fmt: skip
    base = W0 | {"pooler.dense.weight": gaussian(8, 8), "conv.weight": gaussian(2, 3, 4)}
    measure_into(tmp_path, pair(Memory(base, "old"), Memory(nudged(W0) | more, "new")))
    listed = dict(csv.reader((tmp_path / "not_compared.csv").open()))
    assert listed.pop("name") == "reason"
    assert listed.pop("pooler.dense.weight") == "only in old" and listed.pop("classifier.weight") == "only in new"
    assert listed.pop("embeddings.word_embeddings.weight") == "3 rows only in new; the others are compared"
    assert list(listed) == ["conv.weight"] and "3" in listed["conv.weight"]


def test_an_adapter_needs_no_base_and_no_vectors(tmp_path):
    from rankprobe.weights.inputs import open_input

    modules = {f"encoder.layer.{i}.attention.self.query": (8, 6) for i in (0, 1)}
    pairing = pair(None, open_input(adapter_of(tmp_path, modules, r=2)))
    out = tmp_path / "out"
    out.mkdir()
    measure_into(out, pairing)
    ranks, spectra = read_ranks(out / "ranks.csv"), pd.read_csv(out / "spectra.csv")
    assert ranks.numerical_rank.tolist() == [2, 2] and len(spectra) == 4
    assert ranks[["relative_change", "unchanged_fraction", "storage_rank", "mp_rank"]].isna().all(axis=None)
    assert not (out / "vectors.csv").exists()


def test_a_folder_in_the_place_of_a_table(tmp_path):
    (tmp_path / "ranks.csv").mkdir()
    with pytest.raises(WorkError, match="must be a table"):
        measure_into(tmp_path, make_pairing())
