"""`ema_params` against torch's averaged model, and `eval_params` inside wrappers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.optimizers import (
    adamw_tf,
    clip,
    ema_params,
    eval_params,
    schedule_free_sgd_tf,
    sgd_tf,
)
from tests import references

pytestmark = pytest.mark.usefixtures("compiled_quickly")

PARAMS = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}
LABELS = {"kernel": "a", "bias": "b"}


def trained(optimizer, num_steps=3, params=PARAMS):
    """Returns the parameters of each step, and the last state."""
    step, state = jax.jit(optimizer.update), optimizer.init(params)
    history = []
    for i in range(num_steps):
        grads = jax.tree.map(lambda p, i=i: jnp.full_like(p, 1 + i), params)
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history, state


def assert_equal(ours, theirs):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), ours, theirs)


@references.needs_torch
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_follows_the_averaged_model_of_torch(decay):
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    history, state = trained(optax.chain(sgd_tf(0.1), ema_params(decay)), 10)
    module = torch.nn.Linear(2, 3)
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for params in history:
        with torch.no_grad():
            module.weight.copy_(torch.tensor(np.asarray(params["kernel"]).T))
            module.bias.copy_(torch.tensor(np.asarray(params["bias"])))
        averaged.update_parameters(module)
    ours = eval_params(history[-1], state)
    theirs = averaged.module
    assert_equal(ours["kernel"], theirs.weight.detach().numpy().T)
    assert_equal(ours["bias"], theirs.bias.detach().numpy())


def test_means_of_bfloat16_parameters_are_float32():
    params = {"w": jnp.full(4, 100.0, jnp.bfloat16)}
    # A bfloat16 near 100 has a spacing of 0.5: a mean in bfloat16 would not move.
    optimizer = optax.chain(sgd_tf(1.0), ema_params(0.9))
    history, (_, state) = trained(optimizer, 2, params)
    expected = 0.9 * np.float32(history[0]["w"]) + 0.1 * np.float32(history[1]["w"])
    assert state.ema["w"].dtype == jnp.float32
    np.testing.assert_allclose(state.ema["w"], expected, rtol=1e-6)
    assert eval_params(history[-1], state)["w"].dtype == jnp.bfloat16


def test_the_mean_before_the_first_update_is_the_parameters():
    # Also those of a state that was initialized with others, as an imported one.
    state = ema_params(0.9).init(jax.tree.map(jnp.zeros_like, PARAMS))
    assert_equal(eval_params(PARAMS, state), PARAMS)


def test_without_an_average_the_parameters_themselves_are_returned():
    optimizer = optax.chain(clip(1.0), adamw_tf(1e-3))
    assert eval_params(PARAMS, optimizer.init(PARAMS)) is PARAMS


WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.identity(), optax.chain(tx)),
    "multi_transform": lambda tx: optax.multi_transform({"a": tx, "b": tx}, LABELS),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(lambda scale: tx)(1.0),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
}


@pytest.mark.promotion_of_others
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_averages_are_found_inside_of_wrappers(wrapper):
    plain = optax.chain(schedule_free_sgd_tf(0.1))
    expected = eval_params(*_last(plain))
    assert_equal(eval_params(*_last(WRAPPERS[wrapper](plain))), expected)


def _last(optimizer):
    history, state = trained(optimizer)
    return history[-1], state


def test_parameters_that_a_mask_leaves_out_are_unchanged():
    mask = {"kernel": True, "bias": False}
    params, state = _last(optax.masked(schedule_free_sgd_tf(0.1), mask))
    found = eval_params(params, state)
    assert found["bias"] is params["bias"]
    assert np.any(found["kernel"] != params["kernel"])


def test_each_group_may_have_another_average():
    by_label = {
        "a": schedule_free_sgd_tf(0.1),
        "b": optax.chain(sgd_tf(0.1), ema_params(0.5)),
    }
    history, state = trained(optax.multi_transform(by_label, LABELS))
    found = eval_params(history[-1], state)
    first, second, third = (np.asarray(params["bias"]) for params in history)
    assert_equal(found["bias"], 0.25 * first + 0.25 * second + 0.5 * third)
    alone = eval_params(*_last(schedule_free_sgd_tf(0.1)))
    assert_equal(found["kernel"], alone["kernel"])


def test_two_averages_of_one_parameter_are_refused():
    params, state = _last(optax.chain(schedule_free_sgd_tf(0.1), ema_params(0.9)))
    with pytest.raises(ValueError, match="one average of each parameter, got two of"):
        eval_params(params, state)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="`decay` must be at least 0 and less than 1"):
        ema_params(decay)
