"""Learning rate of the optimizers: its fields in the state, and functions on them.

A learning rate is a float, a 0-d array or a schedule. All optimizers store it in the
same three fields, so that every state has the same structure:

- `step`: number of updates, the argument of a schedule. It is counted for constant
  rates too.
- `learning_rate`: rate of the last update; float64 if a parameter is, else float32.
- `rate_source`: `CONSTANT`, `SCHEDULE` or `SET`, the origin of that rate.

A schedule is evaluated at `step` at every update. A float initializes `learning_rate`,
and updates read the field from then on: the rate can be changed between steps without
recompiling. An array replaces `learning_rate` at every update, as
`optax.inject_hyperparams` and `vmap` require, until `set_learning_rate` has set another
rate.

A state can be restored into an optimizer with another kind of rate. The first update
then uses the following rate:

    saved with         restored into      rate
    float or array     float              the saved rate, as in torch
    float or array     schedule           schedule(step): the schedule is continued
    float or array     array              the array
    set by hand        float or array     the rate that was set
    schedule           float or array     the float or array of the optimizer, because
                                          the saved rate belongs to the schedule
    schedule           schedule           schedule(step)

The relative step of Adafactor counts as a schedule. It is a function of the number of
moment updates.

`get_learning_rate` and `set_learning_rate` find the fields by their paths. A state has
different containers as NamedTuples, in an NNX `State` and in the dict of
`flax.serialization.to_state_dict`, but the path of a leaf ends with the same names in
all of them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import _checks, _pytrees
from .._numerics import ExactScalar, double_float, widest_dtype
from .._typing import PyTree, Scalar, ScalarOrSchedule

# Values of `rate_source`.
CONSTANT, SCHEDULE, SET = 0, 1, 2

# Common names of an injected learning rate other than `learning_rate`.
_SHORT_NAMES = ("lr", "rate", "peak_lr", "base_lr", "init_lr", "max_lr")

_Path = tuple[Any, ...]


class Rate(NamedTuple):
    """Learning rate of one update, in the dtype of the leaves that use it."""

    value: jax.Array  # (), float32 or float64
    # Python float that the optimizer was given; None for a schedule or an array
    given: float | None = None

    def exact(self) -> ExactScalar:
        """Returns the rate with the digits of the given float, unless it has changed.

        The state stores the rate in float32. A float such as 5e-5 has more digits, and
        torch uses them all when it multiplies the rate with weight decay.
        """
        if self.value.dtype == jnp.float64:
            return self.value
        pair = double_float.from_float32(self.value)
        if self.given is None:
            return pair
        given = double_float.from_float(self.given)
        # An unequal value was set by `set_learning_rate` or restored from a state.
        return double_float.select(self.value == given.high, given, pair)


class _Location(NamedTuple):
    """Location of one learning rate in a tree."""

    state: _Path  # path of the state of an optimizer of this package
    injected: _Path | None  # path of the `InjectStatefulHyperparamsState` around it
    is_scheduled: bool  # whether `optax.inject_hyperparams` was given a schedule


def check(learning_rate: ScalarOrSchedule) -> None:
    """Raises unless `learning_rate` is a schedule or a number that is at least 0."""
    if not callable(learning_rate):
        _checks.non_negative("learning_rate", learning_rate)


def init(
    learning_rate: ScalarOrSchedule, params: PyTree
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the fields `step`, `learning_rate` and `rate_source` of a new state."""
    step = jnp.zeros((), jnp.int32)
    source = SCHEDULE if callable(learning_rate) else CONSTANT
    rate = _given(learning_rate, step, widest_dtype(params))
    return step, rate, jnp.asarray(source, jnp.int32)


def current(learning_rate: ScalarOrSchedule, state: Any, dtype: Any) -> Rate:
    """Returns the rate of this update in `dtype`, float32 or float64."""
    given = _given(learning_rate, state.step, dtype)
    if callable(learning_rate):
        return Rate(given)
    stored = jnp.asarray(state.learning_rate, dtype)
    # The rate is selected by `where` and not by Python, because `rate_source` is traced
    # in a compiled step.
    if isinstance(learning_rate, jax.Array):
        return Rate(jnp.where(state.rate_source == SET, stored, given))
    return Rate(jnp.where(state.rate_source == SCHEDULE, given, stored), learning_rate)


