"""The learning rate in states inside of optax wrappers, Flax states and dicts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState

from jaxopt_tf.optimizers import (
    adafactor_tf,
    adamw_tf,
    clip,
    get_learning_rate,
    is_clipped,
    set_learning_rate,
)

PARAMS = {"a": jnp.ones((2, 3))}
RATE, NEW = 0.25, 0.5

pytestmark = [
    pytest.mark.promotion_of_others,
    pytest.mark.usefixtures("compiled_quickly"),
]


def injected(learning_rate):
    return optax.inject_hyperparams(adamw_tf)(learning_rate)


@optax.inject_hyperparams
def injected_chain(learning_rate, max_norm):
    return optax.chain(clip(max_norm), adamw_tf(learning_rate))


WRAPPED = {
    "plain": adamw_tf,
    "chain": lambda rate: optax.chain(clip(1.0), adamw_tf(rate)),
    "inject": injected,
    "inject a chain": lambda rate: injected_chain(rate, 1.0),
    "inject in a chain": lambda rate: optax.chain(clip(1.0), injected(rate)),
    "multi": lambda rate: optax.multi_transform({"x": adamw_tf(rate)}, "x"),
    "inject in multi": lambda rate: optax.multi_transform({"x": injected(rate)}, "x"),
    "MultiSteps": lambda rate: optax.MultiSteps(
        adamw_tf(rate), 1
    ).gradient_transformation(),
    "masked": lambda rate: optax.masked(adamw_tf(rate), True),
    "finite": lambda rate: optax.apply_if_finite(adamw_tf(rate), 3),
    "finite inject": lambda rate: optax.apply_if_finite(injected(rate), 3),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("idiom", ["set_learning_rate", "optax.tree.set"])
def test_is_set_and_read_inside_of_every_wrapper(name, idiom):
    optimizer = WRAPPED[name](RATE)
    update = jax.jit(optimizer.update)
    _, state = update(PARAMS, optimizer.init(PARAMS), PARAMS)
    assert get_learning_rate(state) == RATE
    if idiom == "set_learning_rate":
        state = set_learning_rate(state, NEW)
    else:
        state = optax.tree.set(state, learning_rate=jnp.float32(NEW))
    assert get_learning_rate(state) == NEW
    for _ in range(2):
        updates, state = update(PARAMS, state, PARAMS)
        assert get_learning_rate(state) == NEW
        np.testing.assert_allclose(updates["a"], -NEW, rtol=1e-5)
    assert update._cache_size() == 1


def test_a_number_that_optax_sets_is_taken_in_float32():
    optimizer = adamw_tf(RATE)
    state = optax.tree.set(optimizer.init(PARAMS), learning_rate=NEW)
    updates, new = jax.jit(optimizer.update)(PARAMS, state, PARAMS)
    assert new.learning_rate.dtype == jnp.float32
    assert not new.learning_rate.weak_type
    np.testing.assert_allclose(updates["a"], -NEW, rtol=1e-5)


@pytest.mark.parametrize("name", ["inject", "inject a chain"])
def test_an_assignment_to_hyperparams_is_used_before_and_after_another(name):
    optimizer = WRAPPED[name](RATE)
    state = set_learning_rate(optimizer.init(PARAMS), NEW)
    assert state.hyperparams["learning_rate"] == NEW
    state.hyperparams["learning_rate"] = jnp.float32(0.125)
    _, state = optimizer.update(PARAMS, state, PARAMS)
    assert get_learning_rate(state) == 0.125
    assert optax.tree.get(state.hyperparams, "learning_rate") == 0.125


def test_an_injected_schedule_cannot_be_set():
    optimizer = injected(lambda step: 0.5 ** jnp.float32(step))
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match="`opt_state` takes the.*from a schedule"):
        set_learning_rate(state, NEW)
    for rate in [1.0, 0.5]:
        _, state = optimizer.update(PARAMS, state, PARAMS)
        assert get_learning_rate(state) == rate


def test_a_rate_that_is_injected_under_another_name_is_set_there():
    optimizer = optax.inject_hyperparams(lambda lr: adamw_tf(lr))(RATE)
    with pytest.raises(ValueError, match=r"Set `opt_state.hyperparams\['lr'\]`"):
        set_learning_rate(optimizer.init(PARAMS), NEW)


def test_one_injected_rate_of_two_optimizers_is_set_for_both():
    @optax.inject_hyperparams
    def make(learning_rate):
        both = {"x": adamw_tf(learning_rate), "y": adamw_tf(0.1 * learning_rate)}
        return optax.multi_transform(both, {"a": "x", "b": "y"})

    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    optimizer = make(RATE)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"entry for each.*\['x', 'y'\]"):
        set_learning_rate(state, {"x": NEW})
    _, state = optimizer.update(params, set_learning_rate(state, NEW), params)
    assert get_learning_rate(state) == {"x": NEW, "y": np.float32(0.05)}


def make_nnx(optimizer):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    return nnx.Optimizer(model, optimizer, wrt=nnx.Param)


NNX_FORMS = {
    "optimizer": lambda optimizer: optimizer,
    "opt_state": lambda optimizer: optimizer.opt_state,
    "state": nnx.state,
    "state of OptState": lambda optimizer: nnx.state(optimizer, nnx.optimizer.OptState),
    "split": lambda optimizer: nnx.split(optimizer)[1],
    "pure dict": lambda optimizer: nnx.to_pure_dict(nnx.state(optimizer)),
    "as_pure": lambda optimizer: nnx.as_pure(optimizer.opt_state),
}


@pytest.mark.parametrize("form", NNX_FORMS)
@pytest.mark.parametrize("name", ["plain", "chain", "inject in a chain"])
def test_every_form_of_an_nnx_optimizer_is_read_and_set(form, name):
    state = NNX_FORMS[form](make_nnx(WRAPPED[name](RATE)))
    assert get_learning_rate(state) == RATE
    assert not is_clipped(state)
    new = set_learning_rate(state, NEW)
    assert get_learning_rate(new) == NEW
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_a_rate_set_in_an_nnx_state_is_used_after_a_merge():
    optimizer = make_nnx(optax.chain(clip(1e-3), adamw_tf(RATE)))
    graph, state = nnx.split(optimizer)
    optimizer = nnx.merge(graph, set_learning_rate(state, NEW))
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer.update(model, nnx.state(model, nnx.Param))
    assert get_learning_rate(nnx.state(optimizer)) == NEW
    assert is_clipped(nnx.state(optimizer))
    nnx.update(optimizer, set_learning_rate(nnx.state(optimizer), RATE))
    optimizer.update(model, nnx.state(model, nnx.Param))
    assert get_learning_rate(optimizer) == RATE


def test_a_linen_state_dict_is_read_and_set():
    both = {"slow": adamw_tf(RATE), "fast": adafactor_tf(RATE, relative_step=False)}
    optimizer = optax.chain(
        clip(1e-3), optax.multi_transform(both, {"a": "slow", "b": "fast"})
    )
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    state = TrainState.create(apply_fn=None, params=params, tx=optimizer)
    state = state.apply_gradients(grads=params)
    as_dict = serialization.to_state_dict(state)
    assert get_learning_rate(as_dict) == {"slow": RATE, "fast": RATE}
    assert is_clipped(as_dict)
    as_dict = set_learning_rate(as_dict, {"fast": NEW})
    state = serialization.from_state_dict(state, as_dict)
    state = state.apply_gradients(grads=params)
    assert get_learning_rate(state) == {"slow": RATE, "fast": NEW}
