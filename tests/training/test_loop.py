"""The loop: who is told what, and when it stops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf.training import (
    Metrics,
    Monitor,
    TrainState,
    make_evaluate,
    train,
)

START = TrainState(jnp.zeros((), jnp.int32), params=None, opt_state=None)


def counting_step(state, batch):
    """Takes a number for a batch, and reports it as the loss."""
    one = jnp.ones((), jnp.float32)
    metrics = Metrics(jnp.asarray(batch, jnp.float32), one, one, one)
    return TrainState(state.step + 1, None, None), metrics


def recorder():
    """A monitor, and the list of what it was told."""
    events = []
    monitor = Monitor(
        lambda window: events.append(
            (window.first_step, np.asarray(window.metrics.loss).tolist())
        ),
        lambda evaluation: events.append(("evaluated", evaluation.step)),
        lambda: events.append("closed"),
    )
    return monitor, events


def test_tells_every_step_once_and_in_order():
    monitor, events = recorder()
    state = train(
        counting_step, START, itertools.count(), num_steps=47, monitors=[monitor]
    )
    assert int(state.step) == 47
    assert events.pop() == "closed"
    assert [loss for _, losses in events for loss in losses] == list(range(47))
    for first_step, losses in events:
        assert first_step == losses[0] + 1


def test_takes_no_batch_more_than_it_needs():
    batches = itertools.count()
    train(counting_step, START, batches, num_steps=5)
    assert next(batches) == 5


def test_evaluates_at_both_ends_and_in_between():
    monitor, events = recorder()
    train(
        counting_step,
        START,
        itertools.count(),
        num_steps=12,
        monitors=[monitor],
        evaluate=lambda params: 1.0,
        eval_steps=4,
    )
    assert [event[1] for event in events if event[0] == "evaluated"] == [0, 4, 8, 12]


def test_has_told_of_all_steps_before_an_evaluation():
    monitor, events = recorder()
    train(
        counting_step,
        START,
        itertools.count(),
        num_steps=6,
        monitors=[monitor],
        evaluate=lambda params: 1.0,
        eval_steps=3,
    )
    told = [(1, [0, 1, 2]), ("evaluated", 3), (4, [3, 4, 5]), ("evaluated", 6)]
    assert events == [("evaluated", 0), *told, "closed"]


def test_does_not_wait_for_the_window_under_way():
    num_fetched = 0
    ahead = []

    def step(state, batch):
        ahead.append(batch + 1 - num_fetched)
        return counting_step(state, batch)

    def count(window):
        nonlocal num_fetched
        num_fetched += len(window.metrics.loss)

    monitor = Monitor(count, lambda evaluation: None, lambda: None)
    train(step, START, itertools.count(), num_steps=100, monitors=[monitor])
    # Ahead of what it has looked at, but not without end.
    assert min(ahead[20:]) > 10
    assert max(ahead) <= 20


def test_goes_on_counting_where_the_state_stands():
    monitor, events = recorder()
    start = START.replace(step=jnp.asarray(7, jnp.int32))
    train(counting_step, start, itertools.count(), num_steps=2, monitors=[monitor])
    assert events == [(8, [0.0, 1.0]), "closed"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_stops_and_names_the_window_where_the_loss_is_not_finite(bad):
    monitor, events = recorder()
    losses = [*range(13), bad, *range(40)]
    with pytest.raises(
        FloatingPointError, match=r"`loss` must be .* step 14, within steps \[11, 20\]"
    ):
        train(counting_step, START, losses, num_steps=50, monitors=[monitor])
    assert events[-1] == "closed"
    # The window is told of first: the file and the picture show what happened.
    assert events[-2][0] == 11


def test_refuses_too_few_batches():
    monitor, events = recorder()
    with pytest.raises(ValueError, match="`batches` must hold at least .* got 3"):
        train(counting_step, START, [0, 1, 2], num_steps=4, monitors=[monitor])
    assert events == [(1, [0.0, 1.0, 2.0]), "closed"]


@pytest.mark.parametrize("name", ["num_steps", "eval_steps"])
@pytest.mark.parametrize("value", [0, -1])
def test_refuses_a_count_below_1(name, value):
    counts = {"num_steps": 2, name: value}
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        train(counting_step, START, [0, 1], **counts)


def test_evaluate_weighs_batches_by_their_items():
    eval_step = jax.jit(lambda params, batch: (jnp.sum(batch * params), batch.size))
    batches = [np.full(3, 1.0, np.float32), np.full(1, 5.0, np.float32)]
    assert make_evaluate(eval_step, batches)(np.float32(2.0)) == 4.0
