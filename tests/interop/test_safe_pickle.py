"""Reading of training_args.bin without executing its pickle."""

import os
import pickle
import zipfile

import pytest
import torch
from transformers import TrainingArguments

from jaxopt_tf.interop import recipe_from_transformers


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def refused(path):
    with pytest.raises(ValueError, match="\\w") as error:
        recipe_from_transformers(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.fixture
def args(tmp_path):
    return TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], max_steps=5)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_that_would_run_code_is_named_and_does_not_run(args, tmp_path, is_zip):
    mark, path = tmp_path / "mark", tmp_path / "training_args.bin"
    args.run_name = Evil(mark)
    torch.save(args, path, _use_new_zipfile_serialization=is_zip)
    told = refused(path)
    assert "posix.system" in told
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # it would have


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"ctorch.storage\n_load_from_bytes\n.", "torch.storage._load_from_bytes"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"ctransformers.training_args\nos.system\n.", "os.system"),
        (b"(ios\nsystem\n.", "os.system"),
    ],
)
def test_every_import_opcode_is_rejected(tmp_path, content, name):
    path = tmp_path / "training_args.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", content)
    assert name in refused(path)


def test_a_class_of_someone_is_named(args, tmp_path):
    path = tmp_path / "training_args.bin"
    args.accelerator_config = pathlike = zipfile.Path
    torch.save(args, path)
    # From Python 3.13 on it is `zipfile._path` that has it.
    assert f"{pathlike.__module__}.{pathlike.__name__}" in refused(path)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        # A class of nobody's, called with what is not the value of an enum.
        (b"c__main__\nrun\n(S'touch'\nI1\ntR.", "__main__.run"),
        (b"cpkg.mod\nrun\n((lp0\ntR.", "pkg.mod.run"),
        (b"\x80\x04\x8c\x08__main__\x8c\x09os.system\x93.", "__main__.os.system"),
        (b"c__main__\nRun\n.", "it contains __main__.Run"),
        (b"c__main__\nRun\n(tR.", "it contains __main__.Run"),
        (b"cnumpy\nload\n.", "numpy.load"),
        (b"ctransformers.trainer\nTrainer\n.", "transformers.trainer.Trainer"),
    ],
)
def test_a_class_that_is_on_no_list_holds_fields_and_nothing_else(
    tmp_path, content, name
):
    path = tmp_path / "training_args.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", content)
    assert name in refused(path)


def test_an_object_in_a_field_of_ones_own_does_not_run(args, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "training_args.bin"
    args.own = Evil(mark)
    torch.save(args, path)
    assert "posix.system" in refused(path)
    assert not mark.exists()


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_that_is_cut_short_is_refused(args, tmp_path, is_zip):
    path = tmp_path / "training_args.bin"
    torch.save(args, path, _use_new_zipfile_serialization=is_zip)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        assert "truncated or damaged" in refused(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"hello", "starts with b'hello'"),
        (b"PK", "truncated or damaged"),
        (b"\x80\x02.", "truncated or damaged"),
        (pickle.dumps({"max_steps": 5}, 2), "a pickle that torch.save did not write"),
        (b'{"max_steps": 5', "is not JSON"),
        (b'{"seed": 1, "seed": 2}', "`seed` occurs twice"),
        (b'{"seed": "\xff"}', "utf-8"),
        (bytes(2**24 + 1), "larger than 16 MiB"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_file_that_is_no_good_is_named(tmp_path, content, words):
    path = tmp_path / "training_args.bin"
    path.write_bytes(content)
    assert words in refused(path)


def test_a_zip_without_a_pickle_and_a_tensor_are_refused(tmp_path):
    path = tmp_path / "training_args.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/other", b"")
    assert "no data.pkl" in refused(path)
    torch.save({"w": torch.ones(3)}, path)
    assert "torch._utils._rebuild_tensor_v2" in refused(path)
    torch.save({"lr": 1.0}, path)
    assert "it contains dict" in refused(path)


def test_recursive_list_is_rejected(args, tmp_path):
    path = tmp_path / "training_args.bin"
    args.debug = []
    args.debug.append(args.debug)
    torch.save(args, path)
    assert "recursion" in refused(path)


def test_missing_file_is_named(tmp_path):
    assert "No such file" in refused(tmp_path / "no.bin")
