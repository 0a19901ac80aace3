"""The one-standard-error rule, on given numbers."""

import numpy as np
import pytest

from jaxopt_tf.recipes import Recipe
from jaxopt_tf.tuning import DecayPath

BASE = Recipe(max_steps=10, learning_rate=1e-3, weight_decay=7.0)


def path_of(decays, eval_loss):
    """Builds a path from means and the standard error of two folds."""
    eval_loss = np.array([[mean - error, mean + error] for mean, error in eval_loss])
    fold = np.array([0, 1, 1, 0])
    return DecayPath(BASE, np.array(decays), eval_loss / 2, eval_loss, fold)


# The lowest mean is 1.0; at 0.3 the loss is within its standard error, at 1 it is not.
MIDDLE = path_of(
    [0.0, 0.03, 0.1, 0.3, 1.0],
    [(1.5, 0.1), (1.1, 0.1), (1.0, 0.2), (1.15, 0.5), (1.25, 0.5)],
)


def test_mean_and_standard_error_are_those_of_the_folds():
    np.testing.assert_allclose(MIDDLE.mean, [1.5, 1.1, 1.0, 1.15, 1.25])
    # Of 0.8 and 1.2: sqrt((0.2^2 + 0.2^2) / (2 - 1)) / sqrt(2)
    np.testing.assert_allclose(MIDDLE.standard_error, [0.1, 0.1, 0.2, 0.5, 0.5])


def test_suggests_the_largest_within_one_standard_error_of_the_lowest():
    assert (MIDDLE.best, MIDDLE.suggestion) == (0.1, 0.3)
    assert MIDDLE.recipe.weight_decay == 0.3
    assert MIDDLE.recipe.learning_rate == BASE.learning_rate
    assert MIDDLE.reason == (
        "The mean evaluation loss is lowest, 1, at 0.1; 0.3 is the strongest decay "
        "within one standard error, 0.2, of it, with 1.15."
    )


def test_keeps_the_lowest_where_no_stronger_one_is_near():
    path = path_of([0.0, 0.1, 1.0], [(1.5, 0.1), (1.0, 0.1), (1.2, 0.5)])
    assert path.suggestion == path.best == 0.1
    assert "and no stronger decay is within one standard error" in path.reason


def test_reports_where_decays_beyond_should_be_tried():
    path = path_of([0.1, 1.0], [(1.5, 0.1), (1.0, 0.1)])
    assert path.reason.endswith("try stronger ones.")
    path = path_of([0.1, 1.0], [(1.0, 0.1), (1.5, 0.1)])
    assert path.reason.endswith("try weaker ones.")
    # There is none weaker than 0.
    path = path_of([0.0, 1.0], [(1.0, 0.1), (1.5, 0.1)])
    assert "try" not in path.reason


def test_a_fold_that_diverged_rules_its_decay_out():
    eval_loss = np.array([[2.0, 2.0], [0.5, np.inf], [1.0, 1.5]])
    decays = np.array([0.0, 0.1, 1.0])
    path = DecayPath(BASE, decays, eval_loss, eval_loss, np.array([0, 1]))
    assert np.isinf(path.mean[1])
    assert np.isnan(path.standard_error[1])
    assert path.best == path.suggestion == 1.0
    (losses,) = [c for c in path.table().columns if c.header == "training loss"]
    assert list(losses.cells) == ["2", "diverged in 1 of 2 folds", "1.25"]


def test_the_table_marks_the_lowest_and_the_suggested():
    marks = list(MIDDLE.table().columns[-1].cells)
    assert marks == ["", "", "lowest", "suggested", ""]
    both = path_of([0.0, 0.1], [(1.0, 0.1), (1.5, 0.1)]).table()
    assert list(both.columns[-1].cells) == ["lowest, suggested", ""]
    assert list(both.columns[2].cells) == ["1", "1.5"]


def test_refuses_a_path_that_diverged_everywhere():
    eval_loss = np.array([[np.inf, 1.0], [1.0, np.inf]])
    with pytest.raises(
        ValueError,
        match=r"`decays` .* each of 2 diverged; the smallest was 0\.1, .* 0\.001",
    ):
        DecayPath(BASE, np.array([0.1, 1.0]), eval_loss, eval_loss, np.array([0, 1]))
