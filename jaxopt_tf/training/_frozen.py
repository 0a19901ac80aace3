"""Frozen parameters: arrays that the loss reads and that no step changes.

trainable, frozen = split_params(params, ["model.embed_tokens.*"])
train_step = make_train_step(loss_fn, optimizer, frozen=frozen)
state = init_train_state(trainable, optimizer)
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from .. import _pytrees
from .._typing import PyTree


class FrozenStep:
    """Compiled step whose last argument, the frozen parameters, is bound.

    The arrays are an argument of the compiled program. As values of a closure, they
    would be constants of it: they would be stored in the program once more, compiled
    with it, and folded into other constants.

    Attributes:
        frozen: the bound parameters: arrays, or `jax.ShapeDtypeStruct`s to compile the
            step without arrays.
    """

    def __init__(self, function: Any, frozen: PyTree):
        """Binds `frozen` to `function`, a jitted function with a keyword `frozen`."""
        self._function = function
        self.frozen = frozen

    def __call__(self, *args: Any, **extra: Any) -> Any:
        """Calls the compiled function."""
        return self._function(*args, frozen=self.frozen, **extra)

    def lower(self, *args: Any, **extra: Any) -> Any:
        """Lowers the function, as `jax.jit(...).lower`; shapes are sufficient."""
        return self._function.lower(*args, frozen=self.frozen, **extra)

    def trace(self, *args: Any, **extra: Any) -> Any:
        """Traces the function, as `jax.jit(...).trace`; shapes are sufficient."""
        return self._function.trace(*args, frozen=self.frozen, **extra)

    def with_frozen(self, frozen: PyTree) -> "FrozenStep":
        """Returns the same compiled function with other frozen parameters.

        Args:
            frozen: a tree of the same structure, shapes, dtypes and shardings; another
                one is compiled again.
        """
        return FrozenStep(self._function, frozen)


def bind_frozen(
    function: Callable[..., Any], frozen: PyTree | None
) -> Callable[..., Any]:
    """Returns a jitted function, as a `FrozenStep` if there are frozen parameters.

    Args:
        function: jitted function with a keyword `frozen`, whose default is None.
        frozen: frozen parameters; a tree without leaves for none.
    """
    return FrozenStep(function, frozen) if jax.tree.leaves(frozen) else function


def split_params(params: PyTree, patterns: Sequence[str]) -> tuple[PyTree, PyTree]:
    """Splits parameters into those that are trained and those that are frozen.

    Args:
        params: nested dicts of arrays or of their shapes; a dict by torch's name is
            one.
        patterns: regular expressions. A leaf is frozen if one of the patterns matches
            its whole name, such as `model.layers.0.*`.

    Returns:
        The trainable and the frozen parameters: nested dicts without leaves in common
        and without empty dicts. `merge_params` combines them.

    Raises:
        TypeError: if `patterns` is not a list of strings, or `params` is not a dict.
        ValueError: if a pattern is not a regular expression or matches no leaf, or if
            the patterns match all leaves.

    Examples:
        >>> split_params({"head": {"kernel": 1}, "body": {"kernel": 2}}, ["body.*"])
        ({'head': {'kernel': 1}}, {'body': {'kernel': 2}})
    """
    if isinstance(patterns, str) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(
            "`patterns` must be a list of strings, got "
            f"{patterns!r}. Put a single pattern into a list."
        )
    if not isinstance(params, Mapping):
        raise TypeError(
            "`params` must be nested dicts of arrays, got "
            f"{type(params).__name__}. Convert a state of NNX with `nnx.to_pure_dict`."
        )
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"`patterns` must be regular expressions, got {pattern!r}: {error}."
            ) from error
    rules = dict.fromkeys(patterns, True)
    matches = _pytrees.match_rules("patterns", rules, bool, "bool", params)
    if matches and all(matches):
        raise ValueError(
            "`patterns` must leave at least one parameter to train, got "
            f"{list(patterns)}, which match all {len(matches)}. Remove a pattern or "
            "make one narrower."
        )
    flags = jax.tree.unflatten(jax.tree.structure(params), map(bool, matches))
    return _select(params, flags, False), _select(params, flags, True)


def merge_params(params: PyTree, frozen: PyTree) -> PyTree:
    """Combines trainable and frozen parameters into one tree.

    Args:
        params: nested dicts of arrays.
        frozen: nested dicts of arrays without leaves in common with `params`.

    Returns:
        New nested dicts with the leaves of both.

    Raises:
        ValueError: if both have a leaf at one path.
    """
    return _merge(params, frozen, ())


def _merge(params: Any, frozen: Any, path: tuple[Any, ...]) -> Any:
    if not isinstance(params, Mapping) or not isinstance(frozen, Mapping):
        name = ".".join(map(str, path))
        raise ValueError(
            "`frozen` must have no leaf in common with the trainable parameters, got "
            f"{name!r} in both. Split them with `split_params`."
        )
    merged = dict(params)
    for key, value in frozen.items():
        merged[key] = (
            _merge(merged[key], value, (*path, key)) if key in merged else value
        )
    return merged


def _select(params: Any, flags: Any, flag: bool) -> Any:
    """Returns the leaves with one value of `flags`, without empty dicts."""
    if not isinstance(params, Mapping):
        return params
    selected = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            inner = _select(value, flags[key], flag)
            if inner:
                selected[key] = inner
        elif flags[key] is flag:
            selected[key] = value
    return selected
