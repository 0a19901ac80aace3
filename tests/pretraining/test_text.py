"""Text in, bytes out: what is taken, what is held out, what is refused."""

import itertools
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from jaxopt_tf.pretraining import (
    Text,
    held_out_batches,
    read_text,
    standard_library,
    training_batches,
)
from jaxopt_tf.pretraining._text import is_held_out

STDLIB = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def library():
    return standard_library()


@pytest.fixture
def text():
    """Two parts in which a window says where it was cut."""
    counting = np.arange(250, dtype=np.uint8)
    return Text(counting[:200], counting[200:], num_files=1)


def first(batches, n):
    return list(itertools.islice(batches, n))


def test_library_holds_about_a_tenth_out(library):
    share = len(library.held_out) / (len(library.held_out) + len(library.training))
    assert 0.05 < share < 0.15
    assert len(library.training) > 5e6


def test_library_is_split_by_whole_modules(library):
    training, held_out = library.training.tobytes(), library.held_out.tobytes()
    for package in ("email", "collections", "asyncio", "json"):
        for path in (STDLIB / package).glob("*.py"):
            content = path.read_bytes()
            if len(content) > 100:
                is_in_training = content in training
                assert is_in_training != (content in held_out), path
                assert is_in_training != is_held_out(package), path


def test_library_split_is_the_same_everywhere():
    modules = "argparse asyncio collections configparser email inspect json logging os"
    held_out = [module for module in modules.split() if is_held_out(module)]
    assert held_out == ["collections", "configparser", "email", "inspect", "logging"]


def test_library_has_nothing_of_what_is_left_out(library):
    both = library.training.tobytes() + library.held_out.tobytes()
    left_out = [STDLIB / "encodings" / "utf_8.py", STDLIB / "pydoc_data" / "topics.py"]
    left_out += [Path(pytest.__file__), *(STDLIB / "test").glob("test_*.py")]
    left_out += (STDLIB / "lib2to3").glob("*.py")
    found = [path for path in left_out if path.exists()]
    assert len(found) >= 3
    for path in found:
        assert path.read_bytes() not in both, path


def test_takes_the_last_tenth_of_every_file_for_held_out(tmp_path):
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_bytes(b"a" * 90 + b"b" * 10)
    other.write_bytes(b"c" * 45 + b"d" * 5)
    text = read_text([one, other])
    assert text.training.tobytes() == b"a" * 90 + b"\0" + b"c" * 45
    assert text.held_out.tobytes() == b"b" * 10 + b"\0" + b"d" * 5
    assert text.num_files == 2


def test_takes_the_text_files_of_a_folder_and_nothing_hidden(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.txt").write_text("below")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / ".hidden").write_text("hidden")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    text = read_text([tmp_path])
    assert text.training.tobytes() == b"below"
    assert text.num_files == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"caf\xe9", "is not UTF-8"),
        (b"a\0b", "is not UTF-8, or holds bytes of 0"),
    ],
    ids=["missing", "empty", "latin-1", "binary"],
)
def test_refuses_a_file_by_its_name(tmp_path, content, words):
    path = tmp_path / "given.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"`text` must .*given\.txt' {words}"):
        read_text([path])


def test_refuses_a_folder_without_text(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match="`text` must hold text, but the folder"):
        read_text([tmp_path])


def test_refuses_text_shorter_than_a_window(text):
    with pytest.raises(ValueError, match=r"`text` must .* 201 bytes in its training"):
        training_batches(text, block_size=200, batch_size=1, seed=0)
    with pytest.raises(ValueError, match=r"`text` must .* 51 bytes in its held-out"):
        held_out_batches(text, block_size=50, batch_size=1)


def test_refuses_an_empty_batch(text):
    with pytest.raises(ValueError, match="`batch_size` must be"):
        training_batches(text, block_size=9, batch_size=0, seed=0)
    with pytest.raises(ValueError, match="`batch_size` must be"):
        held_out_batches(text, block_size=9, batch_size=0)


def test_an_epoch_takes_every_window_once_and_the_next_in_another_order(text):
    batches = first(training_batches(text, block_size=10, batch_size=1, seed=0), 38)
    starts = [int(batch[0, 0]) for batch in batches]
    epoch = list(range(0, 190, 10))
    assert sorted(starts[:19]) == epoch
    assert sorted(starts[19:]) == epoch
    assert starts[:19] != epoch
    assert starts[19:] != starts[:19]


def test_batches_are_windows_of_one_byte_more_than_the_block(text):
    (batch,) = first(training_batches(text, block_size=10, batch_size=4, seed=0), 1)
    assert batch.shape == (4, 11)
    assert batch.dtype == np.uint8
    np.testing.assert_array_equal(np.diff(batch.astype(int)), 1)


def test_order_is_the_seed_s(text):
    def run(seed):
        batches = training_batches(text, block_size=10, batch_size=4, seed=seed)
        return np.stack(first(batches, 5))

    np.testing.assert_array_equal(run(0), run(0))
    assert not np.array_equal(run(0), run(1))


def test_held_out_batches_are_spread_over_the_text():
    counting = np.arange(4_001).astype(np.uint8)
    text = Text(counting, counting, num_files=1)
    batches = held_out_batches(text, block_size=10, batch_size=4, num_bytes=400)
    assert [batch.shape for batch in batches] == [(4, 11)] * 10
    # The first window and the last one are among them.
    np.testing.assert_array_equal(batches[0][0], counting[:11])
    np.testing.assert_array_equal(batches[-1][-1], counting[-11:])


def test_held_out_batches_are_fewer_where_the_text_is_short(text):
    (batch,) = held_out_batches(text, block_size=10, batch_size=64)
    assert batch.shape == (4, 11)
