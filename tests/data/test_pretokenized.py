"""Pretokenized files: formats, checks and errors."""

import os
import subprocess
import sys

import numpy as np
import pytest

from jaxopt_tf.data import _pretokenized, read_tokens


def both(corpus):
    parts = (corpus.training, corpus.evaluation)
    return [part.read(0, len(part)).tolist() for part in parts]


@pytest.fixture
def path(tmp_path):
    """Saves tokens under the name of a file of either kind."""

    def save(name, tokens):
        path = tmp_path / name
        if path.suffix == ".npy":
            np.save(path, tokens)
        else:
            tokens.tofile(path)
        return path

    return save


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i4", "<u4", "<i8", "<u8"])
def test_takes_any_whole_numbers_of_a_npy_file(path, dtype):
    corpus = read_tokens([path("a.npy", np.arange(1, 21).astype(dtype))], vocab_size=99)
    assert both(corpus) == [list(range(1, 19)), [19, 20]]
    assert corpus.training.read(0, 1).dtype == np.uint8
    assert (corpus.vocab_size, corpus.unit, corpus.num_documents) == (99, "tokens", 1)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)]
)
def test_a_bin_file_has_two_bytes_a_token_or_four_in_a_large_vocabulary(
    path, vocab_size, dtype
):
    tokens = np.arange(vocab_size - 20, vocab_size).astype(dtype)
    corpus = read_tokens([path("a.bin", tokens)], vocab_size=vocab_size)
    assert both(corpus) == [tokens[:18].tolist(), tokens[18:].tolist()]
    assert corpus.training.read(0, 1).dtype == dtype


def test_documents_are_split_at_their_end_and_none_is_empty(path):
    # Ended before the first one too, and the last one not.
    tokens = np.asarray([9, *[1] * 10, 9, 9, *[2] * 20, 9, *[3] * 30])
    corpus = read_tokens([path("a.npy", tokens)], vocab_size=10, eos_token_id=9)
    assert corpus.num_documents == 3
    assert both(corpus) == [
        [1] * 9 + [9] + [2] * 18 + [9] + [3] * 27 + [9],
        [1, 9, 2, 2, 9, 3, 3, 3, 9],
    ]


def test_documents_are_split_far_into_a_file(path):
    tokens = np.ones(2**20 + 10, np.uint8)
    tokens[[2**20 - 1, 2**20 + 5]] = 9
    corpus = read_tokens([path("a.npy", tokens)], vocab_size=10, eos_token_id=9)
    assert corpus.num_documents == 3
    training, evaluation = both(corpus)
    # 1,048,575 tokens less a tenth and the end; 5 and 4 tokens, which have no tenth.
    assert len(training) == 943_718 + 1 + 6 + 5
    assert len(evaluation) == 104_857 + 1


def test_files_follow_each_other(path):
    paths = [path("b.npy", np.full(10, 1)), path("a.npy", np.full(20, 2))]
    corpus = read_tokens(paths, vocab_size=10)
    assert both(corpus) == [[1] * 9 + [2] * 18, [1, 2, 2]]
    corpus = read_tokens(paths, vocab_size=10, eos_token_id=0)
    assert both(corpus) == [[1] * 9 + [0] + [2] * 18 + [0], [1, 0, 2, 2, 0]]


@pytest.mark.parametrize("bad", [500, 2**20 + 3], ids=["near", "far"])
@pytest.mark.parametrize("value", [-1, 50, 60])
def test_refuses_a_token_outside_the_vocabulary_by_its_place(path, bad, value):
    tokens = np.zeros(2**20 + 10, np.int32)
    tokens[bad:] = value
    words = rf"`vocab_size` - 1 = 49, but token {bad} of '.*a\.npy' is {value}\. Give"
    with pytest.raises(ValueError, match=words):
        read_tokens([path("a.npy", tokens)], vocab_size=50)


