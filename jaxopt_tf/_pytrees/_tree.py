"""Trees of arrays: names of leaves, the global norm, and one function over all leaves.

`None` is a leaf that is not there: it is passed by, as everywhere in optax.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._numerics import is_narrow, unsupported, wide_dtype, widest_dtype
from .._typing import PyTree
from ._placement import shard_axes

# NNX wraps an array in a variable that is itself a node of the tree.
_WRAPPERS = frozenset({"value", "raw_value"})
# Attributes of NNX, Penzai and Haliax that hold the array of a parameter: no names.
_HOLDERS = _WRAPPERS | {"array", "data_array"}


def leaf_name(path: Sequence[Any]) -> str:
    """The path of a leaf with dots: `h.0.attn.kernel`, the same in Linen and NNX."""
    return ".".join(map(str, path_keys(path)))


def path_name(path: Sequence[Any]) -> str:
    """Any path with dots."""
    return ".".join(str(key_value(key)) for key in path)


def path_keys(path: Sequence[Any]) -> tuple[Any, ...]:
    """The keys of a leaf's path, the same in Linen and NNX."""
    last = path[-1] if len(path) > 1 else None
    is_wrapped = isinstance(last, jax.tree_util.GetAttrKey) and last.name in _WRAPPERS
    return tuple(map(key_value, path[:-1] if is_wrapped else path))


def key_value(key: Any) -> Any:
    """What a key of a path holds: a dict's key, an attribute's name, an index."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return key


def leaf_names(tree: PyTree) -> list[str]:
    """The name of every leaf, in the order of `jax.tree.leaves`."""
    return [name for name, _ in named_leaves(tree)]


def global_norm(tree: PyTree) -> jax.Array:
    """Returns the Euclidean norm of all elements together; (), float32 or float64.

    Squares are summed in float32 whatever the leaves' dtype, and in float64 if one of
    them is float64. Integer and float0 leaves are left out. Inside of `jax.shard_map`
    the squares of all shards are added up.
    """
    arrays = [leaf for leaf in jax.tree.leaves(tree) if is_floating(leaf)]
    dtype = widest_dtype(arrays)
    small = [leaf for leaf in arrays if _is_small(leaf)]
    # By the mesh axes along which leaves are shards, so that each set is sent once.
    totals = {frozenset[str](): jnp.zeros((), dtype)}
    # From the last leaf on, whose gradient a backward pass has first.
    for leaf in reversed(arrays):
        if not _is_small(leaf):
            axes, squares = shard_axes(leaf), _sum_of_squares(leaf, dtype)
            totals[axes] = totals[axes] + squares if axes in totals else squares
    total = totals.pop(frozenset())
    if small:
        # Biases and scales together: each alone costs three launches on a CPU, which
        # take longer than its sum, and a compiler ten times as long.
        flat = [leaf.astype(dtype).reshape(-1) for leaf in small]
        total = total + _sum_of_squares(jnp.concatenate(flat), dtype)
    for axes, squares in totals.items():
        total = total + jax.lax.psum(squares, tuple(sorted(axes)))
    return jnp.sqrt(total)


def _is_small(leaf: jax.Array) -> bool:
    # On many devices each stays where it is: to put them together would gather them.
    mesh = jax.typeof(leaf).sharding.mesh
    is_on_one = mesh.empty or (mesh.size == 1 and mesh.are_all_axes_auto)
    return leaf.size <= 4096 and is_on_one


def _sum_of_squares(leaf: jax.Array, dtype: Any) -> jax.Array:
    x = leaf.astype(dtype)
    return jnp.sum(x * x)


def is_floating(leaf: Any) -> bool:
    """Whether `leaf` is an array of real floating-point numbers."""
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def map_leaves(
    function: Callable[..., tuple], params: PyTree, *rest: PyTree, num_results: int
) -> tuple[PyTree, ...]:
    """Calls `function(name, param, *others)` per leaf and gives one tree per result.

    The trees in `rest` have the structure of `params` down to its leaves; what they
    hold there is handed over as it is, so that a masked node can stand for "nothing".
    """
    leaves, treedef = _flatten(params)
    columns = [treedef.flatten_up_to(tree) for tree in rest]
    results = [
        function(name, leaf, *others)
        for (name, leaf), *others in zip(leaves, *columns, strict=True)
    ]
    return tuple(
        treedef.unflatten([result[i] for result in results]) for i in range(num_results)
    )


def per_leaf(
    function: Callable[[jax.Array, Any], Any], counts: PyTree, params: PyTree
) -> PyTree:
    """Calls `function(count, dtype)` per leaf, `dtype` being that of its arithmetic.

    Leaves that share both share the result. For integer leaves it is None.
    """
    leaves, each = jax.tree.leaves(params), jax.tree.leaves(counts)
    each = each * len(leaves) if len(each) == 1 else each
    results: dict[tuple, Any] = {}

    def result(leaf: jax.Array, count: jax.Array) -> Any:
        if not is_floating(leaf):
            return None
        key = id(count), wide_dtype(leaf.dtype)
        if key not in results:
            results[key] = function(count, key[1])
        return results[key]

    values = list(map(result, leaves, each))
    return jax.tree.unflatten(jax.tree.structure(params), values)


def check_params(params: PyTree, *, function: str) -> None:
    """Raises unless `params` holds only leaves that the arithmetic is made for."""
    if params is None:
        raise ValueError(
            f"`params` is required by `{function}`, got None: call "
            "`update(grads, state, params)`."
        )
    check_arrays("params", params)
    bad = [
        (name, leaf.dtype, advice)
        for name, leaf in named_leaves(params)
        if (advice := unsupported(leaf.dtype))
    ]
    if bad:
        name, dtype, advice = bad[0]
        raise TypeError(
            "`params` must be float32, bfloat16, float16, or float64 under "
            f"`jax_enable_x64` (integers are left unchanged), but {len(bad)} leaves "
            f"are not, the first being {name!r} with dtype {dtype}. {advice}"
        )


def check_arrays(argument: str, tree: PyTree) -> None:
    """Raises if a leaf is no array: a Python number, say, or a module's function."""
    for name, leaf in named_leaves(tree):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(
                f"`{argument}` must hold arrays, got {type(leaf).__name__} for "
                f"{name!r}. Wrap numbers in `jnp.asarray`; of a module pass its arrays "
                "only, as `eqx.filter(model, eqx.is_inexact_array)` does."
            )


