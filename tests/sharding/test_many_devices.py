"""Updates on many devices against those on one."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxopt_tf import adamw_tf, clip
from jaxopt_tf.optimizers import (
    adafactor_tf,
    adafactor_trainer,
    adamw_4bit_tf,
    adamw_8bit_tf,
    adamw_hf_v4,
)
from jaxopt_tf.sharding import make_mesh, param_shardings, state_shardings

SHAPES = {
    "tokens": (250, 64),  # 250 is divided by 2 only
    "up.kernel": (64, 128),
    "up.bias": (128,),
    "conv.kernel": (3, 3, 16, 32),
    "odd": (5, 7),
}
OPTIMIZERS = {
    "adamw": lambda: adamw_tf(1e-3, weight_decay=0.1),
    "adamw_hf_v4": lambda: adamw_hf_v4(1e-3, weight_decay=0.1),
    "adamw_8bit": lambda: adamw_8bit_tf(1e-3, weight_decay=0.1),
    "adafactor": lambda: adafactor_trainer(1e-3, weight_decay=0.1),
    "scaled": lambda: adafactor_tf(beta1=0.9),
    "clip": lambda: clip(1.0),
}
RULES = {
    "data=8": {".*": P()},
    "fsdp=8": {".*": P("fsdp")},
    "fsdp=2,tensor=4": {".*": P("fsdp", "tensor")},
    "rows=2": {".*": P(None, "rows")},  # the axis that rows average away
    "rows=8": {".*": P(None, "rows")},
}
OF_ELEMENTS = [axes for axes in RULES if not axes.startswith("rows")]


def draw(seed, scale, dtype=np.float32, names=tuple(SHAPES)):
    rng = np.random.default_rng(seed)
    return {
        name: (scale * rng.standard_normal(SHAPES[name])).astype(dtype)
        for name in names
    }


PARAMS = draw(0, 0.02)


def steps(optimizer, axes=None, num_steps=3, zero_axis=None, **options):
    """The updates of some steps and the last state, from equal gradients.

    The parameters stay, so that each step shows its own difference only.
    """
    params, over = draw(0, 0.02, **options), None
    state = jax.eval_shape(optimizer.init, params)
    if axes is not None:
        num_devices = math.prod(map(int, re.findall(r"\d+", axes)))
        mesh = make_mesh(axes, jax.devices()[:num_devices])
        shardings = param_shardings(params, mesh, RULES[axes])
        of_state = state_shardings(state, params, shardings, zero_axis=zero_axis)
        params, over = jax.device_put(params, shardings), (shardings, of_state)
    state = jax.jit(optimizer.init, out_shardings=over and over[1])(params)
    update = jax.jit(optimizer.update, out_shardings=over)
    all_updates = []
    for step in range(num_steps):
        grads = draw(step + 1, 1e-2, **options)
        if over:
            grads = jax.device_put(grads, over[0])
        updates, state = update(grads, state, params)
        all_updates.append(jax.device_get(updates))
    return all_updates, state


@pytest.fixture(scope="module")
def on_one_device():
    return functools.cache(lambda name: steps(OPTIMIZERS[name]())[0])


# --- to the bit, as compilers make it that work as they do for users


@pytest.mark.parametrize("axes", OF_ELEMENTS)
def test_adamw_is_bitwise_equal_on_many_devices(on_one_device, axes):
    ours, _ = steps(OPTIMIZERS["adamw"](), axes)
    assert_same_bits(ours, on_one_device("adamw"))


def test_an_adamw_divided_over_the_data_axis_gives_the_same_bits(on_one_device):
    ours, state = steps(OPTIMIZERS["adamw"](), "data=8", zero_axis="data")
    assert_same_bits(ours, on_one_device("adamw"))
    assert_is_an_eighth(state.mu["up.kernel"])


@pytest.mark.parametrize(
    ("name", "dtype"), [("adamw", "bfloat16"), ("adamw_hf_v4", "float32")]
)
def test_low_precision_and_adamw_hf_v4_are_bitwise_equal_on_many_devices(name, dtype):
    expected, *runs = runs_of_few_leaves(name, dtype)
    for ours in runs:
        assert_same_bits(ours, expected)


def test_codes_are_equal_on_many_devices():
    # Each shard has half of every row, so that blocks of 256 elements are on two.
    options = {"names": ("up.kernel",)}
    updates, state = steps(OPTIMIZERS["adamw_8bit"](), None, 2, **options)
    ours, sharded = steps(OPTIMIZERS["adamw_8bit"](), "fsdp=2,tensor=4", 2, **options)
    params = draw(0, 0.02, **options)["up.kernel"]
    for found, expected in zip(ours, updates, strict=True):
        # XLA fuses the moments of a shard otherwise; some differ in their last bit.
        found, expected = (params + x["up.kernel"] for x in (found, expected))
        # One unit in the last place of a parameter, and two of its update of 1e-3.
        np.testing.assert_allclose(found, expected, rtol=1.2e-7, atol=2.4e-10)
    for field in ("mu", "nu"):
        found, expected = (getattr(x, field)["up.kernel"] for x in (sharded, state))
        np.testing.assert_array_equal(found.codes, expected.codes)
        np.testing.assert_allclose(found.scales, expected.scales, rtol=2.4e-7)
        assert_is_an_eighth(found.codes)


def assert_same_bits(ours, expected):
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def assert_is_an_eighth(moment):
    assert moment.addressable_shards[0].data.size == moment.size // 8


def runs_of_few_leaves(name, dtype):
    """On one device, on eight, and on eight with a divided state."""
    options = {"dtype": jnp.dtype(dtype), "names": ("odd", "up.bias", "up.kernel")}
    runs = [(None, None), ("fsdp=2,tensor=4", None), ("data=8", "data")]
    return [
        steps(OPTIMIZERS[name](), axes, 2, zero_axis, **options)[0]
        for axes, zero_axis in runs
    ]


# --- but for the order of sums, which is XLA's own however it compiles


BOTH_AXES = "fsdp=2,tensor=4"


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize(
    ("name", "axes"),
    [
        *(("adafactor", axes) for axes in RULES),
        *(("scaled", axes) for axes in (BOTH_AXES, "rows=2", "rows=8")),
        *(("clip", axes) for axes in ("data=8", BOTH_AXES)),
    ],
)
def test_updates_on_many_devices_equal_those_on_one(on_one_device, name, axes):
    ours, _ = steps(OPTIMIZERS[name](), axes)
    assert_near(name, ours, on_one_device(name))


@pytest.mark.usefixtures("compiled_quickly")
def test_an_adafactor_divided_over_the_data_axis_gives_the_same_numbers(on_one_device):
    ours, state = steps(OPTIMIZERS["adafactor"](), "data=8", zero_axis="data")
    assert_near("adafactor", ours, on_one_device("adafactor"))
    assert_is_an_eighth(state.nu_row["up.kernel"])


def assert_near(name, ours, expected):
    """An update is a difference of rounded parameters.

    Where a sum's last bit differs, a parameter may be rounded the other way.
    """
    for updates, theirs in zip(ours, expected, strict=True):
        for leaf, of_leaf in theirs.items():
            atol = 1e-6 * np.max(np.abs(of_leaf))
            ulp = 0.0 if name == "clip" else np.spacing(2 * np.abs(PARAMS[leaf]))
            assert np.all(np.abs(updates[leaf] - of_leaf) <= atol + ulp), leaf


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("name", ["adafactor", "clip"])
def test_in_low_precision_few_elements_are_rounded_otherwise(name):
    expected, *runs = runs_of_few_leaves(name, "bfloat16")
    unit = 2.0**-7  # of bfloat16, between its numbers
    for run in runs:
        for updates, of_step in zip(run, expected, strict=True):
            for leaf, theirs in of_step.items():
                ours, theirs = (
                    np.asarray(x, np.float32) for x in (updates[leaf], theirs)
                )
                of = theirs if name == "clip" else PARAMS[leaf]
                assert np.all(np.abs(ours - theirs) <= 2 * unit * np.abs(of)), leaf
                assert np.mean(ours != theirs) <= 2e-3, leaf


@pytest.mark.parametrize("build", [adamw_8bit_tf, adamw_4bit_tf])
def test_codes_are_equal_on_explicit_axes(build, rng):
    # Rows of 896 elements have three and a half blocks, and a shard of them 224.
    axis_types = (jax.sharding.AxisType.Explicit,) * 2
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=axis_types)
    kernel = rng.normal(size=(16, 896)).astype(np.float32)
    optimizer = build(1e-3)

    def codes(place):
        params = {"kernel": place(kernel)}
        state = jax.jit(optimizer.init)(params)
        for _ in range(2):
            _, state = jax.jit(optimizer.update)(params, state, params)
        return state.mu["kernel"].codes

    expected = codes(jnp.asarray)
    with jax.set_mesh(mesh):
        place = jax.sharding.NamedSharding(mesh, jax.P("x", "y"))
        found = codes(functools.partial(jax.device_put, device=place))
        np.testing.assert_array_equal(found, expected)
