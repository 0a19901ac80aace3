"""Non-finite losses and gradients under each policy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.optimizers import adamw_tf, clip
from jaxopt_tf.training import init_train_state, make_train_step

pytestmark = [
    pytest.mark.promotion_of_others,  # optax.apply_updates
    pytest.mark.usefixtures("compiled_quickly"),
]

GOOD, BAD_LOSS, BAD_GRADIENT = 0.0, np.nan, 1.0


def loss_fn(params, batch):
    # At 0 the square root has no slope: a finite loss with a gradient that is not.
    loss = jnp.sum((params - 1.0) ** 2)
    root = jax.lax.cond(
        batch == BAD_GRADIENT,
        lambda p: jnp.sqrt(0.0 * p).sum(),
        lambda p: jnp.float32(0),
        params,
    )
    return loss + root + jnp.where(jnp.isnan(batch), jnp.nan, 0.0), 1


def schedule(step):
    return 0.1 / (1 + jnp.asarray(step, jnp.float32))


def run(batches, **options):
    optimizer = optax.chain(clip(1.0), adamw_tf(schedule))
    train_step = make_train_step(loss_fn, optimizer, **options)
    states = [init_train_state(jnp.full(3, 2.0), optimizer)]
    told = []
    for batch in batches:
        copy = jax.tree.map(jnp.copy, states[-1])
        state, metrics = train_step(copy, np.float32(batch))
        states.append(state)
        told.append((bool(metrics.is_skipped), bool(metrics.is_stopped)))
    return states, told


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("bad", [BAD_LOSS, BAD_GRADIENT], ids=["loss", "gradient"])
def test_stop_policy_keeps_the_state_unchanged(bad):
    states, told = run([GOOD, bad, GOOD, GOOD])
    assert told == [(False, False), (True, True), (True, True), (True, True)]
    for state in states[2:]:
        assert int(state.step) == 1
        assert_same(
            (state.params, state.opt_state), (states[1].params, states[1].opt_state)
        )


@pytest.mark.parametrize("bad", [BAD_LOSS, BAD_GRADIENT], ids=["loss", "gradient"])
def test_skip_leaves_the_update_out_and_the_schedule_where_it_was(bad):
    states, told = run([GOOD, bad, bad, GOOD], on_non_finite="skip")
    without, _ = run([GOOD, GOOD], on_non_finite="skip")
    assert told == [(False, False), (True, False), (True, False), (False, False)]
    assert [int(state.step) for state in states] == [0, 1, 2, 3, 4]
    assert [int(state.num_bad_in_a_row) for state in states] == [0, 0, 1, 2, 0]
    assert_same(states[4].params, without[2].params)
    assert_same(states[4].opt_state, without[2].opt_state)
    assert int(optax.tree.get(states[4].opt_state, "count")) == 2


def test_too_many_skipped_in_a_row_stop():
    bad = BAD_LOSS
    states, told = run(
        [GOOD, bad, bad, GOOD, bad, bad, bad, GOOD],
        on_non_finite="skip",
        max_skipped_in_a_row=2,
    )
    assert [stopped for _, stopped in told] == [False] * 6 + [True] * 2
    assert_same(states[8].params, states[4].params)


def test_propagate_makes_the_update_as_torch_does():
    # A loss of NaN is no reason to spare a step whose gradient is finite.
    states, told = run([GOOD, BAD_LOSS, GOOD], on_non_finite="propagate")
    assert int(optax.tree.get(states[3].opt_state, "count")) == 3
    assert np.isfinite(states[3].params).all()
    states, told = run([GOOD, BAD_GRADIENT, GOOD], on_non_finite="propagate")
    assert told == [(False, False)] * 3
    assert np.isnan(states[3].params).all()
    assert int(states[3].step) == 3


def test_a_skipped_step_reports_no_update():
    optimizer = optax.chain(clip(1e-3), adamw_tf(0.1))
    train_step = make_train_step(loss_fn, optimizer, on_non_finite="skip")
    state = init_train_state(jnp.full(3, 2.0), optimizer)
    _, metrics = train_step(state, np.float32(BAD_LOSS))
    assert float(metrics.norms.updates) == 0.0
    assert not bool(metrics.is_clipped)


def test_refuses_a_policy_that_does_not_exist():
    with pytest.raises(ValueError, match=r"`on_non_finite` must .* mean 'skip'"):
        make_train_step(loss_fn, optax.sgd(0.1), on_non_finite="skipp")


def test_refuses_a_negative_number_of_skipped_steps():
    with pytest.raises(ValueError, match="`max_skipped_in_a_row` must be"):
        make_train_step(loss_fn, optax.sgd(0.1), max_skipped_in_a_row=-1)
