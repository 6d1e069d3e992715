"""Files of tensors: what is read back is what torch and safetensors wrote, and damaged files end in one clear line."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rankprobe.errors import UsageError
from rankprobe.weights.tensors import Stored, open_tensors
from tests.weights.memory import random

MIB = 1 << 20
DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "uint8", "int32", "bool")


def refused(file, message):
    with pytest.raises(UsageError, match=message) as error:
        open_tensors([file])
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def every_dtype():
    return {f"of.{dtype}": random(3, 4, seed=i).mul(3).to(getattr(torch, dtype)) for i, dtype in enumerate(DTYPES)}


def same_bits(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(
        one.contiguous().flatten().view(torch.uint8), other.contiguous().flatten().view(torch.uint8))


def saved(folder, ending, tensors):
    file = folder / f"weights{ending}"
    (save_file if ending == ".safetensors" else torch.save)(tensors, file)
    return file


@pytest.mark.parametrize("ending", [".safetensors", ".bin", ".pt", ".pth", ".ckpt"])
def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path, ending):
    tensors = every_dtype() | {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 3), "stack": random(2, 3, 4)}
    opened = open_tensors([saved(tmp_path, ending, tensors)])
    assert set(opened.stored) == set(tensors) and not opened.aliases
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        assert opened.stored[name] == Stored(name, tuple(tensor.shape), dtype)
        assert tensor.numel() == 0 or same_bits(opened.read(name), tensor)


def test_what_is_read_is_memory_of_its_own(tmp_path):
    for ending in (".safetensors", ".bin"):
        opened = open_tensors([saved(tmp_path, ending, {"a": torch.ones(3, 3)})])
        opened.read("a").zero_()
        assert torch.equal(opened.read("a"), torch.ones(3, 3))


def test_many_files_are_one_set_of_names(tmp_path):
    one, two = tmp_path / "1.safetensors", tmp_path / "2.bin"
    save_file({"a": torch.ones(2)}, one)
    torch.save({"b": torch.zeros(2)}, two)
    opened = open_tensors([one, two])
    assert list(opened.stored) == ["a", "b"] and opened.files == {"a": one, "b": two}
    assert opened.read("a").sum() == 2 and opened.read("b").sum() == 0
    with pytest.raises(KeyError):
        opened.read("c")
    torch.save({"a": torch.zeros(2)}, two)
    with pytest.raises(UsageError, match=r"a must be in one file alone. Got it in 1.safetensors and in 2.bin"):
        open_tensors([one, two])


def test_tied_tensors_of_a_pickle_are_stored_once(tmp_path):
    shared = random(4, 6)
    views = {"in.weight": shared, "out.weight": shared, "turned": shared.T, "rows": shared[:2], "copy": shared.clone()}
    opened = open_tensors([saved(tmp_path, ".bin", views)])
    assert opened.aliases == {"out.weight": "in.weight"} and set(opened.stored) == views.keys() - {"out.weight"}
    for name, tensor in views.items():
        read = opened.read(name)
        assert torch.equal(read, tensor) and read.is_contiguous()


def test_the_format_from_before_torch_1_6_is_read_as_a_whole(tmp_path):
    file, shared = tmp_path / "old.bin", random(3, 3)
    torch.save({"a": shared, "b": shared, "c": shared.T}, file, _use_new_zipfile_serialization=False)
    opened = open_tensors([file])
    assert opened.aliases == {"b": "a"} and torch.equal(opened.read("c"), shared.T)
    opened.read("b").zero_()
    assert torch.equal(opened.read("a"), shared)


@pytest.mark.parametrize("wrap", [
    lambda t: {"state_dict": t, "epoch": 3}, lambda t: {"model": t, "optimizer": {"state": {0: {"step": 1}}}},
    lambda t: {"module": {"model_state_dict": t}}, lambda t: t | {"epoch": 3, "note": "text"},
])
def test_a_state_dict_beside_other_things_is_found(tmp_path, wrap):
    opened = open_tensors([saved(tmp_path, ".ckpt", wrap({"a.weight": torch.ones(2, 2)}))])
    assert list(opened.stored) == ["a.weight"] and opened.read("a.weight").sum() == 4


class RunsCode:
    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, new_format):
    ran, file = tmp_path / "ran", tmp_path / "evil.bin"
    torch.save({"a": torch.ones(2), "b": RunsCode(ran)}, file, _use_new_zipfile_serialization=new_format)
    refused(file, r"evil.bin must hold tensors and nothing that runs. Got code to run, posix.mkdir\. Save its")
    assert not ran.exists()
    torch.load(file, weights_only=False)
    assert ran.exists()  # it would have run


def test_what_the_rest_of_a_pickle_may_not_be(tmp_path):
    file = tmp_path / "w.bin"
    torch.save([torch.ones(2)], file)
    refused(file, "hold tensors by name. Got a list without any")
    torch.save({"epoch": 3}, file)
    refused(file, "hold tensors by name. Got a dict without any")
    torch.save({"a": torch.eye(3).to_sparse()}, file)
    refused(file, "plain dense tensors. Got a, which is sparse")
    torch.save({"a": torch.ones(3, device="meta")}, file)
    refused(file, "plain dense tensors. Got a, which is sparse or without data")
    torch.save({"a\nb": torch.ones(3)}, file)
    refused(file, r"names that can be printed, of 1 to 1000 characters. Got 'a\\nb'")
    file.write_bytes(pickle.dumps({"a": 1}))
    refused(file, "must ")


def test_a_damaged_archive_is_refused(tmp_path):
    file = saved(tmp_path, ".bin", {"a": random(50, 50)})
    whole = file.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 100, 5):
        file.write_bytes(whole[:length])
        refused(file, "weights.bin must be a whole file of torch.save")
    file.write_bytes(whole)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(tmp_path / "z.bin", "w", zipfile.ZIP_DEFLATED) as squeezed:
        for name in archive.namelist():
            squeezed.writestr(name, archive.read(name))
    refused(tmp_path / "z.bin", "uncompressed. Got a compressed archive")


def test_files_that_hold_no_weights(tmp_path):
    refused(tmp_path / "none.safetensors", "file that can be read. Got No such file or directory")
    folder = tmp_path / "folder.bin"
    folder.mkdir()
    refused(folder, "file that can be read. Got Is a directory")
    for ending in (".safetensors", ".bin"):
        file = tmp_path / f"w{ending}"
        file.write_bytes(b"")
        refused(file, "hold weights. Got a file of 0 bytes")
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
        refused(file, "weights themselves. Got a Git LFS pointer to them. Run git lfs pull")
        file.write_text("<html><body>Not found</body></html>")
        refused(file, f"w{ending} must ")
    (tmp_path / "w.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "w.gguf", r"end with .safetensors or .bin, .pt, .pth, .ckpt. Got .gguf")


def with_header(folder, header, data=b"", length=None):
    file = folder / "w.safetensors"
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return file


def entry(dtype="F32", shape=(2, 2), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


SIXTEEN = bytes(16)


@pytest.mark.parametrize("header, message", [
    ({"a": entry(offsets=(0, 32), shape=(2, 4))}, "Got 16 bytes of data where its header tells of 32"),
    ({"a": entry(offsets=(0, 8), shape=(1, 2))}, "data that the header does not account for"),
    ({"a": entry(shape=(2, 3))}, "whose shape, dtype and bytes do not agree"),
    ({"a": entry(shape=(2, -2))}, "a header that does not parse"),
    ({"a": entry(offsets=(16, 0))}, "must be a whole safetensors file"),
    ({"a": entry(), "b": entry()}, "overlapping or displaced data of"),
    ({"a": entry("F31")}, "unknown dtype F31"),
    ({"a": entry(shape=(2**40, 2**40))}, "a shape too large for any file"),
    ({"a": entry(), "e": entry(shape=(0, 2**63), offsets=(16, 16))}, r"e of shape \[0, 9223372036854775808\]"),
    ({"a": {"dtype": "F32"}}, "a header that does not parse: missing field"),
    ({"a": [1, 2]}, "a header that does not parse"),
    ({"a": entry(), "__metadata__": 3}, "a header that does not parse"),
    ([1], "a header that does not parse"),
    (b"{", "a header that does not parse"),
    (b"\xff\xfe{}", "a header that does not parse"),
    (b"[" * 9999, "a header that does not parse"),
    (b'{"a":' * 9999, "a header that does not parse"),
    (b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), "a twice"),
    ({"": entry()}, r"names that can be printed, of 1 to 1000 characters. Got ''"),
    ({"a\u001b[2J": entry()}, "names that can be printed"),
    ({"a" * 1001: entry()}, "names that can be printed"),
])
def test_safetensors_headers_that_are_refused(tmp_path, header, message):
    refused(with_header(tmp_path, header, SIXTEEN), message)


@pytest.mark.parametrize("dtype, shape, size", [("F4", (4, 8), 16), ("F6_E2M3", (16, 1), 12)])
def test_dtypes_that_torch_has_no_numbers_for_are_refused_by_name(tmp_path, dtype, shape, size):
    file = with_header(tmp_path, {"a": entry(dtype, shape, (0, size))}, bytes(size))
    refused(file, f"a in .* must have a dtype that torch computes with. Got {dtype}. Dequantise")


def test_absurd_header_lengths_are_refused_at_once(tmp_path):
    for length in (2**63, 2**64 - 1, 10**9, 100):
        refused(with_header(tmp_path, {"a": entry()}, SIXTEEN, length), f"Got a header of {length} bytes in a file of")
    (tmp_path / "w.safetensors").write_bytes(b"abcdefghi")
    refused(tmp_path / "w.safetensors", "Got 9 bytes")
    (tmp_path / "big.safetensors").write_bytes(struct.pack("<Q", 2 * 10**8))
    os.truncate(tmp_path / "big.safetensors", 3 * 10**8)  # sparse: the length fits, the format's own limit does not
    refused(tmp_path / "big.safetensors", "Got a header of 200000000 bytes")


def test_a_truncated_shard_is_refused_with_both_sizes(tmp_path):
    file = saved(tmp_path, ".safetensors", {"a": random(10, 10)})
    os.truncate(file, file.stat().st_size - 100)
    refused(file, r"Got 300 bytes of data where its header tells of 400. Fetch or save it again\.$")


def test_a_file_that_changes_while_it_is_read_is_said(tmp_path):
    for ending in (".safetensors", ".bin"):
        file = saved(tmp_path, ending, {"a": torch.ones(2, 2)})
        opened = open_tensors([file])
        for tensors in ({"a": torch.ones(2, 3)}, {"a": torch.ones(2, 2).half()}, {"b": torch.ones(2, 2)}):
            saved(tmp_path, ending, tensors)
            with pytest.raises(UsageError, match="stay as it was when it was opened"):
                opened.read("a")
        file.unlink()
        with pytest.raises(UsageError, match=f"weights{ending} must "):
            opened.read("a")


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from Linux's /proc")
@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_reading_one_by_one_takes_the_memory_of_one(tmp_path, ending):
    """A file that stays mapped keeps every page that was touched: the control, one open file, takes it all."""
    n = 16
    file = saved(tmp_path, ending, {f"t{i}": random(MIB, seed=i).view(2, -1) for i in range(n)})  # 4 MiB each
    opened = open_tensors([file])
    opened.read("t0")
    before, most = resident(), 0
    for name in opened.stored:
        tensor = opened.read(name)
        most = max(most, resident() - before)
        del tensor
    assert most < 20 * MIB
    if ending == ".safetensors":
        before = resident()  # anew: what earlier tests left on the heap may have been given back by now
        with safe_open(file, "pt") as mapped:
            sums = [float(mapped.get_tensor(f"t{i}").sum()) for i in range(n)]
            assert len(sums) == n and resident() - before > 40 * MIB
