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
from .._two_floats import TwoFloats
from .._typing import PyTree, Scalar, ScalarOrSchedule


def check(learning_rate: ScalarOrSchedule) -> None:
    """Raises unless `learning_rate` is a schedule or a number that is at least 0."""
    if callable(learning_rate):
        return
    shape = getattr(learning_rate, "shape", ())
    if shape != ():
        raise ValueError(
            "`learning_rate` must be a single number or a schedule, got an array of "
            f"shape {shape}. For many rates at once, use `jax.vmap`."
        )
    _check.non_negative("learning_rate", learning_rate)


def init(learning_rate: ScalarOrSchedule) -> tuple[jax.Array | None, jax.Array]:
    """The fields `step` and `learning_rate` of a new state."""
    if not callable(learning_rate) and not isinstance(learning_rate, jax.Array):
        return None, jnp.asarray(learning_rate, jnp.float32)
    step = jnp.zeros((), jnp.int32)
    return step, current(learning_rate, step, jnp.zeros((), jnp.float32))


def current(
    learning_rate: ScalarOrSchedule, step: jax.Array | None, stored: jax.Array
) -> jax.Array:
    """The rate for this update; (), float32."""
    if step is None:
        return stored
    rate = learning_rate(step) if callable(learning_rate) else learning_rate
    # A copy: a step may donate the state, and the array is the caller's.
    return jnp.array(rate, jnp.float32, copy=True)


def exact(learning_rate: ScalarOrSchedule, rate: jax.Array) -> TwoFloats:
    """The rate with what float32 leaves of a host's double, unless it was changed."""
    pair = _two_floats.from_float32(rate)
    if callable(learning_rate) or isinstance(learning_rate, jax.Array):
        return pair
    double = _two_floats.from_float(learning_rate)
    return _two_floats.select(rate == double.high, double, pair)


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
        A scalar, (), float32; where there are several of our optimizers, a dict from
        the label under which `optax.multi_transform` keeps each (elsewhere from its
        path) to its rate. Before the first update, the rate that it starts with.

    Raises:
        ValueError: if none of our states is in it.
    """
    rates = {name: _array(state) for name, state in _our_states(opt_state).items()}
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
    states = _our_states(opt_state)
    if isinstance(learning_rate, Mapping):
        rates = dict(learning_rate)
    else:
        rates = dict.fromkeys(states, learning_rate)
    for name, rate in rates.items():
        _check.one_of("learning_rate", name, states)
        check(rate)
        if states[name].step is not None:
            raise ValueError(
                f"`opt_state` takes the learning rate of {name!r} from a schedule or "
                "an array, so a rate set here would be lost at the next update. "
                "Build the optimizer with a float."
            )

    def replace(path: tuple, node: Any) -> Any:
        name = _label(path)
        if not _is_ours(node) or name not in rates:
            return node
        # `tree.map`, because NNX keeps the leaf inside a variable.
        leaf = jax.tree.map(
            lambda old: jnp.full(old.shape, rates[name], jnp.float32), node[2]
        )
        return node._replace(learning_rate=leaf)

    return jax.tree_util.tree_map_with_path(replace, opt_state, is_leaf=_is_ours)


def _is_ours(node: Any) -> bool:
    return getattr(node, "_fields", ())[:3] == ("count", "step", "learning_rate")


def _our_states(opt_state: PyTree) -> dict[str, Any]:
    nodes = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=_is_ours)
    found = {_label(path): node for path, node in nodes if _is_ours(node)}
    if not found:
        raise ValueError(
            "`opt_state` must hold the state of `adamw_tf` or `adafactor_tf`, got "
            f"{type(opt_state).__name__} without one. Pass the whole optimizer state."
        )
    return found


def _label(path: tuple) -> str:
    """The label under `optax.multi_transform`, or the whole path."""
    parts = _tree.leaf_name(path).split(".")
    if "inner_states" in parts:
        return parts[parts.index("inner_states") + 1]
    return ".".join(parts)


def _array(state: Any) -> jax.Array:
    (leaf,) = jax.tree.leaves(state.learning_rate)
    return leaf
