"""Reading and changing the learning rate in any state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from jaxopt_tf.optimizers import (
    adafactor_tf,
    adafactor_trainer,
    adamw_tf,
    clip,
    get_learning_rate,
    set_learning_rate,
    sgd_tf,
)

pytestmark = pytest.mark.usefixtures("compiled_quickly")

PARAMS = {"a": jnp.ones((4, 3)), "b": jnp.ones(3)}


def halving(step):
    return 0.5 ** jnp.asarray(step, jnp.float32)


def after_one_update(optimizer):
    return optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)[1]


def test_is_read_from_a_chain():
    state = after_one_update(optax.chain(clip(1.0), adamw_tf(1e-3)))
    assert get_learning_rate(state) == np.float32(1e-3)
    assert optax.tree.get(state, "learning_rate") == np.float32(1e-3)


def test_is_the_one_that_the_last_update_used():
    optimizer = adamw_tf(halving)
    state = optimizer.init(PARAMS)
    assert get_learning_rate(state) == 1.0
    for rate in [1.0, 0.5, 0.25]:
        _, state = optimizer.update(PARAMS, state, PARAMS)
        assert get_learning_rate(state) == rate


def test_of_adafactor_is_the_relative_step_before_the_parameter_scale():
    state = after_one_update(adafactor_tf(warmup_init=True))
    assert get_learning_rate(state) == np.float32(1e-6)


@pytest.mark.promotion_of_others
def test_is_one_per_optimizer_under_multi_transform():
    optimizer = optax.multi_transform(
        {"slow": adamw_tf(1e-4), "fast": adafactor_tf(1e-2, relative_step=False)},
        {"a": "fast", "b": "slow"},
    )
    state = optimizer.init(PARAMS)
    assert get_learning_rate(state) == {
        "slow": np.float32(1e-4),
        "fast": np.float32(1e-2),
    }
    state = set_learning_rate(state, {"fast": 0.5})
    _, state = optimizer.update(PARAMS, state, PARAMS)
    assert get_learning_rate(state) == {"slow": np.float32(1e-4), "fast": 0.5}
    state = set_learning_rate(state, 0.25)
    assert get_learning_rate(state) == {"slow": 0.25, "fast": 0.25}


@pytest.mark.promotion_of_others
def test_is_read_and_changed_in_a_linen_train_state():
    state = TrainState.create(
        apply_fn=None, params=PARAMS, tx=optax.chain(clip(1.0), adamw_tf(1e-3))
    )
    state = state.apply_gradients(grads=PARAMS)
    state = state.replace(opt_state=set_learning_rate(state.opt_state, 0.5))
    assert get_learning_rate(state.apply_gradients(grads=PARAMS).opt_state) == 0.5


@pytest.mark.promotion_of_others
def test_is_read_and_changed_in_an_nnx_optimizer():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        model, optax.chain(clip(1.0), adamw_tf(1e-3)), wrt=nnx.Param
    )

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 3)))))(model)
        optimizer.update(model, grads)

    step(model, optimizer)
    assert get_learning_rate(optimizer.opt_state) == np.float32(1e-3)
    optimizer.opt_state = nnx.data(set_learning_rate(optimizer.opt_state, 0.5))
    step(model, optimizer)
    assert get_learning_rate(optimizer.opt_state) == 0.5


@pytest.mark.promotion_of_others
def test_follows_injected_hyperparameters():
    optimizer = optax.inject_hyperparams(adamw_tf)(learning_rate=1e-3)
    state = optimizer.init(PARAMS)
    state.hyperparams["learning_rate"] = jnp.float32(0.5)
    updates, state = optimizer.update(PARAMS, state, PARAMS)
    assert get_learning_rate(state) == 0.5
    np.testing.assert_allclose(updates["a"], -0.5, rtol=1e-5)


def test_under_vmap_is_one_per_run():
    def run(rate):
        optimizer = adamw_tf(rate)
        return optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)

    updates, state = jax.jit(jax.vmap(run))(jnp.float32([1e-3, 1e-2]))
    np.testing.assert_array_equal(state.learning_rate, np.float32([1e-3, 1e-2]))
    np.testing.assert_allclose(updates["b"][1], 10 * updates["b"][0], rtol=1e-3)


RATES = {
    "float": lambda value: value,
    "array": jnp.float32,
    "schedule": lambda value: lambda step: value * halving(step),
}
FACTORIES = {
    "adamw": adamw_tf,
    "sgd": sgd_tf,
    "adafactor": adafactor_trainer,
    "relative": lambda rate: adafactor_tf(warmup_init=True),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_every_kind_of_rate_has_one_tree(name):
    states = [
        jax.eval_shape(FACTORIES[name](make(1e-3)).init, PARAMS)
        for make in RATES.values()
    ]
    states += [jax.eval_shape(adafactor_tf().init, PARAMS)] * (name == "relative")
    assert all(state == states[0] for state in states)
    new = jax.eval_shape(FACTORIES[name](1e-3).update, PARAMS, states[0], PARAMS)[1]
    assert new == states[0]


# Rate of the first update after a restore. The saved run has made three updates; its
# rate is 1/8, or a schedule that starts there. The restored run has 1/32.
AFTER_A_RESTORE = {
    ("float", "float"): 1 / 8,
    ("float", "array"): 1 / 32,
    ("float", "schedule"): 1 / 32 / 8,
    ("array", "float"): 1 / 8,
    ("array", "array"): 1 / 32,
    ("array", "schedule"): 1 / 32 / 8,
    ("schedule", "float"): 1 / 32,
    ("schedule", "array"): 1 / 32,
    ("schedule", "schedule"): 1 / 32 / 8,
}


@pytest.mark.parametrize("factory", [adamw_tf, adafactor_trainer, sgd_tf])
@pytest.mark.parametrize(("before", "after"), AFTER_A_RESTORE)
def test_a_state_is_restored_into_every_kind_of_rate(factory, before, after):
    first, second = factory(RATES[before](1 / 8)), factory(RATES[after](1 / 32))
    state = first.init(PARAMS)
    for _ in range(3):
        _, state = first.update(PARAMS, state, PARAMS)
    updates, state = second.update(PARAMS, state, PARAMS)
    rate = AFTER_A_RESTORE[before, after]
    assert get_learning_rate(state) == rate
    # With constant gradients, the size of each update is the rate.
    np.testing.assert_allclose(updates["a"], -rate, rtol=1e-4)
    _, state = second.update(PARAMS, state, PARAMS)
    assert get_learning_rate(state) == (rate / 2 if after == "schedule" else rate)


def test_a_relative_step_is_restored_into_a_float_and_back():
    relative, constant = adafactor_tf(), adafactor_tf(0.25, relative_step=False)
    state = after_one_update(relative)
    _, state = constant.update(PARAMS, state, PARAMS)
    assert get_learning_rate(state) == 0.25
    state = set_learning_rate(state, 0.5)
    _, state = constant.update(PARAMS, state, PARAMS)
    assert get_learning_rate(state) == 0.5
    _, state = relative.update(PARAMS, state, PARAMS)
    assert get_learning_rate(state) == np.float32(1e-2)
    # After four updates in all, a schedule is continued from there.
    scheduled = adafactor_tf(halving, relative_step=False)
    _, state = scheduled.update(PARAMS, state, PARAMS)
    assert get_learning_rate(state) == 0.5**4


def test_a_rate_that_was_set_is_kept_over_a_restore_into_another_float():
    state = set_learning_rate(after_one_update(adamw_tf(1e-3)), 0.5)
    _, state = adamw_tf(1e-2).update(PARAMS, state, PARAMS)
    assert get_learning_rate(state) == 0.5
    _, state = adamw_tf(halving).update(PARAMS, state, PARAMS)
    assert get_learning_rate(state) == 0.25


def test_is_not_to_be_found_in_a_state_of_others():
    with pytest.raises(ValueError, match="`opt_state` must contain the state of"):
        get_learning_rate(optax.adam(1e-3).init(PARAMS))


@pytest.mark.parametrize(
    "optimizer", [adamw_tf(halving), adafactor_tf()], ids=["schedule", "relative"]
)
def test_cannot_be_set_where_a_schedule_would_replace_it(optimizer):
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match="`opt_state` takes the learning rate"):
        set_learning_rate(state, 0.5)


def test_an_array_is_replaced_by_a_rate_that_is_set():
    optimizer = adamw_tf(jnp.float32(1e-3))
    state = set_learning_rate(after_one_update(optimizer), 0.5)
    for _ in range(2):
        updates, state = optimizer.update(PARAMS, state, PARAMS)
        assert get_learning_rate(state) == 0.5
        np.testing.assert_allclose(updates["b"], -0.5, rtol=1e-5)


def test_cannot_be_set_to_nonsense():
    state = adamw_tf(1e-3).init(PARAMS)
    with pytest.raises(ValueError, match="`learning_rate`.*nan"):
        set_learning_rate(state, float("nan"))
    with pytest.raises(ValueError, match="`learning_rate` must be for.*'fast'"):
        set_learning_rate(state, {"fast": 0.5})
    with pytest.raises(TypeError, match="`learning_rate` must be a real number"):
        set_learning_rate(state, halving)


@pytest.mark.promotion_of_others
@pytest.mark.parametrize("labels", [("block.0", "block.1"), (0, 1)], ids=str)
def test_labels_are_those_that_multi_transform_was_given(labels):
    first, second = labels
    optimizer = optax.multi_transform(
        {first: adamw_tf(1e-4), second: adamw_tf(1e-3)}, {"a": first, "b": second}
    )
    state = set_learning_rate(optimizer.init(PARAMS), {second: 0.5})
    assert get_learning_rate(state) == {first: np.float32(1e-4), second: 0.5}


@pytest.mark.promotion_of_others
def test_two_under_one_label_are_told_apart_by_their_paths():
    both = optax.chain(adamw_tf(1e-4), adamw_tf(1e-3))
    optimizer = optax.multi_transform({"x": both}, "x")
    rates = get_learning_rate(optimizer.init(PARAMS))
    assert sorted(map(float, rates.values())) == [
        float(np.float32(1e-4)),
        float(np.float32(1e-3)),
    ]


def test_outlives_a_donated_state():
    optimizer = adamw_tf(1e-3)
    state = optimizer.init(PARAMS)
    rate = get_learning_rate(state)
    jax.jit(optimizer.update, donate_argnums=1)(PARAMS, state, PARAMS)
    assert rate == np.float32(1e-3)


def test_setting_it_on_a_mesh_compiles_nothing_again():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = jax.device_put({"w": jnp.ones((8, 4))}, sharding)
    optimizer = adamw_tf(1e-3)
    step = jax.jit(optimizer.update)
    state = optimizer.init(params)
    for _ in range(2):
        _, state = step(params, state, params)
    compiled = step._cache_size()
    _, state = step(params, set_learning_rate(state, 0.5), params)
    assert step._cache_size() == compiled