def test_takes_the_last_token_of_the_vocabulary(path):
    corpus = read_tokens([path("a.npy", np.full(10, 49))], vocab_size=50)
    assert both(corpus) == [[49] * 9, [49]]


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        (np.zeros((4, 4), int), ValueError, r"one axis of tokens.* has shape \(4, 4\)"),
        (np.zeros((), int), ValueError, r"one axis of tokens, but .* has shape \(\)"),
        (np.zeros(9), TypeError, r"of integers, but .* has dtype float64"),
        (np.zeros(9, bool), TypeError, r"of integers, but .* has dtype bool"),
        (
            np.asarray([None]),
            ValueError,
            r"a complete \.npy file, but .* is not: .*bject",
        ),
        (np.zeros(0, int), ValueError, r"`text` must contain .*one document, got none"),
        (np.full(9, 3), ValueError, r"`text` must contain .*one document, got none"),
    ],
    ids=["rows", "scalar", "floats", "bools", "objects", "empty", "only ends"],
)
def test_refuses_a_npy_file_of_anything_else(path, tokens, error, words):
    with pytest.raises(error, match=words):
        read_tokens([path("a.npy", tokens)], vocab_size=50, eos_token_id=3)


@pytest.mark.parametrize("size", [0, 4, 100, 200])
def test_refuses_a_npy_file_that_is_cut_short(path, size):
    cut = path("a.npy", np.arange(40))
    os.truncate(cut, size)
    with pytest.raises(ValueError, match=r"`text` must .*a\.npy' is (not|empty)"):
        read_tokens([cut], vocab_size=50)


def test_refuses_a_bin_file_that_is_cut_short(path):
    cut = path("a.bin", np.arange(9, dtype=np.uint16))
    os.truncate(cut, 17)
    with pytest.raises(ValueError, match=r"\.bin file of uint16, but .* 17 bytes"):
        read_tokens([cut], vocab_size=50)
    with pytest.raises(ValueError, match=r"\.bin file of uint32, but .* 17 bytes"):
        read_tokens([cut], vocab_size=10**5)
    os.truncate(cut, 0)
    with pytest.raises(
        ValueError, match=r"`text` must contain tokens, but .* is empty"
    ):
        read_tokens([cut], vocab_size=50)


def test_refuses_a_bin_file_of_wider_numbers(path):
    # As uint16 all of them are in the vocabulary, and every second one is wrong.
    wide = path("a.bin", np.arange(1, 40, dtype=np.uint32))
    with pytest.raises(ValueError, match=r"every second number of '.*a\.bin' is 0"):
        read_tokens([wide], vocab_size=50)


def test_refuses_a_bin_file_of_narrower_numbers(path):
    narrow = path("a.bin", np.arange(1, 41, dtype=np.uint16))
    with pytest.raises(ValueError, match=r"token 0 of .* is 131073\..* as uint16"):
        read_tokens([narrow], vocab_size=70_000)


def test_refuses_what_is_not_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"`text` must be files .* is a folder\. Give"):
        read_tokens([tmp_path], vocab_size=50)
    with pytest.raises(ValueError, match=r"`text` must be files .*b\.bin' does not ex"):
        read_tokens([tmp_path / "b.bin"], vocab_size=50)
    with pytest.raises(ValueError, match="`text` must name at least one file"):
        read_tokens([], vocab_size=50)


@pytest.mark.parametrize("value", [1, 2**32 + 1])
def test_refuses_a_vocabulary_of_no_use(path, value):
    with pytest.raises(ValueError, match="`vocab_size` must be from 2 to"):
        read_tokens([path("a.npy", np.arange(9))], vocab_size=value)


@pytest.mark.parametrize("value", [-1, 50])
def test_refuses_an_end_outside_the_vocabulary(path, value):
    with pytest.raises(ValueError, match="`eos_token_id` must be from 0 to 49, got"):
        read_tokens([path("a.npy", np.arange(9))], vocab_size=50, eos_token_id=value)


