"""Packing of whole documents into rows."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_tf.data import PackedBatches, PackedRows, packed_evaluation_batches
from jaxopt_tf.data._corpus import make_corpus
from jaxopt_tf.data._tokens import Documents, TokenFile

PACKINGS = ("bfd", "in_order", "none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


def corpus_of(folder, lengths, *, masked=None):
    """A corpus of the tokens 0, 1, 2, ..., so that each shows where it is from.

    `masked` has one number per token, 1 for a token that is not predicted.
    """
    tokens = np.arange(sum(lengths), dtype=np.int32)
    if masked is not None:
        tokens = np.where(np.asarray(masked, bool), ~tokens, tokens)
    path = folder / "tokens.bin"
    path.write_bytes(tokens.tobytes())
    file = TokenFile(path, tokens.dtype, 0, len(tokens), "")
    length = np.asarray(lengths, np.int64)
    documents = Documents(
        np.zeros(len(length), np.int32), np.cumsum(length) - length, length
    )
    return make_corpus(
        [file],
        documents,
        vocab_size=max(len(tokens), 2),
        end=None,
        unit="tokens",
        is_evaluation=np.zeros(len(length), bool),
        is_masked=masked is not None,
    )


def documents_of(row):
    """Tokens and labels of the documents of a row."""
    number = row["segment_ids"].max()
    for segment in range(1, number + 1):
        at = np.flatnonzero(row["segment_ids"] == segment)
        # Side by side, with positions from 0.
        np.testing.assert_array_equal(at, at[0] + np.arange(len(at)))
        np.testing.assert_array_equal(row["position_ids"][at], np.arange(len(at)))
        yield row["input_ids"][at], row["labels"][at]
    padding = row["segment_ids"] == 0
    # All of it is at the end.
    assert not padding[: len(padding) - padding.sum()].any()
    assert (row["labels"][padding] == -100).all()
    assert (row["position_ids"][padding] == 0).all()


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=40),
    packing=st.sampled_from(PACKINGS),
    overflow=st.sampled_from(["truncate", "split"]),
    size=st.integers(2, 20),
    data=st.data(),
)
def test_every_token_is_in_one_row_and_only_what_is_asked_predicted(
    folder, lengths, packing, overflow, size, data
):
    total = sum(lengths)
    masked = data.draw(
        st.one_of(
            st.none(), st.lists(st.integers(0, 1), min_size=total, max_size=total)
        )
    )
    corpus = corpus_of(folder, lengths, masked=masked)
    is_predicted = np.ones(total, bool) if masked is None else np.asarray(masked) == 0
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    # The pieces that must be there, by hand.
    wanted = []
    for first, last in itertools.pairwise(bounds.tolist()):
        stop = last if overflow == "split" else min(first + size, last)
        starts = range(first, stop, size)
        pieces = [range(start, min(start + size, stop)) for start in starts]
        wanted += [list(p) for p in pieces if is_predicted[p[1:]].any()]
    options = {"block_size": size - 1, "packing": packing, "overflow": overflow}
    if not wanted:
        with pytest.raises(ValueError, match="`corpus` must have a .* predicted token"):
            PackedRows(corpus, "training", **options)
        return
    rows = PackedRows(corpus, "training", **options)
    read = [rows[i] for i in range(len(rows))]
    assert {a.shape for row in read for a in row.values()} == {(size,)}
    assert {a.dtype for row in read for a in row.values()} == {np.dtype(np.int32)}
    found = [document for row in read for document in documents_of(row)]
    for tokens, labels in found:
        expected = np.where(is_predicted[tokens], tokens, -100)
        expected[0] = -100
        np.testing.assert_array_equal(labels, expected)
    tokens = [tokens.tolist() for tokens, _ in found]
    assert sorted(tokens) == wanted
    if packing != "bfd":
        assert tokens == wanted
    assert rows.num_tokens == sum(map(len, wanted))
    assert rows.num_predicted == sum((row["labels"][1:] >= 0).sum() for row in read)
    assert rows.fill_fraction == pytest.approx(rows.num_tokens / (len(rows) * size))


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(2, 20), min_size=1, max_size=60),
    size=st.integers(20, 30),
)
def test_best_fit_is_that_of_its_definition(folder, lengths, size):
    rows = PackedRows(corpus_of(folder, lengths), "training", block_size=size - 1)
    # By hand: the longest first, into the fullest row in which it has a place.
    free = []
    for length in sorted(lengths, reverse=True):
        places = [space for space in free if space >= length]
        if places:
            free.remove(min(places))
        free.append((min(places) if places else size) - length)
    found = [int((rows[i]["segment_ids"] == 0).sum()) for i in range(len(rows))]
    assert sorted(found) == sorted(free)


def test_documents_of_one_length_stay_in_order(folder):
    # More than NumPy's default sorts in their order by chance.
    rows = PackedRows(corpus_of(folder, [2, 3] * 40), "training", block_size=2)
    first = [int(row["input_ids"][0]) for row in rows]
    assert first == [*range(2, 200, 5), *range(0, 200, 5)]


def test_in_order_begins_a_row_where_a_document_does_not_fit(folder):
    corpus = corpus_of(folder, [3, 4, 6, 2, 2, 8, 9])
    rows = PackedRows(corpus, "training", block_size=7, packing="in_order")
    found = [[len(tokens) for tokens, _ in documents_of(row)] for row in rows]
    assert found == [[3, 4], [6, 2], [2], [8], [8]]
    assert rows.notes == ("training part: truncated 1 document, by 1 token in all",)


def test_documents_that_are_left_out_are_counted(folder):
    masked = [1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1]
    corpus = corpus_of(folder, [3, 3, 4, 2], masked=masked)
    rows = PackedRows(corpus, "training", block_size=2)
    assert [len(tokens) for row in rows for tokens, _ in documents_of(row)] == [3]
    assert rows.notes == (
        "training part: truncated 1 row, by 1 token in all",
        "training part: left out 3 rows without a predicted token",
    )


def batches_of(rows, **options):
    options = {"batch_size": 4, "seed": 3, "gradient_accumulation_steps": 2} | options
    return PackedBatches(rows, **options)


@pytest.fixture
def rows(folder):
    # One row for each document, whose first token is its own.
    return PackedRows(corpus_of(folder, [9] * 24), "training", block_size=9)


def test_an_epoch_has_every_row_once_in_an_order_of_its_own(rows):
    batches = batches_of(rows)
    assert batches.num_windows == 24
    assert {a.shape for a in batches[0].values()} == {(2, 4, 10)}
    epochs = [
        [batches[n]["input_ids"][..., 0].ravel() for n in range(first, first + 3)]
        for first in (0, 3)
    ]
    for epoch in epochs:
        assert sorted(np.concatenate(epoch).tolist()) == list(range(0, 24 * 9, 9))
    assert not np.array_equal(*epochs)
    other = batches_of(rows, seed=4)
    assert not np.array_equal(other[0]["input_ids"], batches[0]["input_ids"])


def test_a_batch_is_a_function_of_its_number(rows):
    batches, again = batches_of(rows), batches_of(rows)
    for n, batch in zip((5, 6), again.iter_from(5), strict=False):
        for name, array in batch.items():
            np.testing.assert_array_equal(array, batches[n][name])
    one = batches_of(rows, gradient_accumulation_steps=1)
    assert one[0]["labels"].shape == (4, 10)


def test_slice_reads_only_its_rows(rows, monkeypatch):
    batches = batches_of(rows)
    whole = batches[1]
    index = (slice(0, 2), slice(1, 3), slice(0, 6))
    read = []
    original = PackedRows.__getitem__
    monkeypatch.setattr(
        PackedRows, "__getitem__", lambda self, i: read.append(i) or original(self, i)
    )
    part = batches.read_slice(1, index)
    assert len(read) == 4
    for name, array in part.items():
        np.testing.assert_array_equal(array, whole[name][index])


def test_evaluation_has_all_rows_and_the_last_batch_is_filled_up(rows):
    batches = packed_evaluation_batches(rows, batch_size=7, num_tokens=None)
    assert [b["labels"].shape for b in batches] == [(7, 10)] * 4
    first = np.concatenate([b["input_ids"][:, 0] for b in batches])
    np.testing.assert_array_equal(first[:24], np.arange(0, 24 * 9, 9))
    assert (batches[-1]["segment_ids"][3:] == 0).all()
    assert (batches[-1]["labels"][3:] == -100).all()
    predicted = sum((b["labels"][:, 1:] >= 0).sum() for b in batches)
    assert predicted == rows.num_predicted


def test_evaluation_may_be_on_some_rows_spread_evenly(rows):
    batches = packed_evaluation_batches(rows, batch_size=3, num_tokens=6 * 9)
    first = np.concatenate([b["input_ids"][:, 0] for b in batches])
    assert first.tolist() == [9 * i for i in (0, 4, 9, 13, 18, 23)]
    assert len(packed_evaluation_batches(rows, batch_size=3, num_tokens=1)) == 1
    batches = packed_evaluation_batches(rows, batch_size=99, num_tokens=1)
    assert [b["labels"].shape for b in batches] == [(24, 10)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"packing": "wrapped"}, "`packing` must be one of 'bfd', 'in_order', 'none'"),
        ({"overflow": "drop"}, "`overflow` must be one of 'truncate', 'split', got"),
        (
            {"part": "test"},
            "`part` must be one of 'training', 'evaluation', got 'test'",
        ),
        ({"block_size": 0}, "`block_size` must be from 1 to"),
        ({"pad_token_id": 9}, "`pad_token_id` must be from 0 to 8, got 9"),
        (
            {"part": "evaluation"},
            "`corpus` must have a document in its evaluation part",
        ),
    ],
)
def test_refuses(options, words, folder):
    options = {"part": "training", "block_size": 5} | options
    with pytest.raises(ValueError, match=words):
        PackedRows(corpus_of(folder, [9]), **options)


@pytest.mark.parametrize("name", ["batch_size", "seed", "gradient_accumulation_steps"])
def test_refuses_numbers_that_are_not_whole(name, rows):
    with pytest.raises(TypeError, match=f"`{name}` must be a whole number, got 1.5"):
        batches_of(rows, **{name: 1.5})


def test_documents_of_many_lengths_fill_the_rows(folder):
    lengths = np.random.default_rng(0).integers(1, 4096, 3_000)
    # More than are counted at once.
    masked = np.zeros(lengths.sum())
    corpus = corpus_of(folder, lengths.tolist(), masked=masked)
    rows = PackedRows(corpus, "training", block_size=4095)
    assert rows.num_predicted == np.sum(lengths - 1)
    assert rows.fill_fraction > 0.97


def test_rows_are_a_sequence(rows):
    np.testing.assert_array_equal(rows[-1]["input_ids"], rows[23]["input_ids"])
    for index in (24, -25):
        with pytest.raises(IndexError):
            rows[index]
