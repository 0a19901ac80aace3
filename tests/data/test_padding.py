"""Padded lengths, their number and their padding, and orders by length."""

import itertools

import numpy as np
import pytest

from jaxopt_tf.data import (
    PadToBuckets,
    bucket_numbers,
    bucketed_indices,
    choose_length_pairs,
    choose_lengths,
    fill_rows,
    length_grouped_indices,
)


def padding(lengths, buckets, order=None, batch_size=1):
    """Returns the fraction of padding if batches are padded to the smallest bucket."""
    rows = np.asarray(lengths)[range(len(lengths)) if order is None else order]
    rows = rows.reshape(len(rows), -1)
    ends = np.asarray(sorted(buckets, key=np.sum)).reshape(len(buckets), -1)
    num_tokens = 0
    for i in range(0, len(rows), batch_size):
        batch = rows[i : i + batch_size]
        chosen = bucket_numbers([batch.max(axis=0)], ends)[0]
        num_tokens += len(batch) * ends[chosen].sum()
    return 1 - rows.sum() / num_tokens


@pytest.mark.parametrize("at_most", [1, 2, 3])
def test_lengths_have_the_least_padding_of_all_choices(rng, at_most):
    rows = rng.geometric(0.2, size=200)
    found = choose_lengths(rows, at_most=at_most, multiple=4, max_padding=0.0)
    assert len(found) == at_most
    # The brute force: all choices of lengths with the longest one.
    longest = -(-rows.max() // 4) * 4
    others = itertools.combinations(range(4, longest, 4), at_most - 1)
    least = min(padding(rows, (*choice, longest)) for choice in others)
    assert padding(rows, found) == pytest.approx(least)


def test_the_fewest_lengths_with_little_padding_are_taken():
    rows = [10] * 50 + [20] * 50
    assert choose_lengths(rows, multiple=1, max_padding=0.3) == (20,)
    assert choose_lengths(rows, multiple=1, max_padding=0.1) == (10, 20)
    # Lengths of a multiple of 8 would have too much padding.
    assert choose_lengths(rows, multiple=8, max_padding=0.2) == (12, 20)
    assert choose_lengths(rows, multiple=8, max_padding=0.0) == (10, 20)
    assert choose_lengths(rows, multiple=8, limit=21, max_padding=0.5) == (21,)
    assert choose_lengths([3, 1], multiple=8, max_padding=0.9) == (8,)
    with pytest.raises(ValueError, match="`lengths` must contain at least 1 length"):
        choose_lengths([])
    with pytest.raises(ValueError, match="`at_most` must be from 1"):
        choose_lengths([1], at_most=0)


@pytest.mark.parametrize("name", ["uniform", "reviews", "descriptions"])
def test_six_lengths_have_at_most_15_percent_padding(rng, name):
    # The film reviews have 2 to 74 tokens, 25 on average, and the descriptions 31 to
    # 301 tokens, 85 on average.
    rows = {
        "uniform": rng.integers(4, 513, 8000),
        "reviews": np.clip(rng.normal(25, 10, 8000), 2, 74).astype(int),
        "descriptions": np.clip(rng.gamma(3, 20, 8000) + 31, 31, 256).astype(int),
    }[name]
    lengths = choose_lengths(rows)
    assert len(lengths) <= 6
    order = bucketed_indices(rows, lengths, 16, seed=1, epoch=0)
    assert sorted(order) == list(range(8000))
    assert padding(rows, lengths, order, 16) <= 0.15
    # The order of Trainer has batches with rows of two lengths.
    order = length_grouped_indices(rows, 16, seed=1, epoch=0)
    assert padding(rows, lengths, order, 16) <= 0.18
    unordered = padding(rows, lengths, rng.permutation(8000), 16)
    assert unordered > 0.25


def test_pairs_of_lengths_cover_all_rows_with_little_padding(rng):
    inputs = np.clip(rng.gamma(3, 20, 2000) + 31, 31, 256).astype(int)
    rows = np.stack([inputs, 4 + inputs // 16 + rng.integers(0, 8, 2000)], axis=1)
    pairs = choose_length_pairs(map(tuple, rows))
    assert len(pairs) <= 6
    assert np.all(np.max(pairs, axis=0) >= rows.max(axis=0))
    assert np.all(rows <= np.asarray(pairs)[bucket_numbers(rows, pairs)])
    order = bucketed_indices(rows, pairs, 16, seed=1, epoch=0)
    assert sorted(order) == list(range(2000))
    assert padding(rows, pairs, order, 16) < 0.22
    assert choose_length_pairs([(5, 3)], limit=(6, None)) == ((5, 3),)
    assert choose_length_pairs([(16, 8)] * 9 + [(15, 7)]) == ((16, 8),)
    assert choose_length_pairs([(5, 9), (9, 5)], at_most=1, multiple=1) == ((9, 9),)


@pytest.mark.parametrize("num_rows", [1, 7, 100, 1000])
def test_grouping_by_length_has_the_order_of_transformers(rng, num_rows):
    torch = pytest.importorskip("torch", reason="its order is the reference")
    utils = pytest.importorskip("transformers.trainer_pt_utils", reason="the reference")
    rows = rng.integers(1, 40, num_rows).tolist()
    for epoch in (0, 3):
        generator = torch.Generator().manual_seed(42 + epoch)
        expected = utils.get_length_grouped_indices(rows, 8, generator=generator)
        assert length_grouped_indices(rows, 8, 42, epoch) == expected
    assert length_grouped_indices([], 8, 42, 0) == []


def test_buckets_change_with_the_epoch_but_not_the_shape_of_the_last_batch(rng):
    rows, lengths = rng.integers(1, 33, 101), (8, 16, 32)
    epochs = [bucketed_indices(rows, lengths, 8, seed=3, epoch=e) for e in range(3)]
    assert len({tuple(order) for order in epochs}) == 3
    assert epochs[1] == bucketed_indices(rows, lengths, 8, seed=4, epoch=0)
    last = [[rows[i] for i in order[96:]] for order in epochs]
    assert len({max(bucket_numbers(batch, lengths)) for batch in last}) == 1
    # At most one batch of each bucket has rows of another one.
    mixed = [
        len(set(bucket_numbers(rows[epochs[0][i : i + 8]], lengths)))
        for i in range(0, 101, 8)
    ]
    assert sum(n > 1 for n in mixed) <= 2
    with pytest.raises(
        ValueError, match="a row has 33 tokens and the buckets are 8, 32"
    ):
        bucketed_indices([4, 33], (8, 32), 8, seed=3, epoch=0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_are_padded_as_by_transformers(tokenizer_folders, texts, side):
    transformers = pytest.importorskip("transformers", reason="it is the reference")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        tokenizer_folders["bert"], padding_side=side
    )
    examples = [
        {**tokenizer(text), "labels": [1] * len(tokenizer(text)["input_ids"])}
        for text in texts[3:7]
    ]
    collator = transformers.DataCollatorForTokenClassification(
        tokenizer, padding="max_length", max_length=24, return_tensors="np"
    )
    expected = collator([dict(x) for x in examples])
    for example in examples:
        del example["attention_mask"]
    values = {"input_ids": 0, "token_type_ids": 0, "labels": -100}
    collate = PadToBuckets([64, 24], values, padding_side=side)
    found = collate(examples)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
        assert array.dtype == np.int32


def test_labels_are_stacked_and_rows_that_are_too_long_refused():
    collate = PadToBuckets([2, 4], {"input_ids": 9})
    batch = collate([{"input_ids": [1, 2, 3], "label": 0.5}])
    np.testing.assert_array_equal(batch["input_ids"], [[1, 2, 3, 9]])
    np.testing.assert_array_equal(batch["attention_mask"], [[1, 1, 1, 0]])
    assert (batch["labels"], batch["labels"].dtype) == ([0.5], np.float32)
    batch = collate([{"input_ids": [1], "label": 1}] * 2)
    assert (batch["input_ids"].shape, batch["labels"].dtype) == ((2, 2), np.int32)
    with pytest.raises(ValueError, match="a length of at least 5.*got 2, 4"):
        collate([{"input_ids": [1] * 5}])
    with pytest.raises(ValueError, match="`lengths` must contain at least 1"):
        PadToBuckets([], {})
    with pytest.raises(ValueError, match="`padding_side` must be one of"):
        PadToBuckets([1], {}, padding_side="top")


@pytest.mark.parametrize("shape", [(3,), (3, 4)], ids=["classes", "tokens"])
def test_rows_that_fill_a_batch_do_not_change_the_loss(rng, shape):
    torch = pytest.importorskip("torch", reason="it computes the loss")
    loss_of = torch.nn.functional.cross_entropy
    labels = rng.integers(0, 5, shape).astype(np.int32)
    arrays = {"input_ids": rng.integers(0, 9, (3, 4)), "labels": labels}
    filled = fill_rows(arrays, 8)
    assert filled["input_ids"].shape == (8, 4)
    assert np.all(filled["labels"][3:] == -100)
    assert np.all(filled["input_ids"][3:] == arrays["input_ids"][2])
    logits = torch.from_numpy(rng.normal(size=(8, *shape[1:], 5)))
    losses = [
        loss_of(logits[: len(x)].reshape(-1, 5), torch.from_numpy(x).long().reshape(-1))
        for x in (labels, filled["labels"])
    ]
    assert losses[0] == losses[1]
    np.testing.assert_array_equal(fill_rows(arrays, 3)["labels"], labels)
    with pytest.raises(ValueError, match="labels that are integers.*got float32"):
        fill_rows({"labels": np.float32([0.5])}, 2)
    with pytest.raises(ValueError, match="`num_rows` must be from 3"):
        fill_rows(arrays, 2)
