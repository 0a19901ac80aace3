"""Batches: determinism, completeness, and equality across processes."""

import hashlib
import itertools
import os
import subprocess
import sys
import tracemalloc

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_tf.data import (
    Batches,
    Corpus,
    evaluation_batches,
    read_tokens,
    training_windows,
)
from jaxopt_tf.data._batches import ShuffledRows
from jaxopt_tf.data._tokens import Documents, TokenFile, TokenStream

SIZES = {"block_size": 10, "batch_size": 4, "seed": 0}


def stream(path, num_tokens, dtype=np.uint16):
    """One document: what lies in the file."""
    file = TokenFile(path, np.dtype(dtype), 0, num_tokens, sha256="")
    one = Documents(
        np.zeros(1, np.int32), np.zeros(1, np.int64), np.asarray([num_tokens])
    )
    return TokenStream([file], one, end=None, dtype=np.dtype(dtype))


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    """Two parts of 200 and 50 tokens, in which a window says where it was cut."""
    path = tmp_path_factory.mktemp("counting") / "tokens"
    np.arange(200, dtype=np.uint16).tofile(path)
    return Corpus(stream(path, 200), stream(path, 50), 200, 1, "tokens", "counting")


def first(batches, n):
    return list(itertools.islice(batches, n))


def test_batches_are_windows_of_one_token_more_than_the_block(counting):
    batch = Batches(counting, **SIZES)[0]
    assert (batch.shape, batch.dtype) == ((4, 11), np.uint16)
    np.testing.assert_array_equal(np.diff(batch.astype(int)), 1)


