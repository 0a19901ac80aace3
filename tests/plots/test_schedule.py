"""Figures of schedules, and the rates in them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.plots import plot_schedule, sample_schedule
from jaxopt_tf.schedules import (
    constant,
    cosine,
    decay,
    get_scheduler,
    join,
    linear,
    warmup,
)

pytestmark = pytest.mark.usefixtures("compiled_quickly")


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
    with pytest.raises(ValueError, match="`schedules` must contain at least one"):
        plot_schedule({}, 10)


def test_refuses_one_that_a_metric_drives_among_others():
    named = {"a": get_scheduler("constant", 1.0), "b": get_scheduler("greedy", 1.0)}
    with pytest.raises(TypeError, match="a metric-driven schedule"):
        plot_schedule(named, 10)


def test_refuses_a_path_before_anything_is_computed(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end with one of \.png"):
        plot_schedule(get_scheduler("greedy", 1e-3), 10, tmp_path / "schedule.txt")


def test_a_short_run_is_all_there():
    schedule = get_scheduler("cosine", 1e-3, 100, 1_500)
    steps, rates = sample_schedule(schedule, 1_500)
    np.testing.assert_array_equal(steps, np.arange(1_500))
    np.testing.assert_array_equal(rates, jax.vmap(schedule)(jnp.arange(1_500)))


def test_the_corners_of_a_long_run_are_at_their_steps():
    n = 2_000_000_000
    schedule = join(1e-3, warmup(linear, 500), constant(n - 1_500), decay(cosine, 1000))
    steps, rates = sample_schedule(schedule, n)
    assert len(steps) < 6_500
    assert (np.diff(steps) > 0).all()
    assert {0, 499, 500, 501, n - 1_000, n - 1} <= set(steps.tolist())
    assert steps[np.argmax(rates)] == 500
    # As the schedule has it, on the last steps too.
    at_end = steps > n - 900
    left = n - steps[at_end].astype(float)
    expected = 1e-3 * np.sin(0.5 * np.pi * left / 1_000) ** 2
    np.testing.assert_allclose(rates[at_end], expected, rtol=1e-6)


def test_a_jump_of_a_long_run_stays_a_jump():
    options = {"num_cycles": 3}
    schedule = get_scheduler("cosine_with_restarts", 1.0, 0, 30_000_000, options)
    steps, rates = sample_schedule(schedule, 30_000_000)
    jumps = np.flatnonzero(np.diff(rates) > 0.5)
    np.testing.assert_array_equal(steps[jumps + 1], [10_000_000, 20_000_000])
    np.testing.assert_array_equal(np.diff(steps)[jumps], [1, 1])


def test_the_highest_rate_is_the_highest():
    # A corner so flat that it could not be seen.
    schedule = get_scheduler("linear", 1e-3, 100_000, 1_000_000)
    steps, rates = sample_schedule(schedule, 1_000_000)
    assert rates.max() == np.float32(1e-3)
    assert steps[np.argmax(rates)] == 100_000


def test_a_schedule_that_bends_everywhere_has_a_bounded_number_of_points():
    schedule = get_scheduler("cosine", 1.0, 0, 10_000_000, {"num_cycles": 400})
    steps, _ = sample_schedule(schedule, 10_000_000)
    assert len(steps) < 6_500


@pytest.mark.promotion_of_others
def test_optax_schedules_are_taken_too():
    steps, rates = sample_schedule(optax.constant_schedule(1e-3), 5)
    np.testing.assert_array_equal(rates, np.full(5, 1e-3, np.float32))
    _, rates = sample_schedule(optax.linear_schedule(1.0, 0.0, 4), 5)
    np.testing.assert_allclose(rates, [1.0, 0.75, 0.5, 0.25, 0.0])
    assert len(steps) == 5


def test_one_step_is_a_run():
    steps, rates = sample_schedule(get_scheduler("constant", 1e-3), 1)
    assert (steps.tolist(), rates.tolist()) == ([0], [np.float32(1e-3)])


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_refuses_what_a_metric_drives(name):
    with pytest.raises(TypeError, match=r"a metric-driven schedule.*plot_run"):
        sample_schedule(get_scheduler(name, 1e-3), 10)


def test_refuses_what_is_no_function():
    with pytest.raises(TypeError, match=r"`schedules` must be functions.*got 0.001"):
        sample_schedule(1e-3, 10)


def test_refuses_a_run_without_steps():
    with pytest.raises(ValueError, match="`num_steps` must be from 1"):
        sample_schedule(get_scheduler("constant", 1e-3), 0)