def advanced(
    learning_rate: ScalarOrSchedule, state: Any, rate: Rate
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the three fields after an update with `rate`."""
    step = optax.safe_increment(state.step)
    if callable(learning_rate):
        return step, rate.value, jnp.full_like(state.rate_source, SCHEDULE)
    source = jnp.where(state.rate_source == SET, SET, CONSTANT)
    return step, rate.value, source.astype(state.rate_source.dtype)


def get_learning_rate(opt_state: PyTree) -> jax.Array | dict[str, jax.Array]:
    """Returns the learning rate that the last update used.

    For Adafactor with `relative_step` this is the relative step before the parameter
    scale, which Transformers' `get_adafactor_schedule` reports.

    Args:
        opt_state: any tree that contains the state of an optimizer of this package: the
            state of a chain, `optax.multi_transform` or `optax.inject_hyperparams`, a
            Linen `TrainState`, an `nnx.Optimizer`, `nnx.state` of it, or one of these
            as a dict.

    Returns:
        A scalar, (), float32. If the tree contains several optimizers of this package,
        a dict with the rate of each. The keys are the labels of
        `optax.multi_transform`, or paths if the labels are not unique. Before the first
        update, the initial rate.

    Raises:
        ValueError: if `opt_state` contains no state of an optimizer of this package.

    Examples:
        >>> optimizer = optax.chain(clip(1.0), adamw_tf(1e-3))
        >>> print(get_learning_rate(optimizer.init({"kernel": jnp.ones(2)})))
        0.001
    """
    leaves = _leaves(opt_state)
    rates = {
        # A copy, because a step that donates the state deletes its buffers.
        name: jnp.array(leaves[*location.state, "learning_rate"], copy=True)
        for name, location in _locations(opt_state, leaves).items()
    }
    return next(iter(rates.values())) if len(rates) == 1 else rates


def set_learning_rate(
    opt_state: PyTree, learning_rate: Scalar | Mapping[str, Scalar]
) -> PyTree:
    """Returns `opt_state` with another learning rate for the following updates.

    Shapes and dtypes are kept, so that a compiled step is not recompiled. Under
    `optax.inject_hyperparams` the entry of `hyperparams` is set as well.

    Args:
        opt_state: as for `get_learning_rate`.
        learning_rate: the new rate, at least 0. To set the rates of some of several
            optimizers, a dict with keys of the dict that `get_learning_rate` returns.

    Returns:
        A new state of the same structure.

    Raises:
        ValueError: if `opt_state` contains no state of an optimizer of this package, if
            a key matches none of them, or if the next update would replace the rate,
            because it comes from a schedule or from another hyperparameter of
            `optax.inject_hyperparams`.

    Examples:
        >>> optimizer = optax.chain(clip(1.0), adamw_tf(1e-3))
        >>> state = set_learning_rate(optimizer.init({"kernel": jnp.ones(2)}), 1e-4)
        >>> print(get_learning_rate(state))
        1e-04
    """
    leaves = _leaves(opt_state)
    locations = _locations(opt_state, leaves)
    if isinstance(learning_rate, Mapping):
        rates = dict(learning_rate)
    else:
        rates = dict.fromkeys(locations, learning_rate)
    new: dict[_Path, Any] = {}
    for name, rate in rates.items():
        if name not in locations:
            raise ValueError(
                "`learning_rate` must be for the optimizers that `get_learning_rate` "
                f"names, {list(locations)}, got one for {name!r}."
            )
        _checks.non_negative("learning_rate", rate)
        location = locations[name]
        of_name = f" of {name!r}" if len(locations) > 1 else ""
        _check_can_be_set(location, leaves, of_name)
        new[*location.state, "learning_rate"] = rate
        if location.injected is None:
            new[*location.state, "rate_source"] = SET
            continue
        # At each update optax passes this entry to the inner optimizer, which would
        # overwrite the rate in the inner state.
        new[*location.injected, "hyperparams", "learning_rate"] = rate
        sharing = [n for n, p in locations.items() if p.injected == location.injected]
        if not set(sharing) <= set(rates):
            raise ValueError(
                "`learning_rate` must have an entry for each optimizer that "
                f"`optax.inject_hyperparams` gives one rate, {sharing}, got {rates!r}."
            )

    def replace(path: tuple[Any, ...], leaf: Any) -> Any:
        # `full_like` keeps shape, dtype and sharding: a compiled step is reused.
        keys = _pytrees.path_keys(path)
        return jnp.full_like(leaf, new[keys]) if keys in new else leaf

    return jax.tree_util.tree_map_with_path(replace, opt_state)


def _given(learning_rate: ScalarOrSchedule, step: jax.Array, dtype: Any) -> jax.Array:
    rate: Any = learning_rate
    if callable(learning_rate):
        # Schedules return float64 for an int64 step, and float32 for an int32.
        rate = learning_rate(step.astype(jnp.int64) if dtype == jnp.float64 else step)
    # A copy, because a step may donate the state. Without it, donation would delete
    # the array of the caller.
    return jnp.array(rate, dtype, copy=True)


def _leaves(opt_state: PyTree) -> dict[_Path, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    return {_pytrees.path_keys(path): leaf for path, leaf in leaves}


def _locations(opt_state: PyTree, leaves: Mapping[_Path, Any]) -> dict[Any, _Location]:
    """Returns the locations of the learning rates by their names in the result."""
    paths = [
        keys[:-1]
        for keys in leaves
        if keys[-1:] == ("rate_source",) and (*keys[:-1], "learning_rate") in leaves
    ]
    if not paths:
        raise ValueError(
            "`opt_state` must contain the state of an optimizer of jaxopt_tf, such as "
            f"`adamw_tf`, got {type(opt_state).__name__} without one. Pass the whole "
            "optimizer state."
        )
    names = _names(paths)
    return {names[path]: _location(path, leaves) for path in paths}


def _location(path: _Path, leaves: Mapping[_Path, Any]) -> _Location:
    # From the innermost wrapper outwards. Other optax wrappers have an `inner_state`
    # too, but no `hyperparams`.
    for i in reversed(range(len(path))):
        if path[i] == "inner_state":
            wrapper = path[:i]
            if (*wrapper, "hyperparams", "learning_rate") in leaves:
                schedule = (*wrapper, "hyperparams_states", "learning_rate")
                has_schedule = any(k[: len(schedule)] == schedule for k in leaves)
                return _Location(path, wrapper, has_schedule)
    return _Location(path, None, False)


def _check_can_be_set(
    location: _Location, leaves: Mapping[_Path, Any], of_name: str
) -> None:
    """Raises if the next update would replace the new rate."""
    source = leaves[*location.state, "rate_source"]
    is_scheduled = _checks.is_concrete(source) and np.any(
        np.asarray(source) == SCHEDULE
    )
    if is_scheduled or location.is_scheduled:
        raise ValueError(
            f"`opt_state` takes the learning rate{of_name} from a schedule, so a rate "
            "set here would be lost at the next update. Build the optimizer with a "
            "float. A state that was restored from a run with a schedule can be set "
            "after its first update with a float."
        )
    injected = {
        keys[-1]
        for keys in leaves
        if keys[-2:-1] == ("hyperparams",)
        and location.state[: len(keys) - 1] == (*keys[:-2], "inner_state")
    }
    rate_names = sorted(
        n for n in injected if "learning_rate" in n or n in _SHORT_NAMES
    )
    if location.injected is None and rate_names:
        raise ValueError(
            f"`opt_state` takes the learning rate{of_name} from "
            f"`optax.inject_hyperparams`, which stores it as {rate_names[0]!r}. Set "
            f"`opt_state.hyperparams[{rate_names[0]!r}]`, or call the argument "
            "`learning_rate`."
        )


def _names(paths: list[_Path]) -> dict[_Path, Any]:
    """Returns the labels of `optax.multi_transform` if they are unique, else paths."""
    labels = {path: _label(path) for path in paths}
    if None not in labels.values() and len(set(labels.values())) == len(paths):
        return labels
    return {path: ".".join(map(str, path)) for path in paths}


def _label(path: _Path) -> Any:
    return path[path.index("inner_states") + 1] if "inner_states" in path else None
