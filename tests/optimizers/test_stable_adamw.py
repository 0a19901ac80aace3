"""StableAdamW against torch-optimi 0.3.3, and its options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf.optimizers import TorchLayout, stable_adamw_tf
from tests.optimizers import recorded_runs

DECOUPLED = {"decouple_lr": True, "max_lr": 2e-2}


@pytest.mark.parametrize(
    ("name", "options"),
    [("stable_adamw", {}), ("stable_adamw decoupled", DECOUPLED)],
    ids=["plain", "decoupled"],
)
def test_parameters_are_those_of_torch_optimi(name, options):
    # Seen to fail without the mean of a tensor, with eps^2 in the sum instead of the
    # maximum, and with decay at the rate before it is reduced.
    ours, _ = recorded_runs.trained(functools.partial(stable_adamw_tf, **options))
    assert recorded_runs.distance(ours, name) < 3e-6


def test_bfloat16_is_nearer_to_float64_than_torch_optimi():
    # Gradients are rounded to bfloat16 on both sides.
    with jax.enable_x64(True):
        exact, _ = recorded_runs.trained(stable_adamw_tf, jnp.float64)
    ours, state = recorded_runs.trained(stable_adamw_tf, jnp.bfloat16)
    assert {c.dtype.name for c in state.compensation.values()} == {"bfloat16"}
    assert {m.dtype.name for m in state.mu.values()} == {"float32"}
    total = [p + np.float64(state.compensation[str(i)]) for i, p in enumerate(ours)]
    theirs = recorded_runs.distance(
        recorded_runs.recorded("stable_adamw bfloat16"), exact
    )
    assert recorded_runs.distance(ours, exact) <= theirs
    # With the compensation, parameters have 16 significant bits.
    assert recorded_runs.distance(total, exact) < 0.3 * theirs


def test_only_low_precision_leaves_have_a_compensation():
    params = {
        "wide": jnp.ones(4),
        "half": jnp.ones(4, jnp.float16),
        "low": jnp.ones(4, jnp.bfloat16),
    }
    rest = jax.tree.leaves(stable_adamw_tf(1e-3).init(params).compensation)
    assert sorted(x.dtype.name for x in rest) == ["bfloat16", "float16"]
    state = stable_adamw_tf(1e-3, kahan_sum=False).init(params)
    assert not jax.tree.leaves(state.compensation)
    state = stable_adamw_tf(1e-3, mu_dtype="bfloat16").init(params)
    assert {x.dtype.name for x in jax.tree.leaves(state.mu)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(state.nu)} == {"float32"}


@pytest.mark.usefixtures("compiled_quickly")
def test_each_layer_of_a_stack_has_its_own_rate(rng):
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32)}
    scale = jnp.array([1.0, 10.0, 1.0])[:, None, None]
    layouts = {"kernel": TorchLayout().stacked()}

    @functools.partial(jax.jit, static_argnums=0)
    def second_update(optimizer, params, grads):
        state = optimizer.update(params, optimizer.init(params), params)[1]
        return optimizer.update(grads, state, params)[0]["kernel"]

    grads = jax.tree.map(lambda p: p * scale, params)
    stack = second_update(stable_adamw_tf(1e-2, layouts=layouts), params, grads)
    single = stable_adamw_tf(1e-2)
    for i in range(3):
        own, own_grads = (jax.tree.map(lambda x, i=i: x[i], t) for t in (params, grads))
        own_update = second_update(single, own, own_grads)
        np.testing.assert_allclose(stack[i], own_update, rtol=1e-5, atol=1e-7)
    # As one tensor, all layers would have the rate of the layer with the spike.
    whole = second_update(single, params, grads)
    assert np.abs(whole[0]).max() < 0.9 * np.abs(stack[0]).max()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (
            {"decouple_lr": True},
            ValueError,
            "`max_lr` must be given with `decouple_lr`",
        ),
        ({"decouple_lr": "False"}, TypeError, "`decouple_lr` must be True or False"),
        ({"kahan_sum": 0}, TypeError, "`kahan_sum` must be True or False, got 0"),
        ({"max_lr": 0.0}, ValueError, "`max_lr` must be .*greater than 0"),
        ({"betas": (0.9, 1.0)}, ValueError, r"`betas\[1\]` must be"),
        ({"eps": -1.0}, ValueError, "`eps` must be"),
        ({"mu_dtype": "int8"}, TypeError, "`mu_dtype` must be float32, .*got 'int8'"),
    ],
)
def test_bad_arguments_are_refused(options, error, says):
    with pytest.raises(error, match=says):
        stable_adamw_tf(lambda step: jnp.float32(1e-3), **options)


def test_shards_are_refused():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
    optimizer = stable_adamw_tf(1e-3)
    init = jax.shard_map(optimizer.init, mesh=mesh, in_specs=spec, out_specs=spec)
    with pytest.raises(ValueError, match="the rate of a leaf depends on a mean"):
        jax.eval_shape(init, {"w": jnp.ones(8)})
