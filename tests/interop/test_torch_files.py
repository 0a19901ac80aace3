"""Files that are not what they should be: named, with the reason, and never run."""

import io
import os
import pickle
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
    refused(path, "it asks to run posix.system.*Nothing of it was run")
    assert not touched.exists()


def test_a_low_bit_state_is_named(tmp_path):
    # What a pickle of torchao's asks for, without torchao.
    code = b"\x80\x02ctorchao.optim.subclass_8bit\nOptimState8bit\n)R."
    path = tmp_path / "x.pt"
    path.write_bytes(code)
    refused(path, "it is a low-bit state of torchao")


def test_a_file_that_is_cut_short_is_named(tmp_path):
    save_torch({"a": torch.ones(1000)}, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    path = tmp_path / "y.pt"
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "cut short or damaged")


def test_a_file_that_is_empty_or_not_there_is_named(tmp_path):
    path = tmp_path / "x.pt"
    refused(path, "no file")
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
