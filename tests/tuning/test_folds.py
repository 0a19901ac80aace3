"""Folds of rows, and the batches drawn from them."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxopt_tf.recipes import Recipe
from jaxopt_tf.tuning import _folds

RECIPE = Recipe(max_steps=10, per_device_train_batch_size=4, seed=3)


def rows_of(num_rows):
    return {"row": np.arange(num_rows), "twice": 2 * np.arange(num_rows)}


def drawn(fold, held_out, recipe, num_batches):
    batches = _folds.training_batches(rows_of(len(fold)), fold, held_out, recipe)
    return [batch["row"] for batch in itertools.islice(batches, num_batches)]


def test_folds_differ_by_one_row_at_most_and_are_shuffled_by_the_seed():
    fold = _folds.fold_of_rows(23, 4, seed=3)
    assert sorted(np.bincount(fold)) == [5, 6, 6, 6]
    np.testing.assert_array_equal(fold, _folds.fold_of_rows(23, 4, seed=3))
    assert (fold != _folds.fold_of_rows(23, 4, seed=4)).any()
    assert (fold != np.arange(23) % 4).any()


def test_every_row_is_held_out_once():
    for num_rows, size in itertools.product((7, 10, 23), (1, 3, 4, 100)):
        recipe = dataclasses.replace(RECIPE, per_device_train_batch_size=size)
        fold = _folds.fold_of_rows(num_rows, 3, seed=0)
        by_fold = _folds.batches_by_fold(rows_of(num_rows), fold, recipe)
        for i, batches in enumerate(by_fold):
            rows = np.concatenate([batch["row"] for batch in batches])
            np.testing.assert_array_equal(rows, np.flatnonzero(fold == i))
        sizes = {len(batch["row"]) for batches in by_fold for batch in batches}
        assert len(sizes) <= 2
        assert max(sizes) <= size


def test_a_fold_is_trained_on_each_row_of_the_others_once_before_any_twice():
    fold = _folds.fold_of_rows(10, 3, seed=0)
    (held_out,) = np.flatnonzero(np.bincount(fold) == 4)
    taken = np.concatenate(drawn(fold, held_out, RECIPE, 6))  # 6 rows, four times
    for one_pass in taken.reshape(4, 6):
        assert sorted(one_pass) == list(np.flatnonzero(fold != held_out))
    assert (taken[:6] != taken[6:12]).any()


def test_batches_go_by_the_seed_and_keep_rows_together():
    fold = _folds.fold_of_rows(20, 4, seed=0)
    first, again = drawn(fold, 1, RECIPE, 3), drawn(fold, 1, RECIPE, 3)
    np.testing.assert_array_equal(first, again)
    other = drawn(fold, 1, dataclasses.replace(RECIPE, seed=4), 3)
    assert (np.array(first) != other).any()
    batch = next(_folds.training_batches(rows_of(20), fold, 1, RECIPE))
    np.testing.assert_array_equal(batch["twice"], 2 * batch["row"])


def test_accumulation_has_an_axis_of_micro_batches_in_front():
    recipe = dataclasses.replace(RECIPE, gradient_accumulation_steps=2)
    fold = _folds.fold_of_rows(20, 4, seed=0)
    (batch,) = drawn(fold, 0, recipe, 1)
    assert batch.shape == (2, 4)
    np.testing.assert_array_equal(batch.ravel(), np.ravel(drawn(fold, 0, RECIPE, 2)))


def test_refuses_more_folds_than_rows_and_less_than_two():
    with pytest.raises(ValueError, match="`num_folds` must be at most .* is 3, got 5"):
        _folds.fold_of_rows(3, 5, seed=0)
    with pytest.raises(ValueError, match="`num_folds` must be from 2 to .* got 1"):
        _folds.fold_of_rows(3, 1, seed=0)
    with pytest.raises(TypeError, match="`num_folds` must be a whole number, got 2.5"):
        _folds.fold_of_rows(3, 2.5, seed=0)


@pytest.mark.parametrize(
    "examples",
    [{"x": np.ones((10, 2)), "y": np.ones(9)}, {"x": np.float32(1)}, {}, np.ones(0)],
    ids=["lengths differ", "no axis", "no leaf", "no row"],
)
def test_refuses_examples_without_rows_of_one_number(examples):
    with pytest.raises(ValueError, match="`examples` must have a first axis of the"):
        _folds.on_host(examples)


def test_refuses_an_update_of_more_rows_than_there_are_to_train_on():
    fold = _folds.fold_of_rows(11, 4, seed=0)
    eight = dataclasses.replace(RECIPE, per_device_train_batch_size=8)
    _folds.check_batch_size(fold, eight)
    for recipe in (
        dataclasses.replace(RECIPE, per_device_train_batch_size=9),
        dataclasses.replace(RECIPE, gradient_accumulation_steps=3),
    ):
        with pytest.raises(ValueError, match="`per_device_train_batch_size` .* are 8"):
            _folds.check_batch_size(fold, recipe)
