"""Reading and changing the learning rate in the state of any optimizer.

Leaves are found by their paths: a state looks different as NamedTuples, in an NNX
`State` and in the dict of `flax.serialization.to_state_dict`, but the path of
a leaf ends with the same names in all of them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks, _pytrees
from .._typing import PyTree, Scalar
from ._learning_rate import SCHEDULE, SET

Path = tuple[Any, ...]

# Usual names of an injected learning rate other than `learning_rate`.
_SHORT = ("lr", "rate", "peak_lr", "base_lr", "init_lr", "max_lr")


class _Place(NamedTuple):
    """Location of one learning rate in a tree."""

    state: Path  # of the state of one of our optimizers
    injected: Path | None  # of the `InjectStatefulHyperparamsState` around it
    is_scheduled: bool  # by a schedule that was passed to `optax.inject_hyperparams`


def get_learning_rate(opt_state: PyTree) -> jax.Array | dict[str, jax.Array]:
    """Returns the learning rate that the last update used.

    For Adafactor with `relative_step` it is the relative step, before the scale of the
    parameter: what Transformers' `get_adafactor_schedule` is for.

    Args:
        opt_state: any tree with the state of one of our optimizers in it: of a chain,
            `optax.multi_transform` or `optax.inject_hyperparams`, a Linen `TrainState`,
            an `nnx.Optimizer`, `nnx.state` of it, or one of these as a dict.

    Returns:
        A scalar, (), float32; if there are several of our optimizers, a dict from
        the label that `optax.multi_transform` has for each (if labels do not
        tell them apart, from its path) to its rate. Before the first update, the
        initial rate.

    Raises:
        ValueError: if none of our states is in it.
    """
    leaves = _leaves(opt_state)
    rates = {
        # A copy outlives the state, whose buffers a step may take over.
        name: jnp.array(leaves[*place.state, "learning_rate"], copy=True)
        for name, place in _places(opt_state, leaves).items()
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
        learning_rate: the new rate, at least 0; or a dict with keys of the dict that
            `get_learning_rate` returns, to set some of several optimizers.

    Returns:
        A new state of the same structure.

    Raises:
        ValueError: if none of our states is in it, if a key names none of them, or if
            the next update would replace the rate: it comes from a schedule or from
            another hyper-parameter of `optax.inject_hyperparams`.
    """
    leaves = _leaves(opt_state)
    places = _places(opt_state, leaves)
    if isinstance(learning_rate, Mapping):
        rates = dict(learning_rate)
    else:
        rates = dict.fromkeys(places, learning_rate)
    new: dict[Path, Any] = {}
    for name, rate in rates.items():
        if name not in places:
            raise ValueError(
                "`learning_rate` must be for the optimizers that `get_learning_rate` "
                f"names, {list(places)}, got one for {name!r}."
            )
        _checks.non_negative("learning_rate", rate)
        place = places[name]
        of = f" of {name!r}" if len(places) > 1 else ""
        _check_can_be_set(place, leaves, of)
        new[*place.state, "learning_rate"] = rate
        if place.injected is None:
            new[*place.state, "rate_source"] = SET
            continue
        new[*place.injected, "hyperparams", "learning_rate"] = rate
        sharing = [n for n, p in places.items() if p.injected == place.injected]
        if not set(sharing) <= set(rates):
            raise ValueError(
                "`learning_rate` must have an entry for each optimizer that "
                f"`optax.inject_hyperparams` gives one rate, {sharing}, got {rates!r}."
            )

    def replace(path: tuple, leaf: Any) -> Any:
        keys = _pytrees.path_keys(path)
        return jnp.full_like(leaf, new[keys]) if keys in new else leaf

    return jax.tree_util.tree_map_with_path(replace, opt_state)


def _leaves(opt_state: PyTree) -> dict[Path, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    return {_pytrees.path_keys(path): leaf for path, leaf in leaves}


def _places(opt_state: PyTree, leaves: Mapping[Path, Any]) -> dict[Any, _Place]:
    """The learning rates by the names that `get_learning_rate` gives them."""
    paths = [
        keys[:-1]
        for keys in leaves
        if keys[-1:] == ("rate_source",) and (*keys[:-1], "learning_rate") in leaves
    ]
    if not paths:
        raise ValueError(
            "`opt_state` must hold the state of one of our optimizers, such as "
            f"`adamw_tf`, got {type(opt_state).__name__} without one. Pass the whole "
            "optimizer state."
        )
    names = _names(paths)
    return {names[path]: _place(path, leaves) for path in paths}


def _place(path: Path, leaves: Mapping[Path, Any]) -> _Place:
    for i in reversed(range(len(path))):
        if path[i] == "inner_state":
            around = path[:i]
            if (*around, "hyperparams", "learning_rate") in leaves:
                schedule = (*around, "hyperparams_states", "learning_rate")
                has_schedule = any(k[: len(schedule)] == schedule for k in leaves)
                return _Place(path, around, has_schedule)
    return _Place(path, None, False)


def _check_can_be_set(place: _Place, leaves: Mapping[Path, Any], of: str) -> None:
    """Raises if the next update would replace a rate that is set now."""
    source = leaves[*place.state, "rate_source"]
    is_scheduled = _checks.is_concrete(source) and np.any(
        np.asarray(source) == SCHEDULE
    )
    if is_scheduled or place.is_scheduled:
        raise ValueError(
            f"`opt_state` takes the learning rate{of} from a schedule, so a rate set "
            "here would be lost at the next update. Build the optimizer with a float. "
            "A state that was restored from a run with a schedule can be set after "
            "its first update with a float."
        )
    injected = {
        keys[-1]
        for keys in leaves
        if keys[-2:-1] == ("hyperparams",)
        and place.state[: len(keys) - 1] == (*keys[:-2], "inner_state")
    }
    others = sorted(n for n in injected if "learning_rate" in n or n in _SHORT)
    if place.injected is None and others:
        raise ValueError(
            f"`opt_state` takes the learning rate{of} from `optax.inject_hyperparams`, "
            f"which has it as {others[0]!r}. Set "
            f"`opt_state.hyperparams[{others[0]!r}]`, or call the argument "
            "`learning_rate`."
        )


def _names(paths: list[Path]) -> dict[Path, Any]:
    """The labels of `optax.multi_transform` where they tell all apart, else paths."""
    labels = {path: _label(path) for path in paths}
    if None not in labels.values() and len(set(labels.values())) == len(paths):
        return labels
    return {path: ".".join(map(str, path)) for path in paths}


def _label(path: Path) -> Any:
    return path[path.index("inner_states") + 1] if "inner_states" in path else None
