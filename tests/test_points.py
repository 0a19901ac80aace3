"""Rows in a bounded number of points."""

import numpy as np

from jaxopt_tf._points import all_rows, finite_mean, no_points, with_steps


def test_few_steps_are_kept_as_they_are():
    steps = np.arange(12.0).reshape(6, 2)
    points = with_steps(no_points(2), steps[:4], finite_mean)
    points = with_steps(points, steps[4:], finite_mean)
    np.testing.assert_array_equal(all_rows(points, finite_mean), steps)


def test_many_steps_are_means_of_neighbours_and_none_is_lost():
    steps = np.arange(1003.0)[:, None]
    points = no_points(1)
    for begin in range(0, len(steps), 7):
        points = with_steps(points, steps[begin : begin + 7], finite_mean, 10)
        assert len(points.rows) <= 27
    rows = all_rows(points, finite_mean)
    assert len(rows) >= 10
    np.testing.assert_allclose(np.diff(rows[:-1, 0]), points.stride)
    counts = np.full(len(rows), points.stride)
    if len(points.rest):
        counts[-1] = len(points.rest)
    assert (rows[:, 0] * counts).sum() == steps.sum()


def test_a_mean_passes_over_what_is_not_finite():
    groups = np.array([[[1.0], [np.nan], [3.0]], [[np.inf], [np.nan], [np.nan]]])
    np.testing.assert_array_equal(finite_mean(groups), [[2.0], [np.nan]])