@pytest.mark.parametrize("k", [1, 2, 3], ids="k={}".format)
@pytest.mark.parametrize("batch_size", [1, 4], ids="B={}".format)
def test_an_epoch_takes_every_window_once_and_the_next_in_another_order(
    counting, batch_size, k
):
    batches = Batches(
        counting,
        block_size=10,
        batch_size=batch_size,
        seed=0,
        gradient_accumulation_steps=k,
    ).iter_from(0)
    rows = np.concatenate(
        [batch.reshape(-1, 11) for batch in first(batches, -(-57 // (batch_size * k)))]
    )
    assert Batches(counting, **SIZES).num_windows == 19
    epochs = [rows[i : i + 19, 0].tolist() for i in range(0, 57, 19)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(0, 190, 10))
        assert epoch != sorted(epoch)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_micro_batches_are_the_rows_of_the_batches_that_they_replace(counting):
    plain = Batches(counting, **SIZES)
    micro = Batches(counting, **SIZES, gradient_accumulation_steps=3)
    assert micro[0].shape == (3, 4, 11)
    for n in range(5):
        expected = np.stack([plain[3 * n + i] for i in range(3)])
        np.testing.assert_array_equal(micro[n], expected)


@settings(deadline=None, max_examples=12)
@given(
    numbers=st.lists(st.integers(0, 10**6), min_size=1, max_size=3),
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(1, 3),
)
def test_a_batch_is_the_same_from_any_start_and_in_any_order(
    counting, numbers, seed, k
):
    sizes = SIZES | {"seed": seed, "gradient_accumulation_steps": k}
    batches = Batches(counting, **sizes)
    seen = [batches[n] for n in numbers]
    for n, batch in reversed(list(zip(numbers, seen, strict=True))):
        np.testing.assert_array_equal(batches[n], batch)
        start = max(0, n - 2)
        resumed = Batches(counting, **sizes).iter_from(start)
        np.testing.assert_array_equal(first(resumed, n - start + 1)[-1], batch)


@settings(deadline=None)
@given(
    num_rows=st.integers(1, 2**32),
    number=st.integers(0, 2**31 - 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_order_is_that_of_a_dataset_of_grain(num_rows, number, seed):
    class Indices:
        def __len__(self):
            return num_rows

        def __getitem__(self, i):
            return np.array([i])

    rows = ShuffledRows(
        Indices(), batch_size=2, seed=seed, gradient_accumulation_steps=1
    )
    dataset = grain.MapDataset.source(Indices()).seed(seed).shuffle().repeat()
    expected = [dataset[2 * number].item(), dataset[2 * number + 1].item()]
    assert rows[number].ravel().tolist() == expected


def test_order_depends_on_the_seed(counting):
    def run(seed):
        batches = Batches(counting, **SIZES | {"seed": seed}).iter_from(0)
        return np.stack(first(batches, 5))

    np.testing.assert_array_equal(run(0), run(0))
    assert not np.array_equal(run(0), run(1))


IN_ANOTHER_PROCESS = """
import hashlib, sys
import numpy as np
np.random.seed(1)
from jaxopt_tf.data import Batches, read_tokens
corpus = read_tokens([sys.argv[1]], vocab_size=999, eos_token_id=7)
batches = Batches(corpus, block_size=10, batch_size=4, seed=5)
print(hashlib.sha256(batches[12345][2:].tobytes()).hexdigest())
"""


def test_another_process_makes_the_same_batch_and_takes_its_rows(tmp_path):
    path = tmp_path / "tokens.npy"
    np.save(path, np.random.default_rng(0).integers(0, 999, 9_999))
    corpus = read_tokens([path], vocab_size=999, eos_token_id=7)
    whole = Batches(corpus, block_size=10, batch_size=4, seed=5)[12345]
    printed = subprocess.check_output(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, str(path)],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        text=True,
    )
    assert printed.strip() == hashlib.sha256(whole[2:].tobytes()).hexdigest()


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A file of 4 GiB and two bytes, none of which is on the disk."""
    path = tmp_path_factory.mktemp("endless") / "sparse"
    with open(path, "wb") as opened:
        opened.truncate(2**32 + 2)
    yield path
    path.unlink()


def test_shuffles_four_billion_windows_without_a_permutation(endless):
    corpus = Corpus(stream(endless, 2**32 + 1, "u1"), None, 256, 1, "bytes", "")
    tracemalloc.start()
    try:
        batches = Batches(corpus, block_size=1, batch_size=64, seed=0)
        assert batches.num_windows == 2**32
        # The first of the second epoch.
        assert batches[2**26].shape == (64, 2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4e6


def test_refuses_more_windows_than_the_shuffle_can_count(endless):
    corpus = Corpus(stream(endless, 2**32 + 2, "u1"), None, 256, 1, "bytes", "")
    with pytest.raises(ValueError, match="`block_size` must give at most 4,294,967,2"):
        Batches(corpus, block_size=1, batch_size=1, seed=0)
    assert Batches(corpus, block_size=2, batch_size=1, seed=0).num_windows == 2**31


def test_refuses_text_shorter_than_a_window(counting):
    with pytest.raises(ValueError, match=r"`text` must .* 201 tokens in its training"):
        Batches(counting, **SIZES | {"block_size": 200})
    with pytest.raises(ValueError, match=r"`text` must .* 51 tokens in its evaluation"):
        evaluation_batches(counting, block_size=50, batch_size=1)
    # One window is enough.
    assert Batches(counting, **SIZES | {"block_size": 199}).num_windows == 1
    assert len(evaluation_batches(counting, block_size=49, batch_size=1)) == 1


def test_refuses_an_evaluation_part_that_is_empty(tmp_path):
    path = tmp_path / "tokens.npy"
    np.save(path, np.arange(9))
    corpus = read_tokens([path], vocab_size=9)
    with pytest.raises(ValueError, match=r"evaluation part, got 0\. Give more text"):
        evaluation_batches(corpus, block_size=2, batch_size=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("block_size", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("gradient_accumulation_steps", 0),
    ],
)
def test_refuses_a_number_that_is_too_small_or_too_large(counting, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be from"):
        Batches(counting, **SIZES | {name: value})


def test_refuses_a_batch_before_the_first(counting):
    with pytest.raises(ValueError, match="`n` must be from 0"):
        Batches(counting, **SIZES)[-1]
    with pytest.raises(ValueError, match="`start` must be from 0"):
        Batches(counting, **SIZES).iter_from(-1)


def test_evaluation_batches_are_spread_over_the_text(tmp_path):
    path = tmp_path / "tokens"
    tokens = np.arange(4_001, dtype=np.uint16)
    tokens.tofile(path)
    part = stream(path, 4_001)
    corpus = Corpus(part, part, 4_001, 1, "tokens", "")
    batches = evaluation_batches(corpus, block_size=10, batch_size=4, num_tokens=400)
    assert [batch.shape for batch in batches] == [(4, 11)] * 10
    # The first window and the last one are among them.
    np.testing.assert_array_equal(batches[0][0], tokens[:11])
    np.testing.assert_array_equal(batches[-1][-1], tokens[-11:])


def test_training_windows_are_spread_over_the_text(counting):
    windows = training_windows(counting, block_size=9, num_windows=3)
    np.testing.assert_array_equal(windows[:, 0], [0, 90, 189])
    np.testing.assert_array_equal(windows[-1], np.arange(189, 199))
    assert windows.dtype == Batches(counting, **SIZES)[0].dtype


def test_training_windows_are_fewer_where_the_text_is_short(counting):
    windows = training_windows(counting, block_size=9, num_windows=1_000)
    np.testing.assert_array_equal(windows[:, 0], np.arange(0, 190, 9))


def test_training_windows_refuse_a_number_below_one_and_a_text_that_is_short(counting):
    with pytest.raises(ValueError, match="`num_windows` must be from 1"):
        training_windows(counting, block_size=9, num_windows=0)
    with pytest.raises(ValueError, match=r"`text` must .* 201 tokens in its training"):
        training_windows(counting, block_size=200, num_windows=1)


def test_evaluation_batches_are_fewer_where_the_text_is_short(counting):
    (batch,) = evaluation_batches(counting, block_size=10, batch_size=64)
    assert batch.shape == (4, 11)


def test_evaluation_refuses_an_empty_batch(counting):
    with pytest.raises(ValueError, match="`batch_size` must be"):
        evaluation_batches(counting, block_size=9, batch_size=0)
    with pytest.raises(ValueError, match="`num_tokens` must be"):
        evaluation_batches(counting, block_size=9, batch_size=1, num_tokens=0)
