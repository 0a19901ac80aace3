"""`muon_tf` on eight devices: equal updates, and matrices that are not gathered."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxopt_tf.optimizers import TorchLayout, muon_tf
from jaxopt_tf.planning import program_cost
from jaxopt_tf.sharding import make_mesh, param_shardings, state_shardings

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SHAPES = {
    "up.kernel": (32, 64),
    "layers.down.kernel": (8, 64, 16),  # a multiple of the devices
    "odd.layers.kernel": (3, 16, 32),
    "wte.embedding": (32, 16),
}
LAYOUTS = {
    r"up\.kernel": TorchLayout.dense(),
    r".*layers\..*": TorchLayout.dense().stacked(),
}
SPECS = {"fsdp=8": ("fsdp",), "fsdp=2,tensor=4": ("fsdp", "tensor"),
         "data=2,fsdp=4": (None, "fsdp")}  # fmt: skip
RULES = {
    axes: {r"(up|wte).*": P(*spec), ".*layers.*": P(None, *spec)}
    for axes, spec in SPECS.items()
}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s).astype("f4") for n, s in SHAPES.items()}


PARAMS, GRADS = draw(0), draw(1)


def optimizer(shardings=None):
    return muon_tf(0.02, ns_dtype="float32", layouts=LAYOUTS, shardings=shardings)


def two_updates(tx, params, state, grads):
    _, state = tx.update(grads, state, params)
    return tx.update(grads, state, params)


@pytest.fixture(scope="module")
def on_one_device():
    tx = optimizer()
    step = jax.jit(two_updates, static_argnums=0)
    return jax.device_get(step(tx, PARAMS, tx.init(PARAMS), GRADS)[0])


@pytest.mark.parametrize("axes", RULES)
def test_no_matrix_is_gathered_and_updates_equal_those_of_one_device(
    on_one_device, axes
):
    mesh = make_mesh(axes)
    shardings = param_shardings(PARAMS, mesh, RULES[axes])
    tx = optimizer(shardings)
    state = tx.init(PARAMS)
    of_state = state_shardings(state, PARAMS, shardings)
    arrays = jax.device_put((PARAMS, state, GRADS), (shardings, of_state, shardings))
    step = jax.jit(two_updates, static_argnums=0, out_shardings=(shardings, of_state))
    program = step.lower(tx, *arrays).compile()
    updates, _ = program(*arrays)
    for name in SHAPES:
        np.testing.assert_allclose(updates[name], on_one_device[name], atol=1e-6)
    kinds = {c.kind: c for c in program_cost(program, 8).collectives}
    # Over `data` parameters are replicated, and the divided result is gathered.
    if "data" in axes:
        assert (
            kinds["all-gather"].largest <= max(np.prod(s) for s in SHAPES.values()) * 4
        )
    else:
        assert "all-gather" not in kinds


def test_explicit_axes_need_no_shardings(on_one_device):
    kinds = (AxisType.Explicit,) * 2
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=kinds)
    over = param_shardings(PARAMS, mesh, RULES["fsdp=2,tensor=4"])
    tx = optimizer()
    with jax.set_mesh(mesh):
        params, grads = jax.device_put((PARAMS, GRADS), (over, over))
        step = jax.jit(two_updates, static_argnums=0)
        updates, state = step(tx, params, tx.init(params), grads)
    for name in SHAPES:
        np.testing.assert_allclose(updates[name], on_one_device[name], atol=1e-6)
    momentum = state.momentum["up.kernel"]
    assert jax.typeof(momentum) == jax.typeof(params["up.kernel"])
