"""Names of the leaves of a tree, and values for leaves by patterns of their names.

A name is a dotted path such as `h.0.attn.kernel`, the same in Linen, NNX and Equinox.
`None` represents a missing leaf, as in optax.
"""

import collections
import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._typing import PyTree

# NNX wraps an array in a variable, which is a node of the tree. Its attribute for the
# array is left out of names, because Linen has no such node.
_WRAPPERS = frozenset({"value", "raw_value"})
# Attributes of NNX, Penzai and Haliax that contain the array of a parameter. They do
# not name it: a leaf whose path has no other string is unnamed.
_ARRAY_ATTRIBUTES = _WRAPPERS | {"array", "data_array"}
# Fields of `QuantizedMoment`, which replaces an array in an optimizer's state.
_FIELDS_OF_MOMENTS = frozenset({"codes", "scales"})


def leaf_name(path: Sequence[Any]) -> str:
    """Returns the path of a leaf, joined by dots; the same in Linen and NNX."""
    return ".".join(map(str, path_keys(path)))


def path_name(path: Sequence[Any]) -> str:
    """Returns the path of any node, joined by dots."""
    return ".".join(str(_key_value(key)) for key in path)


def path_keys(path: Sequence[Any]) -> tuple[Any, ...]:
    """Returns the keys of a leaf's path; the same in Linen and NNX."""
    last = path[-1] if len(path) > 1 else None
    is_wrapped = isinstance(last, jax.tree_util.GetAttrKey) and last.name in _WRAPPERS
    return tuple(map(_key_value, path[:-1] if is_wrapped else path))


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Returns every leaf with its name, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(leaf_name(path), leaf) for path, leaf in leaves]


def leaf_names(tree: PyTree) -> list[str]:
    """Returns the name of every leaf, in the order of `jax.tree.leaves`."""
    return [name for name, _ in named_leaves(tree)]


def owner_names(names: Sequence[str], owners: Collection[str]) -> list[str | None]:
    """Returns the parameter that each leaf of a state belongs to, or None.

    A leaf belongs to a parameter if its name ends with the parameter's name. After that
    it may have `.codes` or `.scales`, the fields of a quantized moment. If several
    parameters match, the one with the most frequent prefix is chosen, because all
    leaves of a moment have the same prefix: `mu.w` belongs to `w` with the prefix `mu`,
    even if another parameter has the name `mu.w`.

    Args:
        names: names of all leaves of the state.
        owners: names of the parameters.
    """
    choices = []
    for name in names:
        words = name.split(".") if name else [""]
        # The last word may be the field of a quantized moment: the path is tried with
        # and without it.
        is_field = words[-1] in _FIELDS_OF_MOMENTS
        candidates = [words, words[:-1]] if is_field else [words]
        # `params` that are a single array have the name "".
        splits = [
            (keys[:i], ".".join(keys[i:]))
            for keys in candidates
            for i in range(len(keys) + 1)
        ]
        choices.append(
            [(tuple(prefix), suffix) for prefix, suffix in splits if suffix in owners]
        )
    num_by_prefix = collections.Counter(
        prefix for choice in choices for prefix, _ in choice
    )
    return [
        max(choice, key=lambda c: (num_by_prefix[c[0]], -len(c[0])))[1]
        if choice
        else None
        for choice in choices
    ]


def unnamed_leaves(params: PyTree) -> list[tuple[str, Any]]:
    """Returns the floating-point leaves without a name, with their paths.

    A leaf has a name if its path contains a string, which is a key of a dict or an
    attribute of a module. Parameters of Penzai are named by their label.
    """
    return [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_labelled)
        if not any(map(is_name, path)) and not is_labelled(leaf)
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]


def is_labelled(node: Any) -> bool:
    """Returns whether `node` is a parameter of Penzai, whose name is its `label`."""
    # The module's name is compared, so that Penzai need not be installed.
    is_penzai = type(node).__module__.partition(".")[0] == "penzai"
    return is_penzai and isinstance(getattr(node, "label", None), str)


def is_name(key: Any) -> bool:
    """Returns whether a key of a path names a parameter or its layer."""
    value = _key_value(key)
    is_array_attribute = (
        isinstance(key, jax.tree_util.GetAttrKey) and value in _ARRAY_ATTRIBUTES
    )
    return isinstance(value, str) and not is_array_attribute


