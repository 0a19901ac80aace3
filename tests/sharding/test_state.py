"""Shardings of optimizer state."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxopt_tf import adamw_tf, clip, init_train_state
from jaxopt_tf.optimizers import adafactor_trainer
from jaxopt_tf.sharding import make_mesh, param_shardings, state_shardings


def specs(optimizer, shapes, mesh, rules, **options):
    params = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    state = jax.eval_shape(optimizer.init, params)
    shardings = param_shardings(params, mesh, rules)
    found = state_shardings(state, params, shardings, **options)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    return jax.tree.map(lambda s: s.spec, found, is_leaf=is_sharding)


def is_sharding(node):
    return isinstance(node, NamedSharding)


def test_moments_are_sharded_like_parameters_and_counters_replicated():
    rules = {".*": P("fsdp", "tensor")}
    optimizer = optax.chain(clip(1.0), adamw_tf(lambda step: 1e-3))
    found = specs(optimizer, {"w": (8, 6)}, make_mesh("fsdp=4,tensor=2"), rules)
    assert found[1].mu == found[1].nu == {"w": P("fsdp", "tensor")}
    assert found[1].count == found[1].learning_rate == found[0].grad_norm == P()


def test_row_and_column_means_are_sharded_if_possible():
    shapes = {"w": (64, 128), "stacked": (4, 64, 128), "odd": (50257, 768)}
    mesh = make_mesh("fsdp=4,tensor=2")
    found = specs(adafactor_trainer(1e-3), shapes, mesh, {".*": P(None, "fsdp")})
    assert found.nu_row == {"w": P("fsdp"), "stacked": P(None, "fsdp"), "odd": P()}
    assert found.nu_col == {
        "w": P("fsdp"),
        "stacked": P(None, "fsdp"),
        "odd": P("fsdp"),
    }
    both = specs(adafactor_trainer(1e-3), shapes, mesh, {".*": P("fsdp", "tensor")})
    assert both.nu_row["w"] == P(("fsdp", "tensor"))
    # The axis that cuts the columns anyway comes first, so that none is sent.
    assert both.nu_col["w"] == P(("tensor", "fsdp"))


def test_follows_groups_masks_accumulation_and_whole_train_states():
    mesh, rules = make_mesh("fsdp=8"), {".*": P("fsdp")}
    shapes = {"a.w": (8, 2), "b.w": (16, 2)}
    params = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    groups = optax.multi_transform(
        {"a": adamw_tf(1e-3), "b": adafactor_trainer(1e-3)}, {"a.w": "a", "b.w": "b"}
    )
    optimizer = optax.MultiSteps(groups, 2)
    state = jax.eval_shape(
        functools.partial(init_train_state, optimizer=optimizer), params
    )
    shardings = param_shardings(params, mesh, rules)
    found = state_shardings(state, params, shardings)
    assert found.params == shardings
    assert found.opt_state.acc_grads == shardings
    inner = found.opt_state.inner_opt_state.inner_states
    assert inner["a"].inner_state.mu["a.w"].spec == P("fsdp")
    assert inner["b"].inner_state.nu_row["b.w"].spec == P("fsdp")
    assert found.step.spec == P()


def test_follows_nnx_states():
    mesh = make_mesh("fsdp=8")
    model = nnx.eval_shape(lambda: nnx.Linear(16, 8, rngs=nnx.Rngs(0)))
    params = nnx.state(model, nnx.Param)
    state = jax.eval_shape(adamw_tf(1e-3).init, params)
    shardings = param_shardings(params, mesh, {".*": P("fsdp")})
    found = state_shardings(state, params, shardings)
    placed = jax.tree.leaves(found.mu, is_leaf=is_sharding)
    assert [s.spec for s in placed] == [P("fsdp")] * 2


def test_a_leaf_belongs_to_its_own_parameter_whatever_that_is_called():
    # Names that end alike, and one that is called as a part of the state.
    shapes = {"w": (8, 4), "b.w": (8, 4), "mu.w": (8, 4), "mu": (8,)}
    rules = {
        "w": P("fsdp"),
        "b.w": P(None, "fsdp"),
        "mu.w": P("data"),
        "mu": P(("data", "fsdp")),
    }
    mesh = make_mesh("data=2,fsdp=4")
    found = specs(optax.chain(clip(1.0), adamw_tf(1e-3)), shapes, mesh, rules)
    assert found[1].mu == found[1].nu == rules


def test_a_state_keeps_the_kind_of_memory():
    mesh = make_mesh("fsdp=8")
    shardings = {"w": NamedSharding(mesh, P("fsdp"), memory_kind="unpinned_host")}
    params = {"w": jax.ShapeDtypeStruct((8,), jnp.float32)}
    state = jax.eval_shape(adamw_tf(1e-3).init, params)
    found = state_shardings(state, params, shardings)
    assert found.mu["w"] == shardings["w"]


def test_clipping_gathers_nothing():
    mesh, optimizer = make_mesh("fsdp=8"), clip(1.0)
    shapes = {f"bias_{i}": (64,) for i in range(6)}
    grads = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    shardings = param_shardings(grads, mesh, {".*": P("fsdp")})
    placed = jax.tree.map(
        lambda g, s: jax.ShapeDtypeStruct(g.shape, g.dtype, sharding=s),
        grads,
        shardings,
    )
    program = jax.jit(optimizer.update).lower(placed, optimizer.init(grads)).compile()
    collectives = [line for line in program.as_text().splitlines() if " all-" in line]
    assert not any("all-gather(" in line for line in collectives)
    assert sum("all-reduce(" in line for line in collectives) == 1


OF_W = {"w": jax.ShapeDtypeStruct((8,), jnp.float32)}


def right(mesh="fsdp=8"):
    return param_shardings(OF_W, make_mesh(mesh), {".*": P()})


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (lambda: None, {}, TypeError, "`shardings` must contain a NamedSharding"),
        (
            lambda: {"w": P()},
            {},
            TypeError,
            "`shardings` must contain .*`param_sh",
        ),
        (lambda: right()["w"], {}, TypeError, "in the structure of `params`"),
        (lambda: {"v": right()["w"]}, {}, TypeError, "in the structure of `params`"),
        (right, {"zero_axis": "data"}, ValueError, r"`zero_axis` must be.*\['fsdp'\]"),
    ],
)
def test_refuses_what_does_not_fit(make, options, error, message):
    state = jax.eval_shape(adamw_tf(1e-3).init, OF_W)
    with pytest.raises(error, match=message):
        state_shardings(state, OF_W, make(), **options)


def test_refuses_shardings_of_two_meshes():
    params = {"v": OF_W["w"], "w": OF_W["w"]}
    shardings = {"v": right()["w"], "w": right("data=8")["w"]}
    with pytest.raises(ValueError, match="`shardings` must have one mesh, got 2"):
        state_shardings(params, params, shardings)


def test_rejects_replication_of_large_arrays():
    params = {"w": jax.ShapeDtypeStruct((1000, 100), jnp.float32)}
    shardings = param_shardings(params, make_mesh("fsdp=8"), {".*": P("fsdp")})
    state = jax.eval_shape(optax.flatten(optax.adam(1e-3)).init, params)
    with pytest.raises(ValueError, match="`state` must belong to `params`.*100,000"):
        state_shardings(state, params, shardings)
