"""Checks, the global norm and shardings of the arrays of a tree."""

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .._numerics import has_float64, on_gpu, widest_dtype
from .._typing import PyTree
from ._tree import leaf_names, named_leaves

_TRAINABLE = (jnp.float32, jnp.bfloat16, jnp.float16)


def is_floating(leaf: Any) -> bool:
    """Returns whether `leaf` is an array of real floating-point numbers."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def global_norm(tree: PyTree) -> jax.Array:
    """Returns the Euclidean norm of all leaves together; (), float32 or float64.

    Squares are summed in float32 for every dtype, and in float64 if any leaf is
    float64. Integer and float0 leaves are left out. Inside of `jax.shard_map` the
    squares of all shards are summed.
    """
    arrays = [leaf for leaf in jax.tree.leaves(tree) if is_floating(leaf)]
    dtype = widest_dtype(arrays)
    small = [leaf for leaf in arrays if _can_concatenate(leaf)]
    # In reverse order: a backward pass computes the gradient of the last leaf first.
    large = [leaf for leaf in reversed(arrays) if not _can_concatenate(leaf)]
    # One total for each set of mesh axes along which leaves are shards, so that `psum`
    # runs once per set and not once per leaf.
    totals = {frozenset[str](): jnp.zeros((), dtype)}
    if len(large) > 1 and all(map(_is_on_one_device, large)):
        totals[frozenset()] = on_gpu(
            functools.partial(_sum_of_squares_of_parts, dtype=dtype),
            functools.partial(_sum_of_squares_of_leaves, dtype=dtype),
            large,
        )
        large = []
    for leaf in large:
        axes, squares = varying_axes(leaf), _sum_of_squares(leaf, dtype)
        totals[axes] = totals[axes] + squares if axes in totals else squares
    total = totals.pop(frozenset())
    if small:
        # Biases and scales are concatenated. On a CPU each separate sum costs three
        # kernel launches, which take longer than the sum, and compilation takes ten
        # times as long.
        flat = [leaf.astype(dtype).reshape(-1) for leaf in small]
        total = total + _sum_of_squares(jnp.concatenate(flat), dtype)
    for axes, squares in totals.items():
        total = total + jax.lax.psum(squares, tuple(sorted(axes)))
    return jnp.sqrt(total)


def _can_concatenate(leaf: jax.Array) -> bool:
    # On several devices small leaves are not concatenated, because that would gather
    # them.
    return leaf.size <= 4096 and _is_on_one_device(leaf)


def _is_on_one_device(leaf: jax.Array) -> bool:
    mesh = jax.typeof(leaf).sharding.mesh
    return mesh.empty or (mesh.size == 1 and mesh.are_all_axes_auto)


def _sum_of_squares(leaf: jax.Array, dtype: Any) -> jax.Array:
    x = leaf.astype(dtype)
    return jnp.sum(x * x)


def _sum_of_squares_of_leaves(leaves: list[jax.Array], dtype: Any) -> jax.Array:
    """Returns the sum over all leaves, with one sum for each leaf."""
    squares = (_sum_of_squares(leaf, dtype) for leaf in leaves)
    return functools.reduce(operator.add, squares, jnp.zeros((), dtype))


def _sum_of_squares_of_parts(leaves: list[jax.Array], dtype: Any) -> jax.Array:
    """Returns the sum of `_sum_of_squares_of_leaves`, with fewer kernels on a GPU.

    XLA for GPUs sums a leaf with two kernels, one for parts of it and one for their
    sums. The sums of parts of all leaves are concatenated and summed together.
    """
    parts = [_sums_of_squares_of_rows(leaf, dtype) for leaf in leaves]
    # XLA would replace the sum of a concatenation by a sum for each operand.
    return jnp.sum(jax.lax.optimization_barrier(jnp.concatenate(parts)))


def _sums_of_squares_of_rows(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Returns a vector of sums over the last axes, as few as have 256 elements."""
    x, axis = leaf.astype(dtype), leaf.ndim
    while axis > 0 and math.prod(leaf.shape[axis:]) < 256:
        axis -= 1
    return jnp.sum(x * x, tuple(range(axis, leaf.ndim))).reshape(-1)


def explicit_sharding(array: jax.Array) -> NamedSharding | None:
    """Returns the sharding of an array's type; None if the compiler chooses it."""
    sharding = jax.typeof(array).sharding
    return sharding if _is_explicit(sharding) else None


def reshard_like(array: jax.Array, like: jax.Array) -> jax.Array:
    """Returns `array` with the explicit sharding of `like`, which has the same shape.

    On mesh axes of the type `Explicit` the sharding is a part of an array's type, and
    the operands of an operation must have equal shardings. On all other axes the
    compiler chooses shardings, and `array` is returned unchanged.
    """
    sharding = jax.typeof(like).sharding
    if not _is_explicit(sharding) or jax.typeof(array).sharding == sharding:
        return array
    resharded: jax.Array = jax.sharding.reshard(array, sharding)
    return resharded