def is_masked(node: Any) -> bool:
    """Returns whether `node` represents a leaf that was left out."""
    return isinstance(node, optax.MaskedNode)


def has_masked_nodes(params: PyTree) -> bool:
    """Returns whether `optax.multi_transform` or `masked` has left leaves out."""
    # `MaskedNode` is an empty container, so it is a leaf only by `is_leaf`.
    return any(map(is_masked, jax.tree.leaves(params, is_leaf=is_masked)))


def map_leaves(
    function: Callable[..., tuple[Any, ...]],
    params: PyTree,
    *rest: PyTree,
    num_results: int,
) -> tuple[PyTree, ...]:
    """Calls `function(name, param, *others)` per leaf and returns a tree per result.

    The trees in `rest` have the structure of `params` down to its leaves. Subtrees in
    place of these leaves are passed unchanged, so that a masked node can represent a
    missing value.
    """
    treedef: Any = jax.tree.structure(params)
    columns = [treedef.flatten_up_to(tree) for tree in rest]
    results = [
        function(name, leaf, *others)
        for (name, leaf), *others in zip(named_leaves(params), *columns, strict=True)
    ]
    return tuple(
        treedef.unflatten([result[i] for result in results]) for i in range(num_results)
    )


def match_rules(
    argument: str, rules: Any, kind: type, kind_name: str, params: PyTree
) -> list[Any]:
    """Returns, for each leaf, the value of the pattern that matches its whole name.

    The value is None for a leaf that no pattern matches.

    Args:
        argument: the caller's name of the argument `rules`, for errors.
        rules: a mapping from regular expressions to values.
        kind: type of the values.
        kind_name: public name of that type, for errors.
        params: tree of parameters. If it has masked leaves, a pattern that matches no
            leaf is accepted, because it may be meant for a masked leaf.

    Raises:
        TypeError: if `rules` is not a mapping from strings to `kind`.
        ValueError: if a pattern is not a regular expression or matches no leaf, or if
            two patterns assign different values to a leaf.
    """
    compiled = _compile_rules(argument, rules, kind, kind_name)
    names = leaf_names(params)
    if not has_masked_nodes(params):
        for pattern in compiled:
            if not any(pattern.fullmatch(name) for name in names):
                near = difflib.get_close_matches(
                    pattern.pattern, names, n=1, cutoff=0.0
                )
                hint = f" The nearest leaf is {near[0]!r}." if near else ""
                raise ValueError(
                    f"`{argument}` must match the full name of at least one leaf with "
                    f"every pattern, got {pattern.pattern!r}, which matches none.{hint}"
                )
    return [_match_name(argument, compiled, name) for name in names]


def _match_name(argument: str, compiled: dict[re.Pattern[str], Any], name: str) -> Any:
    found = {p.pattern: value for p, value in compiled.items() if p.fullmatch(name)}
    if len(set(found.values())) > 1:
        raise ValueError(
            f"`{argument}` must assign to {name!r} one {argument.removesuffix('s')}, "
            f"got different ones from the patterns {sorted(found)}. Make the patterns "
            "mutually exclusive."
        )
    return next(iter(found.values()), None)


def _compile_rules(
    argument: str, rules: Any, kind: type, kind_name: str
) -> dict[re.Pattern[str], Any]:
    if not isinstance(rules, Mapping):
        raise TypeError(
            f"`{argument}` must be a mapping from a pattern for leaf names to a "
            f"{kind_name}, got {rules!r}."
        )
    compiled = {}
    for pattern, value in rules.items():
        if not isinstance(pattern, str) or not isinstance(value, kind):
            raise TypeError(
                f"`{argument}` must map strings to {kind_name}, got "
                f"{pattern!r}: {value!r}."
            )
        try:
            compiled[re.compile(pattern)] = value
        except re.error as error:
            raise ValueError(
                f"`{argument}` must have regular expressions as keys, got "
                f"{pattern!r}: {error}."
            ) from error
    return compiled


def _key_value(key: Any) -> Any:
    """Returns the value of a path's key: a key of a dict, an attribute or an index."""
    # `DictKey` and `FlattenedIndexKey` have `key`, `GetAttrKey` `name`, `SequenceKey`
    # `idx`.
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return key
