"""Blocks and pairs of a leaf against runs of a torch tensor in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf.optimizers import TorchLayout
from jaxopt_tf.optimizers._blocks import Blocks

CASES = {
    "tiles of rows": ((16, 512), TorchLayout()),
    "other rows": ((12, 512), TorchLayout()),
    "one row": ((1024,), TorchLayout()),
    "first axis": ((512, 6), TorchLayout.dense()),
    "stacked": ((3, 8, 256), TorchLayout().stacked()),
    "stacked, first axis": ((2, 256, 10), TorchLayout.dense().stacked()),
    "no axis": ((64, 60), TorchLayout.dense()),
    "no axis, stacked": ((2, 16, 4, 8), TorchLayout().stacked()),
    "padded": ((64, 61), TorchLayout.dense()),
}
WHOLE = {name: case for name, case in CASES.items() if name != "padded"}
pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(params=CASES.values(), ids=CASES)
def blocks(request):
    shape, layout = request.param
    return Blocks(shape=shape, layout=layout, size=256)


def in_runs(x, blocks, size):
    """Returns rows of `size` elements in torch's order, padded with zeros."""
    flat = blocks.layout.to_torch(np.asarray(x))
    flat = flat.reshape(*flat.shape[: len(blocks.layout.stacked_axes)], -1)
    padding = [(0, 0)] * (flat.ndim - 1) + [(0, -flat.shape[-1] % size)]
    return np.pad(flat, padding).reshape(-1, size)


def test_scales_are_largest_magnitudes_of_runs(blocks, rng):
    x = rng.normal(size=blocks.shape).astype(np.float32)
    scales = jax.jit(blocks.largest)(jnp.asarray(x))
    runs = in_runs(x, blocks, 256)
    # Every element has the scale of its run; elements that are not in `x` have none.
    spread = jax.jit(blocks.spread)(scales)
    expected = np.repeat(np.abs(runs).max(1, keepdims=True), 256, 1)
    is_in = in_runs(np.ones_like(x), blocks, 256)
    np.testing.assert_array_equal(in_runs(spread, blocks, 256), expected * is_in)


def test_pairs_are_neighbours_in_runs(blocks, rng):
    codes = rng.integers(0, 16, blocks.shape, np.uint8)
    high, low = jax.jit(blocks.halves)(jnp.asarray(codes))
    pairs = (high << 4) | low
    in_pairs = blocks.of_pairs()
    assert in_pairs.shape == pairs.shape
    runs = in_runs(codes, blocks, 2)
    expected = (runs[:, 0] << 4) | runs[:, 1]
    np.testing.assert_array_equal(in_runs(pairs, in_pairs, 1)[:, 0], expected)
    np.testing.assert_array_equal(jax.jit(blocks.unpacked)(pairs), codes)


# Moments of 4 bits have whole blocks.
@pytest.mark.parametrize("blocks", WHOLE.values(), ids=WHOLE, indirect=True)
def test_pairs_have_the_scales_of_their_elements(blocks, rng):
    scales = blocks.largest(jnp.asarray(rng.normal(size=blocks.shape), jnp.float32))
    first, second = blocks.halves(blocks.spread(scales))
    of_pairs = blocks.of_pairs().spread(scales)
    np.testing.assert_array_equal(first, of_pairs)
    np.testing.assert_array_equal(second, of_pairs)
