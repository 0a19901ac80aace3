"""Division of a corpus into two parts, and its fingerprint."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_tf.data import read_text, read_tokens
from jaxopt_tf.data._corpus import make_corpus, min_token_dtype, split
from jaxopt_tf.data._tokens import Documents


def documents(lengths):
    """Documents side by side in one file."""
    length = np.asarray(lengths, np.int64)
    file = np.zeros(len(length), np.int32)
    return Documents(file, np.cumsum(length) - length, length)


def places(part):
    """The tokens of a part, by where they lie."""
    return np.concatenate(
        [np.arange(s, s + n) for _, s, n in zip(*part, strict=True)] or [[]]
    )


@settings(deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=60))
def test_every_token_is_in_one_part_and_at_most_a_tenth_is_for_evaluation(lengths):
    training, evaluation = split(documents(lengths))
    total = sum(lengths)
    both = np.concatenate([places(training), places(evaluation)])
    np.testing.assert_array_equal(np.sort(both), np.arange(total))
    assert 10 * len(places(evaluation)) <= total
    # None is empty, unless there are just a few words.
    assert total < 100 or len(places(evaluation)) > 0
    assert min(training.length.min(), *evaluation.length, 400) > 0


def test_documents_that_are_small_parts_are_not_cut():
    training, evaluation = split(documents([7] * 200))
    assert (len(training.length), len(evaluation.length)) == (180, 20)
    assert set(training.length) == set(evaluation.length) == {7}
    # Not side by side, and not the last ones.
    assert np.ptp(evaluation.start) > 700
    assert np.diff(evaluation.start).max() > 7


def test_evaluation_documents_are_the_same_everywhere():
    _, evaluation = split(documents([1] * 40))
    assert evaluation.start.tolist() == [3, 10, 18, 21]


def test_a_document_that_is_a_large_part_gives_its_last_tenth():
    training, evaluation = split(documents([1000] + [10] * 100))
    assert training.length[0] == 900
    assert (evaluation.start[0], evaluation.length[0]) == (900, 100)
    assert evaluation.length[1:].tolist() == [10] * 10


def test_fewer_than_ten_documents_give_the_last_tenth_of_each():
    training, evaluation = split(documents([20] * 9))
    assert training.length.tolist() == [18] * 9
    assert evaluation.length.tolist() == [2] * 9
    # The small ones too.
    _, evaluation = split(documents([1000, 20, 20]))
    assert evaluation.length.tolist() == [100, 2, 2]
    _, evaluation = split(documents([20] * 10))
    assert evaluation.length.tolist() == [20]


def test_refuses_no_documents():
    with pytest.raises(ValueError, match="`text` must contain at least one document"):
        make_corpus([], documents([]), vocab_size=9, end=None, unit="tokens")


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [
        (2, "u1"),
        (256, "u1"),
        (257, "u2"),
        (65_536, "u2"),
        (65_537, "u4"),
        (2**32, "u4"),
    ],
)
def test_tokens_have_the_narrowest_dtype(vocab_size, dtype):
    assert min_token_dtype(vocab_size) == np.dtype(dtype)


def written(folder, **contents):
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / f"{name}.txt").write_text(content)
    return folder


def test_fingerprint_is_of_the_contents_and_not_of_their_place(tmp_path):
    here = read_text([written(tmp_path / "here", a="one " * 9, b="two " * 9)])
    there = read_text([written(tmp_path / "far/away", c="one " * 9, d="two " * 9)])
    assert here.fingerprint == there.fingerprint
    assert len(here.fingerprint) == 64


@pytest.mark.parametrize(
    "contents",
    [
        {"a": "one " * 9, "b": "twO " * 9},
        {"a": "two " * 9, "b": "one " * 9},
        {"a": "one " * 9, "b": "two " * 10},
        {"a": "one " * 9},
        {"a": "one " * 9, "b": "two " * 9, "c": "x"},
        {"a": "one " * 9 + "two " * 9},
    ],
    ids=["letter", "order", "length", "fewer", "more", "joined"],
)
def test_fingerprint_changes_with_the_contents(tmp_path, contents):
    was = read_text([written(tmp_path / "was", a="one " * 9, b="two " * 9)])
    now = read_text([written(tmp_path / "now", **contents)])
    assert was.fingerprint != now.fingerprint


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (np.uint16, {"vocab_size": 50_001, "eos_token_id": 60}),
        (np.uint16, {"vocab_size": 50_000, "eos_token_id": 61}),
        (np.uint16, {"vocab_size": 50_000}),
        # The same bytes, read as other numbers.
        (np.dtype(">u2"), {"vocab_size": 50_000, "eos_token_id": 60}),
    ],
    ids=["vocab_size", "another end", "no end", "dtype"],
)
def test_fingerprint_changes_with_how_tokens_are_read(tmp_path, dtype, options):
    tokens = np.arange(50, dtype=np.uint16)
    np.save(tmp_path / "was.npy", tokens)
    np.save(tmp_path / "now.npy", tokens.view(dtype))
    was = read_tokens([tmp_path / "was.npy"], vocab_size=50_000, eos_token_id=60)
    now = read_tokens([tmp_path / "now.npy"], **options)
    assert was.fingerprint != now.fingerprint


def test_fingerprint_changes_with_the_evaluation_part(tmp_path):
    path = tmp_path / "tokens.npy"
    np.save(path, np.arange(20, dtype=np.uint8))
    file = read_tokens([path], vocab_size=20).training._files[0]
    one_by_one = documents([1] * 20)
    known = [
        make_corpus(
            [file],
            one_by_one,
            vocab_size=20,
            end=None,
            unit="tokens",
            is_evaluation=np.arange(20) == which,
        ).fingerprint
        for which in (3, 4)
    ]
    assert known[0] != known[1]
