"""Folds of rows, and their batches."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxopt_tf.recipes import Recipe
from jaxopt_tf.tuning._folds import make_folds

RECIPE = Recipe(max_steps=10, per_device_train_batch_size=4, seed=3)


def rows_of(num_rows):
    return {"row": np.arange(num_rows), "twice": 2 * np.arange(num_rows)}


def folds_of(num_rows, num_folds, **changes):
    recipe = dataclasses.replace(RECIPE, **changes)
    return make_folds(rows_of(num_rows), num_folds, recipe)


def drawn(folds, left_out, num_batches):
    batches = folds.training_batches(left_out)
    return [batch["row"] for batch in itertools.islice(batches, num_batches)]


def test_folds_differ_by_one_row_at_most_and_are_shuffled_by_the_seed():
    fold = folds_of(23, 4).fold_of_row
    assert sorted(np.bincount(fold)) == [5, 6, 6, 6]
    np.testing.assert_array_equal(fold, folds_of(23, 4).fold_of_row)
    assert (fold != folds_of(23, 4, seed=4).fold_of_row).any()
    assert (fold != np.arange(23) % 4).any()


def test_every_row_is_evaluated_once():
    for num_rows, size in itertools.product((7, 10, 23), (1, 3, 4)):
        folds = folds_of(num_rows, 3, per_device_train_batch_size=size)
        by_fold = folds.evaluation_batches()
        assert len(by_fold) == folds.num_folds == 3
        for i, batches in enumerate(by_fold):
            rows = np.concatenate([batch["row"] for batch in batches])
            np.testing.assert_array_equal(rows, np.flatnonzero(folds.fold_of_row == i))
        sizes = {len(batch["row"]) for batches in by_fold for batch in batches}
        assert len(sizes) <= 2
        assert max(sizes) <= size


def test_a_fold_is_trained_on_each_row_of_the_others_once_before_any_twice():
    folds = folds_of(10, 3, seed=0)
    (left_out,) = np.flatnonzero(np.bincount(folds.fold_of_row) == 4)
    taken = np.concatenate(drawn(folds, left_out, 6))  # 6 rows, four times
    for one_pass in taken.reshape(4, 6):
        assert sorted(one_pass) == list(np.flatnonzero(folds.fold_of_row != left_out))
    assert (taken[:6] != taken[6:12]).any()


def test_batches_go_by_the_seed_and_keep_rows_together():
    folds = folds_of(20, 4)
    first, again = drawn(folds, 1, 3), drawn(folds, 1, 3)
    np.testing.assert_array_equal(first, again)
    other = dataclasses.replace(folds, recipe=dataclasses.replace(RECIPE, seed=4))
    assert (np.array(first) != drawn(other, 1, 3)).any()
    batch = next(folds.training_batches(1))
    np.testing.assert_array_equal(batch["twice"], 2 * batch["row"])


def test_accumulation_has_an_axis_of_micro_batches_in_front():
    folds = folds_of(20, 4)
    accumulated = folds_of(20, 4, gradient_accumulation_steps=2)
    (batch,) = drawn(accumulated, 0, 1)
    assert batch.shape == (2, 4)
    np.testing.assert_array_equal(batch.ravel(), np.ravel(drawn(folds, 0, 2)))


def test_refuses_more_folds_than_rows_and_less_than_two():
    with pytest.raises(ValueError, match="`num_folds` must be at most .* is 3, got 5"):
        folds_of(3, 5)
    with pytest.raises(ValueError, match="`num_folds` must be from 2 to .* got 1"):
        folds_of(3, 1)
    with pytest.raises(TypeError, match="`num_folds` must be a whole number, got 2.5"):
        folds_of(3, 2.5)


@pytest.mark.parametrize(
    "examples",
    [{"x": np.ones((10, 2)), "y": np.ones(9)}, {"x": np.float32(1)}, {}, np.ones(0)],
    ids=["lengths differ", "no axis", "no leaf", "no row"],
)
def test_refuses_examples_without_rows_of_one_number(examples):
    with pytest.raises(ValueError, match="`examples` must have a first axis of the"):
        make_folds(examples, 2, RECIPE)


def test_refuses_an_update_of_more_rows_than_there_are_to_train_on():
    folds_of(11, 4, per_device_train_batch_size=8)
    for changes in (
        {"per_device_train_batch_size": 9},
        {"gradient_accumulation_steps": 3},
    ):
        with pytest.raises(ValueError, match="`per_device_train_batch_size` .* is 8"):
            folds_of(11, 4, **changes)
