"""Micro-batches of examples, in the order of Trainer."""

import itertools
import random

import numpy as np
import pytest

from jaxopt_tf.data import (
    ExampleBatches,
    StreamedBatches,
    seeded_generators,
    stack_examples,
    torch_permutation,
)


def numbers(examples):
    return {"x": np.asarray(examples)}


@pytest.mark.parametrize("length", [0, 1, 2, 37, 1000])
@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1, 2**32 + 5])
def test_the_order_is_that_of_torch(length, seed):
    torch = pytest.importorskip("torch", reason="its order is the reference")
    expected = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    assert torch_permutation(length, seed) == expected.tolist()


def test_an_epoch_ends_with_a_short_batch_and_a_short_update():
    batches = ExampleBatches(
        range(11), numbers, batch_size=2, gradient_accumulation_steps=4, seed=3
    )
    assert batches.steps_per_epoch == 2
    sizes = [[len(b["x"]) for b in batches[n]] for n in range(4)]
    assert sizes == [[2, 2, 2, 2], [2, 1]] * 2
    seen = [
        np.concatenate([b["x"] for n in epoch for b in batches[n]]).tolist()
        for epoch in ((0, 1), (2, 3))
    ]
    # accelerate seeds epoch e with the seed plus e.
    assert seen == [torch_permutation(11, 3), torch_permutation(11, 4)]
    again = itertools.islice(batches.iter_from(3), 1)
    assert [b["x"].tolist() for b in next(again)] == [
        b["x"].tolist() for b in batches[3]
    ]


def test_the_last_batch_can_be_dropped_and_the_order_kept():
    batches = ExampleBatches(
        range(5), numbers, batch_size=2, is_shuffled=False, drop_last=True
    )
    assert [batches[n][0]["x"].tolist() for n in range(3)] == [[0, 1], [2, 3], [0, 1]]
    with pytest.raises(ValueError, match="`train_dataset` must contain at least 2"):
        ExampleBatches([1], numbers, batch_size=2, drop_last=True)
    with pytest.raises(ValueError, match="at least 1 example, got 0"):
        ExampleBatches([], numbers, batch_size=2)


def test_streamed_examples_are_read_again_and_skipped_on_resumption():
    batches = StreamedBatches(
        range(5), numbers, batch_size=2, gradient_accumulation_steps=2
    )
    found = [
        [b["x"].tolist() for b in update]
        for update in itertools.islice(batches.iter_from(1), 3)
    ]
    assert found == [[[4]], [[0, 1], [2, 3]], [[4]]]
    with pytest.raises(ValueError, match="examples in every iteration"):
        next(StreamedBatches([], numbers, batch_size=2).iter_from(0))


def test_random_collators_depend_on_the_micro_batch_only():
    def draw(examples):
        return {"x": np.array([random.random(), np.random.rand()])}

    batches = ExampleBatches(range(4), draw, batch_size=1, seed=1)
    first = [batches[n][0]["x"] for n in range(4)]
    state = random.getstate()
    np.testing.assert_array_equal(batches[2][0]["x"], first[2])
    assert random.getstate() == state
    assert len({x.tobytes() for x in first}) == 4
    with seeded_generators(1, 2):
        a = random.random()
    with seeded_generators(1, 2):
        assert random.random() == a


EXAMPLES = [
    {"input_ids": [1, 2], "label": 1, "weight": 0.5, "text": "a", "none": None},
    {"input_ids": [3, 4], "label": 0, "weight": 1.5, "text": "b", "none": None},
]


@pytest.mark.parametrize(
    "examples",
    [
        EXAMPLES,
        [{"label": 0.5, "x": np.ones(2)}, {"label": 1, "x": np.zeros(2)}],
        [{"label_ids": [1, 2], "x": [[True]]}, {"label_ids": [3, 4], "x": [[False]]}],
    ],
    ids=["integers", "floats", "label_ids"],
)
def test_columns_are_stacked_as_by_the_default_collator(examples):
    collators = pytest.importorskip("transformers", reason="it is the reference")
    expected = collators.default_data_collator(examples)
    found = stack_examples(examples)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name].numpy())
        assert array.dtype == expected[name].numpy().dtype, name


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1, 2], [3]], r"'ids' has rows of shapes \(1,\), \(2,\)"),
        ([[1], None], "'ids' is missing in 1 of 2 examples"),
        ([["a"], ["b"]], "'ids' cannot be converted"),
    ],
    ids=["ragged", "missing", "words"],
)
def test_a_column_that_cannot_be_stacked_is_named(column, message):
    with pytest.raises(ValueError, match=f"{message}.*Pad the column"):
        stack_examples([{"ids": ids} for ids in column])
    with pytest.raises(TypeError, match="must contain dictionaries"):
        stack_examples([3, 4])
