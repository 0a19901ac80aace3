"""Messages of the health monitor for a loss that oscillates about a level."""

import numpy as np
import pytest

from jaxopt_tf.monitors import health_monitor
from tests.events import metrics_of, tell

STEPS = np.arange(1, 601)
# Updates of 0.5 against a gradient of 3: to first order the loss changes by 1.5.
LONG_STEPS = {"grads": 3.0, "updates": 0.5, "params": 20.0}


def swinging(level=3.4, start=5.0):
    """A loss that comes down to a level and goes up and down about it."""
    losses = level + (start - level) * np.exp(-STEPS / 10)
    return losses + 0.3 * np.random.default_rng(0).normal(size=len(STEPS))


def said_of(loss, **numbers):
    sentences = []
    tell(health_monitor(sentences.append), metrics_of(loss, **numbers))
    return sentences


def test_reports_that_a_run_oscillates_and_in_which_steps():
    (sentence,) = said_of(swinging(), **LONG_STEPS)
    assert sentence.startswith("steps 1 to 400: the loss stays at 3.4")
    assert "and swings by 0.29," in sentence
    assert "change by 3e-02 a step, enough by their gradient to change" in sentence
    assert "the loss by 1.5, training oscillates; lower `learning_rate`" in sentence


def test_a_loss_that_still_falls_does_not_oscillate():
    assert said_of(swinging() - STEPS / 600, **LONG_STEPS) == []


def test_noise_of_batches_along_short_steps_is_no_oscillation():
    assert said_of(swinging(), grads=3.0, updates=0.05, params=5.0) == []


def test_a_large_gradient_of_a_large_model_is_no_oscillation():
    assert said_of(swinging(), grads=3.0, updates=0.5, params=200.0) == []


def test_a_loss_that_has_come_down_nearly_all_the_way_does_not_oscillate():
    assert said_of(swinging(level=1.0, start=8.0), **LONG_STEPS) == []


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_unit_of_the_loss_does_not_matter(unit):
    numbers = LONG_STEPS | {"grads": 3.0 * unit}
    (sentence,) = said_of(unit * swinging(), **numbers)
    assert "training oscillates" in sentence


def test_a_loss_below_0_oscillates_as_well():
    (sentence,) = said_of(swinging(level=-3.4, start=-1.0), **LONG_STEPS)
    assert "training oscillates" in sentence


def test_what_a_loss_began_at_is_no_measure_where_it_was_0():
    assert said_of(swinging(level=-8.0, start=0.0), **LONG_STEPS) == []


def test_is_silent_once_the_rate_is_lower():
    losses = swinging() - np.maximum(STEPS - 300, 0) / 200
    updates = np.where(STEPS > 300, 0.02, 0.5)
    assert said_of(losses, **LONG_STEPS | {"updates": updates}) == []
