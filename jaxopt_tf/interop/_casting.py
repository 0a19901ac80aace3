"""Arrays between files and trees, exactly: a cast may widen, and never loses a bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_fits(dtype: Any, wanted: Any, what: str) -> None:
    """Raises unless `wanted` can hold all that `dtype` can."""
    if not _holds(np.dtype(wanted), np.dtype(dtype)):
        raise ValueError(
            f"{what} must fit into the tree's {np.dtype(wanted)}, got "
            f"{np.dtype(dtype)}, which holds more. Make the tree {np.dtype(dtype)}, "
            "and round it yourself."
        )


def _holds(wide: np.dtype, narrow: np.dtype) -> bool:
    floating = [jnp.issubdtype(dtype, jnp.floating) for dtype in (wide, narrow)]
    if not all(floating):
        return np.can_cast(narrow, wide)
    a, b = jnp.finfo(wide), jnp.finfo(narrow)
    return a.nmant >= b.nmant and a.maxexp >= b.maxexp and a.minexp <= b.minexp


def placed_like(array: np.ndarray, like: Any) -> jax.Array:
    """A copy of the array on the devices on which `like` lies."""
    # `device_put` may share the memory, which is torch's or a file's, or still read it.
    shared = jax.device_put(array, getattr(like, "sharding", None))
    return jax.block_until_ready(jnp.copy(shared))


def placed_as(value: Any, like: Any) -> jax.Array:
    """A number from the host, with the dtype and the devices of `like`."""
    return placed_like(np.asarray(value, np.dtype(like.dtype)), like)
