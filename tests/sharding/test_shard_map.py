"""Optimizers inside `jax.shard_map`: global results, or an error."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxopt_tf import adamw_tf, clip
from jaxopt_tf.optimizers import adafactor_tf, lion_tf
from jaxopt_tf.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SPECS = {"w": P("fsdp", "tensor"), "v": P("tensor"), "k": P(None, "fsdp"), "odd": P()}
SHAPES = {"w": (8, 6), "v": (8,), "k": (5, 8), "odd": (3,)}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }


PARAMS, GRADS = draw(0), draw(1)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh("fsdp=4,tensor=2")


def update(tx, grads, params):
    updates, state = tx.update(grads, tx.init(params), params)
    return updates, optax.tree.get(state, "grad_norm", jnp.float32(0))


@pytest.mark.parametrize(
    "tx",
    [
        clip(1.0),
        optax.chain(clip(1.0), adamw_tf(1e-3, weight_decay=0.1)),
        lion_tf(1e-3),
    ],
    ids=["clip", "clip, adamw", "lion"],
)
def test_sharded_updates_equal_unsharded_ones(mesh, tx):
    of_tx = functools.partial(update, tx)
    expected, norm = jax.jit(of_tx)(GRADS, PARAMS)
    sharded = jax.shard_map(
        of_tx, mesh=mesh, in_specs=(SPECS, SPECS), out_specs=(SPECS, P())
    )
    ours, our_norm = jax.jit(sharded)(GRADS, PARAMS)
    np.testing.assert_allclose(our_norm, norm, rtol=1e-6)
    for key, theirs in expected.items():
        np.testing.assert_allclose(
            ours[key], theirs, rtol=0, atol=1e-6 * abs(theirs).max()
        )


def test_gradients_of_replicated_parameters_are_not_summed_again(mesh):
    # JAX adds them up over the batch's axis itself, where it tracks what varies.
    x = np.arange(32, dtype=np.float32).reshape(8, 4)

    def norm(w, x):
        grads = jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w)
        return clip(1.0).update(grads, clip(1.0).init(w), w)[1].grad_norm

    w = np.ones((4, 2), np.float32)
    sharded = jax.shard_map(norm, mesh=mesh, in_specs=(P(), P("fsdp")), out_specs=P())
    np.testing.assert_allclose(jax.jit(sharded)(w, x), norm(w, x), rtol=1e-6)


def test_each_set_of_axes_is_sent_once(mesh):
    specs = {"a": P("fsdp"), "b": P("fsdp"), "c": P("fsdp"), "d": P()}
    grads = {name: jax.ShapeDtypeStruct((8,), jnp.float32) for name in specs}
    sharded = jax.shard_map(
        lambda g: clip(1.0).update(g, clip(1.0).init(g))[0],
        mesh=mesh,
        in_specs=(specs,),
        out_specs=specs,
    )
    assert str(jax.make_jaxpr(sharded)(grads)).count("psum") == 1


def test_mapped_axes_with_names_are_no_shards():
    grads = {"w": np.ones((4, 3), np.float32)}

    def norm(g):
        return clip(1.0).update(g, clip(1.0).init(g))[1].grad_norm

    for mapped in (jax.vmap, jax.pmap):
        found = mapped(norm, axis_name="fsdp")(grads)
        np.testing.assert_allclose(found, np.full(4, np.sqrt(3.0)), rtol=1e-6)


def call(mesh, tx, function, *specs):
    def inside(grads, params):
        state = tx.init(params)
        return state if function == "init" else tx.update(grads, state, params)

    ones = {"w": jnp.ones((8, 8))}
    whole = {"w": jnp.ones((8, 8) if specs[1] else (2, 8))}
    sharded = jax.shard_map(inside, mesh=mesh, in_specs=specs, out_specs=P())
    jax.eval_shape(sharded, ones, whole)


@pytest.mark.parametrize(
    ("tx", "function", "specs", "message"),
    [
        (adafactor_tf(), "init", (P("fsdp"), P("fsdp")),
         r"`params` must be whole arrays.*1 leaves.*'w', along \['fsdp'\]. Compute"),
        (adafactor_tf(), "update", (P("fsdp"), P()),
         "`grads` must be whole arrays"),
        (clip(1.0), "update", (P("fsdp"), P()),
         r"`updates` must vary .* 1 leaves.*'w'.*along \['fsdp'\], the parameter "
         r"along \[\]. Sum gradients with `jax.lax.psum`"),
    ],
    ids=["adafactor init", "adafactor update", "clip"],
)  # fmt: skip
def test_refuses_what_cannot_be_told(mesh, tx, function, specs, message):
    with pytest.raises(ValueError, match=message):
        call(mesh, tx, function, *specs)
