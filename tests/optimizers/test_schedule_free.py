"""Schedule-free optimizers against recorded steps of schedulefree 1.4.1."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_tf.optimizers import (
    eval_params,
    schedule_free_adamw_tf,
    schedule_free_radam_tf,
    schedule_free_sgd_tf,
)
from tests.files import record_schedule_free_states as record

FILE = pathlib.Path(record.__file__).with_name("schedule_free_states.npz")
LIMIT = 5e-6  # of the distance that a parameter moved
FUNCTIONS = {
    "AdamWScheduleFree": schedule_free_adamw_tf,
    "RAdamScheduleFree": schedule_free_radam_tf,
    "SGDScheduleFree": schedule_free_sgd_tf,
}

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def recorded():
    with np.load(FILE) as file:
        return dict(file)


def after_all_steps(case, dtype):
    """Returns y, the state and x after the recorded gradients and rates."""
    kind, options = record.CASES[case]
    table = np.asarray(record.rates(), dtype)
    grads = {name: np.asarray(g, dtype) for name, g in record.grads().items()}
    optimizer = FUNCTIONS[kind](lambda step: jnp.asarray(table)[step], **options)
    params = {name: jnp.asarray(p, dtype) for name, p in record.params().items()}

    @jax.jit
    def run(params, state):
        def body(carry, grad):
            params, state = carry
            updates, state = optimizer.update(grad, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, state), grads)[0]

    params, state = run(params, optimizer.init(params))
    return params, state, eval_params(params, state)


@pytest.mark.parametrize("case", record.CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_follows_schedulefree(recorded, case, dtype):
    with jax.enable_x64(dtype == "float64"):
        y, state, x = after_all_steps(case, dtype)
        trees = {"y": y, "x": x, "z": state.z, "exp_avg_sq": state.nu}
        found = {
            f"{name}.{key}": np.asarray(tree[name], np.float64)
            for key, tree in trees.items()
            for name in record.SHAPES
            if not (key == "exp_avg_sq" and "sgd" in case.split()[0])
        }
    start = record.params()
    for name, array in found.items():
        theirs, exact = (
            recorded[f"{case}.{kind}.{name}"].astype(np.float64)
            for kind in (dtype, "float64")
        )
        moved = np.abs(exact - start[name.split(".")[0]]).max()
        if name.endswith("exp_avg_sq"):
            moved = np.abs(exact).max()
        limit = LIMIT if dtype == "float32" else 1e-12
        ours = np.abs(array - exact).max() / moved
        between = np.abs(array - theirs).max() / moved
        assert min(ours, between) <= limit, name
    for key in ("weight_sum", "lr_max"):
        ours = sum(float(part) for part in getattr(state, key))
        expected = recorded[f"{case}.{dtype}.{key}"]
        # Rates are rounded to float32 here, and powers of them with `r`.
        np.testing.assert_allclose(ours, expected, rtol=1e-6, err_msg=key)
    assert int(state.count) == record.NUM_STEPS


def test_a_sum_of_a_million_weights_is_exact():
    # In float32 a sum of equal weights stops at 2^24 of them, and errs before.
    optimizer = schedule_free_sgd_tf(1e-3)
    params = {"w": jnp.ones(())}
    state = optimizer.init(params)
    shared = state._replace(
        weight_sum=state.weight_sum._replace(high=jnp.float32(999_999 * 1e-6)),
        count=jnp.int32(999_999),
    )
    _, new = jax.jit(optimizer.update)(params, shared, params)
    added = sum(map(float, new.weight_sum)) - float(shared.weight_sum.high)
    np.testing.assert_allclose(added, 1e-6, rtol=1e-7)


def test_radam_changes_nothing_before_it_is_rectified():
    optimizer, params = schedule_free_radam_tf(1e-2), {"w": jnp.ones(3)}
    state, new = optimizer.init(params), params
    step = jax.jit(optimizer.update)
    for i in range(6):
        updates, state = step(params, state, new)
        assert np.any(updates["w"]) == (i >= 4)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("make", "options", "error", "match"),
    [
        (schedule_free_adamw_tf, {"betas": (0.0, 0.9)}, ValueError,
         r"`betas\[0\]` must be .*greater than 0"),
        (schedule_free_adamw_tf, {"betas": (0.9, 1.0)}, ValueError, r"`betas\[1\]`"),
        (schedule_free_adamw_tf, {"eps": -1.0}, ValueError, "`eps`.*at least 0"),
        (schedule_free_adamw_tf, {"warmup_steps": 0.1}, TypeError,
         "`warmup_steps` must be .*whole number"),
        (schedule_free_adamw_tf, {"r": -1.0}, ValueError, "`r`.*at least 0"),
        (schedule_free_radam_tf, {"weight_lr_power": float("nan")}, ValueError,
         "`weight_lr_power`"),
        (schedule_free_radam_tf, {"silent_sgd_phase": 1}, TypeError,
         "`silent_sgd_phase` must be True or False"),
        (schedule_free_sgd_tf, {"momentum": 0.0}, ValueError,
         "`momentum` must be .*greater than 0"),
        (schedule_free_sgd_tf, {"momentum": 1.0}, ValueError, "`momentum`.*less than"),
    ],
)  # fmt: skip
def test_refuses_options_out_of_range(make, options, error, match):
    with pytest.raises(error, match=match):
        make(1e-3, **options)
