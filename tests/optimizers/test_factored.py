"""The step of a factored leaf, as it is computed where these tests do not run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_tf.optimizers._factored import size_at_once, size_by_rows

KEYS = jax.random.split(jax.random.key(0), 3)


@pytest.mark.parametrize(
    ("shape", "across", "down"),
    [((48, 80), (1,), (0,)), ((48, 80), (0,), (1,)), ((3, 8, 4, 16), (2, 3), (1,))],
    ids=["as stored", "transposed", "stacked heads"],
)
def test_all_devices_sum_the_same_size(shape, across, down):
    def ones_along(axes):
        return [1 if axis in axes else size for axis, size in enumerate(shape)]

    # Rows of very different sizes, so that one that is weighed wrongly shows.
    by_row = jnp.exp(3 * jax.random.normal(KEYS[0], ones_along(across)))
    by_col = jnp.exp(3 * jax.random.normal(KEYS[1], ones_along(down)))
    grads = jax.random.normal(KEYS[2], shape)
    u = np.asarray(by_row, np.float64) * np.asarray(by_col, np.float64) * grads
    exact = np.square(u).sum((*down, *across), keepdims=True)
    for size in (size_at_once, size_by_rows):
        ours = size(grads, by_row, by_col, across, down)
        np.testing.assert_allclose(ours, exact, rtol=2e-6)
