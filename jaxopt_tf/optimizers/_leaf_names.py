"""Names of leaves, and those that libraries give to biases and norms.

The patterns of the default decay rule find the names of PyTorch and Flax. The table
below has the names that they miss, from Haiku 0.0.17, Keras 3.15 and Penzai 0.2.5. A
name that means something else elsewhere counts only beside the parameter that it comes
with: `b` beside a `w` of more axes, `beta` beside `gamma`.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax

from .. import _pytrees
from .._typing import PyTree, Scalar

# By the last part of a name: the names beside it, one of which must be there.
_BESIDE = {
    "b": ("w", "w_i", "w_h"),  # Haiku's bias; w_i and w_h of its GRU
    "offset": ("scale",),  # Haiku's norms
    "gamma": ("beta",),  # Keras's norms
    "beta": ("gamma",),
}
_PATTERNS = (
    r"normalization(?:_\d+)?\.(?:gamma|beta)$",  # Keras's norms without the other one
    r"(?:^|\.)moving_(?:mean|variance)$",  # Keras's BatchNormalization
    r"(?:^|\.)scale\.weights(?:$|\.)",  # Penzai's norms
)


class LeafNames:
    """Names of the leaves of a tree, and which of them are beside each other."""

    def __init__(self, params: PyTree, names: Sequence[str] | None = None):
        labels = {
            path: node.label
            for path, node in _flat(params, _pytrees.is_labelled)
            if _pytrees.is_labelled(node) and not any(map(_pytrees.is_name, path))
        }
        leaves = _flat(params, _pytrees.is_masked)
        given = iter(names or ())
        self._names: dict[tuple, str] = {}
        self._num_axes: dict[str, int | None] = {}  # by name; None if it is masked
        for path, leaf in leaves:
            name = next((n for p, n in labels.items() if path[: len(p)] == p), None)
            if name is None:
                name = _pytrees.leaf_name(path)
            if names is not None and not _pytrees.is_masked(leaf):
                name = next(given)
            self._names[path] = name
            self._num_axes[with_dots(name)] = getattr(leaf, "ndim", None)

    def __getitem__(self, path: tuple) -> str:
        """Returns the name of the leaf at `path`."""
        return self._names[path]

    def library_reason(self, name: str) -> str:
        """Returns why a library's name is that of a bias or a norm, else ""."""
        name = with_dots(name)
        parent, _, last = name.rpartition(".")
        for other in _BESIDE.get(last, ()):
            beside = f"{parent}.{other}" if parent else other
            if beside in self._num_axes and (
                last != "b" or self._has_fewer_axes(name, beside)
            ):
                return f"{last!r} beside {other!r} in its name"
        for pattern in _PATTERNS:
            if found := re.search(pattern, name):
                return f"{found.group().strip('.')!r} in its name"
        return ""

    def _has_fewer_axes(self, name: str, other: str) -> bool:
        own, others = self._num_axes[name], self._num_axes[other]
        return own is None or others is None or own < others


def check_names(params: PyTree, weight_decay: Scalar | None = None) -> None:
    """Raises if a leaf has no name by which a rule could leave it out."""
    nameless = _pytrees.nameless_leaves(params)
    if not nameless:
        return
    num_leaves = len(jax.tree.leaves(params))
    path, leaf = nameless[0]
    given = "" if weight_decay is None else f" at weight_decay={float(weight_decay):g}"
    raise ValueError(
        "`params` must have names for the default `decay_mask`, which leaves out "
        f"biases and norms by name, got {len(nameless)} of {num_leaves} leaves without "
        f"one{given}, the first being `params{path}` of shape {tuple(leaf.shape)}. "
        "Pass `decay_mask`: a tree of bool like `params`; a callable, such as `lambda "
        "params: jax.tree.map(lambda p: p.ndim > 1, params)`; or, from names, "
        "`decay_mask(params, names=[...])`, for Keras with `names=[v.path for v in "
        "model.trainable_variables]`."
    )


def checked_names(names: Any, params: PyTree) -> list[str]:
    """Returns `names` as a list; raises unless there is one for each leaf."""
    is_list = isinstance(names, Sequence) and not isinstance(names, str)
    if not is_list or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`names` must be a list of strings, got {names!r}.")
    num_leaves = len(jax.tree.leaves(params))
    if len(names) != num_leaves:
        raise ValueError(
            f"`names` must hold one name for each of the {num_leaves} leaves of "
            f"`params`, got {len(names)}. Give them in the order of `jax.tree.leaves`."
        )
    return list(names)


def with_dots(name: str) -> str:
    """Returns a name of Haiku or Keras, whose parts are joined by "/", with dots."""
    return name.replace("/", ".")


def _flat(tree: PyTree, is_leaf: Any) -> list[tuple[tuple, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
