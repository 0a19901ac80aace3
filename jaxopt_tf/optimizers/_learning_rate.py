"""Read and change the learning rate inside any of our states.

A rate is one of three things, and each state says which:

- a float: it lives in the state's `learning_rate` leaf, where it can be changed between
  steps without compiling again; the state's `step` is None, since nothing asks for it;
- a schedule: asked with `step` at every update;
- a 0-d array, traced or not: what the caller closes over, as `optax.inject_hyperparams`
  and `vmap` do.

In all three the leaf holds the rate that the last update used.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import _check, _tree, _two_floats
from .._dtypes import wide_dtype, widest_dtype
from .._typing import PyTree, Scalar, ScalarOrSchedule
from ._exact import Exact


def check(learning_rate: ScalarOrSchedule) -> None:
    """Raises unless `learning_rate` is a schedule or a number that is at least 0."""
    if not callable(learning_rate):
        _check.non_negative("learning_rate", learning_rate)


def init(
    learning_rate: ScalarOrSchedule, params: PyTree
) -> tuple[jax.Array | None, jax.Array]:
    """Returns the fields `step` and `learning_rate` of a new state.

    The rate is float64 if a leaf of `params` is, else float32.
    """
    dtype = widest_dtype(params)
    if not callable(learning_rate) and not isinstance(learning_rate, jax.Array):
        return None, jnp.asarray(learning_rate, dtype)
    step = jnp.zeros((), jnp.int32)
    return step, _rate(learning_rate, step, jnp.zeros((), dtype), dtype)


def current(
    learning_rate: ScalarOrSchedule,
    step: jax.Array | None,
    stored: jax.Array,
    params: PyTree,
) -> dict[Any, jax.Array]:
    """Returns the rate of this update, (), in each dtype in which leaves are computed.

    The dtype of `stored` is one of the keys.
    """
    leaves = [leaf for leaf in jax.tree.leaves(params) if _tree.is_floating(leaf)]
    dtypes = {stored.dtype: None} | {wide_dtype(leaf.dtype): None for leaf in leaves}
    return {dtype: _rate(learning_rate, step, stored, dtype) for dtype in dtypes}


def exact(
    learning_rate: ScalarOrSchedule, rates: Mapping[Any, jax.Array]
) -> dict[Any, Exact]:
    """Returns the rates with what float32 leaves of a host's double.

    A rate that was changed in the state is taken as it is.
    """

    def of(rate: jax.Array) -> Exact:
        if rate.dtype == jnp.float64:
            return rate
        pair = _two_floats.from_float32(rate)
        if callable(learning_rate) or isinstance(learning_rate, jax.Array):
            return pair
        double = _two_floats.from_float(learning_rate)
        return _two_floats.select(rate == double.high, double, pair)

    return {dtype: of(rate) for dtype, rate in rates.items()}


def _rate(
    learning_rate: ScalarOrSchedule,
    step: jax.Array | None,
    stored: jax.Array,
    dtype: Any,
) -> jax.Array:
    if step is None:
        return stored.astype(dtype)
    rate = learning_rate
    if callable(learning_rate):
        # Schedules return float64 for an int64 step, and float32 for an int32.
        rate = learning_rate(step.astype(jnp.int64) if dtype == jnp.float64 else step)
    # A copy: a step may donate the state, and the array is the caller's.
    return jnp.array(rate, dtype, copy=True)


def advance(step: jax.Array | None) -> jax.Array | None:
    """The step that the schedule is asked with next; stays at 2^31 - 1."""
    return None if step is None else optax.safe_increment(step)


def get_learning_rate(opt_state: PyTree) -> jax.Array | dict[str, jax.Array]:
    """The learning rate that the last update used.

    For Adafactor with `relative_step` it is the relative step, before the scale of the
    parameter: what Transformers' `get_adafactor_schedule` is for.

    Args:
        opt_state: any optimizer state that holds one of ours: of a chain, a Linen
            `TrainState`, an `nnx.Optimizer`, `optax.multi_transform`, ...

    Returns:
        A scalar, (), float32 (float64 with float64 parameters); where there are several
        of our optimizers, a dict from the label under which `optax.multi_transform`
        keeps each (where that does not tell them apart, its path) to its rate. Before
        the first update, the rate that it starts with.

    Raises:
        ValueError: if none of our states is in it.
    """
    nodes = _our_states(opt_state)
    names = _names(list(nodes))
    rates = {names[path]: _copied(node) for path, node in nodes.items()}
    return next(iter(rates.values())) if len(rates) == 1 else rates


def set_learning_rate(
    opt_state: PyTree, learning_rate: Scalar | Mapping[str, Scalar]
) -> PyTree:
    """Returns `opt_state` with another rate, for the updates to come.

    Shapes and dtypes stay, so that a compiled step is not compiled again.

    Args:
        opt_state: as for `get_learning_rate`.
        learning_rate: the new rate, at least 0; or a dict with the keys that
            `get_learning_rate` gives, to set some of several optimizers.

    Returns:
        A new state of the same structure.

    Raises:
        ValueError: if none of our states is in it, if a key names none of them, or if
            the rate comes from a schedule or an array, which the next update would ask
            again.
    """
    nodes = _our_states(opt_state)
    names = _names(list(nodes))
    states = {names[path]: node for path, node in nodes.items()}
    if isinstance(learning_rate, Mapping):
        rates = dict(learning_rate)
    else:
        rates = dict.fromkeys(states, learning_rate)
    for name, rate in rates.items():
        if name not in states:
            raise ValueError(
                "`learning_rate` must be for the optimizers that `get_learning_rate` "
                f"names, {list(states)}, got one for {name!r}."
            )
        _check.non_negative("learning_rate", rate)
        if states[name].step is not None:
            of = f" of {name!r}" if len(states) > 1 else ""
            raise ValueError(
                f"`opt_state` takes the learning rate{of} from a schedule or an array, "
                "so a rate set here would be lost at the next update. Build the "
                "optimizer with a float."
            )

    def replace(path: tuple, node: Any) -> Any:
        name = names.get(path)
        if name not in rates:
            return node
        # `tree.map`, because NNX keeps the leaf inside a variable.
        leaf = jax.tree.map(
            lambda old: jnp.full_like(old, rates[name]), node.learning_rate
        )
        return node._replace(learning_rate=leaf)

    return jax.tree_util.tree_map_with_path(replace, opt_state, is_leaf=_is_ours)


def _is_ours(node: Any) -> bool:
    return getattr(node, "_fields", ())[:3] == ("count", "step", "learning_rate")


def _our_states(opt_state: PyTree) -> dict[tuple, Any]:
    """Our states by their paths."""
    nodes = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=_is_ours)
    found = {path: node for path, node in nodes if _is_ours(node)}
    if not found:
        raise ValueError(
            "`opt_state` must hold the state of `adamw_tf` or `adafactor_tf`, got "
            f"{type(opt_state).__name__} without one. Pass the whole optimizer state."
        )
    return found


def _names(paths: list[tuple]) -> dict[tuple, Any]:
    """The labels of `optax.multi_transform` where they tell all apart, else paths."""
    labels = {path: _label(path) for path in paths}
    if None not in labels.values() and len(set(labels.values())) == len(paths):
        return labels
    return {path: _tree.path_name(path) for path in paths}


def _label(path: tuple) -> Any:
    keys = [_tree.key_value(key) for key in path]
    return keys[keys.index("inner_states") + 1] if "inner_states" in keys else None


def _copied(state: Any) -> jax.Array:
    # A copy outlives the state, whose buffers a step may take over.
    (leaf,) = jax.tree.leaves(state.learning_rate)
    return jnp.array(leaf, copy=True)
