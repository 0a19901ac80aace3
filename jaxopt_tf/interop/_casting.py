"""Arrays between files and trees: casts that are exact, values that are finite."""

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


# Elements that are checked at a time: 256 KiB of float32, which stay in the cache.
_CHUNK = 2**16


def check_finite(array: np.ndarray, what: str, *, non_negative: bool = False) -> None:
    """Raises unless all numbers are finite and, if asked for, at least 0."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return
    flat, least = array.reshape(-1), 0.0 if non_negative else -np.inf
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        is_right = _is_right_16 if part.dtype.itemsize == 2 else _is_right
        if not is_right(part, least):
            _refuse(flat, what, least)


def _is_right(part: np.ndarray, least: float) -> bool:
    # NaN is the minimum and the maximum of whatever contains it.
    with np.errstate(invalid="ignore"):
        low, high = part.min(), part.max()
    return bool(least <= low and -np.inf < low and high < np.inf)


def _is_right_16(part: np.ndarray, least: float) -> bool:
    # NumPy has no fast loops for these dtypes. NaN and infinity have an exponent of
    # ones; above the bits of -0.0 are those of the negative numbers.
    bits = part.view(np.uint16)
    exponent = np.uint16(0x7C00 if part.dtype == np.float16 else 0x7F80)
    if ((bits & exponent) == exponent).any():
        return False
    return bool(least < 0 or bits.max() <= 0x8000)


def _refuse(flat: np.ndarray, what: str, least: float) -> None:
    wide = flat.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(wide) & (wide >= least)))
    limit = "finite and at least 0" if least == 0 else "finite"
    raise ValueError(
        f"{what} must be {limit}, got {len(bad)} of {flat.size} numbers that are not, "
        f"the first {wide[bad[0]]} at {bad[0]}. The file is damaged, or its run had "
        "diverged: take an earlier checkpoint."
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
