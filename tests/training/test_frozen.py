"""Frozen parameters of the compiled steps: arguments without gradient and state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxopt_tf.optimizers import adamw_tf
from jaxopt_tf.sharding import make_mesh
from jaxopt_tf.training import (
    init_train_state,
    make_eval_step,
    make_train_step,
    merge_params,
    split_params,
)

pytestmark = [
    pytest.mark.promotion_of_others,  # optax.apply_updates
    pytest.mark.usefixtures("compiled_quickly"),
]


def loss_fn(params, batch):
    x, y = batch
    hidden = x @ params["body"]["kernel"]
    assert hidden.dtype == params["head"]["kernel"].dtype
    errors = hidden @ params["head"]["kernel"] - y
    return jnp.sum(errors.astype(jnp.float32) ** 2), y.size


@pytest.fixture
def params(rng):
    return {
        "body": {"kernel": np.asarray(rng.normal(size=(16, 64)), np.float32)},
        "head": {"kernel": np.asarray(rng.normal(size=64), np.float32)},
    }


@pytest.fixture
def batch(rng):
    x, y = rng.normal(size=(2, 8, 16)), rng.normal(size=(2, 8))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def steps(params, batch, make=make_train_step, **kwargs):
    optimizer = optax.adam(1e-2)
    train_step = make(loss_fn, optimizer, gradient_accumulation_steps=2, **kwargs)
    state = init_train_state(jax.tree.map(jnp.copy, params), optimizer)
    for _ in range(3):
        state, _ = train_step(state, batch)
    return state


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_trains_like_a_loss_that_contains_the_frozen_parameters(params, batch, dtype):
    trainable, frozen = split_params(params, ["body.*"])
    frozen = jax.tree.map(jnp.asarray, frozen)

    def with_constants(trainable, batch):
        constants = frozen
        if dtype is not None:
            constants = jax.tree.map(lambda x: x.astype(dtype), frozen)
        return loss_fn(merge_params(trainable, constants), batch)

    def make(_, optimizer, **kwargs):
        return make_train_step(with_constants, optimizer, **kwargs)

    if dtype is not None:
        batch = (batch[0].astype(dtype), batch[1])
    expected = steps(trainable, batch, make, compute_dtype=dtype)
    state = steps(trainable, batch, frozen=frozen, compute_dtype=dtype)
    assert list(state.params) == ["head"]
    np.testing.assert_allclose(
        state.params["head"]["kernel"], expected.params["head"]["kernel"], rtol=1e-6
    )
    # The moments of the head, and one counter; the frozen arrays are not donated.
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) == 2 * 64 + 1
    assert not frozen["body"]["kernel"].is_deleted()
    first = jax.tree.map(lambda x: x[0], batch)
    eval_step = make_eval_step(loss_fn, compute_dtype=dtype, frozen=frozen)
    assert eval_step(state.params, first)[1] == 8
    of_zeros = eval_step.with_frozen(jax.tree.map(jnp.zeros_like, frozen))
    total, _ = of_zeros(state.params, first)
    np.testing.assert_allclose(total, (first[1] ** 2).sum(), rtol=1e-2)


def test_passes_frozen_parameters_as_arguments(params, batch):
    # A closure would make them constants of the program: 16 x 64 numbers.
    trainable, frozen = split_params(params, ["body.*"])
    optimizer = adamw_tf(1e-2)
    state = init_train_state(jax.tree.map(jnp.copy, trainable), optimizer)
    step = make_train_step(
        loss_fn, optimizer, gradient_accumulation_steps=2, frozen=frozen
    )
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), frozen)
    for lowered in (
        step.lower(state, batch),
        step.with_frozen(shapes).lower(state, batch),
        make_eval_step(loss_fn, frozen=frozen).lower(trainable, batch),
    ):
        text = lowered.as_text()
        assert "16x64xf32" in text.split("->")[0]  # in the signature
        constants = [line for line in text.splitlines() if "constant dense" in line]
        assert not any("16x64" in line for line in constants)


def test_value_fn_merges_frozen_parameters(params, batch):
    trainable, frozen = split_params(params, ["body.*"])
    seen = []

    def update(grads, state, params=None, *, value, value_fn, **extra):
        seen.append(value)
        return jax.tree.map(jnp.zeros_like, grads), value_fn(params) - value

    optimizer = optax.GradientTransformationExtraArgs(lambda p: jnp.ones(()), update)
    step = make_train_step(loss_fn, optimizer, frozen=frozen)
    first = jax.tree.map(lambda x: x[0], batch)
    state, _ = step(init_train_state(trainable, optimizer), first)
    assert len(seen) == 1
    assert abs(float(state.opt_state)) < 1e-4


def test_sharded_frozen_parameters_keep_their_shardings(params, batch):
    mesh = make_mesh({"fsdp": 4}, jax.devices()[:4])
    sharded = NamedSharding(mesh, PartitionSpec("fsdp"))
    replicated = NamedSharding(mesh, PartitionSpec())
    trainable, frozen = split_params(params, ["body.*"])
    optimizer = adamw_tf(1e-2)
    state = init_train_state(jax.tree.map(jnp.copy, trainable), optimizer)
    expected, _ = make_train_step(loss_fn, optimizer, frozen=frozen)(
        jax.tree.map(jnp.copy, state), jax.tree.map(lambda x: x[0], batch)
    )
    shardings = jax.tree.map(lambda x: sharded if x.ndim else replicated, state)
    frozen = jax.device_put(frozen, sharded)
    step = make_train_step(loss_fn, optimizer, state_shardings=shardings, frozen=frozen)
    state = jax.device_put(state, shardings)
    first = jax.device_put(jax.tree.map(lambda x: x[0], batch), replicated)
    state, _ = step(state, first)
    assert state.params["head"]["kernel"].sharding.is_equivalent_to(sharded, 1)
    assert step.frozen["body"]["kernel"].sharding == sharded
    np.testing.assert_allclose(
        state.params["head"]["kernel"], expected.params["head"]["kernel"], rtol=1e-5
    )


def test_splits_and_merges_dicts_by_torch_name():
    params = {"model.embed.weight": 1, "model.norm.weight": 2, "lm_head.weight": 3}
    trainable, frozen = split_params(params, ["model.*"])
    assert trainable == {"lm_head.weight": 3}
    assert merge_params(trainable, frozen) == params
    nested = {"model": {"embed": 1, "norm": {"scale": 2}}, "head": 3}
    trainable, frozen = split_params(nested, ["model.norm.scale", "head"])
    assert trainable == {"model": {"embed": 1}}
    assert merge_params(trainable, frozen) == nested


@pytest.mark.parametrize(
    ("patterns", "error", "message"),
    [
        (["heads.*"], ValueError, "got 'heads.\\*', which matches none.*'head.kernel'"),
        ([".*"], ValueError, "`patterns` must leave at least one parameter to train"),
        (["("], ValueError, "`patterns` must be regular expressions, got '\\('"),
        ("head.*", TypeError, "`patterns` must be a list of strings, got 'head.\\*'"),
    ],
)
def test_refuses_patterns_that_do_not_fit(params, patterns, error, message):
    with pytest.raises(error, match=message):
        split_params(params, patterns)


def test_refuses_what_is_not_nested_dicts_or_in_both(params):
    with pytest.raises(TypeError, match="`params` must be nested dicts"):
        split_params([np.ones(2)], ["0"])
    with pytest.raises(ValueError, match=r"`frozen` must have no leaf.*'head.kernel'"):
        merge_params(params, {"head": {"kernel": np.ones(2)}})
