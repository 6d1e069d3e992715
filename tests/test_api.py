"""rankprobe.spectrum, compare and extract: what they take, and that they say what the modules below say."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file, save_file

import rankprobe
from rankprobe.errors import UsageError
from tests.tiny_models import make_tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny Llama on disk, and the same with a planted update of rank 3 of every query."""
    folder = tmp_path_factory.mktemp("api")
    base, tuned = make_tiny("llama", folder / "base"), make_tiny("llama", folder / "tuned")
    weights = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, W in weights.items():
        if name.endswith("q_proj.weight"):
            m, n = W.shape
            W += 0.02 * torch.randn(m, 3, generator=generator) @ torch.randn(3, n, generator=generator)
    save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})
    return base, tuned


def read(folder):
    return load_file(folder / "model.safetensors")


def test_spectrum_of_folders_has_scipys_values(folders):
    ranks, spectra = rankprobe.spectrum(*folders, return_spectra=True)
    W0, W1 = map(read, folders)
    changed = ranks[ranks["fro_norm"] > 0]
    assert set(changed["kind"]) == {"q"} and (changed["numerical_rank"] >= 3).all()
    for name, sigma in spectra.groupby("name")["sigma"]:
        theirs = scipy.linalg.svdvals((W1[name].double() - W0[name].double()).numpy())
        np.testing.assert_allclose(sigma, theirs, atol=1e-12 * max(theirs[0], 1))
    assert changed["storage_rank"].tolist() == [3] * len(changed)


def test_spectrum_takes_models_in_memory_and_filters(folders):
    W0, W1 = map(read, folders)
    on_disk = rankprobe.spectrum(*folders, include="q_proj", noise=False, energies=[0.5])
    in_memory = rankprobe.spectrum(W0, W1, include="q_proj", noise=False, energies=[0.5])
    columns = ["name", "m", "n", "fro_norm", "sigma_max", "energy_rank_50", "numerical_rank"]
    assert len(on_disk) and on_disk[columns].equals(in_memory[columns])
    assert on_disk["storage_rank"].isna().all()


def test_extract_to_an_adapter_which_spectrum_takes_alone(folders, tmp_path):
    done = rankprobe.extract(*folders, tmp_path / "adapter", rank=3)
    assert done.folder == tmp_path / "adapter"
    assert done.table.query("r > 0")["r"].eq(3).all()
    alone = rankprobe.spectrum(tmp_path / "adapter")
    whole = rankprobe.spectrum(*folders).query("fro_norm > 0")
    assert len(alone) == len(whole)
    np.testing.assert_allclose(alone["sigma_max"], whole["sigma_max"], rtol=1e-6)


def test_compare_of_a_tuning_with_itself_and_its_adapter(folders, tmp_path):
    rankprobe.extract(*folders, tmp_path / "adapter", rank=3)
    found = rankprobe.compare(tmp_path / "adapter", folders[1], folders[0], top=3)
    full = found.overlap.query("i == 3 and j == 3")
    assert len(full) and (full["phi"] > 1 - 1e-6).all()


def test_extract_without_a_folder_writes_nothing(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = rankprobe.extract(*folders, energy=0.9)
    assert done.folder is None and done.summary["kept_energy"] >= 0.9
    assert list(tmp_path.iterdir()) == []


def test_mistakes_name_the_side(folders):
    with pytest.raises(UsageError, match="tuned must be"):
        rankprobe.spectrum(folders[0], "/does/not/exist")
    with pytest.raises(UsageError, match="base must be"):
        rankprobe.spectrum("/does/not/exist", folders[1])
    with pytest.raises(UsageError, match="--rank"):
        rankprobe.extract(*folders)
    with pytest.raises(AttributeError, match="no attribute 'spectrums'"):
        rankprobe.spectrums  # noqa: B018


def test_importing_rankprobe_imports_nothing_large():
    code = "import sys, rankprobe; print('torch' in sys.modules, 'spectrum' in dir(rankprobe), rankprobe.spectrum)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("False True <function spectrum")
