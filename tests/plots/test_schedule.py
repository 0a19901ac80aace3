"""Schedules drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf import get_scheduler
from jaxopt_tf.plots import plot_schedule


def test_draws_the_rates_of_one_schedule():
    schedule = get_scheduler("cosine", 1e-3, 10, 100)
    figure = plot_schedule(schedule, 100)
    (panel,) = figure.axes
    (line,) = panel.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), np.arange(100))
    np.testing.assert_array_equal(line.get_ydata(), jax.vmap(schedule)(jnp.arange(100)))
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("step", "learning rate")
    assert figure.legends == []


def test_compares_several_by_name_and_saves_them(tmp_path):
    named = {name: get_scheduler(name, 1e-3, 10, 100) for name in ("linear", "cosine")}
    path = tmp_path / "schedules.png"
    figure = plot_schedule(named, 100, str(path))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["linear", "cosine"]
    looks = {line.get_linestyle() for line in figure.axes[0].get_lines()}
    assert len(looks) == 2
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_axis_begins_at_zero():
    figure = plot_schedule(get_scheduler("constant", 1e-3), 10)
    assert figure.axes[0].get_ylim()[0] == 0.0


def test_refuses_none():
    with pytest.raises(ValueError, match="`schedules` must hold at least one"):
        plot_schedule({}, 10)


def test_refuses_one_that_a_metric_drives_among_others():
    named = {"a": get_scheduler("constant", 1.0), "b": get_scheduler("greedy", 1.0)}
    with pytest.raises(TypeError, match="one that a metric drives"):
        plot_schedule(named, 10)


def test_refuses_a_path_before_anything_is_computed(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end with one of \.png"):
        plot_schedule(get_scheduler("greedy", 1e-3), 10, tmp_path / "schedule.txt")