def reshaped(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns `array.reshape(shape)`; an explicitly sharded array is gathered first.

    Merging sharded axes moves elements between devices, and JAX requires the sharding
    of the result. The function is meant for small arrays: rows, columns and biases.
    """
    sharding = jax.typeof(array).sharding
    # Adding or removing axes of size 1 moves no elements, and JAX infers the sharding.
    is_merged = [n for n in array.shape if n > 1] != [n for n in shape if n > 1]
    if is_merged and _is_explicit(sharding):
        replicated = NamedSharding(sharding.mesh, PartitionSpec())
        array = jax.sharding.reshard(array, replicated)
    return array.reshape(shape)


def varying_axes(array: jax.Array) -> frozenset[str]:
    """Returns the mesh axes along which `array` is one shard of several.

    Inside of `jax.shard_map` the type of an array contains these axes. The result is
    empty under `check_vma=False` and in `jax.pmap`, where JAX does not track them.
    """
    axes: frozenset[str] = jax.typeof(array).manual_axis_type.varying
    return axes


def _is_explicit(sharding: NamedSharding) -> bool:
    return AxisType.Explicit in sharding.mesh.axis_types


def check_params(params: PyTree, *, function: str) -> None:
    """Raises unless every leaf of `params` has a dtype that optimizers support.

    Integers, booleans and keys are accepted, and optimizers leave them unchanged.
    """
    if params is None:
        raise ValueError(
            f"`params` is required by `{function}`, got None: call "
            "`update(grads, state, params)`."
        )
    check_arrays("params", params)
    advice = [_dtype_advice(leaf.dtype) for leaf in jax.tree.leaves(params)]
    if any(advice):
        first = next(i for i, text in enumerate(advice) if text)
        name, leaf = named_leaves(params)[first]
        raise TypeError(
            "`params` must be float32, bfloat16, float16, or float64 under "
            "`jax_enable_x64` (integers are left unchanged), but "
            f"{sum(map(bool, advice))} leaves are not, the first being {name!r} with "
            f"dtype {leaf.dtype}. {advice[first]}"
        )


def _dtype_advice(dtype: Any) -> str:
    """Returns advice for a dtype that cannot be trained, or "" for a supported one."""
    if not jnp.issubdtype(dtype, jnp.inexact) or dtype in _TRAINABLE:
        return ""
    if dtype == jnp.float64:
        advice = (
            'Cast it to float32, or set `jax.config.update("jax_enable_x64", True)`.'
        )
        return "" if has_float64() else advice
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return "Carry a complex number as two leaves."
    return (
        "Keep the parameter in float32 and cast it inside the loss function, because "
        "updates are smaller than the rounding errors of these formats. Use "
        "`optax.masked` to exclude weights that are not trained."
    )


def check_arrays(argument: str, tree: PyTree) -> None:
    """Raises an error if a leaf is not an array, such as a number or a function."""
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(
                f"`{argument}` must contain only arrays, got {type(leaf).__name__} for "
                f"{leaf_names(tree)[i]!r}. Wrap numbers in `jnp.asarray`. For a "
                "module, pass only its arrays, as returned by `eqx.filter(model, "
                "eqx.is_inexact_array)`."
            )


def check_real(argument: str, tree: PyTree) -> None:
    """Raises if a leaf cannot be scaled: it is complex or has fewer than 16 bits.

    Torch and optax define the norm of complex numbers differently. A clipped float8
    gradient would mostly be 0: the smallest positive float8_e4m3fn is 2e-3.
    """
    check_arrays(argument, tree)
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(
                f"`{argument}` must be real, got {leaf.dtype} for "
                f"{leaf_names(tree)[i]!r}. Carry a complex number as two leaves."
            )
        if is_floating(leaf) and jnp.finfo(leaf.dtype).bits < 16:
            raise TypeError(
                f"`{argument}` must have 16 bits or more, got {leaf.dtype} for "
                f"{leaf_names(tree)[i]!r}. Cast gradients to float32 before they are "
                "clipped."
            )


def check_grads(grads: PyTree, params: PyTree) -> list[Any]:
    """Returns the gradient of each leaf of `params`; raises unless they fit.

    Shapes must be equal. A gradient that only broadcasts to its parameter is refused,
    because it is most likely a mistake.
    """
    leaves = jax.tree.leaves(params)
    treedef: Any = jax.tree.structure(params)
    try:
        flat: list[Any] = treedef.flatten_up_to(grads)
    except (ValueError, TypeError, KeyError) as error:
        extra = sorted(set(leaf_names(params)) ^ set(leaf_names(grads)))
        # If all names are equal, the containers differ, such as tuple and list.
        problem = (
            f"their containers differ, got {type(grads).__name__} and "
            f"{type(params).__name__}, or containers in them"
        )
        if extra:
            problem = (
                f"{len(extra)} leaves are in only one, the first being {extra[0]!r}"
            )
        raise ValueError(
            f"`grads` must have the structure of `params`: {problem}. Compute "
            "gradients with respect to the same tree."
        ) from error
    pairs = list(zip(leaves, flat, strict=True))
    # None is accepted as the gradient of an integer leaf, which has none.
    misshapen = [
        i
        for i, (p, g) in enumerate(pairs)
        if getattr(g, "shape", None) != p.shape and (g is not None or is_floating(p))
    ]
    if misshapen:
        p, g = pairs[misshapen[0]]
        raise ValueError(
            f"`grads` must have the shapes of `params`, but {len(misshapen)} leaves do "
            f"not, the first being {leaf_names(params)[misshapen[0]]!r}: gradient "
            f"{_describe(g)}, parameter {_describe(p)}."
        )
    not_floating = [
        i for i, (p, g) in enumerate(pairs) if is_floating(p) and not is_floating(g)
    ]
    if not_floating:
        name = leaf_names(params)[not_floating[0]]
        raise TypeError(
            f"`grads` must be real floating-point numbers, but {len(not_floating)} "
            f"leaves are not, the first being {name!r} with dtype "
            f"{flat[not_floating[0]].dtype}. "
            "Differentiate with respect to floating-point parameters only."
        )
    return flat


def _describe(leaf: Any) -> str:
    shape = getattr(leaf, "shape", None)
    return f"{type(leaf).__name__}" if shape is None else f"{leaf.dtype}{list(shape)}"