WITH_LITTLE_MEMORY = """
import re, resource, sys
from jaxopt_tf.data import Batches, evaluation_batches, read_tokens

# What the process has allocated; maps of files do not count.
used = int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 2**27, used + 2**27))
corpus = read_tokens([sys.argv[1]], vocab_size=50_000)
sizes = {"block_size": 1024, "batch_size": 16}
for _, batch in zip(range(20), Batches(corpus, **sizes, seed=0).iter_from(0)):
    print(batch.sum())
evaluation_batches(corpus, **sizes)
print(corpus.evaluation.read(len(corpus.evaluation) - 1, len(corpus.evaluation))[0])
"""


def test_takes_more_tokens_than_the_memory_holds(tmp_path):
    path = tmp_path / "sparse.bin"
    with open(path, "wb") as opened:
        opened.seek(2**28)
        opened.write(np.uint16(7).tobytes())
    printed = subprocess.check_output(
        [sys.executable, "-c", WITH_LITTLE_MEMORY, str(path)], text=True
    )
    assert printed.split() == ["0"] * 20 + ["7"]


@pytest.fixture
def sampled(monkeypatch):
    """Takes files of more than 1,000 bytes for large ones; samples have 8 tokens."""
    monkeypatch.setattr(_pretokenized, "_MAX_BYTES_READ_AT_START", 1000)
    monkeypatch.setattr(_pretokenized, "_SAMPLE_STRIDE", 200)
    monkeypatch.setattr(_pretokenized, "_TOKENS_IN_A_SAMPLE", 8)


def test_large_files_are_sampled_and_read_as_a_whole_if_they_have_ends(
    path, sampled, monkeypatch
):
    checked = []
    monkeypatch.setattr(
        _pretokenized, "check_vocabulary", lambda _path, x, *_: checked.append(len(x))
    )
    large = path("a.npy", np.arange(1000, dtype=np.uint16))
    corpus = read_tokens([large], vocab_size=1000)
    # One in 100 tokens, the last one at the end.
    assert checked == [8] * 11
    assert both(corpus) == [list(range(900)), list(range(900, 1000))]
    checked.clear()
    read_tokens([large], vocab_size=1000, eos_token_id=0)
    read_tokens([path("b.npy", np.ones(400, np.uint16))], vocab_size=1000)
    assert checked == [1000, 400]


def test_the_number_of_samples_of_all_files_is_limited(path, sampled, monkeypatch):
    monkeypatch.setattr(_pretokenized, "_MAX_SAMPLES", 4)
    checked = []
    monkeypatch.setattr(
        _pretokenized, "check_vocabulary", lambda _path, _x, i, _: checked.append(i)
    )
    paths = [path(f"{name}.npy", np.ones(1000, np.uint16)) for name in "ab"]
    read_tokens(paths, vocab_size=1000)
    assert checked == [0, 500, 992] * 2


def test_the_fingerprint_of_large_files_is_that_of_size_and_samples(path, sampled):
    def fingerprint(tokens, name="a.npy"):
        return read_tokens([path(name, tokens)], vocab_size=9_999).fingerprint

    tokens = np.arange(1000, dtype=np.uint16)
    expected = fingerprint(tokens)
    assert fingerprint(tokens, "copy.npy") == expected
    assert fingerprint(tokens[:-1]) != expected
    for changed in (0, 107, 900, 999):  # in a sample
        tokens = np.arange(1000, dtype=np.uint16)
        tokens[changed] = 5_000
        assert fingerprint(tokens) != expected, changed


def test_a_token_between_the_samples_is_checked_when_it_is_read(path, sampled):
    tokens = np.arange(1000, dtype=np.uint16)
    tokens[50] = 2_000
    corpus = read_tokens([path("a.npy", tokens)], vocab_size=1000)
    assert corpus.training.read(0, 50).tolist() == list(range(50))
    with pytest.raises(ValueError, match=r"but token 50 of '.*a\.npy' is 2000\. Give"):
        corpus.training.read(40, 60)


def test_a_token_of_a_sample_is_checked_at_the_start(path, sampled):
    tokens = np.arange(1000, dtype=np.uint16)
    tokens[105] = 2_000
    with pytest.raises(ValueError, match=r"but token 105 of '.*a\.npy' is 2000\. Give"):
        read_tokens([path("a.npy", tokens)], vocab_size=1000)
