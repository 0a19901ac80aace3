"""A run's steps as rows, of which neighbours are put together."""

import numpy as np

from jaxopt_tf._points import no_points, with_steps
from jaxopt_tf._run_rows import (
    LEAST,
    LOSS,
    MOST,
    NUM_COLUMNS,
    RATE,
    SKIPPED,
    STEP,
    merge_steps,
    smoothed,
    steps_as_rows,
    thinned,
)
from tests.events import metrics_of


def test_neighbours_are_put_together_when_a_run_is_long():
    losses = np.random.default_rng(0).normal(size=50_003).astype(np.float32)
    losses[30_000] = 99.0
    losses[40_000] = -99.0
    skipped = np.zeros(len(losses), bool)
    skipped[[5, 49_999]] = True
    points, most = no_points(NUM_COLUMNS), 0
    # Windows of 9, so that the number of points is odd at times.
    for begin in range(0, len(losses), 9):
        end = min(begin + 9, len(losses))
        columns = {"rate": np.arange(begin, end), "skipped": skipped[begin:end]}
        steps = steps_as_rows(begin + 1, metrics_of(losses[begin:end], **columns))
        points = with_steps(points, steps, merge_steps)
        most = max(most, len(points.rows))
    assert most <= 4_020
    rows, stride = points.rows, points.stride
    assert len(rows) * stride + len(points.rest) == len(losses)
    assert len(rows) > 1_900
    # All points are means over as many steps, in order, and none is left out.
    np.testing.assert_allclose(np.diff(rows[:, STEP]), stride)
    means = losses[: len(rows) * stride].reshape(-1, stride).mean(axis=1)
    is_whole = rows[:, SKIPPED] == 0
    np.testing.assert_allclose(rows[is_whole, LOSS], means[is_whole], atol=1e-5)
    assert rows[:, MOST].max() == 99.0
    assert rows[:, LEAST].min() == -99.0
    assert rows[:, SKIPPED].sum() == 2
    assert rows[-1, RATE] == len(rows) * stride - 1


def test_smoothing_keeps_a_line_a_line_and_passes_over_gaps():
    line = np.linspace(4.0, 3.0, 500)
    line[100] = np.nan
    means = smoothed(line)
    assert np.isfinite(means).all()
    # At the end the mean is of one side only.
    np.testing.assert_allclose(means[:490], np.linspace(4, 3, 500)[:490], atol=3e-3)


def test_of_very_many_evaluations_every_so_many_and_the_last_are_drawn():
    steps, losses = thinned([(step, float(step)) for step in range(10_002)])
    assert len(steps) <= 2_000
    assert (steps[0], steps[-1]) == (0, 10_001)
    np.testing.assert_array_equal(steps, losses)
    assert thinned([]).shape == (2, 0)
