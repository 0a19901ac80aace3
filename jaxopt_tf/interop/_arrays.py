"""Torch tensors, NumPy arrays and JAX arrays: exact conversions, and their checks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._extras import import_extra

# Elements that are checked at a time: 256 KiB of float32, which stay in the cache.
_CHUNK = 2**16


def check_tensor(value: Any, what: str) -> None:
    """Raises unless `value` is a plain, dense tensor of a dtype that NumPy has."""
    torch = import_extra("torch")

    dtypes = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool}
    dtypes |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise ValueError(
            f"{what} must be a tensor, got {type(value).__name__}. Write it with plain "
            "torch."
        )
    if value.layout != torch.strided or value.dtype not in dtypes or value.is_meta:
        raise ValueError(
            f"{what} must be a dense tensor of integers or floats, got "
            f"{value.dtype} in {value.layout} on {value.device}. Convert it with torch."
        )


def as_numpy(tensor: Any) -> np.ndarray:
    """Returns a torch tensor's data, without a copy where that is possible."""
    torch = import_extra("torch")

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.numpy()


def as_tensor(array: np.ndarray) -> Any:
    """Returns a torch tensor with a copy of the array's data."""
    torch = import_extra("torch")

    copied = np.array(array, order="C", copy=True)
    if copied.dtype == jnp.bfloat16:
        return torch.from_numpy(copied.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copied)


def device_put_like(value: Any, like: Any) -> jax.Array:
    """Copies a number or an array to the devices of `like`, with its dtype."""
    array = np.asarray(value, np.dtype(like.dtype))
    # `device_put` may share the memory, which is torch's or a file's, or still read it.
    shared = jax.device_put(array, getattr(like, "sharding", None))
    return jax.block_until_ready(jnp.copy(shared))


def check_fits(dtype: Any, wanted: Any, what: str) -> None:
    """Raises unless every value of `dtype` has an equal one in `wanted`."""
    if not np.can_cast(dtype, wanted):
        raise ValueError(
            f"{what} must fit into the tree's {np.dtype(wanted)}, got "
            f"{np.dtype(dtype)}, which holds more. Make the tree {np.dtype(dtype)}, "
            "and round it yourself."
        )


def check_finite(array: np.ndarray, what: str, *, non_negative: bool = False) -> None:
    """Raises unless all numbers are finite and, if asked for, at least 0."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return
    flat, least = array.reshape(-1), 0.0 if non_negative else -np.inf
    is_valid = _is_valid_16 if flat.dtype.itemsize == 2 else _is_valid
    starts = range(0, flat.size, _CHUNK)
    if all(is_valid(flat[start : start + _CHUNK], least) for start in starts):
        return
    wide = flat.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(wide) & (wide >= least)))
    limit = "finite and at least 0" if non_negative else "finite"
    raise ValueError(
        f"{what} must be {limit}, got {len(bad)} of {flat.size} numbers that are not, "
        f"the first {wide[bad[0]]} at {bad[0]}. The file is damaged, or its run had "
        "diverged: take an earlier checkpoint."
    )


def _is_valid(part: np.ndarray, least: float) -> bool:
    # NaN is the minimum and the maximum of every array that contains it.
    with np.errstate(invalid="ignore"):
        low, high = part.min(), part.max()
    return bool(least <= low and -np.inf < low and high < np.inf)


def _is_valid_16(part: np.ndarray, least: float) -> bool:
    # NumPy has no fast loops for float16 and bfloat16. NaN and infinity have an
    # exponent of ones; the bits of negative numbers are above those of -0.0.
    bits = part.view(np.uint16)
    exponent = np.uint16(0x7C00 if part.dtype == np.float16 else 0x7F80)
    if ((bits & exponent) == exponent).any():
        return False
    return bool(least < 0 or bits.max() <= 0x8000)
