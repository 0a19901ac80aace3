"""Exact conversions between torch tensors, NumPy arrays and JAX arrays, with checks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._extras import import_extra

# Elements that are checked at a time. 256 KiB of float32 stay in the processor's cache
# between the passes of `min` and `max`.
_CHUNK = 2**16


def check_tensor(value: Any, name: str) -> None:
    """Raises unless `value` is a plain, dense tensor of a dtype that NumPy has."""
    torch = import_extra("torch")

    # NumPy has bfloat16 through ml_dtypes. Subclasses of Tensor (DTensor, quantized
    # tensors of torchao) are refused: their data are not those of a dense tensor.
    dtypes = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool}
    dtypes |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        found, remedy = type(value).__name__, "Save it as a plain torch.Tensor."
        if found.startswith("OptimState"):
            found += " of torchao, which is not converted here"
            remedy = "Remove optimizer.pt, and pass it as `without` for new moments."
        raise ValueError(f"{name} must be a tensor, got {found}. {remedy}")
    if value.layout != torch.strided or value.dtype not in dtypes or value.is_meta:
        raise ValueError(
            f"{name} must be a dense tensor of integers or floats, got "
            f"{value.dtype} with layout {value.layout} on {value.device}. Convert it "
            "with torch."
        )


def as_numpy(tensor: Any) -> np.ndarray:
    """Returns the data of a torch tensor, without a copy if possible."""
    torch = import_extra("torch")

    tensor = tensor.detach().cpu().contiguous()
    # `Tensor.numpy` raises for bfloat16, so its bits are viewed as int16.
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.numpy()


def as_tensor(array: np.ndarray) -> Any:
    """Returns a torch tensor with a copy of the array's data."""
    torch = import_extra("torch")

    # `torch.from_numpy` accepts no bfloat16, and shares memory, which is read-only for
    # views of JAX arrays.
    copied = np.array(array, order="C", copy=True)
    if copied.dtype == jnp.bfloat16:
        return torch.from_numpy(copied.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copied)


def device_put_like(value: Any, like: Any) -> jax.Array:
    """Copies a number or an array to the devices of `like`, in the dtype of `like`."""
    array = np.asarray(value, np.dtype(like.dtype))
    # On a CPU `device_put` may alias the memory of the NumPy array, which belongs to
    # torch or to a mapped file, and it returns before an asynchronous copy has ended.
    # `jnp.copy` gives the result its own memory; the wait ends all reads of the source.
    shared = jax.device_put(array, getattr(like, "sharding", None))
    return jax.block_until_ready(jnp.copy(shared))


def check_fits(dtype: Any, target: Any, name: str) -> None:
    """Raises unless `target` represents every value of `dtype` exactly."""
    if not np.can_cast(dtype, target):
        raise ValueError(
            f"{name} must fit into the tree's {np.dtype(target)}, got "
            f"{np.dtype(dtype)}, which has more values. Pass a tree of "
            f"{np.dtype(dtype)}, and convert the result."
        )


def check_finite(array: np.ndarray, name: str, *, non_negative: bool = False) -> None:
    """Raises unless all numbers are finite and, with `non_negative`, at least 0."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return
    flat, minimum = array.reshape(-1), 0.0 if non_negative else -np.inf
    is_valid = _is_valid_16 if flat.dtype.itemsize == 2 else _is_valid
    starts = range(0, flat.size, _CHUNK)
    if all(is_valid(flat[start : start + _CHUNK], minimum) for start in starts):
        return
    # Only a failed check needs the positions, in a dtype with `isfinite`.
    wide = flat.astype(np.float64)
    invalid = np.flatnonzero(~(np.isfinite(wide) & (wide >= minimum)))
    limit = "finite and at least 0" if non_negative else "finite"
    raise ValueError(
        f"{name} must be {limit}, got {len(invalid)} of {flat.size} numbers that are "
        f"not, the first {wide[invalid[0]]} at {invalid[0]}. The file is damaged, or "
        "its run had diverged: use an earlier checkpoint."
    )


def _is_valid(part: np.ndarray, minimum: float) -> bool:
    # NumPy's `min` and `max` return NaN for an array that contains NaN, and every
    # comparison with NaN is false.
    with np.errstate(invalid="ignore"):
        low, high = part.min(), part.max()
    return bool(minimum <= low and -np.inf < low and high < np.inf)


def _is_valid_16(part: np.ndarray, minimum: float) -> bool:
    # NumPy has no vectorized loops for float16 and bfloat16, so the bits are tested.
    # NaN and infinity are the values whose exponent bits are all 1. As unsigned
    # integers, all negative numbers are above -0.0, which is 0x8000 in both formats.
    bits = part.view(np.uint16)
    exponent = np.uint16(0x7C00 if part.dtype == np.float16 else 0x7F80)
    if ((bits & exponent) == exponent).any():
        return False
    return bool(minimum < 0 or bits.max() <= 0x8000)
