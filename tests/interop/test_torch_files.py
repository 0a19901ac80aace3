"""Damaged and foreign torch files: errors without execution."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from jaxopt_tf.interop import load_torch, save_torch


class Touches:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def refused(path, says):
    with pytest.raises(ValueError, match=says) as error:
        load_torch(path)
    assert str(path) in str(error.value)


def bytes_of_record(path, name):
    """Returns offset and length of the content of a record in an archive."""
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        (record,) = (r for r in archive.infolist() if r.filename.endswith(name))
    lengths = struct.unpack_from("<HH", content, record.header_offset + 26)
    return record.header_offset + 30 + sum(lengths), record.file_size


def test_what_was_saved_is_loaded(tmp_path):
    tensor = torch.arange(6.0).reshape(2, 3)
    save_torch({"a": tensor, "b": [1, (2.0, None)]}, tmp_path / "x.pt")
    loaded = load_torch(tmp_path / "x.pt")
    assert torch.equal(loaded["a"], tensor)
    assert loaded["b"] == [1, (2.0, None)]


def test_old_files_are_read_too(tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(load_torch(path)["a"], torch.ones(2))


@pytest.mark.parametrize("is_torchs", [True, False], ids=["torch", "bare pickle"])
def test_a_pickle_that_runs_code_is_named_and_not_run(tmp_path, is_torchs):
    path, touched = tmp_path / "evil.pt", tmp_path / "touched"
    stream = io.BytesIO()
    save = torch.save if is_torchs else pickle.dump
    save({"state": Touches(touched)}, stream)
    path.write_bytes(stream.getvalue())
    refused(path, "it refers to posix.system.*No code in it was run")
    assert not touched.exists()


def test_another_state_of_torchao_is_named(tmp_path):
    # What a pickle of torchao's asks for, without torchao.
    code = b"\x80\x02ctorchao.optim.subclass_fp8\nOptimStateFp8\n)R."
    path = tmp_path / "x.pt"
    path.write_bytes(code)
    refused(path, "it is a state of torchao, but not of 8 or 4 bits")


def test_a_file_that_is_cut_short_is_named(tmp_path):
    save_torch({"a": torch.ones(1000)}, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    path = tmp_path / "y.pt"
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "truncated or damaged")


def test_a_file_that_is_empty_or_not_there_is_named(tmp_path):
    path = tmp_path / "x.pt"
    refused(path, "must be an existing file")
    path.write_bytes(b"")
    refused(path, "it is empty")


@pytest.mark.parametrize(
    "content", [b"hello, this is text", bytes(range(256)), b"{}", b"\x80\x04K\x01."]
)
def test_a_file_that_is_not_torchs_is_named(tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    refused(path, "must be a file of tensors that `torch.save` wrote")


def test_a_zip_of_something_else_is_named(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    path = Path(tmp_path / "x.npz")
    refused(path, "must be a file of tensors that `torch.save` wrote")


def test_a_path_may_be_a_string(tmp_path):
    save_torch({"a": torch.ones(2)}, tmp_path / "x.pt")
    assert torch.equal(load_torch(str(tmp_path / "x.pt"))["a"], torch.ones(2))
    refused(str(tmp_path / "y.pt"), "must be an existing file")
    with pytest.raises(TypeError, match="`path` must be a path, got int"):
        load_torch(3)


@pytest.mark.parametrize("bit", [0, 5, 31 * 8 + 7])
def test_a_bit_that_changed_is_noticed_and_its_tensor_named(tmp_path, bit):
    path = tmp_path / "optimizer.pt"
    moments = {"exp_avg": torch.ones(8), "exp_avg_sq": torch.ones(8)}
    save_torch({"state": {7: moments | {"step": 1}}, "param_groups": []}, path)
    content = bytearray(path.read_bytes())
    start, size = bytes_of_record(path, "data/1")
    assert size == 32
    content[start + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    torch.load(path, mmap=True)  # torch takes it
    refused(path, "data/1', tensor 'state.7.exp_avg_sq', is damaged: Bad CRC-32")


def test_a_damaged_pickle_is_noticed_by_its_crc(tmp_path):
    path = tmp_path / "x.pt"
    save_torch({"a": torch.ones(8)}, path)
    content = bytearray(path.read_bytes())
    content[bytes_of_record(path, "data.pkl")[0] + 20] ^= 1
    path.write_bytes(content)
    refused(path, "its record '.*/data.pkl' is damaged: Bad CRC-32")


def test_tensors_of_parameters_and_of_several_records_are_named(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    module = torch.nn.Linear(2, 3)
    save_torch(module.state_dict() | {"own": module.weight}, path)
    content = bytearray(path.read_bytes())
    content[bytes_of_record(path, "data/1")[0]] ^= 1
    path.write_bytes(content)
    refused(path, "data/1', tensor 'bias', is damaged")


def test_files_without_checksums_are_read(tmp_path):
    path = tmp_path / "x.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(8)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load_torch(path)["a"], torch.ones(8))


def test_a_compressed_archive_is_refused(tmp_path):
    save_torch({"a": torch.ones(1000)}, tmp_path / "x.pt")
    path = tmp_path / "y.pt"
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(path, "is damaged: it is compressed, which torch never does")


# IndexError, KeyError, RecursionError and others, in torch's own unpickler.
@pytest.mark.parametrize(
    "opcodes",
    [b"e.", b"h\x05.", b"t.", b"(" * 3 + b"u.", b"b.", b"R.", b"\x85\x85a.", b"X\xff"],
    ids=repr,
)
def test_every_damage_of_a_pickle_without_a_checksum_is_refused(tmp_path, opcodes):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/version", "3")
        archive.writestr("x/byteorder", "little")
        archive.writestr("x/data.pkl", b"\x80\x02" + opcodes)
    refused(path, "must be a file of tensors that `torch.save` wrote")
    # Legacy files have one pickle after another, and no checksum.
    old = tmp_path / "old.pt"
    torch.save({"a": torch.ones(2)}, old, _use_new_zipfile_serialization=False)
    content = old.read_bytes()
    old.write_bytes(content[:60] + b"\x80\x02" + opcodes + content[60:])
    refused(old, "must be a file of tensors that `torch.save` wrote")