def check_real(argument: str, tree: PyTree) -> None:
    """Raises if a leaf cannot be scaled: it is complex, or has fewer than 16 bits.

    Torch and optax disagree on the norm of complex numbers. A clipped float8 gradient
    would mostly be 0: the smallest number of float8_e4m3fn is 2e-3.
    """
    check_arrays(argument, tree)
    for name, leaf in named_leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(
                f"`{argument}` must be real, got {leaf.dtype} for {name!r}. Carry a "
                "complex number as two leaves."
            )
        if is_narrow(leaf.dtype):
            raise TypeError(
                f"`{argument}` must have 16 bits or more, got {leaf.dtype} for "
                f"{name!r}. Cast gradients to float32 before they are clipped."
            )


def check_grads(grads: PyTree, params: PyTree) -> PyTree:
    """Returns `grads` in the structure of `params`; raises unless they fit.

    Shapes must be equal: a gradient that would only broadcast is a mistake.
    """
    leaves, treedef = _flatten(params)
    try:
        flat = treedef.flatten_up_to(grads)
    except (ValueError, TypeError, KeyError) as error:
        odd = sorted(set(leaf_names(params)) ^ set(leaf_names(grads)))
        why = f"got {type(grads).__name__} and {type(params).__name__}, or such within"
        if odd:
            why = f"{len(odd)} leaves are in only one, the first being {odd[0]!r}"
        raise ValueError(
            f"`grads` must have the structure of `params`: {why}. Take both from the "
            "same tree."
        ) from error
    pairs = [(name, p, g) for (name, p), g in zip(leaves, flat, strict=True)]
    wrong = [
        f"{name!r}: gradient {_kind(g)}, parameter {_kind(p)}"
        for name, p, g in pairs
        if getattr(g, "shape", None) != p.shape and (g is not None or is_floating(p))
    ]
    if wrong:
        raise ValueError(
            f"`grads` must have the shapes of `params`, but {len(wrong)} leaves do "
            f"not, the first being {wrong[0]}."
        )
    unfit = [
        f"{name!r} with dtype {g.dtype}"
        for name, p, g in pairs
        if is_floating(p) and not is_floating(g)
    ]
    if unfit:
        raise TypeError(
            f"`grads` must be real floating-point numbers, but {len(unfit)} leaves are "
            f"not, the first being {unfit[0]}. Differentiate with respect to "
            "floating-point parameters only."
        )
    return treedef.unflatten(flat)


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Every leaf with its name, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(leaf_name(path), leaf) for path, leaf in leaves]


def nameless_leaves(params: PyTree) -> list[tuple[str, Any]]:
    """Floating-point leaves without a name, with their paths.

    A leaf has a name if its path contains a string: a key of a dict or an attribute of
    a module, not indices alone. Penzai's parameters are named by their label.
    """
    return [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_labelled)
        if not is_labelled(leaf) and not any(map(is_name, path))
        if hasattr(leaf, "dtype") and is_floating(leaf)
    ]


def is_labelled(node: Any) -> bool:
    """Returns whether `node` is a parameter of Penzai, whose name is its `label`."""
    is_penzai = type(node).__module__.partition(".")[0] == "penzai"
    return is_penzai and isinstance(getattr(node, "label", None), str)


def is_name(key: Any) -> bool:
    """Returns whether a key of a path names a parameter or its layer."""
    value = key_value(key)
    is_holder = isinstance(key, jax.tree_util.GetAttrKey) and value in _HOLDERS
    return isinstance(value, str) and not is_holder


def is_masked(node: Any) -> bool:
    """Returns whether `node` stands for a leaf that was left out."""
    return isinstance(node, optax.MaskedNode)


def is_part(params: PyTree) -> bool:
    """Returns whether `optax.multi_transform` or `masked` has left leaves out."""
    return any(map(is_masked, jax.tree.leaves(params, is_leaf=is_masked)))


def _flatten(tree: PyTree) -> tuple[list[tuple[str, Any]], Any]:
    return named_leaves(tree), jax.tree.structure(tree)


def _kind(leaf: Any) -> str:
    shape = getattr(leaf, "shape", None)
    return f"{type(leaf).__name__}" if shape is None else f"{leaf.dtype}{list(shape)}"
